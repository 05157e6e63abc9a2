"""The house rules that a program can check: floors, first lines, forbidden calls."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("config", "peers", "degan", "launch")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_import_contracts_hold():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("launch", "torch"),
        ("launch.local", "torch"),
        ("config", "torch"),
        ("peers.exchange.exchange", "torch"),
        ("degan.report", "torch"),
    ],
)
def test_a_module_does_not_load_a_forbidden_package(module, forbidden):
    code = f"import {module}, sys; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=100).returncode == 0


@pytest.mark.parametrize(
    "path",
    [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "docs").rglob("*.py"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_a_file_begins_with_its_idea(path):
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "the first line says the file's idea"


def called(node: ast.Call) -> str:
    parts, at = [], node.func
    while isinstance(at, ast.Attribute):
        parts.append(at.attr)
        at = at.value
    # In `model.to(device).eval()` the call is a method of a returned object, and not the builtin.
    parts.append(at.id if isinstance(at, ast.Name) else "?")
    return ".".join(reversed(parts))


# The modules and calls that run given code: whole modules, and calls by the end of their dotted name.
MODULES = ("pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle")
CALLS = (
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "torch.jit.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("subprocess.getoutput", "subprocess.getstatusoutput"),
)
# These names hide the call, which has to be visible with its arguments.
BY_NAME_ONLY = tuple(call.rpartition(".")[::2] for call in (*CALLS, "torch.load") if "." in call)


def banned(source: str) -> list[str]:
    """The forbidden imports and calls of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for name in [alias.name for alias in node.names] + [module]:
                if name.split(".")[0] in MODULES or name == "TYPE_CHECKING":
                    found.append(name)
            found += [f"{module}.{a.name}" for a in node.names if (module, a.name) in BY_NAME_ONLY]
        if isinstance(node, ast.Call):
            name = called(node)
            constants = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
            if name in CALLS or (name == "torch.load" and constants.get("weights_only") is not True):
                found.append(name)
            # Only a constant False is allowed.
            found += [word for word in ("shell", "allow_pickle") if constants.get(word, False) is not False]
        if isinstance(node, ast.Attribute) and node.attr in ("UnsafeLoader", "FullLoader", "unsafe_load"):
            found.append(node.attr)
        if isinstance(node, ast.Global):
            found.append("a module global")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_loaded_unsafely(path):
    """P6: no code from the wire or from a file."""
    assert banned(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import os, marshal", "import shelve as s", "import dill"),
        *("eval('1')", "exec(x)", "__import__('os')", "os.system('x')", "yaml.load(x)", "yaml.full_load(x)"),
        *("yaml.load_all(x, yaml.Loader)", "y = yaml.UnsafeLoader", "from yaml import load", "from os import system"),
        *("torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=flag)"),
        *("subprocess.run(c, shell=True)", "subprocess.run(c, shell=flag)", "np.load(f, allow_pickle=True)"),
        *("from torch import load", "torch.hub.load('a', 'b')", "def f():\n    global x"),
    ],
)
def test_forbidden_code_is_found(source):
    assert banned(source)


def test_similar_code_is_not_found():
    allowed = (
        "model.to(device).eval(); torch.load(f, weights_only=True); subprocess.run(c, shell=False); yaml.safe_load(x)"
    )
    assert banned(allowed) == []


def test_the_readme_names_the_commands_of_a_person():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in (
        "make demo",
        "make test",
        "python -m launch local",
        "python -m degan.worker 0",
        "python -m degan.generate",
        "python -m degan.evaluate",
        "python -m degan.report",
    ):
        assert command in text, command
