"""A private certificate authority, and the certificates that it issues for the workers and hosts of a run."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# The largest difference between the clocks of two hosts.
LEEWAY = datetime.timedelta(hours=1)
LOCAL = ("localhost", "127.0.0.1")


class Authority:
    """One CA, with its key in memory.

    Args:
        name: a readable name.
        days: how long its certificates are valid.
        now: the beginning of that time; with a time zone.

    Attributes:
        certificate, key: PEM.
        until: the end of validity of all certificates.
    """

    def __init__(self, name: str, days: int, now: datetime.datetime):
        self._begin, self.until = now - LEEWAY, now + datetime.timedelta(days=days)
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), _named(name)
        usage = {"key_cert_sign": True, "crl_sign": True}
        made = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(**usage), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate, self.key = made.public_bytes(serialization.Encoding.PEM), _pem(self._key)

    def issue(self, name: str, hosts: Sequence[str]) -> tuple[bytes, bytes]:
        """A certificate for a server and a client on these hosts, and its key; PEM.

        Args:
            hosts: names or addresses; a local host adds all names of this machine.

        Raises:
            ValueError: an invalid host name.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = list(dict.fromkeys([*hosts, *(LOCAL if any(map(is_local, hosts)) else ())]))
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = (
            self._builder(_named(name), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general(host) for host in names]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM), _pem(key)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begin)
            .not_valid_after(self.until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def is_local(host: str) -> bool:
    """Whether a host name or address always means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host.encode("idna").decode())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _usage(**used: bool) -> x509.KeyUsage:
    words = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{word: used.get(word, False) for word in words})


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
