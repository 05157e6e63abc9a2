"""Our own lease: claim our number with it, renew it, and show our progress in it.

A lease names the incarnation that holds a worker's number, so the peers follow that one and no other. A heartbeat
thread renews it. While our Redis is away the heartbeat tries more often. When our Redis has been away for longer than
the lease lasts, the others have gone on without us, and this incarnation ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from peers.bus.door import Bus
from peers.errors import BusError, DuplicateError, LeaseExpiredError, PeersError
from peers.session.processes import is_dead, process_birth, this_host
from peers.types import Lease

CLAIM_POLL_S = 0.2


class LeaseKeeper:
    """Claims, renews and releases the lease of one worker.

    Args:
        bus: our door.
        lease_s: how long the lease lasts without renewal.
        log: called with one line for a person.
        on_failure: called from the heartbeat thread when the lease is lost.

    Attributes:
        replaced: the lease of a dead predecessor, once `claim` has replaced it.
    """

    def __init__(
        self, bus: Bus, lease_s: float, log: Callable[[str], None], on_failure: Callable[[BaseException], None]
    ):
        self._bus, self._lease_s, self._log, self._on_failure = bus, lease_s, log, on_failure
        self._lock = threading.Lock()
        self._lease = Lease(
            worker=bus.worker,
            incarnation=bus.incarnation,
            host=this_host(),
            pid=os.getpid(),
            birth=process_birth(os.getpid()),
        )
        self.replaced: Lease | None = None
        self._hello = b""
        self._renewed_at = time.monotonic()
        self._is_out = False
        self._failure: PeersError | None = None
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="degan-heartbeat", daemon=True)

    def claim(self, hello: bytes) -> None:
        """Take the number, and renew its lease from now on.

        Args:
            hello: our peer info and settings for the peers, readable for as long as the lease.

        Raises:
            DuplicateError: the number is in use.
        """
        self._hello = hello
        self._bus.put_state({"hello": hello}, self._lease_s)
        deadline, has_logged = time.monotonic() + self._lease_s + 1, False
        while True:
            try:
                # Our incarnation fences the number: the peers follow the incarnation in the lease, and no other.
                may_replace = (lambda old: True) if self._bus.may_take_over else is_dead
                self.replaced = self._bus.claim(self._lease, self._lease_s, may_replace)
                self._renewed_at = time.monotonic()
                break
            except DuplicateError as error:
                # On this host the process is known to live. On another host it may have died a moment ago.
                if error.host == self._lease.host or time.monotonic() >= deadline:
                    raise
                if not has_logged:
                    self._log(f"{error}; waiting up to {self._lease_s:g} s for its lease to end")
                    has_logged = True
                time.sleep(CLAIM_POLL_S)
        self._heart.start()

    def check(self) -> None:
        """Raise the failure of the heartbeat, if there is one."""
        if self._failure is not None:
            raise self._failure

    def is_of_this_host(self, lease: Lease) -> bool:
        """Whether another lease was written on our host."""
        return lease.host == self._lease.host

    # --- the fields of the lease --------------------------------------------------------------

    def progress(self, step: int) -> None:
        """Show our newest finished step."""
        self.show(is_urgent=False, step=step, phase="training")

    def joined(self, step: int) -> None:
        """Show that we have taken a state, and train on the helper's line from this step."""
        self.show(phase="training", step=step, since=step)

    def follow_term(self, term: int) -> None:
        """Show the term of the leader that we follow."""
        self.show(is_urgent=False, term=term)

    def leaving(self) -> None:
        """Show that we are ending, before the goodbye, so that no worker asks us for a state."""
        self.show(phase="leaving")

    def show(self, is_urgent: bool = True, **changes: Any) -> None:
        """Change fields of the lease; at once if urgent, else with the next heartbeat."""
        with self._lock:
            lease = msgspec.structs.replace(self._lease, **changes)
            if lease == self._lease:
                return
            self._lease = lease
        if is_urgent:
            self._renew()

    def close(self) -> None:
        """Stop the heartbeat and give the lease back."""
        self._closing.set()
        if self._heart.is_alive():
            self._heart.join(5.0)
        self._bus.release()

    # --- the heartbeat ------------------------------------------------------------------------

    def _renew(self) -> None:
        with self._lock:
            self._lease = msgspec.structs.replace(self._lease, beat=self._lease.beat + 1)
            lease = self._lease
        may_restore = time.monotonic() - self._renewed_at <= self._lease_s
        try:
            state = self._bus.renew(lease, self._lease_s, may_restore)
            if state == "restored":
                # Our Redis lost its keys and the others have not dropped us yet.
                self._bus.put_state({"hello": self._hello}, self._lease_s)
        except BusError as error:
            if not self._is_out:
                self._log(f"{error}; trying again")
            self._is_out = True
            return
        except LeaseExpiredError as error:
            self._fail(error)
            return
        self._is_out = False
        if state in ("held", "restored"):
            self._renewed_at = time.monotonic()
            return
        worker = self._bus.worker
        if state == "taken":
            self._fail(BusError(f"someone else has taken over worker {worker}; this process stops"))
        else:
            self._fail(LeaseExpiredError(f"worker {worker} was away for longer than its lease of {self._lease_s:g} s"))

    def _fail(self, error: PeersError) -> None:
        self._closing.set()
        self._failure = error
        self._on_failure(error)

    def _beat(self) -> None:
        # More often while our Redis is away, because the others cannot see us until it has our lease again.
        while not self._closing.wait(min(1.0 if self._is_out else 5.0, heartbeat_s(self._lease_s))):
            self._renew()


def heartbeat_s(lease_s: float) -> float:
    """How often a lease of that length is renewed."""
    return min(lease_s / 4, 5.0)
