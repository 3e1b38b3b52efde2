"""What `bench list` and `bench show` look up: every name with one line about it, and of which kind
a name is.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.base.errors import UnknownName
from bench.registry import registry
from bench.registry.plugins import plugins
from bench.registry.registry import Entry

# Class attributes that `bench show` prints, in this order, where a class states them.
ATTRIBUTES = (
    "where",
    "needs",
    "paper",
    "version",
    "families",
    "in_chunks",
    "neutral",
    "threat",
    "names",
    "roles",
)


def list_names(plural: str | None) -> dict[str, dict[str, str]]:
    """The names of every kind (`methods`, `metrics`, `attacks`, `detectors`, `suites`) with one
    line about each.

    `plural` limits it to one kind. The line of a plug-in ends with its distribution and version,
    and begins with `broken:` and the reason when its code cannot be imported. Raises `UnknownName`
    for a `plural` that is no kind.
    """
    kinds = {f"{kind}s": kind for kind in (*registry.KINDS, "suite")}
    if plural is not None and plural not in kinds:
        raise UnknownName("kind", plural, kinds)
    found = {name: registry.entries(kinds[name]) for name in ([plural] if plural else kinds)}
    summaries = _summaries_of_plugins(entry for named in found.values() for entry in named.values())
    return {
        plural: {name: _line(entry, summaries) for name, entry in named.items()}
        for plural, named in found.items()
    }


def _summaries_of_plugins(entries: Iterable[Entry]) -> dict[Entry, str]:
    """The summaries of plug-ins that hold code, which only importing them gives."""
    importable = [
        entry
        for entry in entries
        if entry.plugin and not entry.plugin.problem and entry.kind != "suite"
    ]
    if not importable:
        return {}
    from bench.registry.probe import probe

    return probe(importable)


def _line(entry: Entry, summaries: dict[Entry, str]) -> str:
    summary = summaries.get(entry) or entry.summary
    return (
        f"{summary} [{entry.plugin.distribution} {entry.plugin.version}]"
        if entry.plugin
        else summary
    )


def kind_of(name: str) -> str:
    """The kind of a name or a Python file: `method`, `metric`, `attack` or `detector`.

    Raises `UnknownName` when it is none of them.
    """
    kind = (
        _kind_of_file(name)
        if name.endswith(".py")
        else next((kind for kind in registry.KINDS if registry.knows(kind, name)), None)
    )
    if kind is None:
        kinds = ("suite", *registry.KINDS)
        full_names = (
            [plugin.full_name for kind in kinds for plugin in plugins(kind)] if "/" in name else []
        )
        raise UnknownName(
            "name",
            name,
            full_names or (known for kind in kinds for known in registry.entries(kind)),
        )
    return kind


def _kind_of_file(name: str) -> str:
    """The kind whose base class a file of the user's derives from, read without importing it.

    It is `method` where the file does not say.
    """
    return next(
        (
            kind
            for kind in registry.KINDS
            if not registry.find(kind, name).summary.startswith("broken")
        ),
        "method",
    )
