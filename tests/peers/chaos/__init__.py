"""Tests of peers/chaos."""
