"""Tests of degan/data."""
