"""From the facts of a node to findings, one line each with its fix. Asks no server; `checkup` does.

A finding is `ok`, `warn` (training works, but a person should know something) or `fail` (training will not work). Its
fix is the command to type or the setting to change; empty where a person need do nothing.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from peers.types import Lease

OK, WARN, FAIL = "ok", "warn", "fail"

# The major versions from which on there are streams, and users that may write some keys and read others.
STREAMS_SINCE, OWN_KEYS_SINCE = 5, 7
MAX_OFFSET_S = 0.5
FAR_S = 0.1
# An answer of XREAD may take this many bytes, so a reader may be behind by as many.
LEAST_BUFFER_BYTES = 8 * 2**20
# The cost of allocating beyond the payload, and the memory of a server without any keys.
MARGIN, EMPTY_BYTES = 1.25, 16 * 2**20
SECURE = "python -m launch secure makes users that write under their own keys only"


class Finding(NamedTuple):
    """One line of the table."""

    check: str
    state: str
    seen: str
    fix: str = ""


def unreachable(error: BaseException, url: str, address: str) -> Finding:
    """Why no server answered, in plain words.

    Args:
        error: the error of connecting; its causes are searched too.
        url: of the node; only its scheme is used.
        address: of the node, without its password.
    """
    causes = _causes(error)
    text = " ".join(" ".join(str(cause).split()) for cause in causes)

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if "without any password configured" in text:
        seen, fix = (
            "the URL has a password, and the server has none",
            "take it out of `peers`, or set requirepass there",
        )
    elif "Authentication required" in text or "NOAUTH" in text:
        seen, fix = "the server wants a password, and the URL has none", "write redis://:PASSWORD@host:port in `peers`"
    elif "username-password pair" in text or "invalid password" in text or "WRONGPASS" in text:
        seen, fix = "wrong password or user", "mend the password in `peers`, or the server's users (ACL LIST)"
    elif "no permissions" in text or "NOPERM" in text:
        seen, fix = "this user may not even PING", "allow it: ACL SETUSER NAME +ping"
    elif is_a(ssl.SSLError):
        seen, fix = f"TLS is refused: {_tls_reason(causes)}", _tls_fix(text)
    elif is_a(socket.gaierror):
        seen, fix = "the name is not found", "mend the host in `peers`, or this host's DNS or /etc/hosts"
    elif is_a(ConnectionRefusedError):
        seen = "the host answers, and nothing listens on that port"
        fix = "start a redis-server there (with --bind for this network), or mend `peers`"
    elif is_a(FileNotFoundError, PermissionError):
        seen, fix = f"no socket to use at {address}", "start redis-server --unixsocket, or mend `peers`"
    elif _is_unroutable(causes):
        seen, fix = "there is no way to that host", "look at the network, or mend the address in `peers`"
    elif "Timeout reading" in text:
        seen = "something took the connection and says nothing"
        fix = "is that port Redis, without TLS? else use rediss://; is the server frozen?"
    elif is_a(TimeoutError) or "Timeout" in text:
        tls = url.startswith("rediss:") and "handshake" in text
        seen = "the TLS handshake had no answer" if tls else "no answer in time"
        fix = (
            "does that port speak TLS? else use redis://" if tls else "is the host up, does a firewall drop this port?"
        )
    elif "Protocol error" in text or "InvalidResponse" in text:
        seen, fix = "something answers that is no Redis", "mend the port in `peers`"
    elif "is no Redis URL" in text:
        seen, fix = "no Redis URL", "write redis://host:6379"
    elif "LOADING" in text or "loading the dataset" in text:
        seen, fix = "it is still loading its data", "wait until it has"
    elif "max number of clients" in text:
        seen, fix = "it has as many clients as it takes", "redis-cli CONFIG SET maxclients 10000"
    else:
        seen, fix = printable(str(causes[-1] if len(causes) == 1 else causes[1])), "is that port Redis? mend `peers`"
    return Finding("reachable", FAIL, f"{address}: {seen}", fix)


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def _is_unroutable(causes: Sequence[BaseException]) -> bool:
    numbers = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL)
    return any(isinstance(cause, OSError) and cause.errno in numbers for cause in causes)


def _tls_reason(causes: Sequence[BaseException]) -> str:
    cause = next(cause for cause in causes if isinstance(cause, ssl.SSLError))
    if isinstance(cause, ssl.SSLCertVerificationError):
        return printable(f"its certificate is not accepted ({getattr(cause, 'verify_message', cause)})")
    return printable((getattr(cause, "reason", None) or str(cause)).replace("_", " ").lower())


def _tls_fix(text: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "use the CA that signed the server's certificate, and the host name that is in it"
    if "WRONG_VERSION_NUMBER" in text or "UNEXPECTED_EOF" in text:
        return "that port does not speak TLS; use redis://, or the server's tls-port"
    return "look at the server's tls-* settings and its log; does it ask for a client certificate?"


def version(name: str, number: str) -> Finding:
    """The server and its version; `name` is redis, valkey, fakeredis or another name that the server gives itself."""
    seen = printable(f"{name} {number}")
    major = int(found[0]) if (found := re.match(r"\d+", number)) else 0
    if name == "fakeredis":
        return Finding("version", WARN, seen, "a stand-in for tests; install redis-server or valkey-server")
    if major < STREAMS_SINCE:
        return Finding("version", FAIL, f"{seen}, which has no streams", "install Redis 7 or newer")
    if major < OWN_KEYS_SINCE:
        return Finding("version", WARN, f"{seen}; own-key users need 7", "install Redis 7 or newer")
    return Finding("version", OK, seen)


def access(user: str, has_password: bool, open_commands: Sequence[str]) -> Finding:
    """Our user, and the dangerous commands that it may call.

    Args:
        has_password: whether we had to send a password.
        open_commands: the dangerous commands that are open to us.
    """
    who = printable(f"user {user}")
    if not has_password:
        fix = f"redis-cli CONFIG SET requirepass ..., or {SECURE}"
        return Finding("access", WARN, f"{who}, no password: anybody who reaches the port can write", fix)
    if open_commands:
        return Finding("access", WARN, f"{who} may use {', '.join(open_commands)}: more than training needs", SECURE)
    return Finding("access", OK, f"{who}; CONFIG, EVAL and ACL are closed to it")


def writing(refused: Mapping[str, str], is_own: bool, prefix: str, user: str) -> Finding:
    """Whether we may use the commands that a worker of that node uses.

    Args:
        refused: by command, the reason of the refusal.
        is_own: whether it is this host's node.
    """
    may_not = [name for name, why in refused.items() if _is_refusal(why)]
    others = [(name, why) for name, why in refused.items() if not _is_refusal(why)]
    if others:
        name, why = others[0]
        return Finding("writing", FAIL, printable(f"{name} fails: {why}"), _writing_fix(why))
    if not may_not:
        return Finding("writing", OK, f"all that a worker needs under {prefix}")
    if is_own:
        named = " ".join(f"+{name.lower()}" for name in may_not)
        fix = printable(f"redis-cli ACL SETUSER {user} '%RW~{prefix}*' {named}")
        return Finding("writing", FAIL, f"may not {', '.join(may_not)} under {prefix}", fix)
    reading = [name for name in may_not if name in ("GET", "MGET", "XRANGE", "HMGET")]
    if reading:
        named = " ".join(f"+{name.lower()}" for name in reading)
        fix = printable(f"redis-cli ACL SETUSER {user} '%R~{prefix}*' {named}")
        return Finding("writing", FAIL, f"may not even read ({', '.join(reading)}) under {prefix}", fix)
    return Finding("writing", OK, f"may read under {prefix} and not write: right for another host's node")


def _is_refusal(why: str) -> bool:
    return "no permission" in why.lower() or "NOPERM" in why


def _writing_fix(why: str) -> str:
    if "OOM" in why or "maxmemory" in why:
        return "it is full: raise maxmemory, or remove what is not degan's"
    if "READONLY" in why or "read only replica" in why:
        return "it is a replica; name the primary in `peers`"
    if "MISCONF" in why:
        return 'it cannot save to its disk: free some, or redis-cli CONFIG SET save ""'
    return "look at the server's log"


def policy(name: str, limit_bytes: int) -> Finding:
    """The policy of a full server: only refusing is acceptable, since every other policy deletes keys of ours."""
    if name == "noeviction":
        return Finding("policy", OK, "noeviction")
    fix = "set it to noeviction: redis-cli CONFIG SET maxmemory-policy noeviction"
    state = FAIL if limit_bytes else WARN
    return Finding("policy", state, printable(f"maxmemory-policy is {name}"), fix)


def memory(limit_bytes: int, used_bytes: int, own_bytes: int, system_bytes: int, needed_bytes: int) -> Finding:
    """Whether there is enough memory.

    Args:
        limit_bytes: maxmemory; 0 for none.
        used_bytes: by all keys that are there now.
        own_bytes: of these, by keys of this run.
        system_bytes: the host's memory; 0 where it is not known.
        needed_bytes: payload that this run may keep there.
    """
    others = max(0, used_bytes - own_bytes)
    wanted = int(MARGIN * needed_bytes) + max(others, EMPTY_BYTES)
    need = f"this run needs {mib(needed_bytes)}, others hold {mib(others)}"
    raised = f"redis-cli CONFIG SET maxmemory {-(-wanted // 2**20)}mb"
    if system_bytes and wanted > system_bytes:
        fix = "use fewer workers a node, smaller bus.replay_bytes, or more memory"
        return Finding("maxmemory", FAIL, f"the host has {mib(system_bytes)}; {need}", fix)
    if not limit_bytes:
        return Finding(
            "maxmemory", WARN, f"no limit; {need}", f"{raised} keeps whatever goes wrong from filling the host"
        )
    if limit_bytes < needed_bytes + others:
        return Finding("maxmemory", FAIL, f"{mib(limit_bytes)}; {need}", f"{raised}, or lower bus.replay_bytes")
    if limit_bytes < wanted:
        return Finding("maxmemory", WARN, f"{mib(limit_bytes)}, which is tight; {need}", raised)
    return Finding("maxmemory", OK, f"{mib(limit_bytes)}; {need}")


def output_buffer(setting: str) -> Finding:
    """The limit on the answers that a client has asked for and does not read.

    Args:
        setting: as CONFIG GET client-output-buffer-limit has it.
    """
    fix = "redis-cli CONFIG SET client-output-buffer-limit 'normal 64mb 32mb 5'"
    words = setting.split()
    try:
        at = words.index("normal")
        hard, soft, seconds = map(int, words[at + 1 : at + 4])
    except ValueError:
        return Finding("output buffer", WARN, printable(f"cannot be read: {setting!r}"), fix)
    if not hard and not soft:
        return Finding("output buffer", WARN, "no limit: a reader that hangs fills the server's memory", fix)
    if 0 < hard < LEAST_BUFFER_BYTES:
        return Finding("output buffer", WARN, f"{mib(hard)}: readers that are a little behind are cut off", fix)
    return Finding("output buffer", OK, f"normal clients: {mib(hard)}, or {mib(soft)} for {seconds} s")


def persistence(info: Mapping[str, Any], config: Mapping[str, str]) -> Finding:
    """The entries that a crash of the server loses, and whether a full disk stops the server.

    Args:
        info: INFO persistence.
        config: save, appendfsync and stop-writes-on-bgsave-error; without those that the server hides.
    """
    stops = config.get("stop-writes-on-bgsave-error") == "yes"
    off = "redis-cli CONFIG SET stop-writes-on-bgsave-error no"
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status", "ok") != "ok":
            return Finding(
                "persistence", FAIL, "it cannot write its AOF, and so refuses writes", "free disk space there"
            )
        lost = {"always": "nothing", "no": "what the system had not written"}.get(
            config.get("appendfsync", ""), "a second"
        )
        return Finding("persistence", OK, f"AOF: a crash loses {lost}")
    loses = "its worker then begins a new incarnation, the others go on"
    if "save" in config and not config["save"]:
        return Finding("persistence", OK, f"none: a crash loses all that it holds; {loses}")
    if info.get("rdb_last_bgsave_status", "ok") != "ok" and stops:
        return Finding(
            "persistence", FAIL, "its last snapshot failed, and so it refuses writes", f"free disk space, or {off}"
        )
    seen = f"snapshots: a crash loses what came since the last; {loses}"
    if stops:
        return Finding("persistence", WARN, f"{seen}; a full disk stops all writes", f"{off}, or CONFIG SET save ''")
    return Finding("persistence", OK, seen)


def clock(offset_s: float) -> Finding:
    """How far the node's clock is from ours; a positive offset means that the node's is ahead."""
    seen = f"{abs(offset_s):.3f} s {'ahead of' if offset_s > 0 else 'behind'} ours"
    if abs(offset_s) <= MAX_OFFSET_S:
        return Finding("clock", OK, seen)
    fix = "training needs no equal clocks, but logs read side by side do: timedatectl set-ntp true"
    return Finding("clock", WARN, seen, fix)


def round_trip(times_s: Sequence[float]) -> Finding:
    """The round-trip time of some PINGs."""
    median_s = statistics.median(times_s)
    seen = f"{1000 * median_s:.2f} ms (median of {len(times_s)}, worst {1000 * max(times_s):.2f} ms)"
    if median_s > FAR_S:
        return Finding("round trip", WARN, seen, "far away: mode.slack of 2 or more hides it, where the mode has one")
    return Finding("round trip", OK, seen)


def speed(write_rate: float | None, read_rate: float | None, step_bytes: int, why_not: str = "") -> Finding:
    """How much the wire carries, and how long the bytes of a step take on it.

    Args:
        write_rate, read_rate: bytes a second; None where the rate could not be measured.
        step_bytes: the bytes that a peer reads from this node in a step.
        why_not: why nothing could be written.
    """
    rates = (("writing", write_rate), ("reading", read_rate))
    seen = [
        f"{name} {rate / 1e6:.3g} MB/s" if rate < 1e9 else f"{name} {rate / 1e9:.3g} GB/s"
        for name, rate in rates
        if rate
    ]
    if why_not:
        seen.append(
            f"nothing written ({why_not})" if read_rate else f"nothing to read, and nothing written ({why_not})"
        )
    slowest = min((rate for _, rate in rates if rate), default=None)
    if slowest and step_bytes:
        seen.append(f"a step's {step_bytes / 1e3:,.1f} kB take {step_bytes / slowest:.3g} s on the wire")
    return Finding("goodput", OK if slowest else WARN, printable("; ".join(seen)))


class Incarnation(NamedTuple):
    """A lease on the node: how long ago it was renewed, how long it still lasts, whether its worker is gone."""

    lease: Lease
    silent_s: float
    left_s: float
    is_dead: bool


def running(incarnations: Sequence[Incarnation], strangers: Mapping[int, str]) -> list[Finding]:
    """Whether a run of this name is going on, and the leases of dead workers: a line each.

    Args:
        strangers: workers whose lease does not bear the run's MAC, and why.
    """
    if strangers:
        return [Finding("run", FAIL, f"worker {worker}: {why}") for worker, why in sorted(strangers.items())]
    if not incarnations:
        return [Finding("run", OK, "nobody holds a lease: no run of this name is going on here")]
    found = []
    for incarnation in incarnations:
        lease = incarnation.lease
        who = f"worker {lease.worker} on {lease.host.split('/', 1)[0]}, process {lease.pid}"
        if incarnation.is_dead:
            seen = f"a dead one's lease: {who}, at step {lease.step}, silent for {incarnation.silent_s:.0f} s"
            fix = f"nothing to do: it ends by itself in {max(0.0, incarnation.left_s):.0f} s"
            found.append(Finding("run", WARN, printable(seen), fix))
        else:
            seen = f"{lease.phase}: {who}, since step {lease.since}, now at step {lease.step}"
            found.append(Finding("run", OK, printable(seen)))
    return found


def left_over(count: int, size_bytes: int | None, forever: int, example: str) -> Finding:
    """Keys of this run's name that belong to no living worker.

    Args:
        size_bytes: None where the server hides it.
        forever: how many of them never expire.
        example: one of these.
    """
    if not count:
        return Finding("left over", OK, "no keys of older runs of this name")
    size = "" if size_bytes is None else f", {mib(size_bytes)}"
    seen = f"{count} keys of older runs of this name{size}"
    if forever:
        fix = printable(f"redis-cli DEL {example}")
        return Finding("left over", WARN, f"{seen}; {forever} of them never expire", fix)
    return Finding("left over", OK, f"{seen}; they expire by themselves")


def mib(count: float) -> str:
    """Bytes, formatted for a person."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def printable(text: str) -> str:
    """The text as one printable line, whatever a server or a peer has put into it."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))
