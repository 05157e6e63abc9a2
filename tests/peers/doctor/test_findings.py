"""The findings of a node: facts that a test cannot bring about, and facts that are unexpected."""

from __future__ import annotations

import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.doctor import findings
from peers.doctor.findings import FAIL, OK, WARN, Finding
from peers.errors import UnreachableError

MIB = 2**20


def error_of(cause: BaseException) -> UnreachableError:
    """The error that `peers.bus.redis.client.connect` raises: its cause is in the text and in `__cause__`."""
    try:
        try:
            raise cause
        except Exception as error:
            raise UnreachableError(f"no Redis answers at host:1 ({error})") from None
    except UnreachableError as error:
        return error


@pytest.mark.parametrize(
    ("cause", "seen"),
    [
        (socket.gaierror(-2, "Name or service not known"), "the name is not found"),
        (ConnectionRefusedError(111, "Connection refused"), "nothing listens on that port"),
        (OSError(113, "No route to host"), "there is no way to that host"),
        (TimeoutError("timed out"), "no answer in time"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "TLS is refused"),
        (
            ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self signed"),
            "certificate is not accepted",
        ),
        (RuntimeError("LOADING Redis is loading the dataset in memory"), "still loading"),
        (RuntimeError("max number of clients reached"), "as many clients as it takes"),
        (RuntimeError("something\nelse"), "something else"),
    ],
)
def test_the_reason_for_no_answer(cause, seen):
    found = findings.unreachable(error_of(cause), "redis://host:1", "host:1")
    assert found.state == FAIL and seen in found.seen and found.seen.startswith("host:1: ") and found.fix


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (findings.version("redis", "7.0.15"), OK),
        (findings.version("valkey", "8.1.0"), OK),
        (findings.version("redis", "6.2.14"), WARN),
        (findings.version("redis", "4.0.9"), FAIL),
        (findings.version("fakeredis", "2.40.0"), WARN),
        (findings.access("w0", True, []), OK),
        (findings.access("w0", True, ["EVAL"]), WARN),
        (findings.access("default", False, []), WARN),
        (findings.writing({}, True, "degan:r:0:", "w0"), OK),
        (findings.writing({"XADD": "MISCONF Redis is configured to save"}, True, "degan:r:0:", "w0"), FAIL),
        (findings.memory(512 * MIB, MIB, 0, 0, 100 * MIB), OK),
        (findings.memory(130 * MIB, MIB, 0, 0, 100 * MIB), WARN),
        (findings.memory(99 * MIB, MIB, 0, 0, 100 * MIB), FAIL),
        (findings.memory(0, MIB, 0, 64 * MIB, 100 * MIB), FAIL),
        (findings.persistence({"aof_enabled": 1}, {"appendfsync": "always"}), OK),
        (findings.persistence({"aof_enabled": 1, "aof_last_write_status": "err"}, {}), FAIL),
        (findings.persistence({"rdb_last_bgsave_status": "err"}, {"stop-writes-on-bgsave-error": "yes"}), FAIL),
        (findings.persistence({}, {"save": "900 1", "stop-writes-on-bgsave-error": "no"}), OK),
        (findings.clock(0.5), OK),
        (findings.clock(-0.51), WARN),
        (findings.round_trip([0.09] * 3), OK),
        (findings.round_trip([0.01, 0.2, 0.2]), WARN),
        (findings.speed(1e6, 2e6, 1000), OK),
        (findings.speed(None, None, 1000, "it is full"), WARN),
    ],
)
def test_states(found, state):
    assert found.state == state
    # A failed check has a fix.
    assert found.fix or found.state != FAIL


def test_a_step_takes_as_long_as_the_slower_way():
    assert "a step's 3.0 kB take 0.003 s on the wire" in findings.speed(1e6, 2e6, 3000).seen
    assert "take 0.002 s" in findings.speed(None, 1.5e6, 3000, "read only").seen


def test_a_clock_finding_names_the_side_that_is_ahead():
    assert findings.clock(2.0).seen == "2.000 s ahead of ours" and findings.clock(-2.0).seen == "2.000 s behind ours"


def assert_well_made(found: Finding) -> None:
    assert found.state in (OK, WARN, FAIL)
    for text in (found.seen, found.fix):
        assert text.isprintable(), text


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=3), st.booleans())
def test_any_text_of_a_server_is_one_printable_line(name, number, refused, flag):
    assert_well_made(findings.version(name, number))
    assert_well_made(findings.access(name, flag, [number.strip() and "CONFIG"]))
    assert_well_made(findings.writing(dict.fromkeys(("XADD", "GET"), name) if flag else {}, flag, "degan:r:0:", number))
    assert_well_made(findings.policy(name, int(flag)))
    assert_well_made(findings.output_buffer(name))
    assert_well_made(findings.output_buffer(f"normal {number} 0 0"))
    assert_well_made(findings.persistence(refused, refused))
    assert_well_made(findings.left_over(1, None, 1, name))
    assert_well_made(findings.speed(None, None, 1, name))
    assert_well_made(findings.unreachable(error_of(RuntimeError(name)), "redis://h", "h"))


@given(*[st.integers(0, 2**45)] * 5)
def test_memory_that_is_raised_as_the_fix_asks_is_enough(limit, used, own, system, needed):
    found = findings.memory(limit, used, own, system, needed)
    assert_well_made(found)
    if "CONFIG SET maxmemory " in found.fix:
        raised = int(found.fix.partition("maxmemory ")[2].partition("mb")[0]) * MIB
        assert findings.memory(raised, used, own, system, needed).state == OK
