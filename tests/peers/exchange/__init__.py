"""Tests of peers/exchange."""
