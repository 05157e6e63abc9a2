"""The cost of TLS and the MACs in a full exchange between two workers: each against a plain round of the same turn.

There are two workers, each with its own redis-server, on loopback, as in exchange.py. Everything goes by TCP, as
`launch secure` sets it up; with --socket a worker writes to its own server through a unix socket, where there is no
TLS. The servers answer on a plain port and on a TLS port, so that all methods use the same two.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.certificates import Authority
from peers.bus.redis.tls import Access
from tests.bench.exchange import KEEP_ROUNDS, VALUES, Degan, Figures, Pair, ratio, row
from tests.bench.table import finish, show
from tests.secured import tls_server
from tests.servers import free_port, process

PLAIN, KINDS = "plain", ("plain", "macs", "tls", "tls and macs")
CODECS = ("raw", "float16")
RUN_KEY = bytes(range(32))


def open_rival(method: str, rank: int, urls: list[str], ports: list[int], values: int, run: str) -> Degan:
    """Open one method; `urls` are "plain URL, TLS URL, folder of the certificates" of each server."""
    codec, _, kind = method.partition(" ")
    places = [url.split(",") for url in urls]
    folder = Path(places[0][2])
    access = Access(ca=str(folder / "ca.crt"), certificate=str(folder / "worker.crt"), key=str(folder / "worker.key"))
    run_key = RUN_KEY if "macs" in kind else None
    chosen = [place[1 if "tls" in kind else 0] for place in places]
    return Degan(rank, chosen, run, codec, values, access=access, run_key=run_key)


@contextlib.contextmanager
def server(program: str, folder: Path, has_socket: bool) -> Iterator[str]:
    """A Redis with a plain port and a TLS port; yields "plain URL, TLS URL, folder"."""
    plain, secret, own = free_port(), free_port(), Path(tempfile.mkdtemp(dir=folder))
    near = f"?socket={own}/near" if has_socket else ""
    words = [program, "--port", str(plain), "--bind", "127.0.0.1", "--save", "", "--dir", str(own)]
    words += ["--tls-port", str(secret), "--tls-ca-cert-file", str(folder / "ca.crt"), "--tls-auth-clients", "yes"]
    words += ["--tls-cert-file", str(folder / "worker.crt"), "--tls-key-file", str(folder / "worker.key")]
    words += ["--unixsocket", f"{own}/near"] if has_socket else []
    with process(words, plain):
        yield f"redis://127.0.0.1:{plain}{near},rediss://127.0.0.1:{secret}{near},{folder}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=VALUES, help="float32 values of the vector")
    parser.add_argument("--turns", type=int, default=5, help="blocks of every method")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of a block")
    parser.add_argument("--socket", action="store_true", help="reach one's own Redis through a unix socket")
    options = parser.parse_args(arguments)
    program = tls_server()
    if program is None:
        sys.exit("no redis-server >= 7 with TLS on PATH")
    methods = [f"{codec} {kind}" for codec in CODECS for kind in KINDS]
    results: dict[str, list[Figures]] = {method: [] for method in methods}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="degan-bench-")))
        authority = Authority("benchmark", 1, datetime.datetime.now(datetime.timezone.utc))
        certificate, key = authority.issue("worker", ["127.0.0.1"])
        for name, content in (("ca.crt", authority.certificate), ("worker.crt", certificate), ("worker.key", key)):
            (folder / name).write_bytes(content)
        urls = [stack.enter_context(server(program, folder, options.socket)) for _ in range(2)]
        pair = Pair(urls, options.values, open_rival)
        try:
            for _ in range(options.turns):
                for method in methods:
                    results[method].append(pair.block(method, KEEP_ROUNDS + 2, options.rounds))
        finally:
            pair.close()
    rows = [_row(method, results, options.values) for method in methods]
    show(f"A full exchange of {options.values:,} float32 between two workers", rows)
    figures = {line["method"]: {"ms": line["ms a round"], "ratio": line["to plain"]} for line in rows}
    return finish("secure", [], {"values": options.values, "turns": options.turns, "methods": figures})


def _row(method: str, results: dict[str, list[Figures]], values: int) -> dict[str, object]:
    plain = f"{method.partition(' ')[0]} {PLAIN}"
    return row(method, results[method], values) | {
        "to plain": round(ratio(results, method, plain), 2),
        "CPU to plain": round(ratio(results, method, plain, 1), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
