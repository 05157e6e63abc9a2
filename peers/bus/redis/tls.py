"""How a worker and a Redis authenticate each other: user, password, certificates, and TLS for `rediss://`.

The context is ours and not redis-py's, which would also trust every certificate authority of the system: this one
accepts only a certificate of the run's own CA for the host of the URL.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from peers.errors import SetupError

# Smaller pieces are joined with their neighbours: TLS makes a packet of each piece that is sent.
SMALL_BYTES = 8 * 1024


@dataclass(frozen=True)
class Access:
    """A worker's credentials, and the authority that it trusts.

    Attributes:
        user, password: for every Redis whose URL has none; without a password none is sent.
        ca: file of the only certificate authority that is trusted; None for those of the system.
        certificate, key: files of our own; None to send no certificate.
    """

    user: str = ""
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def options(self, url: str) -> dict[str, Any]:
        """The options of redis-py beside the URL.

        Raises:
            SetupError: a file cannot be used.
        """
        login = {} if self.password is None else {"username": self.user, "password": self.password}
        if not url.startswith("rediss:"):
            return login
        return {**login, "connection_class": TlsConnection, "context": self._context()}

    def _context(self) -> ssl.SSLContext:
        try:
            # With a CA of ours the context loads no other; it checks host names by default.
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise SetupError(f"cannot read the certificate authority {self.ca}: {error}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except OSError as error:
                raise SetupError(f"cannot use {self.certificate} with {self.key}: {error}") from None
        return context


class TlsConnection(redis.Connection):
    """A redis-py connection whose socket is wrapped by a context of ours."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any):
        self._context = context
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def _connect(self) -> ssl.SSLSocket:
        plain: socket.socket = super()._connect()  # type: ignore[no-untyped-call]
        try:
            return self._context.wrap_socket(plain, server_hostname=self.host)
        except TimeoutError:
            plain.close()
            raise OSError("it does not answer in TLS; start it with the redis.conf of launch secure") from None
        except OSError:
            plain.close()
            raise


class TlsLink:
    """A TLS socket with the methods of a plain one, for `resp.Connection`."""

    def __init__(self, connected: ssl.SSLSocket):
        self._socket = connected
        self.sendall, self.close = connected.sendall, connected.close

    def recv_into(self, view: memoryview) -> int:
        try:
            return self._socket.recv_into(view)
        except ValueError:
            # Another thread has closed the socket meanwhile.
            raise ConnectionError("the connection has been closed") from None

    def sendmsg(self, views: Sequence[memoryview]) -> int:
        """Send all of them; only small ones are copied before they are encrypted."""
        small: list[memoryview] = []
        for view in views:
            if len(view) < SMALL_BYTES:
                small.append(view)
                continue
            if small:
                self._socket.sendall(b"".join(small))
                small = []
            self._socket.sendall(view)
        if small:
            self._socket.sendall(b"".join(small))
        return sum(map(len, views))

    def shutdown(self, how: int) -> None:
        """End the connection without TLS's closing message, which could block; a reading thread gets an error."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, how)


# By the names that OpenSSL gives its alerts and reasons.
_REFUSALS = {
    "CERTIFICATE_REQUIRED": "it wants to see a certificate, and this worker has none; put worker.crt and worker.key "
    "into security.folder",
    "UNKNOWN_CA": "it does not know the CA of this worker's certificate; all hosts need files of one `launch secure`",
    "CERTIFICATE_EXPIRED": "this worker's certificate has expired; make new ones with `python -m launch secure`",
    "BAD_CERTIFICATE": "it does not take this worker's certificate; all hosts need the files of one `launch secure`",
    "WRONG_VERSION_NUMBER": "it does not speak TLS there; start it with the redis.conf of `launch secure`, or write "
    "redis:// in `peers`",
    "RECORD_LAYER_FAILURE": "it does not speak TLS there; start it with the redis.conf of `launch secure`, or write "
    "redis:// in `peers`",
}
_UNTRUSTED = {
    10: "it has expired; make new ones with `python -m launch secure`",
    62: "it is for another host name than the one in `peers`",
    64: "it is for another address than the one in `peers`",
}


def refusal(error: BaseException, access: Access) -> str | None:
    """Why the two sides do not trust each other, in words; None for another error, after which a retry may help."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        at = at.__cause__ or at.__context__
    for one in seen:
        if isinstance(one, ssl.SSLCertVerificationError):
            why = _UNTRUSTED.get(one.verify_code, f"it is not of the CA in {access.ca or 'this system'}")
            return f"its certificate is refused, {why} ({one.verify_message})"
    words = " ".join(map(str, seen))
    for reason, why in _REFUSALS.items():
        if reason in words:
            return why
    if any(isinstance(one, ssl.SSLError) and not isinstance(one, ssl.SSLEOFError) for one in seen):
        return f"no TLS with it: {error}"
    return None
