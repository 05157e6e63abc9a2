"""How workers find each other: each reads the leases, checks that all train the same, and decides how it begins.

There is no coordinator and no barrier at worker 0. Each worker claims its number with a lease (`peers.session.lease`),
publishes what it trains, and looks at the others' leases. There are three cases:

* every worker is here and waiting: they acknowledge each other's incarnation in their leases, and start
  together at the newest checkpoint that all of them have (or at the beginning);
* we replaced the unexpired lease of a worker in training, so no peer has dropped it, our checkpoint is of
  its line, and every entry that the peers published since can still be read: we replay from the checkpoint;
* the others are already training: we join, with the state of the most advanced of them.

The leases of a dead run last for a while. A lease of this host counts as dead when its process is gone; a lease of
another host counts as training only when it has been renewed since we first saw it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from peers.bus.door import Bus
from peers.errors import AbsentError, BusError, DisagreementError, MessageError
from peers.session.lease import LeaseKeeper, heartbeat_s
from peers.session.processes import is_dead
from peers.types import Lease
from peers.wire.fields import decode_fields

POLL_S = 0.05
# Before we end with an error, the peers need a moment to see our lease, so that they too can name the cause.
SEEN_S = 2.0


@dataclass
class Start:
    """How this incarnation of the worker begins.

    Attributes:
        kind: together, replay or join.
        step: the step of the checkpoint to load; 0 for the beginning. Without meaning for a join.
        incarnations: the incarnation of each peer that is there.
        helper: the peer to ask for a state, for a join.
        furthest, term: the newest step, and term, of the peers that train, for a join.
        peer_infos: the info that each peer gives about itself.
    """

    kind: str
    step: int
    incarnations: dict[int, str] = field(default_factory=dict)
    helper: int | None = None
    furthest: int = 0
    term: int = 0
    peer_infos: dict[int, dict[str, Any]] = field(default_factory=dict)


class Rendezvous:
    """Brings the workers together.

    Args:
        bus: our door.
        agreed: the settings and versions that must be the same everywhere; plain values by path.
        lease_s: how long a lease lasts without renewal.
        timeout_s: how long absent peers are awaited.
        log: called with one line for a person.
        on_failure: called from the heartbeat thread when our lease is lost.
        peer_info: our info for the peers; plain values.
        may_replay: whether missed entries can be read again, so that a restart need not be a join.

    Attributes:
        lease: our own lease.
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
        self._bus, self._agreed = bus, agreed
        self._peer_info, self._may_replay = peer_info or {}, may_replay
        self._peer_infos: dict[int, dict[str, Any]] = {}
        self._lease_s, self._timeout_s = lease_s, timeout_s
        self._log = log
        self.lease = LeaseKeeper(bus, lease_s, log, on_failure)
        # Per peer its incarnation and the beat of its lease, as we first saw them.
        self._beats: dict[int, tuple[str, int]] = {}

    def claim(self, checkpoints: list[int]) -> None:
        """Take our number, and publish what we train and which checkpoints we have.

        Raises:
            DuplicateError: the number is in use.
        """
        hello = {"agreed": self._agreed, "checkpoints": checkpoints, "peer_info": self._peer_info}
        self.lease.claim(msgpack.packb(hello))

    def close(self) -> None:
        """Stop the heartbeat and give the lease back."""
        self.lease.close()

    def meet(self, checkpoints: list[int], followed: dict[int, tuple[str, int]]) -> Start:
        """Wait for the peers, check that they train the same, and decide how to begin.

        Args:
            checkpoints: steps of the checkpoints that we could resume from, newest last.
            followed: from the newest of them, per peer the incarnation and the number of the last entry
                that was applied.

        Raises:
            DisagreementError: a peer trains something else; the message names the key.
            AbsentError: a peer did not come in time.
            BusError, LeaseExpiredError: another incarnation has taken our number, or our Redis has lost our lease.
        """
        peers = [peer for group in self._bus.servers for peer in group]
        deadline = time.monotonic() + self._timeout_s
        agreeing: dict[int, tuple[str, list[int]]] = {}
        incarnations: dict[int, str] = {}
        next_line = time.monotonic() + 3.0
        while True:
            self.lease.check()
            leases = self._leases()
            self._refuse_strangers()
            found = {peer: lease.incarnation for peer, lease in leases.items() if lease is not None}
            if found != incarnations or any(lease and not self._is_beating(lease) for lease in leases.values()):
                # A peer came or went, or a dead run's lease is about to end: the wait begins anew.
                deadline, incarnations = time.monotonic() + self._timeout_s, found
            for peer, lease in leases.items():
                if lease is not None and agreeing.get(peer, ("",))[0] != lease.incarnation:
                    common = self._check(peer, lease)
                    if common is not None:
                        agreeing[peer] = (lease.incarnation, common)
            there = {peer: lease for peer, lease in leases.items() if lease is not None and peer in agreeing}
            start = self._decide(checkpoints, followed, peers, there, agreeing)
            if start is not None:
                return start
            now = time.monotonic()
            missing = [peer for peer in peers if leases.get(peer) is None]
            if now >= deadline:
                raise self._absent(leases, missing)
            if now >= next_line and missing:
                names, left_s = ", ".join(map(str, missing)), deadline - now
                self._log(f"waiting for worker {names} to start; giving up in {left_s:.0f} s (connect_timeout_s)")
                next_line = now + 10.0
            time.sleep(POLL_S)

    def _decide(
        self,
        checkpoints: list[int],
        followed: dict[int, tuple[str, int]],
        peers: list[int],
        there: dict[int, Lease],
        agreeing: dict[int, tuple[str, list[int]]],
    ) -> Start | None:
        """Our `Start`, which we then show in our lease; None while it is undecided."""
        me, mine = self._bus.worker, self._bus.incarnation
        running = {p: x for p, x in there.items() if x.phase == "training" and self._is_beating(x)}
        strangers = {p: x for p, x in running.items() if x.seen.get(me) != mine}
        replaced = self.lease.replaced
        if replaced is not None and self._can_replay(replaced, checkpoints, followed, strangers, peers):
            step = checkpoints[-1] if checkpoints else 0
            seen = {peer: lease.incarnation for peer, lease in strangers.items()}
            self.lease.show(phase="training", step=step, since=replaced.since, seen=seen)
            return Start("replay", step, seen)
        seen = {peer: lease.incarnation for peer, lease in there.items()}
        if strangers:
            helper = max(strangers, key=lambda peer: (strangers[peer].step, -peer))
            self.lease.show(phase="joining", step=0)
            furthest = max(lease.step for lease in strangers.values())
            term = max(lease.term for lease in strangers.values())
            return Start("join", 0, seen, helper, furthest, term, self._peer_infos)
        if len(there) < len(peers):
            return None
        self.lease.show(phase="ready", seen=seen)
        if not all(lease.seen.get(me) == mine for lease in there.values()):
            return None
        step = self._common_step(checkpoints, {peer: agreeing[peer][1] for peer in peers})
        self.lease.show(phase="training", step=step, since=step)
        return Start("together", step, seen, peer_infos=self._peer_infos)

    def _common_step(self, checkpoints: list[int], theirs: dict[int, list[int]]) -> int:
        """The newest checkpoint that all workers have; 0 if none has any. Raises DisagreementError."""
        step = max(set(checkpoints).intersection(*theirs.values()) | {0})
        if step == 0 and (checkpoints or any(theirs.values())):
            time.sleep(SEEN_S)
            raise DisagreementError(
                f"worker {self._bus.worker} has checkpoints of steps {checkpoints or 'none'}, but "
                + ", ".join(f"worker {peer} of {steps or 'none'}" for peer, steps in theirs.items())
                + "; start all with --resume and a step that all have, or all without"
            )
        return step

    def _absent(self, leases: dict[int, Lease | None], missing: list[int]) -> AbsentError:
        leaving = [str(peer) for peer, lease in leases.items() if lease and lease.phase == "leaving"]
        if leaving:
            return AbsentError(
                f"worker {self._bus.worker} came too late: worker {', '.join(leaving)} is ending the run"
            )
        names = ", ".join(map(str, missing or sorted(leases)))
        return AbsentError(
            f"worker {self._bus.worker} waited {self._timeout_s:g} s for worker {names}, which did not come; "
            "start it with the same experiment file, or raise connect_timeout_s"
        )

    def furthest(self, start: Start) -> tuple[int, int]:
        """The newest step and term of the peers that we join, once each has renewed its lease.

        Raises:
            PeersError: our own lease is lost.
        """
        deadline = time.monotonic() + 2 * heartbeat_s(self._lease_s)
        before = {peer: lease.beat for peer, lease in self._leases().items() if lease is not None}
        step, term = start.furthest, start.term
        while before and time.monotonic() < deadline:
            self.lease.check()
            time.sleep(POLL_S)
            for peer, lease in self._leases().items():
                if lease is None or lease.beat != before.get(peer):
                    before.pop(peer, None)
                if lease is not None and start.incarnations.get(peer) == lease.incarnation:
                    step, term = max(step, lease.step), max(term, lease.term)
        return step, term

    def _leases(self) -> dict[int, Lease | None]:
        leases: dict[int, Lease | None] = {}
        for server in range(len(self._bus.servers)):
            try:
                found = self._bus.leases(server)
                # A dead run's lease lasts for a while; no worker stands behind it.
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
        """The checkpoints of a peer that trains the same as we do; None if the peer has not published them yet."""
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
        """The info that a peer gives about itself in this incarnation; empty if it gives none.

        Raises:
            BusError, MessageError: the info cannot be read.
        """
        hello = self._hello_of(peer, incarnation) or {}
        return hello["peer_info"] if isinstance(hello.get("peer_info"), dict) else {}

    def _is_beating(self, lease: Lease) -> bool:
        """Whether a lease certainly belongs to a living worker: one of this host, or renewed since we first saw it."""
        first = self._beats.setdefault(lease.worker, (lease.incarnation, lease.beat))
        if first[0] != lease.incarnation:
            first = self._beats[lease.worker] = (lease.incarnation, lease.beat)
        return self.lease.is_of_this_host(lease) or lease.beat != first[1]

    def _can_replay(
        self,
        old: Lease,
        checkpoints: list[int],
        followed: dict[int, tuple[str, int]],
        strangers: dict[int, Lease],
        peers: list[int],
    ) -> bool:
        if not self._may_replay or old.phase != "training":
            return False
        if (checkpoints[-1] if checkpoints else 0) < old.since:
            return False
        if not checkpoints:
            # From the very beginning, if the peers with which we began are still in that incarnation.
            followed = {peer: (incarnation, 0) for peer, incarnation in old.seen.items()}
        return all(
            peer in strangers
            and followed.get(peer, ("",))[0] == strangers[peer].incarnation
            and self._bus.holds(peer, *followed[peer])
            for peer in peers
        )
