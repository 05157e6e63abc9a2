"""The names in README and the pages exist: files, links, commands, tests, settings, rooms, functions."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import config
from docs import generate
from docs.explained import RENAMED

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + PAGES
# The history names things of earlier versions.
OF_TODAY = [path for path in TEXTS if path.name != "CHANGELOG.md"]
EVERY_TEXT = pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
EVERY_TEXT_OF_TODAY = pytest.mark.parametrize("path", OF_TODAY, ids=lambda path: str(path.relative_to(ROOT)))
README_LINES = 200
ARCHITECTURE = ROOT / "docs" / "architecture.md"


@functools.cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# --- README ------------------------------------------------------------------------------------


def test_the_readme_is_short_and_complete():
    assert len(text(ROOT / "README.md").splitlines()) <= README_LINES


def test_the_readme_names_every_mode():
    modes = [block for block in generate.settings_blocks() if re.fullmatch(r"mode\.\w+", block.path)]
    assert len(modes) >= 4
    for block in modes:
        assert f"(docs/modes/{block.struct.tag}.md)" in text(ROOT / "README.md")


def test_the_readme_points_to_every_page():
    assert {path.name for path in PAGES} >= {"tutorial.md", "settings.md", "architecture.md"}
    for path in PAGES:
        assert f"({path.relative_to(ROOT)}" in text(ROOT / "README.md"), path


# --- named things exist ------------------------------------------------------------------------


@EVERY_TEXT
def test_links_point_at_existing_files(path):
    """The strict build of the site sees links between pages, but neither README's links nor those of pictures in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text(path)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.is_file(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings."""
    return {generate.anchor(heading) for heading in re.findall(r"^#+ (.*)$", text(path), re.MULTILINE)}


@EVERY_TEXT_OF_TODAY
def test_modules_that_are_run_can_be_run(path):
    for module in re.findall(r"python -m ([\w.]+)", text(path)):
        found = importlib.util.find_spec(module)
        assert found is not None, module
        if found.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{module}.__main__") is not None, f"python -m {module}"


@EVERY_TEXT_OF_TODAY
def test_commands_of_the_launcher_exist(path):
    known = set(re.findall(r'add_parser\(\s*"(\w+)"', text(ROOT / "launch" / "__main__.py")))
    assert "local" in known
    assert set(re.findall(r"python -m launch ([a-z]\w*)", text(path))) <= known


@EVERY_TEXT
def test_make_targets_exist(path):
    known = set(re.findall(r"^(\w+):", text(ROOT / "Makefile"), re.MULTILINE))
    assert "demo" in known
    named = re.findall(r"(?:^|`| {4}|=DATA )make (\w+)", text(path), re.MULTILINE)
    assert set(named) <= known


@EVERY_TEXT_OF_TODAY
def test_files_that_are_named_exist(path):
    for name in re.findall(r"`((?:peers|degan|config|launch|tests|docs)/[\w./-]*\w)(?:::\w+)?`", text(path)):
        # A room may be a file or a folder of files.
        assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists(), name


@EVERY_TEXT_OF_TODAY
def test_scripts_that_are_run_exist(path):
    for name in re.findall(r"python ([\w/]+\.py)", text(path)):
        assert (ROOT / name).is_file(), name


@EVERY_TEXT_OF_TODAY
def test_experiments_that_are_run_exist(path):
    for name in re.findall(r"config/experiments/[\w-]+\.yaml", text(path)):
        assert (ROOT / name).is_file(), name


def test_the_page_of_commands_names_every_experiment_that_comes_along():
    rows = re.findall(r"^\| (`.*`) \| .*\|$", text(ROOT / "docs" / "commands.md"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert named == {path.stem for path in (ROOT / "config" / "experiments").glob("*.yaml")}


def test_options_of_commands_exist():
    usage = re.search(r"```text\n(python -m launch local .*?)```", text(ROOT / "docs" / "commands.md"), re.DOTALL)[1]
    sources = [path.read_text(encoding="utf-8") for name in ("launch", "degan") for path in (ROOT / name).rglob("*.py")]
    options = set(re.findall(r"--[a-z-]+", usage))
    assert {"--out", "--takeover", "--json"} <= options
    for option in options:
        assert any(f'"{option}"' in source for source in sources), option


@EVERY_TEXT_OF_TODAY
def test_settings_that_are_set_exist(path):
    """The names in `--set mode.slack=2` and `bus.min_peers` are settings of some kind."""
    known = {re.sub(KINDS, "", found) for found in [*generate.settings(), *RENAMED]}
    known |= {"mode.name", "model.name", "data.split", "data.split.kind"}
    named = re.findall(r"--set ([a-z_.]+)=", text(path))
    named += re.findall(r"`((?:mode|bus|run|data|model|security)\.[a-z_.]+[a-z])", text(path))
    assert {re.sub(KINDS, "", name) for name in named} <= known | {"a.b", "model.safetensors"}


KINDS = "|".join(
    re.escape(f".{block.struct.tag}") + r"(?=\.)" for block in generate.settings_blocks() if block.struct.tag
)


@EVERY_TEXT_OF_TODAY
def test_experiment_files_in_the_text_are_experiments(path):
    """Check the blocks of YAML in the pages by the rules of a file; a mode alone is put into an experiment."""
    for block in re.findall(r"```yaml\n(.*?)```", text(path), re.DOTALL):
        data = yaml.safe_load(block)
        gan = {} if "classifier" in data else {"model": {"name": "mlp"}}
        whole = {"name": "any", "peers": 4, "data": {"name": "digits"}} | gan | data
        config.build(whole)


def test_every_test_that_a_promise_names_is_there():
    reliability = text(ROOT / "docs" / "reliability.md").partition("\n## Faults")[0]
    promises = re.split(r"^\*\*(P\d)\.\*\*", reliability, flags=re.MULTILINE)[1:]
    assert promises[::2] == [f"P{number}" for number in range(1, 8)]
    for promise in promises[1::2]:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
        assert named, f"no test shows this: {promise}"
        for path, name in named:
            assert f"\ndef {name}(" in text(ROOT / path), f"{path}::{name}"


def test_every_fault_of_the_table_has_its_scenario():
    from tests.chaos.table import scenarios

    rows = re.findall(r"^\| (\d+) \|", text(ROOT / "docs" / "reliability.md"), re.MULTILINE)
    assert {int(row) for row in rows} == {scenario.number for scenario in scenarios()}


def test_every_table_of_results_has_a_command():
    """The command that made a table stands before the next table or heading of the same level."""
    sections = re.split(r"^## ", text(ROOT / "docs" / "results.md"), flags=re.MULTILINE)[1:]
    assert len(sections) >= 4
    for section in sections:
        for after in re.split(r"^\|(?: ---)+.*$", section, flags=re.MULTILINE)[1:]:
            assert re.search(r"^    .*(python|make) ", after, re.MULTILINE), section.splitlines()[0]


# --- architecture ------------------------------------------------------------------------------


def rooms() -> list[list[str]]:
    """The rows of the table of rooms: package, floor, folder, contents, and further imports."""
    rows = re.findall(r"^\| (?:peers|degan|launch|config) \|.*\|$", text(ARCHITECTURE), re.MULTILINE)
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def test_the_table_of_rooms_has_every_folder_and_no_other():
    there = [ROOT / "launch", ROOT / "config"]
    there += [folder for name in ("peers", "degan") for folder in (ROOT / name).iterdir() if folder.is_dir()]
    names = {str(folder.relative_to(ROOT)) for folder in there if any(folder.glob("*.py"))}
    assert {row[2] for row in rooms()} == names


@pytest.mark.parametrize("row", rooms(), ids=lambda row: row[2])
def test_a_room_imports_only_the_rooms_of_the_table(row):
    _, floor, folder, holds, also = row
    assert holds
    lower = {other[2] for other in rooms() if other[0] == row[0] and int(other[1]) < int(floor)}
    allowed = lower | {folder} | {name for name in re.split(r", ", also) if name}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for module in imported(path):
            assert is_allowed(module, allowed, row[0]), f"{path.relative_to(ROOT)} imports {module}"


def imported(path: Path) -> set[str]:
    """The modules that a file imports, of ours and of those that the table names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("peers", "degan", "launch", "config", "torch", "redis")}


def is_allowed(module: str, allowed: set[str], package: str) -> bool:
    """Whether a module lies in an allowed folder, or is a file at the top of its own or an allowed package."""
    parts = module.split(".")
    if parts[0] in allowed or "/".join(parts[:2]) in allowed:
        return True
    is_at_the_top = len(parts) > 1 and (ROOT / parts[0] / f"{parts[1]}.py").is_file()
    return parts[0] == package and is_at_the_top


def test_a_forbidden_import_is_seen():
    assert not is_allowed("peers.exchange.clock.SspClock", {"peers/bus"}, "peers")
    assert not is_allowed("torch.nn", {"peers/bus"}, "peers")
    assert is_allowed("peers.types.Slice", {"peers/bus"}, "peers")
    assert is_allowed("peers.bus.door.Bus", {"peers/bus"}, "peers")
    assert is_allowed("peers.bus.door.Bus", {"peers"}, "degan")


HOPS = re.findall(r"`([a-z_.]+:[A-Za-z_.]+)`", ARCHITECTURE.read_text(encoding="utf-8"))


def test_both_walks_are_long_enough_to_be_walked():
    assert len(HOPS) >= 20


@pytest.mark.parametrize("hop", sorted(set(HOPS) - {"module:Class.method"}))
def test_every_hop_of_the_walks_exists(hop):
    module, _, names = hop.partition(":")
    functools.reduce(getattr, names.split("."), importlib.import_module(module))


# --- the rest of the house ---------------------------------------------------------------------


def test_the_version_is_one():
    version = re.search(r"^version = (.*)$", text(ROOT / "setup.cfg"), re.MULTILINE)[1]
    assert yaml.safe_load(text(ROOT / "CITATION.cff"))["version"] == version
    assert f"## {version}" in text(ROOT / "CHANGELOG.md")


def test_the_site_is_built_strictly():
    """MkDocs counts no warning with `--quiet`, and `--strict` reports no dead link."""
    builds = re.findall(r"mkdocs build.*", text(ROOT / "Makefile"))
    assert builds == ["mkdocs build --strict"]
    assert "$(MAKE) docs" in text(ROOT / "Makefile").partition("\ncheck:")[2].partition("\n\n")[0]


def test_nothing_is_fetched_for_the_site():
    site = yaml.safe_load(text(ROOT / "mkdocs.yml"))
    assert site["theme"]["font"] is False
    assert "extra_javascript" not in site
    for path in PAGES:
        assert "<script" not in text(path) and "](http" not in text(path), path
