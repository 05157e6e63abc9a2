"""Rounds that a leader announces and gathers."""
