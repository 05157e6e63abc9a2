"""The run's key on a bus: adds a MAC to everything that this worker writes, and checks those of the others.

Without a run key everything passes as it is, with one exception: a lease with a MAC is refused, because its writer
would refuse every entry of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from peers.bus.redis.keys import Keys
from peers.bus.redis.mac import MARK, Macs, difference
from peers.bus.redis.refusals import Refusals
from peers.errors import MessageError
from peers.types import Buffer, Lease

_encode_lease = msgspec.msgpack.Encoder().encode
_lease_decoder = msgspec.msgpack.Decoder(Lease)


class Authenticator:
    """The MACs of one worker's bus.

    Args:
        run_key: 32 bytes; None for no MACs.
        keys: the Redis keys of the run.
        log: called with one line for a person.

    Attributes:
        refusals: counts of refused leases, fields and entries.
        strangers: workers whose lease was refused at the last look, and why.
    """

    def __init__(self, run_key: bytes | None, keys: Keys, log: Callable[[str], None]):
        self._run_key, self._keys = run_key, keys
        self._macs: dict[str, Macs] = {}
        self.refusals = Refusals(log)
        self.strangers: dict[int, str] = {}

    def macs(self, key: str) -> Macs | None:
        """The MACs for one Redis key; None without a run key."""
        if self._run_key is None:
            return None
        if key not in self._macs:
            self._macs[key] = Macs(self._run_key, key)
        return self._macs[key]

    def mac_lease(self, lease: Lease) -> bytes:
        """A lease as it is written."""
        value, macs = _encode_lease(lease), self.macs(self._keys.lease(lease.worker))
        return value if macs is None else macs.with_mac("", value)

    def open_lease(self, worker: int, value: Any) -> Lease | None:
        """A lease as its worker has written it; None if the value is no lease or does not bear our MAC."""
        macs = self.macs(self._keys.lease(worker))
        inner = value if macs is None or value is None else macs.opened("", value)
        if value is not None and (inner is None or (macs is None and value.startswith(MARK))):
            self.strangers[worker] = difference(macs is not None, value)
            self.refusals.note(worker, "mac", "its lease", 0)
            return None
        self.strangers.pop(worker, None)
        try:
            lease = None if inner is None else _lease_decoder.decode(inner)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return lease if lease is not None and lease.worker == worker else None

    def mac_field(self, key: str, name: str, value: Buffer) -> Buffer:
        """A field of a state as it is written."""
        macs = self.macs(key)
        if macs is not None:
            return macs.with_mac(name, value)
        return bytes(value) if isinstance(value, bytearray) else value

    def open_fields(self, peer: int, key: str, fields: dict[str, Any]) -> dict[str, bytes]:
        """Fields of a peer's state.

        Raises:
            MessageError: a field does not bear our MAC.
        """
        macs = self.macs(key)
        if macs is None:
            return fields
        found = {}
        for name, value in fields.items():
            inner = macs.opened(name, value)
            if inner is None:
                self.refusals.note(peer, "mac", f"the field {name} of its state")
                raise MessageError("mac", f"the field {name} of worker {peer}'s state does not bear this run's MAC")
            found[name] = inner
        return found
