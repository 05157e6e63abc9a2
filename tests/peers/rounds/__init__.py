"""Tests of peers/rounds."""
