"""The lean Redis connection: any split of the stream reads the same, and no later reply overwrites held parts."""

from __future__ import annotations

import socket
import struct
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.bus.redis import resp
from peers.bus.redis.resp import Busy, Connection, ProtocolError, Replies, ReplyError, bulks, command

# Replies as Python values: bytes are a bulk string, a list is an array, None is nil.
bulk_strings = st.one_of(st.binary(max_size=64), st.binary(min_size=200, max_size=400))
values = st.recursive(
    st.one_of(bulk_strings, st.integers(0, 2**40), st.none()), lambda inner: st.lists(inner, max_size=4), max_leaves=20
)


def written(value) -> bytes:
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return bulks(value)
    return b"*%d\r\n" % len(value) + b"".join(map(written, value))


def plain(value):
    if isinstance(value, list):
        return [plain(item) for item in value]
    return bytes(value) if isinstance(value, memoryview) else value


# Entries of XREAD, and arrays that resemble them.
ids = st.one_of(st.from_regex(rb"[0-9]{1,20}-[0-9]{1,20}", fullmatch=True), st.binary(max_size=30))
kept = st.one_of(st.sampled_from([b"h", b"d", b"\r", b"\n"]), st.binary(max_size=2))
entries = st.one_of(
    st.tuples(ids, st.tuples(kept, bulk_strings, kept, bulk_strings).map(list)).map(list),
    st.tuples(ids, st.tuples(*[kept, bulk_strings] * 3).map(list)).map(list),
    st.tuples(ids, st.lists(bulk_strings, max_size=6)).map(list),
    values,
)
streams = st.lists(st.tuples(bulk_strings, st.lists(entries, max_size=5)).map(list), max_size=3)


class Pieces:
    """A socket that hands out a stream in given pieces."""

    def __init__(self, stream: bytes, sizes: list[int]):
        self._stream, self._sizes = stream, sizes

    def receive_into(self, view: memoryview, needed: int) -> int:
        size = min(self._sizes.pop(0) if self._sizes else 1 << 20, len(view), len(self._stream))
        view[:size] = self._stream[:size]
        self._stream = self._stream[size:]
        return size


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=5), st.lists(st.integers(1, 90), max_size=200), st.integers(1, 512))
def test_any_split_of_the_stream_and_any_buffer_give_the_same_and_keep_it(said, sizes, buffer_bytes):
    pieces = Pieces(b"".join(map(written, said)), sizes)
    replies = Replies(pieces.receive_into, buffer_bytes)
    heard = [replies.read() for _ in said]
    # The comparison comes last: later replies have not overwritten the parts that are held.
    assert [plain(value) for value in heard] == said


@settings(deadline=None)
@given(st.lists(streams, min_size=1, max_size=3), st.lists(st.integers(1, 200), max_size=100), st.integers(1, 2048))
def test_entries_read_the_same_at_once_and_piece_by_piece(said, sizes, buffer_bytes):
    stream = b"".join(map(written, said))
    replies = Replies(Pieces(stream, sizes).receive_into, buffer_bytes)
    heard = [replies.read() for _ in said]
    assert [plain(value) for value in heard] == said


class Slow(Replies):
    """Replies without the short cut."""

    def _entry(self, depth):
        return None


@settings(deadline=None, max_examples=300)
@given(
    streams, st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=3), st.integers(0, 5), st.data()
)
def test_the_short_cut_takes_and_refuses_the_same_as_the_long_way(said, changes, more_depth, data):
    stream = bytearray(b"*1\r\n" * more_depth + written(said))
    for at, text in changes:
        at = min(at, len(stream))
        stream[at : at + len(text)] = text
    sizes = data.draw(st.lists(st.integers(1, 100), max_size=30))
    limits = data.draw(st.tuples(st.integers(0, 4000), st.integers(0, 400)))
    results = []
    for kind in (Replies, Slow):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resp, "MAX_REPLY_BYTES", limits[0])
            patch.setattr(resp, "MAX_BULK_BYTES", limits[1])
            replies = kind(Pieces(bytes(stream), list(sizes)).receive_into, 512)
            try:
                results.append(shown(replies.read()))
            except ConnectionError as error:
                results.append(type(error))
    assert results[0] == results[1]


def shown(value):
    """The type and text of an error, because two errors are never equal; any other value unchanged."""
    if isinstance(value, list):
        return [shown(item) for item in value]
    return str(value) if isinstance(value, ReplyError) else plain(value)


@pytest.mark.parametrize("mac", [[], [b"s", b"\r\n" * 8]])
def test_the_short_cut_is_taken(monkeypatch, mac):
    """Without this test the short cut could be correct and never run."""
    reply = written([[b"key", [[b"%d-0" % k, [b"h", b"x" * 60, *mac, b"d", bytes(5000)]] for k in range(9)]]])
    monkeypatch.setattr(Replies, "_line", counted := Counted(Replies._line))
    assert len(Replies(Pieces(reply, [100, 3000]).receive_into, 65536).read()[0][1]) == 9
    assert counted.calls <= 4 + 7


class Counted:
    """A method that counts its calls."""

    def __init__(self, method):
        self.calls, self._method = 0, method

    def __get__(self, instance, owner):
        def call(*words):
            self.calls += 1
            return self._method(instance, *words)

        return call


def test_a_buffer_is_used_again_once_it_has_no_reader_and_not_before():
    reply = bulks(b"x" * 1000)
    replies = Replies(Pieces(reply * 50, [len(reply)] * 50).receive_into, 2000)
    held = replies.read()
    for _ in range(20):
        assert replies.read() == b"x" * 1000
    assert len(replies._buffers) == 2, "one is held, the other was enough for all the rest"
    assert held == b"x" * 1000
    several = [replies.read() for _ in range(15)]
    assert len(replies._buffers) == resp.KEPT_BUFFERS, "how many are kept is bounded"
    assert all(view == b"x" * 1000 for view in several)


def test_errors_are_values_and_nonsense_ends_the_connection():
    stream = b"*2\r\n-ERR of one\r\n:7\r\n-LOADING not yet\r\n*-1\r\n+OK\r\n"
    replies = Replies(Pieces(stream, []).receive_into, 64)
    inside, seven = replies.read()
    assert isinstance(inside, ReplyError) and str(inside) == "ERR of one" and seven == 7
    loading = replies.read()
    assert isinstance(loading, ReplyError) and str(loading).startswith("LOADING")
    assert replies.read() is None
    assert replies.read() == b"OK"
    with pytest.raises(ConnectionError, match="closed"):
        replies.read()


BULK, ITEMS, LINE = 64 * 2**20, 2**20, 64 * 1024


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"$99999999999\r\n", "99999999999 is beyond 67108864"),
        (b"$%d\r\n" % (BULK + 1), "beyond"),
        (b"*99999999\r\n", "99999999 is beyond 1048576"),
        (b"*%d\r\n" % (ITEMS + 1), "beyond"),
        (b":%d\r\n" % (2**63 + 1), "beyond"),
        (
            b"*1\r\n*2\r\n$3\r\nout\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*4\r\n$1\r\nh\r\n$1\r\nx\r\n$1\r\nd\r\n$67108865\r\n",
            "beyond",
        ),
        (b"$-2\r\n", "-2 is beyond"),
        (b"*-2\r\n", "-2 is beyond"),
        (b"$x\r\n", "no number"),
        (b"$\r\n", "no number"),
        (b"!what\r\n", "no RESP2"),
        (b"\r\n", "no RESP2"),
        (b"$2\r\nabcd", "does not end where it should"),
        (b"$2\r\nab\n\r", "does not end where it should"),
        (b"*1\r\n" * 50, "without end"),
        (b"*1\r\n" * 9, "without end"),
        (b"+" + b"a" * 200_000, "a line without end"),
        (b"+" + b"a" * (LINE + 1000), "a line without end"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_nonsense_and_absurd_sizes_are_refused_before_memory_is_taken(stream, why):
    """The server sends no more than this and keeps the connection open.

    A client that waited for the rest would hang.
    """

    def receive_into(view, needed):
        assert len(view) <= 256 * 1024, "memory is taken for what was said"
        assert pieces._stream, f"more is awaited after {stream[:40]!r}"
        return pieces.receive_into(view, needed)

    pieces = Pieces(stream, [])
    replies = Replies(receive_into, 1024)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=why):
            replies.read()
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert sum(map(len, replies._buffers)) <= 2**20


def test_sizes_up_to_the_limits_are_taken():
    stream = written([1] * 2000) + b"*1\r\n" * 7 + b":5\r\n:%d\r\n:-1\r\n" % 2**63 + b"+" + b"a" * (LINE - 1) + b"\r\n"
    replies = Replies(Pieces(stream, []).receive_into, 64)
    assert replies.read() == [1] * 2000
    assert replies.read() == [[[[[[[5]]]]]]]
    assert [replies.read(), replies.read(), len(replies.read())] == [2**63, -1, LINE - 1]


@pytest.mark.parametrize("kind", [Replies, Slow])
def test_many_small_things_are_a_large_reply_too(monkeypatch, kind):
    """Each item takes memory, and a server could claim any number of them, in nested lists."""
    monkeypatch.setattr(resp, "MAX_REPLY_BYTES", 100_000)
    assert len(kind(Pieces(written([1] * 1000), []).receive_into, 1024).read()) == 1000
    entry = [b"1-0", [b"h", b"x", b"d", b"y"]]
    for large in ([1] * 20_000, [[]] * 20_000, [[1] * 1000] * 20, [[b"key", [entry] * 3000]]):
        with pytest.raises(ProtocolError, match="a reply of more than 100000 bytes"):
            kind(Pieces(written(large), []).receive_into, 1024).read()
    for line in (b"+%b\r\n", b"-%b\r\n"):
        with pytest.raises(ProtocolError, match="a reply of more than 100000 bytes"):
            kind(Pieces(b"*4\r\n" + line % (b"a" * 30_000) * 4, []).receive_into, 1024).read()


# --- expected replies ------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=40), st.binary(max_size=40), st.lists(st.integers(1, 9), max_size=90))
def test_an_expected_reply_is_read_whole_and_not_a_byte_more(text, after, sizes):
    replies = Replies(Pieces(text + bulks(after), sizes).receive_into, 8)
    assert replies.expect(text)
    assert replies.read() == after


@pytest.mark.parametrize("at", range(10))
@pytest.mark.parametrize("size", [1, 3, 10])
def test_a_reply_that_only_begins_as_expected_is_read_as_any_other(at, size):
    """The reply `+OK` followed by an error is no success, in whatever pieces it comes."""
    wanted = b":7\r\n:111\r\n"
    said = bytearray(wanted + b":5\r\n")
    said[at] ^= 1
    pieces = Pieces(bytes(said), [size] * 40)
    replies = Replies(pieces.receive_into, 64)
    assert not replies.expect(wanted)
    heard = replies._buffer[replies._at : replies._end]
    assert bytes(heard) + pieces._stream == said, "nothing has been read"


def test_a_prefix_of_an_expected_reply_is_no_answer():
    """The server has sent a part of the reply and no more, so there is no answer."""
    for said in (b"", b":", b":7\r", b":7\r\n:1"):
        replies = Replies(Pieces(said, [1, 1, 1]).receive_into, 64)
        with pytest.raises(ConnectionError, match="closed"):
            replies.expect(b":7\r\n:11\r\n")


def test_a_reply_has_a_largest_size(monkeypatch):
    """The limit is for each reply by itself: a small reply leaves no room for a larger one."""
    monkeypatch.setattr(resp, "MAX_REPLY_BYTES", 1000)
    small, large = [b"x" * 300, b"x" * 300], [b"x" * 600, b"x" * 600]
    replies = Replies(Pieces(written(small) * 5 + written(large), []).receive_into, 64)
    assert [plain(replies.read()) for _ in range(5)] == [small] * 5
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        replies.read()


class Sluggish:
    """A socket that takes a few bytes at a time; without scatter-gather where it stands for TLS."""

    def __init__(self, at_once: int, has_sendmsg: bool):
        self.taken, self.calls, self._at_once, self._has_sendmsg = b"", 0, at_once, has_sendmsg

    def sendmsg(self, views):
        if not self._has_sendmsg:
            raise NotImplementedError("sendmsg not allowed")
        assert len(views) <= resp.MAX_PIECES
        self.calls += 1
        self.taken += b"".join(views)[: self._at_once]
        return min(self._at_once, sum(map(len, views)))

    def sendall(self, view):
        self.taken += bytes(view)

    def recv_into(self, view):
        return 0


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=60), st.integers(1, 70), st.booleans())
def test_pieces_that_a_socket_takes_bit_by_bit_arrive_whole_and_in_order(pieces, at_once, has_sendmsg):
    sluggish = Sluggish(at_once, has_sendmsg)
    Connection(sluggish, 64).send(pieces)
    assert sluggish.taken == b"".join(pieces)


def test_more_pieces_than_one_call_takes():
    sluggish = Sluggish(1 << 30, True)
    Connection(sluggish, 64).send([b"%d," % k for k in range(2500)])
    assert sluggish.taken == b"".join(b"%d," % k for k in range(2500))
    assert sluggish.calls == 3


def test_large_pieces_over_a_real_socket():
    here, there = socket.socketpair()
    here.settimeout(10)
    there.settimeout(10)
    payload = bytes(range(256)) * 20_000
    sender, receiver = Connection(here, 64), Connection(there, 1024)
    thread = threading.Thread(target=sender.send, args=([b"*2\r\n", bulks(b"h"), bulks(payload)],))
    thread.start()
    try:
        assert [bytes(part) for part in receiver.read()] == [b"h", payload]
        # The next reply is small, and the receiver does not wait for as many bytes as before.
        assert there.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        sender.send_small(b":7\r\n")
        assert receiver.read() == 7
    finally:
        thread.join()
        sender.close()
        with pytest.raises(ConnectionError):
            receiver.read()
        receiver.close()


def test_a_timeout_is_kept_by_the_kernel_and_is_an_error():
    here, there = socket.socketpair()
    here.settimeout(0.05)
    receiver = Connection(here, 64)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        seconds, microseconds = struct.unpack("@ll", here.getsockopt(socket.SOL_SOCKET, option, 16))
        # The kernel rounds to its own ticks.
        assert seconds == 0 and 50_000 <= microseconds <= 60_000
    assert here.gettimeout() is None and receiver._timeout_ms == 50
    for said in (b"", b":7", b"$20000\r\n" + bytes(300)):
        there.sendall(said)
        with pytest.raises(TimeoutError, match="no answer in time"):
            receiver.read()
        receiver._replies._at = receiver._replies._end
    with pytest.raises(TimeoutError, match="nothing more is taken"):
        receiver.send([bytes(2**20)] * 64)
    receiver.close()
    there.close()


def test_a_command_is_an_array_of_bulk_strings():
    assert command(b"XADD", b"k", b"") == b"*3\r\n$4\r\nXADD\r\n$1\r\nk\r\n$0\r\n\r\n"


def test_busy_is_the_union_over_threads():
    now = [0.0]
    busy = Busy(lambda: now[0])
    with busy:
        now[0] = 1.0
        with busy:
            now[0] = 2.0
        now[0] = 3.0
        assert busy.total_s == 3.0
    now[0] = 10.0
    with busy:
        now[0] = 11.0
    assert busy.total_s == 4.0


def test_waiting_for_a_reply_is_not_busy():
    now, stream = [0.0], Pieces(bulks(b"x" * 100), [1, 50, 57])

    def slowly(view, needed):
        now[0] += 1.0
        return stream.receive_into(view, needed)

    busy = Busy(lambda: now[0])
    Replies(slowly, 256, busy).read()
    assert busy.total_s == 2.0, "from the first byte, which came after a second, to the last"
