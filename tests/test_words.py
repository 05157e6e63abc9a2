"""One concept, one word: no name has a word of 0.1 that a stranger did not know."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The old words, and the word of today.
RENAMED = {
    "carry carries": "exchange, rule",
    "spares": "buffer pool",
    "judge judges judged": "screen",
    "strike strikes struck": "offence",
    "mute muted": "banned",
    "verdict verdicts": "findings",
    "mend mends mended": "fix",
    "led": "leader-based",
    "letter letters": "received message",
    "mailbox mail": "message store",
    "settle settles settled": "synchronise",
    "astray": "isolated",
    "abreast": "caught up",
    "about abouts": "peer info",
    "hostile": "byzantine",
    "life lives": "incarnation",
    "lapsed": "lease expired",
    "seal seals sealed": "MAC",
    "wish wishes wished": "proposal",
    "say says": "log",
    "suffering suffer": "fault injector",
    "harm harms": "inject",
    "objects": "setup",
    "eye eyes": "feature network",
    "pump pumps": "reader",
}
OLD = {word: now for words, now in RENAMED.items() for word in words.split()}
# The words that stay in a file: old words that it reads, a field's own word (numpy.eye), a command's line about itself.
ALLOWED = {
    "config/renamed.py": set(OLD),
    "degan/artifacts/upgrade.py": set(OLD),
    "degan/runs/words.py": set(OLD),
    "degan/__main__.py": {"about"},
    "degan/worker/doctor.py": {"about"},
    "launch/__main__.py": {"about"},
    "launch/environment.py": {"about"},
    "launch/local.py": {"about"},
    "launch/servers.py": {"about"},
    "degan/modes/multi_discriminator.py": {"judge", "judges", "judged"},
    "config/settings/modes/multi_discriminator.py": {"judge", "judges"},
    "tests/degan/artifacts/test_upgrade.py": {"carry"},
    "tests/degan/data/test_splits.py": {"eye"},
    "tests/degan/metrics/test_metrics.py": {"eye"},
    "tests/degan/worker/test_doctor.py": {"about"},
    "tests/launch/test_launch_words.py": {"about"},
}
FILES = sorted(path for package in ("config", "peers", "degan", "launch") for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def words_of(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def old_names(source: str, has_texts: bool = True) -> set[str]:
    """The names of a file that contain an old word; with `has_texts` also texts that look like a name."""
    names = {
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.NAME
        or has_texts
        and token.type == tokenize.STRING
        and re.fullmatch(r"[\"'][a-z_.]+[\"']", token.string)
    }
    return {name for name in names if any(word in OLD for word in words_of(name))}


def refused(path: Path, names: set[str]) -> dict[str, list[str]]:
    """The words of today for each name that the file may not have."""
    allowed = ALLOWED.get(str(path.relative_to(ROOT)), set())
    return {
        name: [OLD[word] for word in words_of(name) if word in OLD]
        for name in names
        if not set(words_of(name)) & OLD.keys() <= allowed
    }


def test_an_old_name_is_found():
    source = "def judge_all(letters): return {'muted': Mailbox(letters)}"
    assert old_names(source) == {"judge_all", "letters", "Mailbox", "'muted'"}
    assert old_names(source, has_texts=False) == {"judge_all", "letters", "Mailbox"}
    assert old_names("'''a judge says'''\nledger = torch.compile(x)") == set()
    assert refused(ROOT / "tests" / "any.py", {"np_eye", "eyes"}).keys() == {"np_eye", "eyes"}
    assert refused(ROOT / "tests" / "degan" / "metrics" / "test_metrics.py", {"eye", "eye_of_judge"}).keys() == {
        "eye_of_judge"
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_an_old_one(path):
    assert refused(path, old_names(path.read_text(encoding="utf-8"))) == {}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_of_a_test_is_an_old_one(path):
    """Texts are free here: tests read old run folders, and settings under their old names."""
    assert refused(path, old_names(path.read_text(encoding="utf-8"), has_texts=False)) == {}


def test_no_file_has_an_old_name():
    for path in FILES + TESTS:
        assert not OLD.keys() & set(words_of(path.stem)), path


def test_no_setting_and_no_page_has_an_old_word():
    pages = [*(ROOT / "degan" / "reports").rglob("*.html"), *(ROOT / "config" / "experiments").glob("*.yaml")]
    for path in pages:
        words = set(re.findall(r"[a-z]+", path.read_text(encoding="utf-8").lower()))
        # These English words may stand in a text, and not in a name.
        assert not words & (OLD.keys() - {"about", "say", "says", "life", "lives", "led", "carries", "eye"}), path
