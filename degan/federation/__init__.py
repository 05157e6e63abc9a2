"""The cohort of a federated round, its weights, and the swap of discriminators; pure functions."""
