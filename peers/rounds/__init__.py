"""The pattern of rounds: a leader announces each round and gathers its answers."""
