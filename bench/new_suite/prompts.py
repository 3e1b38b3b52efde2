"""The prompts of a new suite: read from a CSV, joined with their training pictures, and split into
those that methods learn from and those that they are judged on.
"""

from __future__ import annotations

import hashlib
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from bench.base import prompt_lists
from bench.base.errors import UserError, visible
from bench.base.files import is_regular_file
from bench.base.pictures import has_picture_suffix, read_image
from bench.base.progress import Report
from bench.base.prompt_lists import PromptList, scan_list
from bench.new_suite.given import Checks, absolute, examples


@dataclass
class Row:
    """One prompt of a CSV: the line of the file where it begins, its cells (`listed` is that of the
    column `reference`), whether the file gave its `id`, and what is found out later.
    """

    line: int
    id: str
    prompt: str
    group: str
    listed: str
    has_id: bool
    references: list[Path] = field(default_factory=list)
    role: str = ""


class Wanted(NamedTuple):
    """A training picture that a row asks for: the name that it gives, or its id, and the files of
    that name.
    """

    row: Row
    name: str
    files: list[Path]


class PromptChecks(Checks):
    """Checks of prompt lists and of the training pictures that belong to them; which prompts are
    held out.
    """

    def read_rows(self, path: Path, letter: str) -> list[Row]:
        """The prompts of a CSV, cut at the comma, semicolon or tab that gives a column `prompt`;
        rows without an id are numbered after `letter`.
        """
        try:
            found = scan_list(path, "csv", delimiter=None)
            if "prompt" not in found.columns:
                self.problems.append(
                    f"{path} has no column 'prompt' (it has:"
                    f" {visible(', '.join(found.columns))[:200] or 'none'})"
                )
                return []
            short = self._add_faults(found)
            rows = [
                _row(row, f"{letter}{number:05d}")
                for number, row in enumerate(found.rows, 1)
                if row.line not in short
            ]
        except UserError as error:
            self.problems.append(str(error))
            return []
        self._add_empty_and_repeated(path, rows)
        return rows

    def _add_faults(self, found: PromptList) -> set[int]:
        """Add the rows that are not whole to the problems; the lines of those that lack cells."""
        long = [fault.line for fault in found.faults if fault.surplus]
        short = [fault.line for fault in found.faults if not fault.surplus]
        self.rows_problem(
            found.file, long, "more fields than the header has (a comma without quotes?), line"
        )
        self.rows_problem(found.file, short, "fewer fields than the header has, line")
        return set(short)

    def _add_empty_and_repeated(self, path: Path, rows: list[Row]) -> None:
        self.rows_problem(
            path, [row.line for row in rows if not row.prompt.strip()], "empty prompts, line"
        )
        ids = Counter(row.id for row in rows)
        self.rows_problem(
            path, [id for id, count in ids.items() if count > 1], "ids that stand more than once:"
        )
        if not rows:
            self.problems.append(f"{path} has no prompts")
        again = len(rows) - len({same(row.prompt) for row in rows})
        if again and all(row.prompt.strip() for row in rows):
            self.notes.append(
                f"{path.name}: {again} prompts repeat an earlier one; such prompts stay on one side"
                " of the split"
            )

    def find_references(self, rows: list[Row], report: Report) -> tuple[int, int]:
        """Fill every row's references; how many pictures were expected, and how many of them are
        there and decode.
        """
        if not self._pictures_can_be_matched(rows):
            asked = self.given.images is not None and self.given.images.is_dir()
            return (len(rows) if asked else 0), 0
        by_name = self._pictures_by_name()
        wanted = [picture for row in rows for picture in self._wanted_by(row, by_name)]
        candidates = list(dict.fromkeys(path for picture in wanted for path in picture.files))
        reasons = zip(candidates, self._decoded(candidates, report), strict=True)
        broken = {path: why for path, why in reasons if why}
        for row, _, files in wanted:
            row.references += [
                path for path in files if path not in broken and path not in row.references
            ]
        spare = {path for files in by_name.values() for path in files} - set(candidates)
        if spare:
            self.notes.append(f"{len(spare)} pictures of {self.given.images} belong to no prompt")
        expected = sum(max(len(picture.files), 1) for picture in wanted)
        found = sum(path not in broken for picture in wanted for path in picture.files)
        self._add_missing_pictures(rows, wanted, broken, f"{found} of {expected}")
        return expected, found

    def _pictures_can_be_matched(self, rows: list[Row]) -> bool:
        """Whether training pictures are given, and prompts say which of them are theirs."""
        folder = self.given.images
        if folder is None:
            return any(row.listed for row in rows)
        if not folder.is_dir():
            self.problems.append(f"{folder} is no folder of training pictures")
            return False
        if rows and not any(row.listed or row.has_id for row in rows):
            self.problems.append(
                f"{self.given.prompts} has neither a column 'reference' nor 'id', so no picture of"
                f" {folder} can be matched"
            )
            return False
        return True

    def _pictures_by_name(self) -> dict[str, list[Path]]:
        """The pictures of the folder, each by its name with its ending and without."""
        by_name: dict[str, list[Path]] = {}
        for path in sorted(self.given.images.iterdir()) if self.given.images else ():
            if has_picture_suffix(path) and path.is_file():
                for key in {_normal(path.name), _normal(path.stem)}:
                    by_name.setdefault(key, []).append(path)
        return by_name

    def _wanted_by(self, row: Row, by_name: dict[str, list[Path]]) -> list[Wanted]:
        """The pictures that a row lists, which lie in the folder or beside the CSV; where it lists
        none, those that are named after its id.
        """
        assert self.given.prompts is not None
        names = [name for name in row.listed.split("|") if name]
        if not names:
            return [Wanted(row, row.id, by_name.get(_normal(row.id), []) if row.has_id else [])]
        folders = [place for place in (self.given.images, self.given.prompts.parent) if place]
        return [
            Wanted(
                row,
                name,
                [path for folder in folders if is_regular_file(path := folder / name)][:1],
            )
            for name in names
        ]

    def _add_missing_pictures(
        self, rows: list[Row], wanted: list[Wanted], broken: dict[Path, str], found: str
    ) -> None:
        """Add what is wrong with the pictures to the problems; or to the notes, where prompts
        without a picture may be dropped.
        """
        assert self.given.prompts is not None
        odd = [path.name for row in rows for path in row.references if "|" in str(absolute(path))]
        self.rows_problem(self.given.prompts, odd, "training pictures with '|' in their path:")
        absent = [picture.name for picture in wanted if not picture.files]
        why = [f"{len(absent)} missing: {examples(absent)}"] if absent else []
        if broken:
            shown = examples([f"{path.name} ({reason})" for path, reason in broken.items()])
            why.append(f"{len(broken)} do not decode: {shown}")
        if not why:
            return
        summary = f"{found} training pictures found; {'; '.join(why)}"
        bare = [row.id for row in rows if not row.references]
        if self.given.missing == "refuse":
            self.problems.append(f"{summary} (or drop the prompts without one)")
        elif len(bare) == len(rows):
            self.problems.append(f"{summary}; no prompt is left")
        else:
            dropped = f": {examples(bare)}" if bare else ""
            self.notes.append(f"{summary}; {len(bare)} prompts were dropped{dropped}")

    def _decoded(self, paths: Sequence[Path], report: Report) -> Iterator[str]:
        pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
        try:
            for number, why in enumerate(pool.map(_undecodable, paths), 1):
                report("pictures", number, len(paths))
                yield why
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for thousands of pictures

    def compare(self, rows: list[Row], clean: list[Row]) -> None:
        """A clean prompt that is also suspicious would be fitted on and judged as both."""
        suspicious = {same(row.prompt) for row in rows}
        both = [row.line for row in clean if row.prompt.strip() and same(row.prompt) in suspicious]
        if self.given.clean:
            self.rows_problem(
                self.given.clean, both, "prompts that are also among the suspicious ones, line"
            )

    def split(self, rows: list[Row], roles: tuple[str, str]) -> None:
        """Give each row one of two roles: the first gets the share `fit`."""
        if not 0 <= self.given.fit < 1:
            self.problems.append(
                f"the fit share must be at least 0 and below 1, not {self.given.fit}"
            )
            return
        chosen = split(
            [row.prompt for row in rows],
            [row.group for row in rows],
            self.given.fit,
            self.given.seed,
        )
        for index, row in enumerate(rows):
            row.role = roles[index not in chosen]
        if roles[0] == "fit" and rows:
            if self.given.fit and not chosen:
                self.notes.append("one prompt cannot be split: there are no fit prompts")
            learned = {path for row in rows if row.role == "fit" for path in row.references}
            if shared := sum(
                row.role == "memorized" and bool(learned & set(row.references)) for row in rows
            ):
                self.notes.append(
                    f"{shared} memorized prompts share a training picture with a fit prompt"
                )


def split(prompts: Sequence[str], groups: Sequence[str], share: float, seed: int) -> set[int]:
    """The indices that make up `share` of the different prompts, spread over the groups by largest
    remainders; at least one prompt on each side.

    Who is chosen follows from a hash of seed and text, so it depends neither on the order of the
    list nor on other prompts. Prompts that differ only in case or white space go together, with the
    group of the first.
    """
    together: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        together.setdefault(same(prompt), []).append(index)
    of_group: dict[str, list[str]] = {}
    for key, indices in together.items():
        of_group.setdefault(groups[indices[0]], []).append(key)
    if share == 0 or len(together) < 2:
        return set()

    def drawn(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()

    exact = {group: Fraction(str(share)) * len(keys) for group, keys in of_group.items()}
    wanted = min(max(math.floor(sum(exact.values()) + Fraction(1, 2)), 1), len(together) - 1)
    taken = {group: math.floor(count) for group, count in exact.items()}
    by_remainder = sorted(exact, key=lambda group: (taken[group] - exact[group], drawn(group)))
    for group in by_remainder[: wanted - sum(taken.values())]:
        taken[group] += 1
    chosen = [
        key for group, keys in of_group.items() for key in sorted(keys, key=drawn)[: taken[group]]
    ]
    return {index for key in chosen for index in together[key]}


def same(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFC", prompt).casefold().split())


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _row(row: prompt_lists.Row, number_as_id: str) -> Row:
    own = row.get("id") or ""
    return Row(
        row.line,
        own or number_as_id,
        row.text("prompt"),
        row.get("group") or "",
        row.get("reference") or "",
        bool(own),
    )


def _undecodable(path: Path) -> str:
    """Why a picture cannot be used; empty when it can."""
    try:
        read_image(path)
    except UserError as error:
        return str(error).removeprefix(f"picture {path} cannot be read: ")[:120]
    return ""
