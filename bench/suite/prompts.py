"""The prompts of one role of a suite: the rows of its list that count, each with its training
pictures and seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.assets.catalogue import PREFIX, PicturesEntry, name_of
from bench.base.errors import UserError
from bench.base.prompt_lists import Row, filled_in, read_rows
from bench.base.spread import spread
from bench.suite.places import Places
from bench.suite.settings import PromptSettings


@dataclass(frozen=True)
class Prompt:
    """One prompt: `id` is unique in its file, `group` a label such as the number of times it was
    trained on, `seed` its first image's own.
    """

    id: str
    text: str
    group: str
    references: tuple[Path, ...]
    seed: int | None = None


def read_prompts(
    places: Places, role: str, settings: PromptSettings, limit: int | None
) -> tuple[Prompt, ...]:
    """The prompts of a role in file order, at most `limit` of them.

    Raises `UserError` for a list that is malformed or leaves none.

    Where a plan meets a list that is missing, there are as many placeholders as the suite expects
    prompts.
    """
    suite = f"suite {places.suite}"
    if places.lenient and not places.is_there(settings.file):
        count = min(settings.expected or 0, limit or settings.expected or 0)
        return tuple(
            Prompt(f"{role}-{i:05d}", f"{role} prompt {i} of {settings.file}", "", ())
            for i in range(count)
        )
    file = places.path(settings.file)
    called = {"prompt": "prompt"} | {str(ours): theirs for ours, theirs in settings.columns.items()}
    rows = spread(_chosen(suite, file, settings, called), settings.limit)
    if settings.expected not in (None, len(rows)):
        raise UserError(
            f"{suite}: {settings.expected} prompts of the role {role} are expected, and {file}"
            f" gives {len(rows)}"
        )
    rows = spread(rows, limit)
    blank = next(
        (number for number, row in enumerate(rows) if not row[called["prompt"]].strip()), None
    )
    if blank is not None:
        raise UserError(f"{suite}: prompt number {blank + 1} of the role {role} in {file} is empty")
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


def _chosen(
    suite: str, file: Path, settings: PromptSettings, called: Mapping[str, str]
) -> list[Row]:
    """The rows that the settings' filters leave."""
    columns, table = read_rows(file, settings.format, settings.delimiter)
    for column in {
        *called.values(),
        *settings.where,
        *(("group",) if settings.groups and "group" not in called else ()),
    }:
        if column not in columns:
            raise UserError(
                f"{suite}: {file} has no column '{column}' (it has:"
                f" {', '.join(sorted(columns)) or 'none'})"
            )
    rows = [row for row in table if all(row[key] == value for key, value in settings.where.items())]
    if settings.groups:
        rows = [row for row in rows if row[called.get("group", "group")] in settings.groups]
    if settings.part:
        rows = rows[settings.part[0] :: settings.part[1]]
    if settings.without:
        first, every = settings.without
        rows = [row for number, row in enumerate(rows) if number % every != first]
    return rows


def _prompt(
    suite: str, role: str, number: int, row: Row, called: Mapping[str, str], finder: _References
) -> Prompt:
    id = row.get(called.get("id", "id")) or row.get("line") or f"{role}-{number:05d}"
    seed = row[called["seed"]] if "seed" in called else ""
    if seed and not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        raise UserError(f"{suite}: the seed '{seed}' of prompt {id} is no whole number below 2^63")
    group = row.get(called.get("group", "group")) or ""
    return Prompt(id, row[called["prompt"]], group, finder.of(id, row), int(seed) if seed else None)


class _References:
    """Finds the reference pictures of one list's prompts."""

    def __init__(self, places: Places, settings: PromptSettings, file: Path) -> None:
        self.places, self.settings, self.file = places, settings, file
        self.column = settings.columns.get("reference", "reference")
        self.by_id: dict[str, Path] | None = None
        asset = settings.references
        if asset.startswith(PREFIX) and isinstance(places.assets.entry(asset), PicturesEntry):
            self.by_id = (
                {}
                if places.lenient and not places.is_there(asset)
                else places.assets.pictures(asset)
            )
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
            relative = filled_in(template, row)
            paths: tuple[Path, ...] = (
                (
                    self.places.place(relative)
                    if relative.startswith(PREFIX)
                    else self.places.file.parent / relative
                ),
            )
        else:
            paths = tuple(
                self.file.parent / name for name in (row.get(self.column) or "").split("|") if name
            )
        for path in () if self.places.lenient else paths:
            if not path.is_file():
                raise UserError(f"suite {self.places.suite}: reference picture {path} is missing")
        return paths
