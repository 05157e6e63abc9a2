"""JSON Lines files: whole, growing, cut off, and written in any pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degan.runs.lines import Tail, read_lines, read_object


def test_a_tail_waits_for_the_end_of_a_line(tmp_path):
    file = tmp_path / "stats.jsonl"
    tail = Tail(file)
    assert tail.read() == []
    file.write_bytes(b'{"step": 1}\nbroken\n{"st')
    assert tail.read() == [{"step": 1}] and tail.unreadable == 1
    with open(file, "ab") as more:
        more.write(b'ep": 2}\n')
    assert tail.read() == [{"step": 2}] and tail.read() == []
    assert Tail(file, from_end=True).read() == []


def test_a_file_that_became_shorter_is_read_from_its_beginning(tmp_path):
    file = tmp_path / "stats.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    tail = Tail(file)
    assert [row["step"] for row in tail.read()] == [1, 2, 3]
    file.write_text('{"step": 1}\n[4]\n')
    assert tail.read() == [{"step": 1}]


def test_a_last_line_without_its_end_counts_where_the_file_has_ended(tmp_path):
    file = tmp_path / "stats.jsonl"
    file.write_text('{"step": 1}\n\n{"step": 2}')
    assert Tail(file).read() == [{"step": 1}]
    tail = Tail(file)
    assert tail.read(is_ended=True) == read_lines(file) == [{"step": 1}, {"step": 2}] and tail.unreadable == 0
    file.write_text('{"step": 1}\n{"step": 2')
    tail = Tail(file)
    assert tail.read(is_ended=True) == read_lines(file) == [{"step": 1}] and tail.unreadable == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00 {[", b"[" * 100_000, b"null", b"[1]", b"7"])
def test_a_line_of_no_object_is_empty(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert read_object(tmp_path / "file") == {} and read_lines(tmp_path / "file") == []
    assert read_object(tmp_path / "missing") == {}
    with pytest.raises(OSError):
        read_lines(tmp_path / "missing")


ROWS = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3), max_size=9)


@given(rows=ROWS, cuts=st.lists(st.integers(0, 400), max_size=5))
def test_in_any_pieces_the_same(rows, cuts, tmp_path_factory):
    """A line that is cut anywhere, in the middle of a character too, is read once it is whole."""
    file = tmp_path_factory.mktemp("tail") / "stats.jsonl"
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="replace")
    tail, found, start = Tail(file), [], 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        with open(file, "ab") as more:
            more.write(data[start:cut])
        start = cut
        found += tail.read()
    assert found == read_lines(file) and len(found) == len(rows) and tail.unreadable == 0
