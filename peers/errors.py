"""The errors between workers; the type says who has to act.

PeersError
├── SetupError              a person: one clear line, exit code 2
│   ├── UnreachableError    no Redis answers at that address
│   ├── DuplicateError      this worker number is already running
│   ├── DisagreementError   two workers were started with different settings, models or versions
│   └── AbsentError         a peer did not come in time
├── MessageError            a peer: it sent something invalid; counted, never fatal
├── LeaseExpiredError       we: our lease ended while we were away, so the others went on without us
├── UnseenError             nobody: a server does not show a fact that we only wanted to know
├── BusError                a Redis that worked and then failed for longer than a lease
└── StalledError            a live peer that stopped making progress
"""


class PeersError(Exception):
    """Base of everything that this package raises on purpose."""


class SetupError(PeersError):
    """A person must fix something before the workers can train together."""


class UnreachableError(SetupError):
    """No Redis answers; the message has host, port and reason."""


class DuplicateError(SetupError):
    """The worker number is in use.

    Args:
        worker: the number.
        host, pid: of the process that holds it; the host as `peers.session.processes.this_host` writes it.
    """

    def __init__(self, worker: int, host: str, pid: int):
        super().__init__(
            f"worker {worker} is already running on {host.split('/', 1)[0]} as process {pid}; "
            "give this one another number, stop that one first, or replace it with --takeover"
        )
        self.host = host


class DisagreementError(SetupError):
    """Two workers do not train the same thing; the message names the key that differs."""


class AbsentError(SetupError):
    """A peer did not come in time; the message says where it was expected."""


class MessageError(PeersError):
    """An entry that does not fit the protocol or the layout; refused before anything is allocated.

    Attributes:
        reason: one word for the counters (`dropped` in stats.jsonl).
        is_damage: the entry does not bear the checksum of its own bytes: it changed on its way, and its sender is
            not to blame.
    """

    def __init__(self, reason: str, detail: str, is_damage: bool = False):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.is_damage = reason, is_damage


class LeaseExpiredError(PeersError):
    """Our lease ended while this process, or its Redis, was away; it has to join again as a new incarnation."""


class UnseenError(PeersError):
    """A server does not show a fact; the message says why."""


class BusError(PeersError):
    """A Redis failed in the middle of a run, for longer than it may."""


class StalledError(PeersError):
    """A wait passed its deadline; the message names who was awaited and since when."""
