"""Name, version and licence of everything that an installation brings, as its metadata says, and
of everything that `bench fetch` can fetch, as the catalogue says.

    python tests/gate/licences.py    # writes the tables of docs/licences.md again

Packages are found by following what this distribution requires, with all its extras, through what
is installed here; what else is installed is left out. So run it where `make test` has installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "licences.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CATALOGUE = ROOT / "bench" / "assets" / "catalogue.toml"
TEXTS = {
    "Permission is hereby granted, free of charge, to any person obtaining a copy": "MIT (its text)"
}
LONGEST = 60  # characters of a licence's name; metadata may hold its whole text instead


def direct(extra: str = "") -> list[Requirement]:
    """What pyproject.toml asks for itself: always, or for an extra."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    parsed = [Requirement(line) for line in lines]
    return [each for each in parsed if canonicalize_name(each.name) != PROJECT["name"]]


def brought(start: Iterable[Requirement]) -> set[str]:
    """The canonical names of everything that is installed here because of `start`."""
    found, waiting, seen = set[str](), list(start), set[tuple[str, frozenset[str]]]()
    while waiting:
        required = waiting.pop()
        name, extras = canonicalize_name(required.name), frozenset(required.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            waiting += _required_by(name, extras)
        except metadata.PackageNotFoundError:
            continue  # another system's, or not installed
        found.add(name)
    return found


def _required_by(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for line in metadata.requires(name) or ():
        required = Requirement(line)
        if required.marker is None or any(
            required.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            yield required


def licence(name: str) -> str:
    """The licence of an installed distribution as its metadata names it: the SPDX expression, else
    the field of before, else its classifiers, else what the text of its licence file is known to
    begin with. "unknown" where there is none of them.
    """
    about = metadata.metadata(name)
    field = " ".join((about.get("License") or "").split())
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or ()
        if line.startswith("License :: ") and line != "License :: OSI Approved"
    ]
    return (
        about.get("License-Expression")
        or (field if len(field) <= LONGEST and field.upper() != "UNKNOWN" else "")
        or ", ".join(classifiers)
        or _by_text(name)
        or "unknown"
    )


def _by_text(name: str) -> str:
    """The licence whose words the licence file of a distribution holds; "" for others."""
    for file in metadata.files(name) or ():
        if re.match(r"licen[cs]e|copying", file.name, re.IGNORECASE):
            text = " ".join(
                Path(str(file.locate())).read_text(encoding="utf-8", errors="replace").split()
            )
            return next((known for words, known in TEXTS.items() if words in text), "")
    return ""


def package_tables() -> dict[str, str]:
    """The tables of packages by name: each package stands in the first that brings it."""
    groups = {"required": direct(), "ray": direct("ray"), "testbed": direct("testbed")}
    groups["dev"] = direct("dev")
    asked = {canonicalize_name(each.name) for start in groups.values() for each in start}
    listed, tables = set[str](), {}
    for group, start in groups.items():
        names = brought(start) - listed
        listed |= names
        tables[group] = _table(
            ("package", "version", "licence", "asked for by"),
            (
                (
                    f"`{name}`",
                    metadata.version(name),
                    licence(name),
                    "us" if name in asked else "others",
                )
                for name in sorted(names, key=lambda each: (each not in asked, each))
            ),
        )
    return tables


def fetched_table() -> str:
    """What the catalogue knows: a row for each asset, with its licence and who offers it."""
    entries = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    return _table(
        ("asset", "licence", "from"),
        (
            (f"`{name}`", entry.get("licence") or "that of each picture's owner", _source(entry))
            for name, entry in entries.items()
        ),
    )


def _source(entry: dict[str, object]) -> str:
    """The place an asset comes from: a model of the hub, a host, or the links of a list."""
    if "hub" in entry:
        return f"[{entry['hub']}](https://huggingface.co/{entry['hub']})"
    if "list" in entry:
        return f"the links of `{str(entry['list']).removeprefix('asset:')}`"
    urls = entry["urls"]
    if not isinstance(urls, list) or not urls:
        return "by hand, in a browser"
    host, *path = urls[0].partition("://")[2].split("/")
    if host in ("raw.githubusercontent.com", "huggingface.co"):
        site = "github.com" if host.startswith("raw.") else host
        return f"[{path[0]}/{path[1]}](https://{site}/{path[0]}/{path[1]})"
    return host


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def with_table(page: str, name: str, table: str) -> str:
    """The page with one table between its two marks; raises `ValueError` where it has no marks."""
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, mark, rest = page.partition(begin)
    _, closing, after = rest.partition(end)
    if not mark or not closing:
        raise ValueError(f"{PAGE.name} has no marks for the table {name}")
    return before + begin + table + "\n" + end + after


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, table in (package_tables() | {"fetched": fetched_table()}).items():
        page = with_table(page, name, table)
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE, file=sys.stderr)


if __name__ == "__main__":
    main()
