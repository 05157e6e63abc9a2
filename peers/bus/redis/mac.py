"""MACs: a writer without the run's key cannot make an entry, lease or state that the run's workers take. Pure.

A MAC is the first 16 bytes of an HMAC-SHA256 with the run's key over three things: the Redis key; the place under
that key, which is the entry's number or the field's name; and the content. The Redis key contains the run, the worker,
its incarnation and the stream (or it names the state or the lease). So a MAC is valid in one place only: not under
another number, from another worker, in another incarnation, stream or run.

A MAC shows neither that a value is the newest in its place (an older value of the same field, or of the lease, has
a valid one too), nor that no value is missing; missing entries show as gaps in the numbers.
"""

from __future__ import annotations

import hmac
import struct
from collections import OrderedDict

from peers.types import Buffer

MAC_BYTES = 16
KEY_BYTES = 32
# No MessagePack begins with it, so no value with a MAC is taken for one without.
MARK = b"\xc1"
# How many MACs a `Watch` remembers; it forgets the oldest first.
REMEMBERED = 4096

_SIZE = struct.Struct(">Q")
_PLACE = struct.Struct(">QQ")


class Macs:
    """Makes and checks the MACs under one Redis key. May be used by several threads.

    Args:
        run_key: 32 bytes that only the run's workers know.
        name: the Redis key.
    """

    def __init__(self, run_key: bytes, name: str):
        if len(run_key) != KEY_BYTES:
            raise ValueError(f"a run key has {KEY_BYTES} bytes, not {len(run_key)}")
        self._begun = hmac.new(run_key, _sized(name.encode()), "sha256")

    def of_entry(self, number: int, header: Buffer, payload: Buffer) -> bytes:
        """The MAC of a stream's entry; the payload is not copied.

        Args:
            number: of the entry in its stream, below 2**64.
        """
        made = self._begun.copy()
        made.update(_PLACE.pack(number, len(header)))
        made.update(header)
        made.update(payload)
        return made.digest()[:MAC_BYTES]

    def is_of_entry(self, mac: Buffer, number: int, header: Buffer, payload: Buffer) -> bool:
        """Whether this is the MAC of that entry."""
        return hmac.compare_digest(self.of_entry(number, header, payload), mac)

    def with_mac(self, field: str, value: Buffer) -> bytes:
        """A field's value with its MAC before it; the lease's field has an empty name."""
        return b"".join((MARK, self._of_field(field, value), value))

    def opened(self, field: str, value: bytes) -> bytes | None:
        """The value of that field without its MAC; None if the MAC is not valid for the field."""
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
    """Checks the entries of one reader, and recognises an entry that it has checked before."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, tuple[Macs, int]] = OrderedDict()

    def refusal(self, macs: Macs, number: int, header: Buffer, payload: Buffer, mac: Buffer) -> str | None:
        """Why an entry is refused: `replayed` for a MAC that was seen in another place, else `mac`; None to take it."""
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
    """How another worker's run key differs from ours, seen from a lease of its own that we cannot take.

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
