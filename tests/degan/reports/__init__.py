"""Tests of degan/reports."""
