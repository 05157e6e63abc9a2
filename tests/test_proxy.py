"""The bad network of the fault tests behaves as its weather."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from tests.proxy import CLEAR, CUT, Network, Weather


@pytest.fixture
def echo():
    """A server that sends every byte back; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    is_ending = threading.Event()

    def talk(line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            while data := line.recv(65536):
                line.sendall(data)

    def serve() -> None:
        while not is_ending.is_set():
            with contextlib.suppress(OSError):
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    is_ending.set()
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def network():
    with Network(seed=7) as network:
        yield network


def call(port: int, timeout_s: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)


def back(line: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        data = line.recv(count - len(found))
        if not data:
            break
        found += data
    return bytes(found)


def echoed(line: socket.socket, data: bytes) -> bytes:
    """The bytes that come back while `data` is sent."""
    thread = threading.Thread(target=line.sendall, args=(data,), daemon=True)
    thread.start()
    found = back(line, len(data))
    thread.join(10)
    return found


def test_clear_weather_passes_everything(echo, network):
    link = network.link(echo)
    data = bytes(range(256)) * 8192
    with call(link.port) as line:
        assert echoed(line, data) == data
    assert link.passed_bytes == 2 * len(data)


def test_latency_and_bandwidth_take_their_time(echo, network):
    link = network.link(echo)
    with call(link.port) as line:
        times = []
        for weather in (CLEAR, Weather(latency_s=0.05, jitter_s=0.02), Weather(bytes_per_s=2e6)):
            link.weather = weather
            began = time.monotonic()
            assert echoed(line, b"x" * 400_000) == b"x" * 400_000
            times.append(time.monotonic() - began)
    assert times[1] >= 0.06, "both ways have at least 30 ms"
    assert times[2] >= 0.2, "400,000 bytes at 2 MB/s"


def test_a_connection_is_reset_every_so_many_bytes(echo, network):
    link = network.link(echo, Weather(reset_every_bytes=500_000))
    for _ in range(2):
        with call(link.port) as line, pytest.raises(OSError):
            for _ in range(100):
                if not echoed(line, b"x" * 50_000):
                    raise ConnectionResetError
    assert link.resets == 2


@pytest.mark.parametrize(
    "weather", [CUT, Weather(is_deaf=True), Weather(is_silent=True)], ids=["both", "deaf", "silent"]
)
def test_bytes_that_a_cut_holds_back_come_when_it_is_healed(echo, network, weather):
    link = network.link(echo)
    with call(link.port) as line:
        assert echoed(line, b"before") == b"before"
        link.weather = weather
        line.settimeout(0.3)
        line.sendall(b"behind")
        with pytest.raises(TimeoutError):
            line.recv(1)
        link.weather = CLEAR
        line.settimeout(10)
        assert back(line, 6) == b"behind"


def test_corruption_flips_single_bits_the_same_for_the_same_seed_in_whatever_pieces_they_come(echo):
    found = []
    for seed, piece in ((1, 50_000), (1, 1_000), (2, 50_000)):
        with Network(seed) as network:
            link = network.link(echo, Weather(corrupt_every_bytes=10_000))
            with call(link.port) as line:
                data = b"".join(echoed(line, bytes(piece)) for _ in range(50_000 // piece))
        changed = [(place, value) for place, value in enumerate(data) if value]
        assert 3 <= len(changed) == link.flips <= 10
        assert all(value.bit_count() == 1 for _, value in changed)
        found.append(changed)
    assert found[0] == found[1] != found[2]


def test_refusal_and_hanging_up(echo, network):
    link = network.link(echo)
    with call(link.port) as line:
        assert echoed(line, b"x") == b"x"
        link.hang_up()
        with pytest.raises(ConnectionResetError):
            line.recv(1)
    link.weather = Weather(refuses=True)
    with pytest.raises(OSError), call(link.port) as line:
        line.sendall(b"x")
        if not line.recv(1):
            raise ConnectionResetError
