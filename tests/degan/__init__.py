"""Tests of degan."""
