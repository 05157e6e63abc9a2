"""Tests of degan/learners."""
