"""Tests of peers/doctor."""
