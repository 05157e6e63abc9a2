"""The entries of a worker in the course of a run, one by one: kinds, rounds, slices, small numbers and maps."""

from __future__ import annotations

from zlib import crc32

import msgpack
import numpy as np

from peers.bus.memory import MemoryHub
from peers.bus.redis.authenticate import Authenticator
from peers.bus.redis.client import Reader
from peers.bus.redis.keys import Keys
from peers.bus.redis.resp import Busy
from peers.exchange.exchange import Exchange
from peers.exchange.options import Options
from peers.session.meet import Rendezvous, Start
from peers.types import Lease, Slice
from peers.wire.encode import encode_fields, encode_vector
from tests import multi_discriminators as md
from tests.degan.modes import test_federated as federated
from tests.fleets import make_layout, memory_buses

EVERYBODY = -1


def log(hub, worker, incarnation, channel=EVERYBODY):
    """A stream as plain words: kind, round and content; a message of several entries counts once."""
    found = []
    for number, (sequence, head, payload) in enumerate(hub.streams[worker, incarnation, channel].entries, 1):
        fields = msgpack.unpackb(head)
        assert sequence == number, "numbers begin with 1 and have no gap"
        if fields["c"] == "map":
            found.append((fields["k"], fields["r"], msgpack.unpackb(payload)))
        elif fields["i"] == 0:
            words = {"float16": "<f2", "raw": "<f4"}
            values = np.frombuffer(payload, words[fields["c"]]).tolist() if fields["c"] in words else None
            found.append((fields["k"], fields["r"], (fields["a"], fields["b"]), fields["c"], fields.get("x"), values))
    return found


def alone(layout, rules, initial, steps, live=lambda exchange, step: None):
    """The log of one worker without peers, whose values grow by one in each step."""
    hub = MemoryHub()
    bus = hub.bus(0, (), "life-0")
    exchange = Exchange(bus, layout, initial, rules, lambda line: None)
    values = initial.copy()
    try:
        assert exchange.start(Start("together", 0), 0) == 0
        for step in range(1, steps + 1):
            change = np.full(initial.size, step, np.float32)
            if rules.exchange == "parameters":
                values = exchange.exchange(values + change)
            else:
                exchange.exchange(change)
            live(exchange, step)
        exchange.finish(values if rules.exchange == "parameters" else np.zeros_like(values))
    finally:
        exchange.close()
        bus.close()
    return log(hub, 0, "life-0")


HELLO = ("hello", 0, {"is_joining": False, "is_replaying": False})


def test_gradients_in_two_parts():
    """A part holds the gradients since it last left."""

    def live(exchange, step):
        exchange.average(np.array([step, -step], np.float32))
        if step == 2:
            exchange.ask_to_stop(2)

    rules = Options(slack=1, exchange="gradients")
    assert alone(make_layout(5, 2, state_size=2), rules, np.zeros(5, np.float32), 3, live) == [
        HELLO,
        ("part", 1, (0, 2), "raw", None, [1, 1]),
        ("state", 1, (0, 2), "raw", None, [1, -1]),
        ("part", 2, (2, 5), "raw", None, [3, 3, 3]),
        ("state", 2, (0, 2), "raw", None, [2, -2]),
        ("stop", 4, {}),
        ("part", 3, (0, 2), "raw", None, [5, 5]),
        ("state", 3, (0, 2), "raw", None, [3, -3]),
        ("part", 4, (2, 5), "raw", None, [3, 3, 3]),
        ("goodbye", 4, {}),
    ]


def test_parameters_travel_as_differences_to_the_reference_and_at_the_end_whole():
    initial = np.array([1, 2, 3, 4], np.float32)
    agreed = [initial.copy(), initial.copy()]
    agreed[1][:2] = [2, 3]
    bases = [float(crc32(a[part].tobytes())) for a, part in zip(agreed, (slice(0, 2), slice(2, 4)), strict=True)]
    rules, layout = Options(slack=0, exchange="parameters"), make_layout(4, 2, "float16", may_be_whole=True)
    assert alone(layout, rules, initial, 2) == [
        HELLO,
        ("part", 1, (0, 2), "float16", {"b": bases[0]}, [1, 1]),
        ("part", 2, (2, 4), "float16", {"b": bases[1]}, [3, 3]),
        ("part", 3, (0, 2), "raw", None, [4, 5]),
        ("part", 4, (2, 4), "raw", None, [6, 7]),
        ("goodbye", 4, {}),
    ]


def test_an_exact_codec_sends_the_parameters_themselves():
    initial = np.array([1, 2, 3, 4], np.float32)
    assert alone(make_layout(4), Options(slack=0, exchange="parameters"), initial, 2) == [
        HELLO,
        ("part", 1, (0, 4), "raw", None, [2, 3, 4, 5]),
        ("part", 2, (0, 4), "raw", None, [4, 5, 6, 7]),
        ("part", 3, (0, 4), "raw", None, [4, 5, 6, 7]),
        ("goodbye", 3, {}),
    ]


def test_with_automatic_parts_each_part_has_the_number_in_force_and_the_proposal():
    found = alone(make_layout(16, "auto"), Options(slack=0), np.zeros(16, np.float32), 1)
    assert found[1] == ("part", 1, (0, 2), "raw", {"p": 8.0, "w": 8.0}, [1, 1])


# --- joiners ---------------------------------------------------------------------------------------


def peer_publishes(bus, layout, round, values):
    bus.publish(encode_vector(layout, "part", round, Slice(0, 4), np.full(4, values, np.float32)))


def test_a_helper_publishes_admit_and_gives_its_state():
    """The test plays workers 1 and 2 by hand; worker 2 asks for the state."""
    layout, hub = make_layout(4), MemoryHub()
    helper, one, two = (hub.bus(w, tuple({0, 1, 2} - {w}), f"life-{w}") for w in range(3))
    exchange = Exchange(
        helper, layout, np.zeros(4, np.float32), Options(slack=0, exchange="gradients"), lambda line: None
    )
    for bus in (one, two):
        # The reader would drop a worker without a lease at its first look.
        bus.claim(Lease(bus.worker, bus.incarnation, "host", 1, ""), 600.0, lambda old: True)
        bus.publish(encode_fields(layout, "hello", 0, {"is_joining": False, "is_replaying": False}))
        peer_publishes(bus, layout, 1, bus.worker)
    two.send(0, encode_fields(layout, "want", 0, {"token": "t"}))
    try:
        exchange.start(Start("together", 0, {1: "life-1", 2: "life-2"}), 0)
        exchange.exchange(np.ones(4, np.float32))
        # These parts follow the proposal, so a worker that has read them has read the proposal too.
        peer_publishes(one, layout, 2, 5)
        peer_publishes(two, layout, 2, 5)
        exchange.exchange(np.ones(4, np.float32))
        weights = {"model": np.arange(4, dtype=np.float32)}
        exchange.serve(lambda: (weights, {"samples": 640}))
        exchange.leave()
    finally:
        exchange.close()
    assert log(hub, 0, "life-0")[:4] == [
        HELLO,
        ("part", 1, (0, 4), "raw", None, [1, 1, 1, 1]),
        ("part", 2, (0, 4), "raw", None, [1, 1, 1, 1]),
        ("admit", 2, {"worker": 2, "incarnation": "life-2"}),
    ]
    state = hub.states[0, "life-0"]
    assert list(state) == ["t:model:0", "t:rule.norms:0", "t:meta"]
    norms = np.zeros(64, "<f4")
    norms[:6] = [2, 2, 4, 10, 2, 10]
    model = np.arange(4, dtype="<f4").tobytes()
    assert state["t:model:0"] == model
    # The screen of own: immediate holds the norms of the peers and the own one.
    found = sorted(np.frombuffer(state["t:rule.norms:0"], "<f4").tolist())
    assert found == sorted(norms.tolist())
    meta = msgpack.unpackb(state["t:meta"])
    assert list(meta) == ["round", "applied", "values", "rule", "stop_at", "cursors", "parts", "sequence", "arrays"]
    assert meta == {
        "round": 2,
        "applied": 2,
        "values": {"samples": 640},
        "rule": {"offences": []},
        "stop_at": None,
        "cursors": {"1": ["life-1", 2, 3]},
        "parts": {},
        "sequence": 4,
        "arrays": {
            "model": [16, crc32(model)],
            "rule.norms": [256, crc32(state["t:rule.norms:0"])],
        },
    }


def test_a_joiner_publishes_a_greeting_and_asks_its_helper():
    layout, hub = make_layout(4), MemoryHub()
    helper, joiner = (hub.bus(w, (1 - w,), f"life-{w}") for w in range(2))
    exchange = Exchange(joiner, layout, np.zeros(4, np.float32), Options(slack=0), lambda line: None)
    helper.follow(1, "life-1")
    taken = {}

    # The helper answers at the first look of the joiner.
    def answer(peer, incarnation, names, plain=joiner.get_state):
        if not taken:
            # The greeting may come alone, before the proposal is sent.
            while not (proposals := [e for e in helper.receive(0, 20.0) if e.is_direct]):
                pass
            (proposal,) = proposals
            token = msgpack.unpackb(proposal.payload)["token"]
            taken.update(header=msgpack.unpackb(proposal.header), token=token)
            cursors = {"1": ["gone", 1, 1]}
            values = {"round": 6, "applied": 6, "values": {"samples": 1}, "rule": {"offences": []}, "stop_at": 9}
            meta = {**values, "cursors": cursors, "parts": {}, "sequence": 17}
            arrays = {"model": np.ones(4, "<f4").tobytes(), "rule.norms": bytes(256)}
            sums = {name: [len(value), crc32(value)] for name, value in arrays.items()}
            fields = {f"{token}:{name}:0": value for name, value in arrays.items()}
            helper.put_state(fields | {f"{token}:meta": msgpack.packb({**meta, "arrays": sums})}, 20)
        return plain(peer, incarnation, names)

    joiner.get_state = answer
    try:
        found = exchange.start(
            Start("join", 0, {0: "life-0"}, 0), 0, {"model": 4}, lambda arrays, values: taken.update(arrays | values)
        )
        assert found == 6
        exchange.leave()
    finally:
        exchange.close()
    assert taken["header"] | {"z": b""} == {
        "v": 3, "k": "want", "r": 0, "i": 0, "n": 1, "a": 0, "b": 0, "f": b"testtest", "c": "map", "z": b""
    }  # fmt: skip
    assert len(bytes.fromhex(taken["token"])) == 8 and taken["model"].tolist() == [1, 1, 1, 1]
    assert taken["samples"] == 1 and exchange.gate.stop_at == 9
    assert log(hub, 1, "life-1") == [
        ("hello", 0, {"is_joining": True, "is_replaying": False}),
        ("hello", 6, {"is_joining": False, "is_replaying": False}),
        ("goodbye", 6, {}),
    ]


def test_the_hello_of_a_worker_before_it_begins():
    (bus, _) = memory_buses(2)
    meeting = Rendezvous(bus, {"seed": 3, "mode": "x"}, 20, 1, print, print, peer_info={"samples": 7})
    meeting.claim([4, 8])
    meeting.close()
    assert bus._hub.states == {
        (0, "life-0"): {
            "hello": msgpack.packb(
                {"agreed": {"seed": 3, "mode": "x"}, "checkpoints": [4, 8], "peer_info": {"samples": 7}}
            )
        }
    }


# --- the questions to a Redis ----------------------------------------------------------------------


class Listening:
    """A link that answers nothing and keeps the questions."""

    def __init__(self):
        self.asked = []

    def send_small(self, text):
        self.asked.append(text)

    def read(self):
        return None

    def close(self):
        pass


def test_the_next_entries_are_asked_for_in_one_command():
    reader, link = Reader(None, "host:1", Busy(), Authenticator(None, Keys("r"), print)), Listening()
    reader.follow(1, "a1", 41, "out1", "to1")
    reader.follow(2, "a2", 0, "out2", "to2")
    reader._link = link
    assert reader.receive(0.25, 100_000) == []
    expected = ["XREAD", "COUNT", "2", "BLOCK", "250", "STREAMS", "out1", "to1", "out2", "to2", "41-0"] + 3 * ["0-0"]
    words = link.asked[0].decode().split("\r\n")
    assert words[0] == f"*{len(expected)}" and words[2::2] == expected
    assert [int(word[1:]) for word in words[1:-1:2]] == [len(word) for word in expected]
    # The reader asks for large entries one at a time; it blocks for a second at most, and never for ever.
    reader.receive(7.0, 10**7)
    reader.receive(0.0, 10**7)
    assert [said.split(b"\r\n")[n] for said in link.asked[1:] for n in (6, 10)] == [b"1", b"1000", b"1", b"1"]


# --- the modes with a leader -----------------------------------------------------------------------


def shapes(hub):
    """The keys of the maps and of the small numbers, and the codec of the vectors, of each published kind."""
    found = {}
    for stream in hub.streams.values():
        for _, head, payload in stream.entries:
            fields = msgpack.unpackb(head)
            is_map = fields["c"] == "map"
            keys = msgpack.unpackb(payload) if is_map else fields.get("x", {})
            found.setdefault(fields["k"], set()).add((fields["c"], *keys))
    return found


def test_the_messages_of_federated_workers():
    settings = federated.experiment(2, local_steps=1, codec="float16", sampling="balanced", leader_trains=True)
    buses = memory_buses(2)
    federated.Fleet(settings, buses).run(1)
    assert shapes(buses[0]._hub) == {
        "hello": {("map", "is_joining", "is_replaying")},
        "goodbye": {("map",)},
        "round_start": {
            ("map", "term", "stop_at", "void", "cohort", "model", "steps", "deadline_s", "sampled"),
        },
        "round_end": {("map", "term", "stop_at", "void", "model", "steps")},
        "result": {("float16", "term", "d_loss", "g_loss")},
    }
    names = {name for (worker, _), state in buses[0]._hub.states.items() if worker == 0 for name in state}
    assert names == {"hello", "m1.1:model:0", "m1.1:meta", "s1.1:smooth:0", "s1.1:meta"}


def test_the_messages_of_multi_discriminator_workers():
    settings = md.experiment(2, swap_every=1, feedback_codec="float16")
    buses = memory_buses(2)
    md.Fleet(settings, buses).train(2)
    assert shapes(buses[0]._hub) == {
        "hello": {("map", "is_joining", "is_replaying")},
        "goodbye": {("map",)},
        "round_start": {("map", "term", "stop_at", "void", "workers", "is_swap", "deadline_s", "state")},
        "round_end": {("map", "term", "stop_at", "void", "state")},
        "batch": {("raw",)},
        "feedback": {("float16", "term", "d_loss", "g_loss", "exponent")},
        "swap": {("raw", "discriminator")},
    }
    names = list(buses[0]._hub.states[0, "life-0"])
    assert names == ["hello", "g1.2:generator:0", "g1.2:smooth:0", "g1.2:meta", "o1.2:moments:0", "o1.2:meta"]
