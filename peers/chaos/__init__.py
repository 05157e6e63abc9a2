"""Faults and attacks by script, for tests and benchmarks."""
