"""Who takes part in a federated round, and whose network goes where; pure."""
