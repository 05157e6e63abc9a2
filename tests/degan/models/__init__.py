"""Tests of degan/models."""
