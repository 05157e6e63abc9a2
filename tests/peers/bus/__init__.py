"""Tests of peers/bus."""
