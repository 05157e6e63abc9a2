"""The table of mutants fits the code as it is, and its runner tells a killed mutant from a surviving one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.mutants.__main__ import ROOT, tables

MUTANTS = tables([])


def test_there_are_enough_and_few_are_harmless():
    assert len(MUTANTS) >= 60
    assert sum(bool(m.harmless) for m in MUTANTS) <= len(MUTANTS) / 20
    assert [name for name, count in Counter(m.name for m in MUTANTS).items() if count > 1] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_fits_the_code(mutant):
    """The place of a mutant is there once, the mutated file is Python, and the tests are there and not slow."""
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.path} has this {text.count(mutant.old)} times:\n{mutant.old}"
    mutated = text.replace(mutant.old, mutant.new)
    assert mutated != text
    if mutant.path.endswith(".py"):
        ast.parse(mutated)
    assert mutant.tests.split()
    for test in mutant.tests.split():
        path, _, function = test.partition("::")
        source = (ROOT / path).read_text(encoding="utf-8")
        name = function.partition("[")[0]
        assert not name or f"\ndef {name}(" in source, f"{path} has no {name}"
        decorators = re.search(rf"((?:^@.*\n(?:^[ )\]].*\n)*)*)^def {name}\(", source, re.MULTILINE) if name else None
        assert not decorators or "mark.slow" not in decorators[1], f"{test} is slow and not part of make test"


TINY = {
    "sums.py": "def add(a, b):\n    return a + b\n\n\ndef half(a):\n    return a / 2\n",
    "test_sums.py": "import sums\n\n\ndef test_add():\n    assert sums.add(2, 3) == 5\n\n\n"
    "def test_half():\n    assert sums.half(0) == 0\n",
    "table.py": "from tests.mutants.mutant import Mutant\n\nMUTANTS = (\n"
    '    Mutant("a minus", "sums.py", "a + b", "a - b", "test_sums.py::test_add"),\n'
    '    Mutant("a third", "sums.py", "a / 2", "a / 3", "test_sums.py::test_half"HARMLESS),\n)\n',
}


@pytest.mark.parametrize(
    ("harmless", "before", "expected", "code"),
    [
        ("", "", "1 of 2 mutants killed; 0 harmless ones", 1),
        (', "zero stays zero"', "", "1 of 1 mutants killed; 1 harmless ones", 0),
        ("", "broken", "the tests do not pass on the code as it is", 1),
    ],
    ids=["one lives", "and is harmless", "broken before"],
)
def test_the_runner_tells_them_apart(tmp_path, harmless, before, expected, code):
    for name, text in TINY.items():
        (tmp_path / name).write_text(text.replace("HARMLESS", harmless))
    if before:
        (tmp_path / "test_sums.py").write_text("def test_add():\n    assert False\n\n\ndef test_half():\n    pass\n")
    words = [sys.executable, "-m", "tests.mutants", tmp_path / "table.py", "--root", tmp_path, "--jobs", "1"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout.splitlines()[-1].partition(";")[0]) == (code, expected.partition(";")[0]), (
        ended.stdout + ended.stderr
    )
    assert expected in ended.stdout
