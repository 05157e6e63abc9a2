"""Files that several processes use at once: a lock with a deadline, and writing all or nothing."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from degan.errors import CacheError

log = logging.getLogger(__name__)

_POLL_S = 0.1


def cache_folder(name: str) -> Path:
    """The folder `name` under `$DEGAN_CACHE`, else under `~/.cache/degan`; created where it is missing.

    Raises:
        CacheError: the folder cannot be created.
    """
    root = os.environ.get("DEGAN_CACHE")
    folder = (Path(root).expanduser() if root else Path.home() / ".cache" / "degan") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"cannot make the cache folder {folder} ({error.strerror}); set DEGAN_CACHE to one") from None
    return folder


@contextmanager
def locked(path: Path, timeout_s: float, waiting_for: str) -> Iterator[None]:
    """Hold the lock file `path` alone, among processes and threads; the kernel releases a dead process's lock.

    Args:
        path: the lock file; created where it is missing, and never removed (a removal would be a race).
        timeout_s: how long to wait while another process holds the lock.
        waiting_for: the other process's work, for the log and the error.

    Raises:
        CacheError: the file cannot be created, or the wait took longer than `timeout_s`.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise CacheError(f"cannot write the lock file {path} ({error.strerror}); choose a writable folder") from None
    try:
        _wait_for_lock(handle, path, timeout_s, waiting_for)
        yield
    finally:
        os.close(handle)  # closing releases the lock


def _wait_for_lock(handle: int, path: Path, timeout_s: float, waiting_for: str) -> None:
    """Poll, because a blocking flock has no deadline."""
    deadline = time.monotonic() + timeout_s
    said = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise CacheError(f"cannot lock {path} ({error.strerror}); choose a folder on another disk") from None
        if time.monotonic() >= deadline:
            raise CacheError(f"another process holds {path} ({waiting_for}) for more than {timeout_s:g} s; end it")
        if not said:
            log.info("waiting for another process: %s (%s)", waiting_for, path)
            said = True
        time.sleep(_POLL_S)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename the file: readers see all of it or nothing.

    Raises:
        OSError: the folder cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as done:
            os.fsync(done.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:
    """`hashlib.file_digest` for Python 3.10."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
