"""Tests of peers/codecs."""
