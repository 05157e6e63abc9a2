"""Tests of degan/worker."""
