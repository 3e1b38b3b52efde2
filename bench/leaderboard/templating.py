"""The Jinja environment of every page: what a record says is escaped, and its invisible characters
are shown.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from bench.base.errors import visible

LONG, TITLE = 90, 600  # letters of a text that are shown, and that its tooltip has
# where a line may break: after underscores, in a narrow place after = as well
BREAKS, NARROW = re.compile("(_)"), re.compile("([_=])")
PACKAGE, FOLDER = "bench.leaderboard", "templates"


def template(name: str) -> Template:
    """A template by its file's name; it may call `short` and `plain`."""
    return _environment().get_template(name)


def package_file(name: str) -> str:
    """A file beside the templates that stands in a page as it is: a script or a style sheet."""
    file = resources.files(PACKAGE).joinpath(FOLDER).joinpath(name)
    return file.read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(PACKAGE, FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.globals |= {"short": short, "plain": plain}
    return environment


def _shown(value: Any) -> Any:
    """What a template prints, before it is escaped. What has `__html__` is escaped already."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def short(text: object, longest: int = LONG, narrow: bool = False) -> Markup:
    """A text from a record as a piece of the page: isolated from the direction of what is around
    it, cut, with more of it in a tooltip.

    It may break after underscores, in a narrow place after = as well.
    """
    whole = visible(str(text)[: 4 * TITLE])
    cut = whole if len(whole) <= longest else whole[:longest] + "…"
    # no entity has one
    broken = Markup(
        (NARROW if narrow else BREAKS)
        .sub(r"\1<wbr>", str(escape(cut)))
        .replace(" †", "\xa0†")
        .replace(" ‡", "\xa0‡")
    )
    return (
        Markup("<bdi>{}</bdi>").format(broken)
        if cut == whole
        else Markup('<bdi title="{}">{}</bdi>').format(plain(whole, TITLE), broken)
    )


def plain(text: object, longest: int = LONG) -> str:
    """The same as plain text, for attributes and for SVG."""
    whole = visible(str(text)[: 4 * TITLE])
    return whole if len(whole) <= longest else whole[:longest] + "…"
