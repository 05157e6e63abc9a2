"""The pieces of a secured run: the folder of secrets, the nodes, certificates, and the refusals of `launch secure`."""

from __future__ import annotations

import datetime
import hashlib
import re
import stat
import sys

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

import config
from config.security import read_secrets
from degan.modes.connect import access_of
from launch import nodes
from launch.__main__ import main
from launch.certificates import Authority
from launch.nodes import Node
from peers.bus.redis.tls import Access, TlsConnection
from peers.errors import SetupError
from tests.workers import experiment

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
HOSTS = ["redis://host0:7000", "redis://user:secret@host1", "rediss://10.0.0.3:6380/2?socket=/run/redis.sock"]


def settings(peers):
    return config.build({"name": "n", "peers": peers, "data": {"name": "digits"}, "model": {"name": "mlp"}})


# --- the folder ----------------------------------------------------------------------------------


def write(folder, name, text="x", mode=0o600):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(mode)


def test_no_folder_is_no_secrets_and_existing_files_are_used(tmp_path):
    assert read_secrets(None, 3).user == "worker-3" and read_secrets(None, 3).run_key is None
    write(tmp_path / "w1", "password", "open sesame\n")
    found = read_secrets(f"{tmp_path}/w{{worker}}", 1)
    assert (found.user, found.password, found.ca, found.run_key) == ("worker-1", "open sesame", None, None)
    write(tmp_path / "w1", "ca.crt", mode=0o644)
    write(tmp_path / "w1", "worker.crt", mode=0o644)
    write(tmp_path / "w1", "worker.key")
    write(tmp_path / "w1", "run.key", "0F" * 32 + "\n")
    found = read_secrets(f"{tmp_path}/w{{worker}}", 1)
    assert found.run_key == b"\x0f" * 32
    assert [found.ca, found.certificate, found.key] == [
        f"{tmp_path}/w1/{n}" for n in ("ca.crt", "worker.crt", "worker.key")
    ]


@pytest.mark.parametrize("name", ["worker.key", "password", "run.key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_secret_that_others_can_read_is_refused(tmp_path, name, mode):
    write(tmp_path, name, "00" * 32, mode)
    with pytest.raises(
        config.UsageError, match=f"^security.folder: others can read {tmp_path}/{name}; chmod 600 {tmp_path}/"
    ):
        read_secrets(str(tmp_path), 0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has none of ca.crt, worker.crt, worker.key, password, run.key"),
        ({"worker.crt": "x"}, "has only one of worker.crt and worker.key"),
        ({"run.key": "00" * 31}, "is no run key, which has 64 hexadecimal digits"),
        ({"run.key": "zz" * 32}, "is no run key"),
        ({"run.key": "ä"}, "cannot read"),
        ({"password": "\n"}, "has no password in it"),
        ({"password": "two\nlines"}, "has no password in it"),
    ],
)
def test_a_wrong_folder_is_one_line(tmp_path, files, message):
    for name, text in files.items():
        write(tmp_path, name, text)
    with pytest.raises(config.UsageError) as caught:
        read_secrets(str(tmp_path), 0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["/nonexistent/w{worker}", "a\0b", "x" * 5000])
def test_no_such_folder(folder):
    with pytest.raises(config.UsageError, match="^security.folder: "):
        read_secrets(folder, 0)


def test_the_folder_may_differ_between_workers():
    one, other = settings(2), config.build({**config.parse(config.dump(settings(2))), "security": {"folder": "/x"}})
    assert other.security.folder == "/x" and config.agreed(one) == config.agreed(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ca": "/nonexistent"}, "cannot read the certificate authority"),
        ({"certificate": "/none", "key": "/none"}, "cannot use"),
    ],
)
def test_files_that_are_no_certificates_are_one_line(tmp_path, changes, message):
    with pytest.raises(SetupError, match=message):
        Access("worker-0", "x", **changes).options("rediss://host")
    write(tmp_path, "junk", "no certificate")
    with pytest.raises(SetupError, match=message):
        Access("worker-0", "x", **{name: str(tmp_path / "junk") for name in changes}).options("rediss://host")


def test_only_tls_urls_get_tls_and_a_password_is_sent_where_there_is_one():
    assert Access().options("redis://host") == {}
    assert Access("u", "p").options("unix:///run/x") == {"username": "u", "password": "p"}
    options = Access("u", "p").options("rediss://host")
    assert options["connection_class"] is TlsConnection
    context = options["context"]
    assert context.check_hostname and context.verify_mode.name == "CERT_REQUIRED"
    assert context.minimum_version.name == "TLSv1_2"


# --- certificates and nodes ----------------------------------------------------------------------


def names_of(pem):
    certificate = x509.load_pem_x509_certificate(pem)
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in alternative}


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("host0.example", {"host0.example"}),
        ("10.0.0.3", {"10.0.0.3"}),
        ("localhost", {"localhost", "127.0.0.1"}),
        ("127.0.0.1", {"localhost", "127.0.0.1"}),
        ("::1", {"::1", "localhost", "127.0.0.1"}),
    ],
)
def test_a_certificate_is_for_its_host_as_server_and_as_client(host, names):
    authority = Authority("degan x", 30, NOW)
    pem, _ = authority.issue("worker-0", [host])
    certificate, ca = (x509.load_pem_x509_certificate(one) for one in (pem, authority.certificate))
    certificate.verify_directly_issued_by(ca)
    assert names_of(pem) == names
    assert certificate.not_valid_after_utc == ca.not_valid_after_utc == NOW + datetime.timedelta(days=30)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_hosts_and_ports_of_the_nodes():
    found = nodes.nodes_of(settings(HOSTS))
    assert found == [Node("host0", 7000), Node("host1", 6379), Node("10.0.0.3", 6380, 2, "/run/redis.sock")]
    assert [node.url for node in found] == [
        "rediss://host0:7000",
        "rediss://host1:6379",
        "rediss://10.0.0.3:6380/2?socket=/run/redis.sock",
    ]
    moved = nodes.nodes_of(settings(HOSTS), ["a", "b:1", "c"])
    assert [node.place for node in moved] == [("a", 7000), ("b", 1), ("c", 6380)]
    assert nodes.nodes_of(settings(2), ["a", "b:7"]) == [Node("a", 6379), Node("b", 7)]
    assert Node("fd00::1", 6379).url == "rediss://[fd00::1]:6379"


@pytest.mark.parametrize(
    ("peers", "hosts", "message"),
    [
        (2, [], "peers: a number names no hosts; give --hosts"),
        (2, ["a"], "--hosts: 1 hosts for 2 workers"),
        (["redis://a"], ["a", "b"], "--hosts: 2 hosts for 1 workers"),
        (["unix:///run/x"], [], r"peers\[0\]: unix:///run/x names no host"),
        (["redis://:secret@/0"], [], r"peers\[0\]: /0 names no host"),
        (["redis://a:99999"], [], r"peers\[0\]: "),
        (1, ["a b"], "--hosts a b: .* names no host"),
        (1, ["*"], "names no host"),
        (['redis://a?socket=/x"%0Aport 1'], [], "is no path for a socket"),
    ],
)
def test_invalid_nodes(peers, hosts, message):
    with pytest.raises(config.UsageError, match=message) as caught:
        nodes.nodes_of(settings(peers), hosts)
    assert "secret" not in str(caught.value)


def test_the_write_permissions_of_the_users():
    places = [Node("a", 1), Node("b", 1), Node("a", 1)]
    lines = nodes.users("run", places, ("a", 1), ["p0", "p1", "p2"]).splitlines()
    assert lines[0] == "user default off resetpass resetkeys resetchannels -@all"
    assert [re.findall(r"%RW~\S+", line) for line in lines[1:]] == [["%RW~degan:run:0:*"], [], ["%RW~degan:run:2:*"]]
    assert all(line.endswith("%R~degan:run:*") and " -@all +ping " in line for line in lines[1:])
    assert [
        hashlib.sha256(p).hexdigest() in line for p, line in zip((b"p0", b"p1", b"p2"), lines[1:], strict=True)
    ] == [True] * 3
    assert "+select" not in lines[1] and "+select" in nodes.users("run", [Node("a", 1, 3)], ("a", 1), ["p"])


def test_the_conf_of_a_node():
    lines = nodes.conf(Node("host0", 7000, socket="/run/x y.sock"), False).splitlines()
    for line in ("port 0", "tls-port 7000", "tls-auth-clients yes", "aclfile users.acl", "maxmemory-policy noeviction"):
        assert line in lines
    assert 'unixsocket "/run/x y.sock"' in lines and "bind * -::*" in lines
    assert "client-output-buffer-limit normal 64mb 32mb 5" in lines and "enable-debug-command no" in lines
    assert "bind 127.0.0.1 -::1" in nodes.conf(Node("localhost", 1), True)


# --- the command -----------------------------------------------------------------------------------


def secure(*words):
    return main(["secure", *map(str, words)])


def test_the_made_files_and_their_permissions(tmp_path, capsys):
    file, made = experiment(tmp_path, "x", HOSTS), tmp_path / "made"
    assert secure(file, "--out", made, "--days", "10") == 0
    said = capsys.readouterr().out
    modes = {str(p.relative_to(made)): stat.S_IMODE(p.stat().st_mode) for p in made.rglob("*")}
    assert modes["w0"] == modes["w1"] == stat.S_IMODE(made.stat().st_mode) == 0o700
    for name, mode in modes.items():
        if re.search(r"key$|password$|acl$", name):
            assert mode == 0o600, name
    assert {name for name in modes if name.startswith("w1/")} == {
        f"w1/{name}"
        for name in ("ca.crt", "worker.crt", "worker.key", "password", "run.key", "redis.conf", "users.acl")
    }
    assert len({(made / f"w{k}" / "run.key").read_text() for k in range(3)}) == 1
    assert len({(made / f"w{k}" / "password").read_text() for k in range(3)}) == 3
    assert "ca.key" not in {p.name for p in made.glob("w*/*")}, "it stays where it was made"
    found = config.load(made / "experiment.yaml")
    assert found.peers[1] == "rediss://host1:6379" and found.security.folder == f"{made}/w{{worker}}"
    assert read_secrets(found.security.folder, 2).run_key is not None
    assert f"scp -rp {made}/w1 {made}/experiment.yaml host1:{made}/" in said
    assert f"python -m degan.worker 2 --config {made}/experiment.yaml" in said
    every = "".join(p.read_text() for p in made.rglob("*") if p.is_file() and p.name != "password") + said
    assert not any((made / f"w{k}" / "password").read_text().strip() in every for k in range(3))
    assert "secret" not in every


def test_workers_that_share_a_redis_get_one(tmp_path):
    made = tmp_path / "made"
    assert secure(experiment(tmp_path, "x", ["redis://a", "redis://b", "redis://a"]), "--out", made) == 0
    assert sorted(p.parent.name for p in made.glob("w*/redis.conf")) == ["w0", "w1"]
    assert (made / "w0" / "users.acl").read_text().count("%RW~") == 2


def test_secrets_are_never_written_over(tmp_path, capsys):
    file, made = experiment(tmp_path, "x", HOSTS), tmp_path / "made"
    assert secure(file, "--out", made) == 0
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert secure(file, "--out", made) == 2
    error = capsys.readouterr().err
    assert error == f"error: {made} has ca.crt already; choose another --out, or take the old folder away\n"
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--days", "0"], "--days 0: expected 1 to 3650"),
        (["--hosts", "a,b"], "--hosts: 2 hosts for 3 workers"),
        (["--hosts", "a,,c"], "names no host"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(tmp_path, capsys, words, message):
    made = tmp_path / "made"
    assert secure(experiment(tmp_path, "x", HOSTS), "--out", made, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not made.exists()


def test_a_missing_package_is_one_line(tmp_path, capsys, monkeypatch):
    for name in ("launch.secure", "launch.certificates"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.delattr("launch.secure", raising=False)
    assert secure(experiment(tmp_path, "x", HOSTS), "--out", tmp_path / "made") == 2
    assert capsys.readouterr().err == "error: secure needs the package cryptography; pip install cryptography\n"


def test_a_password_is_not_sent_to_another_host_in_the_clear(tmp_path):
    (tmp_path / "ca.crt").write_text("a certificate")
    common = {
        "name": "clear",
        "data": {"name": "digits"},
        "model": {"name": "mlp"},
        "security": {"folder": str(tmp_path)},
    }
    for urls in (["redis://localhost:1", "redis://host1:2"], ["redis://10.0.0.1:1"]):
        with pytest.raises(config.UsageError, match=r"redis://(host1|10\.0\.0\.1) is not encrypted.*write rediss://"):
            access_of(config.build({**common, "peers": urls}), 0)
    access, _ = access_of(config.build({**common, "peers": ["redis://localhost:1", "rediss://host1:2"]}), 0)
    assert access.ca == str(tmp_path / "ca.crt")
