"""Tests of degan/federation."""
