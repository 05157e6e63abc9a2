"""Files that several processes want at once: whole writes, one holder of a lock, and their place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from degan.data.files import cache_folder, locked, sha256_of_file, write_whole
from degan.errors import CacheError


def test_a_file_is_as_before_until_all_of_it_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary: Path) -> None:
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_text("new")
        assert path.read_text() == "old"

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_whole(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_whole(path, write)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_lock_is_held_by_one_and_free_afterwards(tmp_path):
    with locked(tmp_path / "lock", 0.0, "first"):
        message = r"another process holds .*lock \(second\) for more than 0 s"
        with pytest.raises(CacheError, match=message), locked(tmp_path / "lock", 0.0, "second"):
            pass
    with pytest.raises(KeyError), locked(tmp_path / "lock", 0.0, "third"):
        raise KeyError
    with locked(tmp_path / "lock", 0.0, "fourth"):
        pass


def test_the_cache_lies_in_the_folder_of_the_environment_or_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DEGAN_CACHE", "~/other")
    assert cache_folder("a") == tmp_path / "home" / "other" / "a"
    monkeypatch.delenv("DEGAN_CACHE")
    assert cache_folder("a") == tmp_path / "home" / ".cache" / "degan" / "a"
    assert cache_folder("a").is_dir()


def test_the_sum_of_a_file_is_that_of_all_its_bytes(tmp_path):
    raw = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(raw)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(raw).hexdigest()
