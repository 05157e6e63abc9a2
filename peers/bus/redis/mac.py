"""Seals: who does not have the run's key cannot say anything that its workers take. Pure.

A seal is the first 16 bytes of an HMAC-SHA256 with the run's key over three things: the Redis key under which
something is said, which has the run, the worker, its life and the stream in it (or says that it is the state, or the
lease); its place there, which is the entry's number or the field's name; and what is said. So what was sealed once is
of no use in another place: not under another number, from another worker, in another life, stream or run.

A seal does not show that something is the newest in its place (an older value of the same field, or of the lease, has
one too), nor that nothing is missing; of entries, gaps in the numbers show that.
"""

from __future__ import annotations

import hmac
import struct
from collections import OrderedDict

from peers.types import Buffer

MAC_BYTES = 16
KEY_BYTES = 32
# No MessagePack begins with it, so what is sealed is never taken for what is not.
MARK = b"\xc1"
# How many seals a `Watch` remembers, the oldest forgotten first.
REMEMBERED = 4096

_SIZE = struct.Struct(">Q")
_PLACE = struct.Struct(">QQ")


class Macs:
    """Makes and checks the seals of what is said under one Redis key. May be used by several threads.

    Args:
        run_key: 32 bytes that only the run's workers know.
        name: the Redis key.
    """

    def __init__(self, run_key: bytes, name: str):
        if len(run_key) != KEY_BYTES:
            raise ValueError(f"a run key has {KEY_BYTES} bytes, not {len(run_key)}")
        self._begun = hmac.new(run_key, _sized(name.encode()), "sha256")

    def of_entry(self, number: int, header: Buffer, payload: Buffer) -> bytes:
        """The seal of a stream's entry; the payload is looked at where it lies.

        Args:
            number: of the entry in its stream, below 2**64.
        """
        made = self._begun.copy()
        made.update(_PLACE.pack(number, len(header)))
        made.update(header)
        made.update(payload)
        return made.digest()[:MAC_BYTES]

    def is_of_entry(self, mac: Buffer, number: int, header: Buffer, payload: Buffer) -> bool:
        """Whether this is the seal of that entry."""
        return hmac.compare_digest(self.of_entry(number, header, payload), mac)

    def with_mac(self, field: str, value: Buffer) -> bytes:
        """A field's value with its seal before it; the lease's field has no name."""
        return b"".join((MARK, self._of_field(field, value), value))

    def opened(self, field: str, value: bytes) -> bytes | None:
        """The value that was sealed for that field; None if this is no such thing."""
        mac, inner = value[len(MARK) : len(MARK) + MAC_BYTES], memoryview(value)[len(MARK) + MAC_BYTES :]
        if not value.startswith(MARK) or not hmac.compare_digest(self._of_field(field, inner), mac):
            return None
        return bytes(inner)

    def _of_field(self, field: str, value: Buffer) -> bytes:
        made = self._begun.copy()
        made.update(_sized(field.encode()))
        made.update(value)
        return made.digest()[:MAC_BYTES]


class Watch:
    """Checks the entries that one reader reads, and knows those again that it has checked before."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, tuple[Macs, int]] = OrderedDict()

    def refusal(self, macs: Macs, number: int, header: Buffer, payload: Buffer, mac: Buffer) -> str | None:
        """Why an entry is not to be taken: `replayed` if it was said before in another place, else `seal`."""
        if not isinstance(mac, Buffer) or len(mac) != MAC_BYTES:
            return "mac"
        found = bytes(mac)
        if macs.is_of_entry(found, number, header, payload):
            self._seen[found] = macs, number
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            return None
        place = self._seen.get(found)
        return "replayed" if place and place[0].is_of_entry(found, place[1], header, payload) else "mac"


def difference(has_key: bool, value: Buffer) -> str:
    """How another worker's run key differs from ours, seen from a lease of it that we cannot take.

    Args:
        has_key: whether we have one.
    """
    if not has_key:
        return "it has a run key and this worker has none"
    return (
        "it has another run key than this worker" if value[:1] == MARK else "it has no run key and this worker has one"
    )


def _sized(text: bytes) -> bytes:
    return _SIZE.pack(len(text)) + text
