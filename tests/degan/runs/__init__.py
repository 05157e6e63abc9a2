"""Tests of degan/runs."""
