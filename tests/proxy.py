"""A TCP proxy that behaves like a bad network: slow, thin, torn, deaf, silent, wrong; switched while it runs.

    with Network(seed=7) as network:
        link = network.link(6379)
        ... redis://127.0.0.1:{link.port} ...
        link.weather = Weather(latency_s=0.1, jitter_s=0.05, bytes_per_s=1e6)

All links of a network live in one thread. A cut in one direction holds bytes back rather than losing them, as
TCP sends unacknowledged bytes again: when the weather clears they arrive, unless one side has hung up by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CHUNK_BYTES = 64 * 1024
# The most bytes that are on their way; more than the product of the bandwidths and latencies of the tests.
FLIGHT_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Weather:
    """The behaviour of a link; without any values a link passes everything on at once.

    Attributes:
        latency_s, jitter_s: added to each way: latency plus or minus a random part of jitter; order is kept.
        bytes_per_s: of each direction of each connection.
        reset_every_bytes: a connection is reset each time that so many bytes have passed the link.
        corrupt_every_bytes: one bit is flipped in every so many bytes towards the client.
        is_deaf: nothing passes towards the server.
        is_silent: nothing passes towards the client.
        refuses: new connections are reset at once.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    reset_every_bytes: int | None = None
    corrupt_every_bytes: int | None = None
    is_deaf: bool = False
    is_silent: bool = False
    refuses: bool = False


CLEAR = Weather()
CUT = Weather(is_deaf=True, is_silent=True)


class Link:
    """One port in front of one server.

    Attributes:
        port: to connect to.
        passed_bytes, resets, flips: counts of the bytes that passed, the resets and the flipped bits so far.
    """

    def __init__(self, target: int, seed: str):
        self.port = 0
        self.passed_bytes = self.resets = self.flips = 0
        self._target = target
        # Two generators: the number of draws of jitter depends on the pieces in which the bytes happen to come, and
        # the choice of the flipped bits must not.
        self._jitter, self._bits = random.Random(f"{seed} jitter"), random.Random(f"{seed} bits")
        self._weather, self._changed = CLEAR, asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._next_reset = self._next_flip = 0

    @property
    def weather(self) -> Weather:
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        """Change the weather, from any thread, also for the bytes that are on their way."""
        self._loop.call_soon_threadsafe(self._switch, weather)

    def _switch(self, weather: Weather) -> None:
        self._weather = weather
        self._next_reset = self.passed_bytes + (weather.reset_every_bytes or 0)
        self._next_flip = 0
        self._changed.set()
        self._changed = asyncio.Event()

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        # An accepted connection whose task has not begun would be left open by a cancellation.
        await _turn()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # An aborted transport closes its socket in a later turn of the loop.
        await _turn()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            if self._weather.refuses:
                _reset(writer)
                return
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target, limit=CHUNK_BYTES)
            except OSError:
                _reset(writer)
                return
            self._writers |= {writer, far_writer}
            ways = [
                asyncio.create_task(self._pass(reader, far_writer, False)),
                asyncio.create_task(self._pass(far_reader, writer, True)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                for one in (writer, far_writer):
                    self._writers.discard(one)
                    _reset(one)
        except asyncio.CancelledError:
            _reset(writer)
        finally:
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_towards_client: bool) -> None:
        """Serve one direction of one connection: the bytes that are read now are written when they are due."""
        loop, flight = asyncio.get_running_loop(), asyncio.Queue()
        room, waiting_bytes = asyncio.Event(), 0
        room.set()

        async def read() -> None:
            nonlocal waiting_bytes
            last = 0.0
            while data := await reader.read(CHUNK_BYTES):
                weather = self._weather
                delay_s = weather.latency_s + weather.jitter_s * self._jitter.uniform(-1, 1)
                last = max(last, loop.time() + max(0.0, delay_s))
                flight.put_nowait((last, data))
                waiting_bytes += len(data)
                if waiting_bytes > FLIGHT_BYTES:
                    room.clear()
                    await room.wait()
            flight.put_nowait((last, b""))

        async def write() -> None:
            nonlocal waiting_bytes
            while True:
                due, data = await flight.get()
                if not data:
                    return
                await asyncio.sleep(due - loop.time())
                while self._weather.is_silent if is_towards_client else self._weather.is_deaf:
                    await self._changed.wait()
                if self._weather.bytes_per_s:
                    await asyncio.sleep(len(data) / self._weather.bytes_per_s)
                self.passed_bytes += len(data)
                if self._is_time_to_reset():
                    return
                writer.write(self._corrupted(data) if is_towards_client else data)
                await writer.drain()
                waiting_bytes -= len(data)
                room.set()

        reading = asyncio.create_task(read())
        try:
            await write()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _is_time_to_reset(self) -> bool:
        every = self._weather.reset_every_bytes
        if not every or self.passed_bytes < self._next_reset:
            return False
        self._next_reset = self.passed_bytes + every
        self.resets += 1
        return True

    def _corrupted(self, data: bytes) -> bytes:
        every = self._weather.corrupt_every_bytes
        if not every:
            return data
        changed = bytearray(data)
        if not self._next_flip:
            self._next_flip = self._bits.randrange(1, every + 1)
        while self._next_flip <= len(changed):
            changed[self._next_flip - 1] ^= 1 << self._bits.randrange(8)
            self.flips += 1
            self._next_flip += self._bits.randrange(every // 2 + 1, every + every // 2 + 2)
        self._next_flip -= len(changed)
        return bytes(changed)

    def hang_up(self) -> None:
        """Reset every connection that there is now, from any thread."""
        self._loop.call_soon_threadsafe(lambda: [_reset(writer) for writer in self._writers])


class Network:
    """Links in a thread of their own, which ends with the block.

    Args:
        seed: of the jitter and of the corrupted bits.
    """

    def __init__(self, seed: int = 0):
        self._seed = seed
        self._links: list[Link] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bad-network", daemon=True)

    def __enter__(self) -> Network:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for link in self._links:
            self._call(link.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, what: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(what(), self._loop).result(10)

    def link(self, target: int, weather: Weather = CLEAR) -> Link:
        """A new port in front of the server at a port of this machine."""
        link = Link(target, f"{self._seed} {len(self._links)}")
        self._call(link.open)
        self._links.append(link)
        link.weather = weather
        return link


async def _turn() -> None:
    """Let the loop run all that is due, and what that makes due."""
    for _ in range(3):
        await asyncio.sleep(0)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a cut or a crash does."""
    with contextlib.suppress(OSError, AttributeError):
        handle = writer.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
