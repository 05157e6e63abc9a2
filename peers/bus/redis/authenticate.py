"""What a bus does with the run's key: seals what we say, and checks what the others have said.

Without a run key everything passes as it is, but for a lease that was sealed: whoever wrote that would not take
anything of ours.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from peers.bus.redis.keys import Keys
from peers.bus.redis.mac import MARK, Seals, difference
from peers.bus.redis.refusals import Refusals
from peers.errors import MessageError
from peers.types import Buffer, Lease

_encode_lease = msgspec.msgpack.Encoder().encode
_lease_decoder = msgspec.msgpack.Decoder(Lease)


class Guard:
    """The seals of one worker's bus.

    Args:
        run_key: 32 bytes; None for no seals.
        keys: of the run.
        say: called with one line for a person.

    Attributes:
        refusals: what was not taken.
        strangers: workers whose lease was not taken when we last looked, and why.
    """

    def __init__(self, run_key: bytes | None, keys: Keys, say: Callable[[str], None]):
        self._run_key, self._keys = run_key, keys
        self._seals: dict[str, Seals] = {}
        self.refusals = Refusals(say)
        self.strangers: dict[int, str] = {}

    def seals(self, key: str) -> Seals | None:
        """The seals of what is said under a Redis key; None without a run key."""
        if self._run_key is None:
            return None
        if key not in self._seals:
            self._seals[key] = Seals(self._run_key, key)
        return self._seals[key]

    def sealed_lease(self, lease: Lease) -> bytes:
        """A lease as it is written."""
        value, seals = _encode_lease(lease), self.seals(self._keys.lease(lease.worker))
        return value if seals is None else seals.sealed("", value)

    def open_lease(self, worker: int, value: bytes | None) -> Lease | None:
        """A lease as somebody has written it; what is none, or does not bear our seal, counts as none."""
        seals = self.seals(self._keys.lease(worker))
        inner = value if seals is None or value is None else seals.opened("", value)
        if value is not None and (inner is None or (seals is None and value.startswith(MARK))):
            self.strangers[worker] = difference(seals is not None, value)
            self.refusals.note(worker, "seal", "its lease", 0)
            return None
        self.strangers.pop(worker, None)
        try:
            lease = None if inner is None else _lease_decoder.decode(inner)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return lease if lease is not None and lease.worker == worker else None

    def sealed_field(self, key: str, name: str, value: Buffer) -> Buffer:
        """A field of a state as it is written."""
        seals = self.seals(key)
        if seals is not None:
            return seals.sealed(name, value)
        return bytes(value) if isinstance(value, bytearray) else value

    def open_fields(self, peer: int, key: str, fields: dict[str, bytes]) -> dict[str, bytes]:
        """Fields of a peer's state.

        Raises:
            MessageError: one does not bear our seal.
        """
        seals = self.seals(key)
        if seals is None:
            return fields
        found = {}
        for name, value in fields.items():
            inner = seals.opened(name, value)
            if inner is None:
                self.refusals.note(peer, "seal", f"the field {name} of its state")
                raise MessageError("seal", f"the field {name} of worker {peer}'s state does not bear this run's seal")
            found[name] = inner
        return found
