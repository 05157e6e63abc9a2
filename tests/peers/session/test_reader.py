"""The thread that reads passes over nothing, and drops no peer unread or twice."""

from __future__ import annotations

import pytest

from peers.errors import BusError, LeaseExpiredError, PeersError
from peers.session import reader as reader_module
from peers.session.reader import LAST_READS, PeerReader
from peers.types import Entry, Lease


class Notes:
    """Bus, inbox and gate in one: all of their calls, in order."""

    servers = ((1, 2),)

    def __init__(self):
        self.told, self.lines, self.members = [], [], {1, 2}
        self.entries: list = []
        self.damaged: set = set()
        self.served: set = set()

    # The bus.

    def follow(self, peer, incarnation, after=0):
        self.told.append(("follow", peer, incarnation))

    def receive(self, server, timeout_s):
        self.served.add(server)
        found = self.entries.pop(0) if self.entries else []
        if isinstance(found, Exception):
            raise found
        return found

    def read_again(self, entry):
        self.told.append(("again", entry.sender, entry.sequence))

    # The inbox.

    def feed(self, entry, may_come_again=False):
        self.told.append(("feed", entry.sender, entry.sequence))
        return not (may_come_again and (entry.sender, entry.sequence) in self.damaged)

    def count(self, reason, how_many=1):
        self.told.append((reason, how_many))

    # The gate.

    def is_member(self, peer):
        return peer in self.members

    def drop(self, peer, reason):
        self.members.discard(peer)
        self.told.append(("drop", peer, reason))

    def returned(self, peer):
        self.told.append(("returned", peer))

    def restarted(self, peer, incarnation):
        self.told.append(("restarted", peer, incarnation))

    def fail(self, error):
        self.told.append(("fail", error))


def entry(sender, sequence, is_direct=False, incarnation="a"):
    return Entry(sender, incarnation, sequence, True, b"", b"", is_direct)


def lease(peer, incarnation="a", host="host7/boot/1"):
    return Lease(peer, incarnation, host, 1, "")


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def reader(notes):
    return PeerReader(notes, 0, notes, notes, 20.0, {1: "a", 2: "a"}, notes.lines.append)


def test_a_changed_entry_is_read_again_and_later_ones_wait(reader, notes):
    notes.damaged = {(1, 2)}
    batch = [entry(1, 1), entry(1, 2), entry(1, 3), entry(2, 7), entry(1, 5, is_direct=True)]
    assert reader._hand_on(batch)
    feeds = [("feed", 1, 1), ("feed", 1, 2), ("damaged", 1), ("again", 1, 2), ("feed", 2, 7), ("feed", 1, 5)]
    assert notes.told == feeds
    # The reader reads the entry again once and no more, because it may have been published like that.
    notes.told.clear()
    assert reader._hand_on([entry(1, 2), entry(1, 3)])
    assert notes.told == [("feed", 1, 2), ("feed", 1, 3)]
    # The entry of that number in another incarnation has not been read again yet.
    notes.told.clear()
    reader._hand_on([entry(1, 2, incarnation="b")])
    assert notes.told == [("feed", 1, 2), ("damaged", 1), ("again", 1, 2)]
    assert not reader._hand_on([])


def test_a_peer_without_a_lease_is_dropped_once_after_all_its_entries(reader, notes):
    notes.entries = [[entry(1, 1)], [entry(1, 2)]]
    leases = {1: None, 2: lease(2)}
    reader._watch(leases)
    reader._watch(leases)
    assert notes.told == [("feed", 1, 1), ("feed", 1, 2), ("drop", 1, "its lease has expired")]


def test_a_peer_that_is_no_member_is_not_dropped(reader, notes):
    notes.members = {2}
    reader._watch({1: None, 2: lease(2)})
    assert notes.told == []


def test_the_same_incarnation_is_back_where_it_was(reader, notes):
    reader._watch({1: None, 2: lease(2)})
    notes.told.clear()
    reader._watch({1: lease(1), 2: lease(2)})
    reader._watch({1: lease(1), 2: lease(2)})
    assert notes.told == [("returned", 1)]
    # The peer may go again.
    notes.members.add(1)
    reader._watch({1: None, 2: lease(2)})
    assert notes.told[1:] == [("drop", 1, "its lease has expired")]


def test_another_incarnation_is_followed_from_its_beginning_after_the_rest_of_the_first(reader, notes):
    notes.entries = [[entry(1, 9)]]
    reader._watch({1: lease(1, "b"), 2: lease(2)})
    reader._watch({1: lease(1, "b"), 2: lease(2)})
    assert notes.told == [("feed", 1, 9), ("restarted", 1, "b"), ("follow", 1, "b")]
    assert notes.lines == ["worker 1 was started again on host7"]


def test_another_incarnation_after_an_absence_is_followed_and_not_taken_for_the_first(reader, notes):
    reader._watch({1: None, 2: lease(2)})
    notes.told.clear()
    reader._watch({1: lease(1, "b"), 2: lease(2)})
    assert notes.told == [("restarted", 1, "b"), ("follow", 1, "b")]


def test_a_peer_that_was_never_there_is_followed_without_a_word(notes):
    reader = PeerReader(notes, 0, notes, notes, 20.0, {2: "a"}, notes.lines.append)
    reader._watch({1: lease(1, "x"), 2: lease(2)})
    assert notes.told == [("follow", 1, "x")] and notes.lines == []


def test_the_remaining_entries_are_read_to_their_end_but_not_for_ever(reader, notes):
    notes.entries = [[entry(1, k)] for k in range(10 * LAST_READS)]
    reader._watch({1: None, 2: lease(2)})
    assert notes.told[-1] == ("drop", 1, "its lease has expired")
    assert len(notes.told) == LAST_READS + 1


# --- a server that is away -------------------------------------------------------------------------


class Script:
    """The script of a reader thread: the time, and the answer of its server at each turn."""

    def __init__(self, reader, notes, turns):
        """The pairs `turns` hold the time and the leases, or an error."""
        self.reader, self.notes, self.turns, self.now = reader, notes, list(turns), 0.0
        reader._closing = self
        notes.leases = self.leases

    def is_set(self):
        if not self.turns:
            return True
        self.now = self.turns[0][0]
        return False

    def wait(self, timeout_s):
        return not self.turns

    def leases(self, server):
        self.notes.served.add(server)
        _, found = self.turns.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def monotonic(self):
        return self.now


def play(reader, notes, turns, monkeypatch):
    script = Script(reader, notes, turns)
    monkeypatch.setattr(reader_module, "time", script)
    reader._run()


GONE = BusError("Redis at host:1: refused")


def test_a_server_that_is_away_for_a_lease_drops_all_its_peers(reader, notes, monkeypatch):
    here = {1: lease(1), 2: lease(2)}
    play(reader, notes, [(100.0, here), (105.0, GONE), (119.9, GONE)], monkeypatch)
    assert notes.told == [] and notes.lines == ["Redis at host:1: refused; trying again"]
    turns = [(200.0, here), (205.0, GONE), (220.1, GONE), (221.0, GONE), (230.0, here)]
    notes.lines.clear()
    play(reader, notes, turns, monkeypatch)
    reason = "its Redis has not answered for 20 s"
    assert notes.told == [("drop", 1, reason), ("drop", 2, reason), ("returned", 1), ("returned", 2)]
    assert notes.lines == ["Redis at host:1: refused; trying again", "the Redis of workers 1, 2 answers again"]


def test_an_outage_that_each_connection_meets_is_one_outage(reader, notes, monkeypatch):
    here = {1: lease(1), 2: lease(2)}
    # The leases are there again, but the connection for the entries is still the old one.
    notes.entries = [[], GONE, []]
    play(reader, notes, [(100.0, here), (105.0, GONE), (106.0, here), (107.0, here)], monkeypatch)
    assert notes.lines == ["Redis at host:1: refused; trying again", "the Redis of workers 1, 2 answers again"]


def test_a_reader_serves_its_own_server_and_no_other(notes, monkeypatch):
    notes.servers, notes.members = ((1, 2), (3, 5)), {1, 2, 3, 5}
    reader = PeerReader(notes, 1, notes, notes, 20.0, {3: "a", 5: "a"}, notes.lines.append)
    here = {3: lease(3), 5: None}
    play(reader, notes, [(100.0, here), (105.0, GONE), (121.0, GONE), (122.0, here)], monkeypatch)
    assert notes.served == {1}
    assert [told[:2] for told in notes.told] == [("drop", 5), ("drop", 3), ("returned", 3)]
    assert notes.lines[-1] == "the Redis of workers 3, 5 answers again"


def test_a_server_that_is_back_may_have_lost_the_leases_for_a_moment(reader, notes, monkeypatch):
    """The heartbeats, every five seconds, write them anew."""
    lost, here = {1: None, 2: None}, {1: lease(1), 2: lease(2)}
    play(reader, notes, [(100.0, here), (103.0, GONE), (104.0, lost), (109.9, lost)], monkeypatch)
    assert notes.told == []
    play(reader, notes, [(110.1, lost)], monkeypatch)
    reason = "its lease has expired"
    assert notes.told == [("drop", 1, reason), ("drop", 2, reason)]


def test_the_leases_are_looked_at_every_second_and_not_at_every_read(reader, notes, monkeypatch):
    looked = []

    class Counted(Script):
        def leases(self, server):
            looked.append(self.now)
            return {1: lease(1), 2: lease(2)}

        def is_set(self):
            self.now += 0.25
            return self.now > 4.0

    script = Counted(reader, notes, [])
    monkeypatch.setattr(reader_module, "time", script)
    reader._run()
    assert looked == [0.25, 1.25, 2.25, 3.25]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LeaseExpiredError("over"), "over"),
        (ZeroDivisionError("by zero"), "reading server 0: ZeroDivisionError: by zero"),
    ],
)
def test_a_failure_in_the_thread_ends_every_wait(reader, notes, monkeypatch, error, told):
    notes.entries = [error]
    play(reader, notes, [(1.0, {1: lease(1), 2: lease(2)}), (2.0, GONE)], monkeypatch)
    ((word, found),) = notes.told
    assert word == "fail" and isinstance(found, PeersError) and str(found) == told
