"""`python -m tests.mutants [TABLE ...]`: put each mutant into a copy of the code and see its tests fail.

A table is the name of a module in this folder (all of them without an argument) or the path of a Python file with
`MUTANTS`. First the named tests run on the code as it is. Then each mutant has a copy of its own and a process of its
own, forked from one that has torch loaded. Exit code 0: at least 95 % of those that are not harmless are killed, and
no harmless one is.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NOT_TABLES = ("__init__", "__main__", "mutant")
PACKAGES = ("config", "degan", "launch", "peers", "tests")
NOT_COPIED = (".*", "__pycache__", "*.egg-info")
NOT_COPIED_AT_THE_TOP = ("build", "runs")
BAR = 0.95
# The limit is for all tests of one mutant; a mutant that makes them hang is killed.
LIMIT_S = 600.0
# The packages that the tests load and no mutant changes. One load for all saves each mutant some seconds.
PRELOAD = (
    *("numpy", "scipy.linalg", "msgspec", "msgpack", "yaml", "rich.live", "redis", "pytest"),
    *("sklearn.datasets", "safetensors.torch", "torch", "torch._dynamo", "torchvision", "torchmetrics", "PIL.Image"),
)
PASSED, FAILED = 0, 1


@dataclass
class Outcome:
    """The end of a mutant: `killed`, `survived`, `hangs` (which counts as killed), or `broken` (no test ran)."""

    mutant: Mutant
    state: str
    seconds: float
    log: Path

    @property
    def is_killed(self) -> bool:
        return self.state in ("killed", "hangs")


def tables(names: list[str]) -> list[Mutant]:
    """All mutants of the named tables."""
    files = [HERE / f"{n}.py" if (HERE / f"{n}.py").is_file() else Path(n) for n in names]
    found: list[Mutant] = []
    for file in files or sorted(f for f in HERE.glob("*.py") if f.stem not in NOT_TABLES):
        spec = importlib.util.spec_from_file_location(f"mutants_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += module.MUTANTS
    return found


def run_tests(root: Path, copy: Path, tests: Iterable[str], log: Path) -> None:
    """Run pytest in the copy, in a forked child, and exit with its code."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(handle, standard)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p or ".").resolve() not in (root, copy))]
    for name in [n for n in sys.modules if n.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    import pytest

    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def left_out(root: Path):
    """The `ignore` of `shutil.copytree` for a repository."""
    everywhere, at_the_top = (shutil.ignore_patterns(*p) for p in (NOT_COPIED, NOT_COPIED_AT_THE_TOP))
    return lambda folder, names: (
        everywhere(folder, names) | (at_the_top(folder, names) if Path(folder) == root else set())
    )


def start(root: Path, scratch: Path, tests: Iterable[str], mutant: Mutant | None) -> tuple[int, Path]:
    """Copy the code, put the mutant in, and fork; returns the child's pid, and the copy."""
    copy = Path(tempfile.mkdtemp(dir=scratch)).resolve()
    shutil.copytree(root, copy, ignore=left_out(root), dirs_exist_ok=True)
    if mutant:
        mutant.apply(copy)
    pid = os.fork()
    if pid:
        return pid, copy
    try:
        run_tests(root, copy, tests, copy.with_suffix(".log"))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


def end_group(pid: int) -> None:
    """End all processes that the child has left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run(root: Path, mutants: list[Mutant], jobs: int, log_line=print) -> list[Outcome]:
    """Run every mutant's tests; returns the outcomes in order. The logs of mutants that are not killed stay."""
    scratch = Path(tempfile.mkdtemp(prefix="mutants-"))
    waiting, running, done = list(mutants), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            pid, copy = start(root, scratch, mutant.tests.split(), mutant)
            running[pid] = (mutant, copy, time.monotonic())
        pid, status = os.waitpid(-1, os.WNOHANG)
        for late in [p for p, (_, _, began) in running.items() if time.monotonic() - began > LIMIT_S]:
            end_group(late)
        if pid not in running:
            time.sleep(0.02)
            continue
        mutant, copy, began = running.pop(pid)
        log = copy.with_suffix(".log")
        end_group(pid)
        seconds = time.monotonic() - began
        code = os.waitstatus_to_exitcode(status)
        state = {PASSED: "survived", FAILED: "killed"}.get(code, "hangs" if seconds > LIMIT_S else "broken")
        # A failed test can leave a socket open, and that changes pytest's exit code.
        if state == "broken" and "\nFAILED " in log.read_text(encoding="utf-8", errors="replace"):
            state = "killed"
        done[mutant.name] = Outcome(mutant, state, seconds, log)
        shutil.rmtree(copy, ignore_errors=True)
        log_line(f"{state:8} {seconds:5.1f} s  {mutant.name}" + (f"  ({mutant.harmless})" if mutant.harmless else ""))
    return [done[mutant.name] for mutant in mutants]


def is_sound(root: Path, mutants: list[Mutant]) -> bool:
    """Whether the named tests pass on the code as it is."""
    scratch = Path(tempfile.mkdtemp(prefix="mutants-"))
    pid, copy = start(root, scratch, sorted({test for m in mutants for test in m.tests.split()}), None)
    _, status = os.waitpid(pid, 0)
    end_group(pid)
    if os.waitstatus_to_exitcode(status) != PASSED:
        print(copy.with_suffix(".log").read_text(encoding="utf-8"))
        return False
    shutil.rmtree(scratch, ignore_errors=True)
    return True


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="a module of tests/mutants, or a Python file")
    parser.add_argument("--only", metavar="TEXT", help="only mutants with this text in their name or file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at once")
    parser.add_argument("--root", type=Path, default=ROOT, help="the code to mutate")
    parser.add_argument("--unchecked", action="store_true", help="do not run the tests on the code as it is first")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mutants = [m for m in tables(arguments.tables) if not arguments.only or arguments.only in f"{m.name} {m.path}"]
    root = arguments.root.resolve()
    for name in PRELOAD if root == ROOT else ("pytest",):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if not arguments.unchecked and not is_sound(root, mutants):
        print("the tests do not pass on the code as it is; nothing was mutated")
        return 1
    outcomes = run(root, mutants, arguments.jobs)
    counted = [o for o in outcomes if not o.mutant.harmless]
    killed = sum(o.is_killed for o in counted)
    wrong = [o for o in outcomes if o.state == "broken" or o.is_killed == bool(o.mutant.harmless)]
    for outcome in wrong:
        print(f"{outcome.state}: {outcome.mutant.name} ({outcome.mutant.path}); see {outcome.log}")
    print(f"{killed} of {len(counted)} mutants killed; {len(outcomes) - len(counted)} harmless ones")
    is_kept = killed >= BAR * len(counted) and all(o.state == "survived" for o in outcomes if o.mutant.harmless)
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
