"""TLS without a server: the reason why two sides do not trust each other, in words, and how much is sent at once."""

from __future__ import annotations

import ssl

import pytest
import redis

from peers.bus.redis.tls import SMALL_BYTES, Access, TlsLink, refusal

ACCESS = Access(ca="/secrets/ca.crt")


def wrapped(*errors):
    """The error chain of redis-py.

    Each error is raised while the one before it is handled, and a connection error comes last.
    """
    at = None
    for error in (*errors, redis.ConnectionError("Error 1 connecting")):
        error.__context__, at = at, error
    return at


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert", "it wants to see a certificate"),
        (
            "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca",
            "it does not know the CA of this worker's certificate",
        ),
        ("[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert", "this worker's certificate has expired"),
        ("[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert", "it does not take this worker's certificate"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "it does not speak TLS there"),
        ("[SSL: RECORD_LAYER_FAILURE] record layer failure", "it does not speak TLS there"),
        ("[SSL: SOMETHING_NEW] something new", "no TLS with it"),
    ],
)
def test_an_alert_is_explained_in_words(text, why):
    assert refusal(wrapped(ssl.SSLError(1, text)), ACCESS).startswith(why)
    # The depth of the chain makes no difference.
    assert refusal(wrapped(ssl.SSLError(1, text), OSError("later")), ACCESS).startswith(why)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (10, "it has expired; make new ones"),
        (62, "it is for another host name than the one in `peers`"),
        (64, "it is for another address than the one in `peers`"),
        (20, "it is not of the CA in /secrets/ca.crt"),
    ],
)
def test_the_refusal_of_a_certificate_names_the_reason(code, why):
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.verify_code, error.verify_message = code, "the system's words"
    found = refusal(wrapped(error), ACCESS)
    assert found.startswith(f"its certificate is refused, {why}") and found.endswith("(the system's words)")
    if code == 20:
        assert "the CA in this system" in refusal(wrapped(error), Access())


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("refused"), ssl.SSLEOFError(8, "EOF occurred"), TimeoutError("timed out")]
)
def test_a_passing_error_is_no_refusal(error):
    assert refusal(wrapped(error), ACCESS) is None


def test_a_circle_of_causes_has_an_end():
    one, other = OSError("one"), OSError("other")
    one.__context__, other.__context__ = other, one
    assert refusal(one, ACCESS) is None


class Encrypting:
    """A TLS socket that keeps the sent bytes, call by call."""

    def __init__(self):
        self.sent = []

    def sendall(self, data):
        self.sent.append(bytes(data))

    def close(self):
        pass

    def recv_into(self, view):
        raise ValueError("Read on closed or unwrapped SSL socket.")


def test_small_pieces_go_together_and_large_ones_alone():
    socket, large = Encrypting(), bytes(SMALL_BYTES)
    pieces = [b"a", b"b" * (SMALL_BYTES - 1), large, b"c", large, large, b"", b"d", b"e"]
    assert TlsLink(socket).sendmsg([memoryview(piece) for piece in pieces]) == sum(map(len, pieces))
    assert socket.sent == [pieces[0] + pieces[1], large, b"c", large, large, b"de"]


def test_a_connection_that_another_thread_has_closed_is_a_connection_error():
    with pytest.raises(ConnectionError, match="has been closed"):
        TlsLink(Encrypting()).recv_into(memoryview(bytearray(4)))
