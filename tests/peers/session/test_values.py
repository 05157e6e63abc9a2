"""Small plain values of the session: cursors, the peers to follow, waiting, refusals, queueing."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from peers.bus.redis import refusals
from peers.errors import PeersError, StalledError
from peers.exchange import queued
from peers.session import sender as pool
from peers.session import session
from peers.session.waiting import Waiting, failed
from peers.types import Cursor, Slice
from peers.vectors.graph import complete

# --- cursors ---------------------------------------------------------------------------------------


def test_a_cursor_survives_as_plain_values():
    cursor = Cursor("a", 7, 40)
    assert cursor.to_plain() == ["a", 7, 40]
    assert Cursor.from_plain(["a", 7, 40]) == cursor
    for wrong in ([], ["a", 7], ["a", "x", 1], ["a", [7], [40]], None):
        with pytest.raises((ValueError, TypeError)):
            Cursor.from_plain(wrong)


def test_a_slice_has_a_size():
    assert Slice(3, 8).size == 5 and Slice(3, 3).size == 0


def test_everybody_follows_everybody_else_in_order():
    assert [complete(worker, 3) for worker in range(3)] == [(1, 2), (0, 2), (0, 1)]
    assert complete(0, 1) == ()
    for worker in (-1, 3):
        with pytest.raises(ValueError, match="outside 0..2"):
            complete(worker, 3)


# --- waiting ---------------------------------------------------------------------------------------


class Slept:
    """A condition in which time passes and nothing else happens."""

    def __init__(self, times):
        self.now, self.times = 0.0, times

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait(self, timeout_s):
        self.times.append(timeout_s)
        self.now += timeout_s

    def notify_all(self):
        pass


def waiting(stall_timeout_s):
    lines, times = [], []
    slept = Slept(times)
    found = Waiting(stall_timeout_s, lines.append, lambda: slept.now)
    found._changed = slept
    return found, slept, lines


def test_a_wait_is_logged_after_five_seconds_and_then_ever_more_rarely():
    found, slept, lines = waiting(30.0)
    with pytest.raises(StalledError, match="waited 30 s for a word"):
        found.until(lambda: False, lambda: "a word")
    assert slept.now == 30.0 and max(slept.times) <= 1.0
    assert lines == [f"waiting for a word since {s} s; giving up after 30 s" for s in (5, 10, 20)]


def test_a_wait_may_have_a_deadline_of_its_own_and_ends_at_once_when_done():
    found, slept, lines = waiting(30.0)
    with pytest.raises(StalledError, match="waited 2 s"):
        found.until(lambda: False, lambda: "a word", 2.5)
    assert slept.now == 2.5 and lines == []
    found.until(lambda: True, lambda: "a word", 0.0)
    with pytest.raises(StalledError, match="waited 0 s"):
        found.until(lambda: False, lambda: "a word", 0.0)
    found.until(lambda: slept.now >= 4.0, lambda: "a word")
    assert slept.now < 5.5


def test_the_first_failure_ends_every_wait_even_a_done_one():
    found, slept, _ = waiting(30.0)
    found.check()
    for text in ("first", "second"):
        found.fail(PeersError(text))
    with pytest.raises(PeersError, match="first"):
        found.until(lambda: True, lambda: "a word")
    assert slept.now == 0.0


def test_an_error_of_a_thread_names_its_place():
    ours = StalledError("x")
    assert failed(ours, "reading") is ours
    wrapped = failed(KeyError("k"), "reading server 3")
    assert isinstance(wrapped, PeersError) and str(wrapped) == "reading server 3: KeyError: 'k'"


# --- refusals, and the system ----------------------------------------------------------------------


def test_refusals_are_counted_each_and_logged_once_for_sender_and_reason():
    lines = []
    found = refusals.Refusals(lines.append)
    for sender, reason, how_many in (
        (1, "mac", 1),
        (1, "mac", 3),
        (2, "mac", 1),
        (1, "replayed", 1),
        (3, "mac", 0),
    ):
        found.note(sender, reason, "entry 7 of its outbox", how_many)
    assert found.counts() == {"mac": 5, "replayed": 1}
    assert [line.partition(":")[0] for line in lines] == ["worker 1", "worker 2", "worker 1", "worker 3"]
    assert all("and counted as 'mac'" in line for line in lines[:2]) and "counted" not in lines[3]


def test_counts_add_up_by_reason():
    one, other = {"mac": 2, "late": 1}, Counter(mac=3, gated=4)
    assert session.total(one, other, {}) == {"mac": 5, "late": 1, "gated": 4}
    assert session.total() == {} and one == {"mac": 2, "late": 1}


def test_queueing_is_the_time_that_a_thread_could_have_run_and_did_not(monkeypatch):
    """Linux reports the time in nanoseconds, as the second of three numbers."""

    class File:
        def __init__(self, text):
            self.text = text

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self):
            return self.text

    said = []

    def read(path, encoding):
        said.append(path)
        return File("7000000000 2500000000 99\n")

    monkeypatch.setattr(queued, "open", read, raising=False)
    assert queued.queued_s() == 2.5 and said == ["/proc/thread-self/schedstat"]
    monkeypatch.setattr(queued, "open", lambda path, encoding: File(""), raising=False)
    assert queued.queued_s() == 0.0


# --- a pool ----------------------------------------------------------------------------------------


def test_a_long_drain_is_logged_and_goes_on(monkeypatch):
    monkeypatch.setattr(pool, "LOG_AFTER_S", 0.01)
    release, lines = threading.Event(), []
    jobs = pool.SenderThread(lambda error: lines.append(repr(error)))
    jobs.submit(lambda: release.wait(20))

    def log(line):
        lines.append(line)
        release.set()

    assert jobs.drain(20.0, log)
    assert lines == ["waiting for our own Redis to take what was said since 0.01 s, 20 s at most"]
    jobs.close()
    assert jobs.drain(0.0) and not jobs.submit(lambda: None)
