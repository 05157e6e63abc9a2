"""Tests of degan/artifacts."""
