"""One concept, one word: the words of 0.1 that a stranger did not know are names of nothing any more."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each with what it is called now.
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
# What a field calls so itself: torch.eye, a command's line about itself, PEM's certificates, a lease that lives on.
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
}
FILES = sorted(path for package in ("config", "peers", "degan", "launch") for path in (ROOT / package).rglob("*.py"))


def words_of(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def old_names(source: str) -> set[str]:
    """The names of a file in which an old word is."""
    names = {
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.NAME
        or token.type == tokenize.STRING
        and re.fullmatch(r"[\"'][a-z_.]+[\"']", token.string)
    }
    return {name for name in names if any(word in OLD for word in words_of(name))}


def test_an_old_name_is_found():
    assert old_names("def judge_all(letters): return {'muted': Mailbox(letters)}") == {
        *("judge_all", "letters", "Mailbox", "'muted'")
    }
    assert old_names("'''a judge says'''\nledger = torch.compile(x)") == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_an_old_one(path):
    allowed = ALLOWED.get(str(path.relative_to(ROOT)), set())
    found = {
        name for name in old_names(path.read_text(encoding="utf-8")) if not set(words_of(name)) & OLD.keys() <= allowed
    }
    assert not found, {name: [OLD[word] for word in words_of(name) if word in OLD] for name in found}


def test_no_setting_and_no_page_has_an_old_one():
    pages = [*(ROOT / "degan" / "reports").rglob("*.html"), *(ROOT / "config" / "experiments").glob("*.yaml")]
    for path in pages:
        words = set(re.findall(r"[a-z]+", path.read_text(encoding="utf-8").lower()))
        # English words that only names may not be.
        assert not words & (OLD.keys() - {"about", "say", "says", "life", "lives", "led", "carries", "eye"}), path
