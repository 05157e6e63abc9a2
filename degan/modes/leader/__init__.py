"""The common parts of the leader-based modes."""
