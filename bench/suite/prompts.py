"""The prompts of one role of a suite: the rows of its list that count, each with its training
pictures and seed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.assets.catalogue import PREFIX, PicturesEntry, name_of
from bench.base.errors import UserError, visible
from bench.base.files import is_regular_file
from bench.base.prompt_lists import Row, filled_in, read_list
from bench.base.spread import spread
from bench.suite.near import LARGEST, components, near_pairs
from bench.suite.places import Places
from bench.suite.schema import PromptSettings

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Prompt:
    """One prompt: `id` is unique in its file, `group` a label such as the number of times it was
    trained on, `seed` its first image's own. `anchor` is a clean caption of the same objects, or
    empty where the list names none.
    """

    id: str
    text: str
    group: str
    references: tuple[Path, ...]
    seed: int | None = None
    anchor: str = ""


def read_prompts(
    places: Places, role: str, settings: PromptSettings, limit: int | None
) -> tuple[Prompt, ...]:
    """The prompts of a role in file order, at most `limit` of them.

    Where `places` are lenient and the list is missing, there are as many placeholders as the suite
    expects prompts. Raises `UserError` for a list that is malformed or leaves none.
    """
    if places.lenient and not places.is_there(settings.file):
        return _placeholders(role, settings, limit)
    suite = f"suite {places.suite}"
    file = places.path(settings.file)
    places.refuse_outside("list", file, settings.file)
    called = {"prompt": "prompt"} | {str(ours): theirs for ours, theirs in settings.columns.items()}
    rows = spread(_chosen(suite, file, settings, called), settings.limit)
    if settings.expected not in (None, len(rows)):
        raise UserError(
            f"{suite}: {settings.expected} prompts of the role {role} are expected, and {file}"
            f" gives {len(rows)}"
        )
    rows = spread(rows, limit)
    for number, row in enumerate(rows, 1):
        if not settings.empty and not row.text(called["prompt"]).strip():
            raise UserError(
                f"{suite}: prompt number {number} of the role {role} in {file}, line {row.line}, is"
                " empty"
            )
    if not rows:
        raise UserError(
            f"{suite}: no prompts of the role {role} in {file} ({settings.where or 'no filter'})"
        )
    finder = _References(places, settings, file)
    prompts = tuple(
        _prompt(suite, role, number, row, called, finder) for number, row in enumerate(rows)
    )
    if len({prompt.id for prompt in prompts}) != len(prompts):
        raise UserError(f"{suite}: prompt ids in {file} are not unique")
    return prompts


def _placeholders(role: str, settings: PromptSettings, limit: int | None) -> tuple[Prompt, ...]:
    expected = settings.expected or 0
    return tuple(
        Prompt(f"{role}-{number:05d}", f"{role} prompt {number} of {settings.file}", "", ())
        for number in range(min(expected, limit or expected))
    )


def _chosen(
    suite: str, file: Path, settings: PromptSettings, called: Mapping[str, str]
) -> list[Row]:
    """The rows that the settings' filters leave."""
    found = read_list(file, settings.format, settings.delimiter)
    group = called.get("group", "group")
    needed = [group] if settings.groups or settings.per_group else []
    for column in (*called.values(), *settings.where, *needed):
        if column not in found.columns:
            raise UserError(
                f"{suite}: {file} has no column '{column}' (it has:"
                f" {visible(', '.join(sorted(found.columns))) or 'none'})"
            )
    rows = [
        row
        for row in found.rows
        if all(row[column] == value for column, value in settings.where.items())
    ]
    if settings.groups:
        rows = [row for row in rows if row[group] in settings.groups]
    if settings.drawn:
        units = _units(suite, settings, [row.text(called["prompt"]) for row in rows])
        rows = _drawn(suite, file, rows, called.get("id", "id"), settings.drawn, units)
    for given, stays in ((settings.part, True), (settings.without, False)):
        if given:
            first, every = given
            units = _units(suite, settings, [row.text(called["prompt"]) for row in rows])
            rows = [
                row
                for row, unit in zip(rows, units, strict=True)
                if (unit % every == first) is stays
            ]
    if settings.per_group:
        members: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            members.setdefault(row[group], []).append(place)
        kept = [spread(places, settings.per_group) for places in members.values()]
        rows = [rows[place] for place in sorted(itertools.chain.from_iterable(kept))]
    return rows


def _units(suite: str, settings: PromptSettings, captions: Sequence[str]) -> Sequence[int]:
    """What `part`, `without` and `drawn` count: rows, or groups of near-duplicates."""
    if not settings.together or not captions:
        return range(len(captions))
    if len(captions) > LARGEST:
        raise UserError(
            f"{suite}: {settings.file} has {len(captions):,} captions, of which near-duplicates are"
            f" to stay together; only {LARGEST:,} can be compared"
        )
    return [int(label) for label in components(len(captions), near_pairs(captions))]


def _drawn(
    suite: str,
    file: Path,
    rows: list[Row],
    column: str,
    part: tuple[int, int],
    units: Sequence[int],
) -> list[Row]:
    """The rows whose id falls into one part of several: by the id alone, whatever else is listed;
    of rows of one unit by the id of the first.

    Raises `UserError` where a row has no id.
    """
    chosen, (wanted, parts) = list[Row](), part
    first: dict[int, Row] = {}
    for row, unit in zip(rows, units, strict=True):
        id = first.setdefault(unit, row).get(column)
        if not id:
            raise UserError(
                f"{suite}: `drawn` goes by ids, and line {row.line} of {file} has none in the"
                f" column '{column}'"
            )
        if int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") % parts == wanted:
            chosen.append(row)
    return chosen


def _prompt(
    suite: str, role: str, number: int, row: Row, called: Mapping[str, str], finder: _References
) -> Prompt:
    id = row.get(called.get("id", "id")) or row.get("line") or f"{role}-{number:05d}"
    seed = row[called["seed"]] if "seed" in called else ""
    group = row.get(called.get("group", "group")) or ""
    return Prompt(
        id,
        row.text(called["prompt"]),
        group,
        finder.of(id, row),
        _seed_of(suite, id, seed),
        (row.get(called.get("anchor", "anchor")) or "").strip(),
    )


def _seed_of(suite: str, id: str, seed: str) -> int | None:
    if not seed:
        return None
    plain = seed.isascii() and seed.isdigit() and len(seed) < 1000  # Python refuses more digits
    if plain and int(seed) <= LARGEST_SEED:
        return int(seed)
    raise UserError(
        f"{suite}: the seed '{visible(seed)[:60]}' of prompt {id} is no whole number below 2^63"
    )


class _References:
    """Finds the reference pictures of one list's prompts."""

    def __init__(self, places: Places, settings: PromptSettings, file: Path) -> None:
        self.places, self.settings, self.file = places, settings, file
        self.column = settings.columns.get("reference", "reference")
        self.by_id: dict[str, Path] | None = None
        asset = settings.references
        if asset.startswith(PREFIX) and isinstance(places.assets.entry(asset), PicturesEntry):
            there = not places.lenient or places.is_there(asset)
            self.by_id = places.assets.pictures(asset) if there else {}
        elif asset.startswith(PREFIX) and not places.lenient:
            # the whole of it, by what is remembered of every file
            places.path(PREFIX + name_of(asset)[0])

    def of(self, id: str, row: Row) -> tuple[Path, ...]:
        """The pictures of one prompt; none where its link is dead.

        Raises `UserError` for a picture that ought to be there.
        """
        if self.by_id is not None:
            return (self.by_id[id],) if id in self.by_id else ()
        if template := self.settings.references:
            paths: tuple[Path, ...] = (self.places.beside_suite(filled_in(template, row)),)
        else:
            names = (row.get(self.column) or "").split("|")
            paths = tuple(self.file.parent / name for name in names if name)
        for path in () if self.places.lenient else paths:
            stated = self.settings.references or self.settings.file
            self.places.refuse_outside("training picture", path, stated)
            if not is_regular_file(path):
                raise UserError(
                    f"suite {self.places.suite}: reference picture {visible(str(path))} is missing"
                )
        return paths
