"""Any bytes of a peer: no exception but ours, bounded time and memory, and every refusal counted once.

Every run of the tests has the quick part; `make slow` has the whole of 100,000 messages.
"""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.bus.redis.mac import Macs, Watch
from peers.codecs.exact import CODECS
from peers.exchange.clock import SspClock
from peers.exchange.gate import ClockGate
from peers.exchange.inbox import Inbox
from peers.exchange.window import Accumulator
from peers.rounds.layout import RoundLayout
from peers.rounds.messages import MessageStore
from peers.types import Entry, Slice
from peers.wire.encode import encode_vector
from tests.byzantine import Corpus
from tests.fleets import make_layout

PART = Slice(0, 600)
MOST_BYTES, MOST_S = 16e6, 0.050
# The receivers and codecs below make 100,000 messages with this number.
CODEC_NAMES = ("raw", "float16", "int8", "topk", "sign")
QUICK, WHOLE = 1_500, 100_000 // (2 * len(CODEC_NAMES))

counts = pytest.mark.parametrize("count", [QUICK, pytest.param(WHOLE, marks=pytest.mark.slow)])


def quiet(_):
    pass


class Partial:
    """The receiver in a partial exchange: worker 0, with peers 1 and 2."""

    kind = "part"

    def __init__(self, codec):
        self.layout = make_layout(PART.size, 1, codec)
        self.gate = ClockGate(SspClock((1, 2), 3), 10, quiet)
        self.accumulator = Accumulator()
        self.inbox = Inbox(0, self.layout, self.accumulator, self.gate)
        self.feed, self.counts = self.inbox.feed, self.inbox.dropped

    def check(self, rounds):
        """Check that exactly the genuine messages have got through."""
        found = self.accumulator.take(rounds)
        assert [(item.sender, item.round) for item in found] == [(1, round) for round in range(1, rounds + 1)]
        assert self.accumulator.take(2**60) == []
        assert self.gate.members() == () and self.gate.stop_at is None and not self.inbox.take_requests()


class LeaderBased:
    """The receiver in rounds with a leader."""

    kind = "result"

    def __init__(self, codec):
        self.layout = RoundLayout(b"testtest", {"result": (PART.size, CODECS[codec])})
        self.message_store = MessageStore(self.layout, 10, quiet)
        self.feed, self.counts = self.message_store.feed, self.message_store.counts

    def check(self, rounds):
        assert self.message_store.received("result", 1).round == rounds
        assert self.message_store.received("result", 2) is None and not self.message_store.live()


@counts
@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("receiver", [Partial, LeaderBased])
def test_every_spoiled_message_is_refused_and_counted_once(receiver, codec, count):
    one = receiver(codec)
    corpus = Corpus(one.layout, one.kind, PART, seed=count)
    sequence, rounds, most_bytes, counted = 0, 0, 0, Counter()
    header = payload = b""
    tracemalloc.start()
    began = time.monotonic()
    try:
        for number in range(count):
            if number % 50 == 0:
                rounds, sequence = rounds + 1, sequence + 1
                header, payload = corpus.genuine(rounds)
                one.feed(Entry(1, "a", sequence, True, header, payload))
                assert one.counts() == counted, "what is genuine is taken, whatever came before it"
            bad_header, bad_payload, reasons = corpus.spoil(header, payload)
            sequence += 1
            entry = Entry(1, "a", sequence, True, bad_header, bad_payload)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            one.feed(entry)
            most_bytes = max(most_bytes, tracemalloc.get_traced_memory()[1] - before)
            now = Counter(one.counts())
            (reason,) = (now - counted).elements()
            assert reason in reasons, (reason, reasons, bad_header[:200])
            counted = now
    finally:
        tracemalloc.stop()
    took_s = time.monotonic() - began
    assert counted.total() == count
    assert most_bytes < MOST_BYTES
    assert took_s < MOST_S * count
    one.check(rounds)


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_a_claim_of_a_terabyte_takes_no_memory(codec):
    layout = make_layout(PART.size, 1, codec)
    corpus, one = Corpus(layout, "part", PART, 0), Partial(codec)
    header, payload = corpus.genuine(1)
    for changes in ({"b": 2**40}, {"b": 2**40, "n": 2**22}, {"n": 2**40}, {"a": 2**40, "b": 2**41}):
        lie = corpus.lie(header, payload, changes)
        tracemalloc.start()
        one.feed(Entry(1, "a", 1, True, lie, payload))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000
    assert one.counts() == {"layout": 4}


@given(st.lists(st.integers(1, 6), max_size=12))
def test_repeated_or_missing_rounds_are_counted(said):
    one, newest, expected = Partial("raw"), None, Counter()
    corpus = Corpus(one.layout, "part", PART, 0)
    for sequence, round in enumerate(said, 1):
        one.feed(Entry(1, "a", sequence, True, *corpus.genuine(round)))
        if newest is not None and round <= newest:
            expected["replayed"] += 1
        elif newest is not None and round > newest + 1:
            expected["overrun"] += round - newest - 1
        newest = max(round, newest or 0)
    assert one.counts() == dict(expected)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2), max_size=9))
def test_chunks_out_of_order_make_no_message(order):
    size = 600_000
    layout = make_layout(size)
    accumulator = Accumulator()
    inbox = Inbox(0, layout, accumulator, ClockGate(SspClock((1,), None), 10, quiet))
    pairs = list(encode_vector(layout, "part", 1, Slice(0, size), np.ones(size, np.float32)))
    assert len(pairs) == 3
    expected, awaited = Counter(), 0
    for sequence, chunk in enumerate(order, 1):
        inbox.feed(Entry(1, "a", sequence, True, *pairs[chunk]))
        if chunk and chunk != awaited:
            expected["incomplete"] += 1
            awaited = 0
        else:
            awaited = chunk + 1
        if awaited == 3:
            expected["whole"] += 1
            awaited = 0
    whole = expected.pop("whole", 0)
    if whole > 1:
        expected["replayed"] = whole - 1
    assert inbox.dropped() == dict(expected)
    assert len(accumulator.take(1)) == min(whole, 1)


@counts
def test_no_spoiled_message_passes_with_the_mac_of_the_genuine_one(count):
    layout = make_layout(PART.size)
    corpus, watch, macs = Corpus(layout, "part", PART, 5), Watch(), Macs(bytes(32), "degan:r:1:a:out")
    found = Counter()
    header, payload = corpus.genuine(1)
    mac = macs.of_entry(1, header, payload)
    assert watch.refusal(macs, 1, header, payload, mac) is None
    for number in range(2, count // 2 + 2):
        bad_header, bad_payload, _ = corpus.spoil(header, payload)
        found[watch.refusal(macs, number, bad_header, bad_payload, mac)] += 1
        found[watch.refusal(macs, number, header, payload, mac)] += 1
    assert found == {"mac": count // 2, "replayed": count // 2}
