"""Benchmarks: each is a command that prints tables, and last one JSON line with its bars."""
