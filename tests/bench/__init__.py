"""Benchmarks: each is a command that prints tables, and as its last line a JSON object with its bars."""
