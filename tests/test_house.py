"""The house rules that a program can check: floors, file sizes, calls that are never made."""

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
        ("peers.exchange", "torch"),
        ("degan.report", "torch"),
        ("degan.pair", "redis"),
    ],
)
def test_a_module_does_not_load_what_it_must_not_know(module, forbidden):
    code = f"import {module}, sys; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=100).returncode == 0


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_file_has_one_idea_said_first_and_at_most_400_lines(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "the first line says the file's idea"


def called(node: ast.Call) -> str:
    parts, at = [], node.func
    while isinstance(at, ast.Attribute):
        parts.append(at.attr)
        at = at.value
    # `model.to(device).eval()` is a method of what a call gave, and not the builtin.
    parts.append(at.id if isinstance(at, ast.Name) else "?")
    return ".".join(reversed(parts))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_loaded_unsafely(path):
    """P6: no code from the wire or from a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            for name in names:
                assert name.split(".")[0] not in ("pickle", "marshal", "shelve", "dill", "cloudpickle"), name
                assert name != "TYPE_CHECKING"
        if isinstance(node, ast.Call):
            name = called(node)
            assert name not in (
                "eval",
                "exec",
                "compile",
                "__import__",
                "yaml.load",
                "yaml.full_load",
                "yaml.unsafe_load",
            )
            if name == "torch.load":
                arguments = {keyword.arg: keyword.value for keyword in node.keywords}
                assert (
                    isinstance(arguments.get("weights_only"), ast.Constant) and arguments["weights_only"].value is True
                )
            assert not any(
                keyword.arg == "shell" and getattr(keyword.value, "value", False) for keyword in node.keywords
            )
        assert not (isinstance(node, ast.Global)), "no module globals"


def test_the_readme_names_what_a_person_types():
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


def test_every_setting_is_in_the_readme():
    from config import settings

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in dir(settings):
        struct = getattr(settings, name)
        for field in getattr(struct, "__struct_fields__", ()):
            assert f"`{field}`" in text or f"{field}:" in text, f"{name}.{field} is not in the README"
