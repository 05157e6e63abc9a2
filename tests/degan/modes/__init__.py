"""Tests of degan/modes."""
