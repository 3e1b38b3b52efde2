"""What `bench list` and `bench show` tell: every name with one line about it, and the facts behind
one name.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.base.errors import UnknownName
from bench.registry import registry
from bench.registry.plugins import plugins
from bench.registry.registry import Entry

ATTRIBUTES = ("where", "needs", "paper", "version", "neutral", "threat", "names", "roles")


def list_names(plural: str | None) -> dict[str, dict[str, str]]:
    """Names and summaries by kind (`methods`, ...), all kinds by default.

    A plug-in's summary ends with its distribution and version.
    """
    kinds = {f"{kind}s": kind for kind in (*registry.KINDS, "suite")}
    if plural is not None and plural not in kinds:
        raise UnknownName("kind", plural, kinds)
    found = {name: registry.entries(kinds[name]) for name in ([plural] if plural else kinds)}
    tried = _try_plugins(entry for named in found.values() for entry in named.values())
    return {
        plural: {name: _line(entry, tried) for name, entry in named.items()}
        for plural, named in found.items()
    }


def _try_plugins(entries: Iterable[Entry]) -> dict[Entry, str]:
    strangers = [
        entry
        for entry in entries
        if entry.plugin and not entry.plugin.problem and entry.kind != "suite"
    ]
    if not strangers:
        return {}
    from bench.registry.probe import probe

    return probe(strangers)


def _line(entry: Entry, tried: dict[Entry, str]) -> str:
    summary = tried.get(entry) or entry.summary
    return (
        f"{summary} [{entry.plugin.distribution} {entry.plugin.version}]"
        if entry.plugin
        else summary
    )


def kind_of(name: str) -> str:
    """Whether a name or file is a method, metric or attack.

    Raises `UnknownName` when it is none.
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
    """The kind whose base class a file of the user's derives from, read without importing it;
    method where that cannot be told.
    """
    return next(
        (
            kind
            for kind in registry.KINDS
            if not registry.find(kind, name).summary.startswith("broken")
        ),
        "method",
    )
