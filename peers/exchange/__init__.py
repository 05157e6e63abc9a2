"""The exchange of increments under a staleness bound (SSP)."""
