"""Tests of peers/session."""
