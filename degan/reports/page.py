"""Pages made from templates, and written whole or not at all.

A page is one file that a person can send. Charts are inline SVG and pictures are base64. The page has no script and no
outside address, and its content security policy forbids both. The templates escape all their arguments except charts,
which are markup and escape their own texts.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from config import UsageError
from degan.reports import svg
from degan.reports.text import many

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Cell:
    """A table's cell with more than a text.

    Args:
        line: the curve whose line stands before the text.
        then: the first value.
        share: how strongly the cell is coloured, 0 to 1.
        span: the width of the cell in columns.
    """

    text: str
    line: int | None = None
    then: str | None = None
    is_strong: bool = False
    share: float | None = None
    span: int = 1


def of_worker(index: int) -> Cell:
    """The first cell of a worker's row."""
    return Cell(f"worker {index}", line=index)


def render(template: str, **content: Any) -> str:
    """A page as HTML text, from one of the templates."""
    return _environment().get_template(template).render(**content)


def write_page(path: Path, html: str) -> None:
    """Write a page whole or not at all.

    Raises:
        UsageError: the page cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("degan.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(policy=POLICY, style_of=svg.style_of, many=many)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment
