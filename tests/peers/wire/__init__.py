"""Tests of peers/wire."""
