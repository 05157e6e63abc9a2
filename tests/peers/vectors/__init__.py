"""Tests of peers/vectors."""
