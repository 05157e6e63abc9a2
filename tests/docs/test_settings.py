"""The page of settings: every setting is explained, no explanation is stale, and the page is that of the structs."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.inspect import type_info

import config
from docs import generate
from docs.explained import EXPLANATIONS, RENAMED, RENAMED_VALUES


def test_every_setting_has_an_explanation_and_none_is_stale():
    assert generate.settings().keys() == EXPLANATIONS.keys()


def test_a_setting_of_an_experiment_is_found_below_its_kind():
    built = config.build({"name": "any", "data": {"name": "digits"}, "model": {"name": "mlp"}})
    plain = msgspec.to_builtins(built)
    kinds = {"data.split": "iid", "model": "mlp", "mode": "partial_exchange"}
    found = {below(path, kinds) for path in generate.flat(plain) if path != "classifier"}
    assert found - {None} <= EXPLANATIONS.keys() | {
        "data.split.iid.kind",
        "model.mlp.name",
        "mode.partial_exchange.name",
    }
    assert len(found) > 40


def below(path: str, kinds: dict[str, str]) -> str:
    """A path as in the explanations: with the kind of its block."""
    block, _, name = path.rpartition(".")
    return f"{block}.{kinds[block]}.{name}" if block in kinds else path


def test_explanations_are_whole_sentences():
    for path, text in EXPLANATIONS.items():
        assert text[0].isupper() or text[0] == "`", path
        assert text.endswith("."), path
        assert "|" not in text and "\n" not in text, f"{path}: this would break the table"


def test_the_page_is_up_to_date():
    page = generate.PAGE.read_text(encoding="utf-8")
    assert page == generate.page(), "a struct or an explanation has changed: run python -m docs.generate"


def test_no_setting_has_its_old_name_beside_the_new_one():
    paths = {
        generate.join(block.path, field.name) for block in generate.settings_blocks() for field in block.struct.fields
    }
    assert not [old for old, new in RENAMED.items() if old in paths and new in paths]
    assert {new for new in RENAMED.values() if new} <= EXPLANATIONS.keys()
    assert RENAMED_VALUES.keys() <= EXPLANATIONS.keys()


class Inner(msgspec.Struct, frozen=True, tag_field="kind", tag="inner"):
    """The meaning of the inner block."""

    count: int = 3


class Outer(msgspec.Struct):
    """The meaning of the outer block."""

    inner: Inner = Inner()
    names: list[str] = []


def test_a_kind_is_a_section_with_its_keys(monkeypatch):
    monkeypatch.setitem(EXPLANATIONS, "inner.inner.count", "How many.")
    monkeypatch.setitem(EXPLANATIONS, "names", "Who.")
    outer, inner = generate.blocks(type_info(Outer))
    assert (outer.path, outer.title, inner.path, inner.title) == ("", "", "inner.inner", "inner: {kind: inner}")
    assert "The meaning of the inner block." in generate.section(inner)
    assert "| `count` | integer | `3` | How many. |" in generate.section(inner)
    assert "| `names` | list of text | `[]` | Who. |" in generate.section(outer)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (int, "integer"),
        (float | None, "number or `null`"),
        (list[str], "list of text"),
        (bool, "`true`, `false`"),
    ],
)
def test_types_as_a_person_reads_them(kind, shown):
    assert generate.values("any", type_info(kind)) == shown


def test_a_type_that_the_page_cannot_show_is_an_error():
    with pytest.raises(TypeError, match=r"bytes|Bytes"):
        generate.values("any", type_info(bytes))
