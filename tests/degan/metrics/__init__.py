"""Tests of degan/metrics."""
