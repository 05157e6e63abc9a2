"""How workers find each other: leases, incarnations, the check that they train the same thing.

There is no coordinator and no barrier at worker 0. Each worker claims its number with a lease,
publishes what it trains, and looks at the others' leases. Three things can be the case:

* everyone is here and waiting: they acknowledge each other's incarnation in their leases, and start
  together at the newest checkpoint that all of them have (or at the beginning);
* we replaced the unexpired lease of a worker in training, so nobody has dropped it, our checkpoint is of
  its line, and everything the peers said since can still be read: we replay from the checkpoint;
* the others are already training: we join, with the state of the most advanced of them.

A dead run's leases live on for a while. Those of this host are known by their process; those of other hosts
count as training only when they have been seen to be renewed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import msgspec

from peers.bus.door import Bus
from peers.errors import (
    AbsentError,
    BusError,
    DisagreementError,
    DuplicateError,
    LeaseExpiredError,
    MessageError,
    PeersError,
)
from peers.session.processes import is_dead, process_birth, this_host
from peers.types import Lease
from peers.wire.message import decode_fields

POLL_S = 0.05
# Before we refuse, the peers need a moment to see our lease, so that they too can say what is wrong.
SEEN_S = 2.0


@dataclass
class Start:
    """How this life of the worker begins.

    Attributes:
        kind: together, replay or join.
        step: the step of the checkpoint to load; 0 for the beginning. Without meaning for a join.
        incarnations: the peers that are there, and in which life.
        helper: the peer to ask for a state, for a join.
        furthest, term: the newest step, and term, of the peers that train, for a join.
        abouts: what the peers say of themselves.
    """

    kind: str
    step: int
    incarnations: dict[int, str] = field(default_factory=dict)
    helper: int | None = None
    furthest: int = 0
    term: int = 0
    peer_infos: dict[int, dict[str, Any]] = field(default_factory=dict)


class Rendezvous:
    """Claims this worker's number, keeps the lease alive and brings the workers together.

    Args:
        bus: our door.
        agreed: the settings and versions that must be the same everywhere; plain values by path.
        lease_s: how long a lease lasts without renewal.
        timeout_s: how long absent peers are awaited.
        say: called with one line for a person.
        on_failure: called from the heartbeat thread when someone else holds our number.
        about: what the peers should know of us; plain values.
        may_replay: whether what was missed can be read again, so that a restart need not be a join.
    """

    def __init__(
        self,
        bus: Bus,
        agreed: dict[str, Any],
        lease_s: float,
        timeout_s: float,
        log: Callable[[str], None],
        on_failure: Callable[[BaseException], None],
        peer_info: dict[str, Any] | None = None,
        may_replay: bool = True,
    ):
        self._bus = bus
        self._peer_info, self._may_replay = peer_info or {}, may_replay
        self._peer_infos: dict[int, dict[str, Any]] = {}
        self._agreed = agreed
        self._lease_s, self._timeout_s = lease_s, timeout_s
        self._log = log
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._lease = Lease(
            worker=bus.worker,
            incarnation=bus.incarnation,
            host=this_host(),
            pid=os.getpid(),
            birth=process_birth(os.getpid()),
        )
        self._replaced: Lease | None = None
        self._beats: dict[int, tuple[str, int]] = {}
        self._hello = b""
        self._renewed_at = time.monotonic()
        self._is_out = False
        self._failure: PeersError | None = None
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="degan-heartbeat", daemon=True)

    def claim(self, checkpoints: list[int]) -> None:
        """Take the number and say what we train and which checkpoints we have.

        Raises:
            DuplicateError: the number is in use.
        """
        self._hello = msgpack.packb({"agreed": self._agreed, "checkpoints": checkpoints, "peer_info": self._peer_info})
        self._bus.put_state({"hello": self._hello}, self._lease_s)
        deadline, has_said = time.monotonic() + self._lease_s + 1, False
        while True:
            try:
                # Fenced by our incarnation: the peers follow the life that the lease names, and no other.
                may_replace = (lambda old: True) if self._bus.may_take_over else is_dead
                self._replaced = self._bus.claim(self._lease, self._lease_s, may_replace)
                self._renewed_at = time.monotonic()
                break
            except DuplicateError as error:
                # On this host the process is known to live. Elsewhere it may have died a moment ago.
                if error.host == self._lease.host or time.monotonic() >= deadline:
                    raise
                if not has_said:
                    self._log(f"{error}; waiting up to {self._lease_s:g} s for its lease to end")
                    has_said = True
                time.sleep(0.2)
        self._heart.start()

    def meet(self, checkpoints: list[int], followed: dict[int, tuple[str, int]]) -> Start:
        """Wait for the peers, check that they train the same, and decide how to begin.

        Args:
            checkpoints: steps of the checkpoints that we could resume from, newest last.
            followed: from the newest of them, per peer the incarnation and the number of the last entry
                that was applied.

        Raises:
            DisagreementError: a peer trains something else; the message names the key.
            AbsentError: a peer did not come in time.
            BusError, LapsedError: somebody has taken our number over, or our Redis has lost it.
        """
        peers = [peer for group in self._bus.servers for peer in group]
        deadline = time.monotonic() + self._timeout_s
        agreeing: dict[int, tuple[str, list[int]]] = {}
        next_line, incarnations = time.monotonic() + 3.0, {}
        while True:
            if self._failure is not None:
                raise self._failure
            leases = self._leases()
            self._refuse_strangers()
            found = {peer: lease.incarnation for peer, lease in leases.items() if lease is not None}
            if found != incarnations or any(lease and not self._is_beating(lease) for lease in leases.values()):
                # Someone came or went, or a dead run's lease is about to end: the wait begins anew.
                deadline, incarnations = time.monotonic() + self._timeout_s, found
            for peer, lease in leases.items():
                if lease is not None and agreeing.get(peer, ("",))[0] != lease.incarnation:
                    common = self._check(peer, lease)
                    if common is not None:
                        agreeing[peer] = (lease.incarnation, common)
            there = {peer: lease for peer, lease in leases.items() if lease is not None and peer in agreeing}
            running = {p: x for p, x in there.items() if x.phase == "training" and self._is_beating(x)}
            strangers = {p: x for p, x in running.items() if x.seen.get(self._bus.worker) != self._bus.incarnation}
            if self._can_replay(checkpoints, followed, strangers, peers):
                step = checkpoints[-1] if checkpoints else 0
                seen = {peer: lease.incarnation for peer, lease in strangers.items()}
                self._update(phase="training", step=step, since=self._replaced.since, seen=seen)
                return Start("replay", step, seen)
            if strangers:
                helper = max(strangers, key=lambda peer: (strangers[peer].step, -peer))
                self._update(phase="joining", step=0)
                furthest = max(lease.step for lease in strangers.values())
                term = max(lease.term for lease in strangers.values())
                seen = {p: lease.incarnation for p, lease in there.items()}
                return Start("join", 0, seen, helper, furthest, term, self._peer_infos)
            elif len(there) == len(peers):
                seen = {peer: lease.incarnation for peer, lease in there.items()}
                self._update(phase="ready", seen=seen)
                if all(lease.seen.get(self._bus.worker) == self._bus.incarnation for lease in there.values()):
                    step = max(set(checkpoints).intersection(*(agreeing[p][1] for p in peers)) | {0})
                    if step == 0 and (checkpoints or any(agreeing[p][1] for p in peers)):
                        time.sleep(SEEN_S)
                        raise DisagreementError(
                            f"worker {self._bus.worker} has checkpoints of steps {checkpoints or 'none'}, but "
                            + ", ".join(f"worker {p} of {agreeing[p][1] or 'none'}" for p in peers)
                            + "; start all with --resume and a step that all have, or all without"
                        )
                    self._update(phase="training", step=step, since=step)
                    return Start("together", step, seen, peer_infos=self._peer_infos)
            now = time.monotonic()
            missing = [peer for peer in peers if leases.get(peer) is None]
            if now >= deadline:
                names = ", ".join(map(str, missing or sorted(leases)))
                leaving = [str(p) for p, lease in leases.items() if lease and lease.phase == "leaving"]
                if leaving:
                    raise AbsentError(
                        f"worker {self._bus.worker} came too late: worker {', '.join(leaving)} is ending the run"
                    )
                raise AbsentError(
                    f"worker {self._bus.worker} waited {self._timeout_s:g} s for worker {names}, which did not come; "
                    "start it with the same experiment file, or raise connect_timeout_s"
                )
            if now >= next_line and missing:
                names, left_s = ", ".join(map(str, missing)), deadline - now
                self._log(f"waiting for worker {names} to start; giving up in {left_s:.0f} s (connect_timeout_s)")
                next_line = now + 10.0
            time.sleep(POLL_S)

    def progress(self, step: int) -> None:
        """Say in the lease how far we are."""
        self._update(is_urgent=False, step=step, phase="training")

    def joined(self, step: int) -> None:
        """Say in the lease that we have taken a state, and train on its line from here."""
        self._update(phase="training", step=step, since=step)

    def furthest(self, start: Start) -> tuple[int, int]:
        """The newest step and term of the peers that we join, once each has renewed what its lease says of it.

        Raises:
            PeersError: our own lease is lost.
        """
        deadline = time.monotonic() + 2 * heartbeat_s(self._lease_s)
        before = {peer: lease.beat for peer, lease in self._leases().items() if lease is not None}
        step, term = start.furthest, start.term
        while before and time.monotonic() < deadline:
            if self._failure is not None:
                raise self._failure
            time.sleep(POLL_S)
            for peer, lease in self._leases().items():
                if lease is None or lease.beat != before.get(peer):
                    before.pop(peer, None)
                if lease is not None and start.incarnations.get(peer) == lease.incarnation:
                    step, term = max(step, lease.step), max(term, lease.term)
        return step, term

    def follow_term(self, term: int) -> None:
        """Say in the lease which leader's term we are in."""
        self._update(is_urgent=False, term=term)

    def leaving(self) -> None:
        """Say in the lease that we are ending, before the goodbye; nobody should ask us for a state."""
        self._update(phase="leaving")

    def close(self) -> None:
        """Stop the heartbeat and give the lease back."""
        self._closing.set()
        if self._heart.is_alive():
            self._heart.join(5.0)
        self._bus.release()

    def _leases(self) -> dict[int, Lease | None]:
        leases: dict[int, Lease | None] = {}
        for server in range(len(self._bus.servers)):
            try:
                found = self._bus.leases(server)
                # A dead run's lease lives on for a while; it is nobody to train with.
                leases.update(
                    {p: None if lease is not None and is_dead(lease) else lease for p, lease in found.items()}
                )
            except BusError:
                leases.update(dict.fromkeys(self._bus.servers[server]))
        return leases

    def _refuse_strangers(self) -> None:
        for peer, why in self._bus.strangers().items():
            time.sleep(SEEN_S)
            raise DisagreementError(
                f"worker {self._bus.worker} and worker {peer} cannot understand each other: {why}; give all the "
                f"same run.key (if worker {peer} is not running any more, its lease ends within {self._lease_s:g} s)"
            )

    def _check(self, peer: int, lease: Lease) -> list[int] | None:
        """The checkpoints of a peer that trains the same as we do; None if it has not said yet."""
        try:
            hello = self._hello_of(peer, lease.incarnation)
            if hello is None:
                return None
            theirs, checkpoints = hello["agreed"], [int(step) for step in hello["checkpoints"]]
            self._peer_infos[peer] = dict(hello["peer_info"])
        except (BusError, MessageError, KeyError, TypeError, ValueError, OverflowError):
            return None
        if not isinstance(theirs, dict) or not all(isinstance(key, str) for key in theirs):
            return None
        mine = self._agreed
        different = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        if different:
            time.sleep(SEEN_S)
            named = "; ".join(f"{key} is {mine.get(key)!r} here and {theirs.get(key)!r} there" for key in different[:3])
            raise DisagreementError(
                f"worker {self._bus.worker} and worker {peer} ({lease.host.split('/', 1)[0]}, process {lease.pid}) "
                f"do not train the same: {named}"
            )
        return checkpoints

    def _hello_of(self, peer: int, incarnation: str) -> dict[str, Any] | None:
        state = self._bus.get_state(peer, incarnation, ["hello"])
        return decode_fields(state["hello"]) if "hello" in state else None

    def peer_info(self, peer: int, incarnation: str) -> dict[str, Any]:
        """What a peer says of itself in this life; empty if it does not.

        Raises:
            BusError, MessageError: it cannot be read.
        """
        hello = self._hello_of(peer, incarnation) or {}
        return hello["peer_info"] if isinstance(hello.get("peer_info"), dict) else {}

    def _is_beating(self, lease: Lease) -> bool:
        """Whether a lease is certainly that of a living worker: of this host, or renewed since we first saw it."""
        first = self._beats.setdefault(lease.worker, (lease.incarnation, lease.beat))
        if first[0] != lease.incarnation:
            first = self._beats[lease.worker] = (lease.incarnation, lease.beat)
        return lease.host == self._lease.host or lease.beat != first[1]

    def _can_replay(
        self, checkpoints: list[int], followed: dict, strangers: dict[int, Lease], peers: list[int]
    ) -> bool:
        old = self._replaced
        if not self._may_replay or old is None or old.phase != "training":
            return False
        if (checkpoints[-1] if checkpoints else 0) < old.since:
            return False
        if not checkpoints:
            # From the very beginning, if those with whom we began are still in that life.
            followed = {peer: (incarnation, 0) for peer, incarnation in old.seen.items()}
        return all(
            peer in strangers
            and followed.get(peer, ("",))[0] == strangers[peer].incarnation
            and self._bus.holds(peer, *followed[peer])
            for peer in peers
        )

    def _update(self, is_urgent: bool = True, **changes: Any) -> None:
        with self._lock:
            lease = msgspec.structs.replace(self._lease, **changes)
            if lease == self._lease:
                return
            self._lease = lease
        if is_urgent:
            self._renew()

    def _renew(self) -> None:
        with self._lock:
            self._lease = msgspec.structs.replace(self._lease, beat=self._lease.beat + 1)
            lease = self._lease
        may_restore = time.monotonic() - self._renewed_at <= self._lease_s
        try:
            state = self._bus.renew(lease, self._lease_s, may_restore)
            if state == "restored":
                # Our Redis lost its keys and the others have not missed us yet.
                self._bus.put_state({"hello": self._hello}, self._lease_s)
        except BusError as error:
            if not self._is_out:
                self._log(f"{error}; trying again")
            self._is_out = True
            return
        except LeaseExpiredError as error:
            self._closing.set()
            self._fail(error)
            return
        self._is_out = False
        if state in ("held", "restored"):
            self._renewed_at = time.monotonic()
            return
        worker = self._bus.worker
        self._closing.set()
        if state == "taken":
            self._fail(BusError(f"someone else has taken over worker {worker}; this process stops"))
        else:
            self._fail(LeaseExpiredError(f"worker {worker} was away for longer than its lease of {self._lease_s:g} s"))

    def _fail(self, error: PeersError) -> None:
        self._failure = error
        self._on_failure(error)

    def _beat(self) -> None:
        # While our Redis is away more often, because the others cannot see us until it knows of us again.
        while not self._closing.wait(min(1.0 if self._is_out else 5.0, heartbeat_s(self._lease_s))):
            self._renew()


def heartbeat_s(lease_s: float) -> float:
    """How often a lease of that length is renewed."""
    return min(lease_s / 4, 5.0)
