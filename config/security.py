"""The folder with a worker's secrets: all files in the folder are used, and a secret that others can read is refused.

| file                   | what |
| ---------------------- | ---- |
| ca.crt                 | the certificate authority that `rediss://` trusts, and no other |
| worker.crt, worker.key | the certificate that this worker shows, and its key |
| password               | of the Redis user `worker-N` |
| run.key                | 64 hexadecimal digits that all workers of the run share, for the MACs |

`python -m launch secure` writes them.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from config.errors import UsageError

CA, CERTIFICATE, KEY, PASSWORD, RUN_KEY = "ca.crt", "worker.crt", "worker.key", "password", "run.key"
SECRETS = (KEY, PASSWORD, RUN_KEY)
MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Secrets:
    """The content of a worker's folder; None for a missing file.

    Attributes:
        user: name of the Redis user.
        ca, certificate, key: paths.
        run_key: 32 bytes.
    """

    user: str
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    run_key: bytes | None = field(default=None, repr=False)


def user_of(worker: int) -> str:
    """The Redis user of a worker."""
    return f"worker-{worker}"


def read_secrets(folder: str | None, worker: int) -> Secrets:
    """Read a worker's folder.

    Args:
        folder: `security.folder`; `{worker}` in the path is the number. None for no secrets.

    Raises:
        UsageError: the folder is missing or empty, a file has the wrong content, or others can read a secret.
    """
    if folder is None:
        return Secrets(user_of(worker))
    path = Path(folder.replace("{worker}", str(worker))).expanduser()
    try:
        found = {name: path / name for name in (CA, CERTIFICATE, *SECRETS) if (path / name).is_file()}
    except (OSError, ValueError) as error:
        raise UsageError(f"security.folder: cannot read {path}: {error}") from None
    if not found:
        raise UsageError(f"security.folder: {path} has none of {', '.join((CA, CERTIFICATE, *SECRETS))}")
    for name in SECRETS:
        if name in found:
            _check_private(found[name])
    if (CERTIFICATE in found) != (KEY in found):
        raise UsageError(f"security.folder: {path} has only one of {CERTIFICATE} and {KEY}")
    return Secrets(
        user=user_of(worker),
        password=_password(found[PASSWORD]) if PASSWORD in found else None,
        ca=_name(found, CA),
        certificate=_name(found, CERTIFICATE),
        key=_name(found, KEY),
        run_key=_run_key(found[RUN_KEY]) if RUN_KEY in found else None,
    )


def _name(found: dict[str, Path], name: str) -> str | None:
    return str(found[name]) if name in found else None


def _check_private(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UsageError(f"security.folder: others can read {path}; chmod 600 {path}")


def _text(path: Path) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(MAX_FILE_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"security.folder: cannot read {path}: {error}") from None


def _password(path: Path) -> str:
    text = _text(path)
    if not text or not text.isprintable():
        raise UsageError(f"security.folder: {path} has no password in it; it is one line")
    return text


def _run_key(path: Path) -> bytes:
    text = _text(path)
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise UsageError(f"security.folder: {path} is no run key, which has 64 hexadecimal digits")
    return bytes.fromhex(text)
