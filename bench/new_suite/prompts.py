"""The prompts of a new suite: read from a CSV, joined with their training pictures, and split into
those to learn from and those to judge by.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from bench.base.errors import one_line, visible
from bench.base.progress import Report
from bench.new_suite.given import Checks, absolute, examples

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


@dataclass
class Row:
    """One prompt of a CSV. `line`: where it begins in the file; `listed`: its cell `reference`."""

    line: int
    id: str
    prompt: str
    group: str
    listed: str
    has_id: bool
    references: list[Path] = field(default_factory=list)
    role: str = ""


class PromptChecks(Checks):
    """Prompt lists, the training pictures that belong to them, and who is held out."""

    def read_rows(self, path: Path, letter: str) -> list[Row]:
        """The prompts of a CSV; texts are kept byte by byte, since they are keys."""
        try:
            content = path.read_bytes()
            if content.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError("it is UTF-16: save it as CSV in UTF-8")
            lines = _fields(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            byte, line = error.object[error.start], error.object[: error.start].count(b"\n") + 1
            self.problems.append(
                f"{path} is not UTF-8 (byte 0x{byte:02x} in line {line}): save it as UTF-8"
            )
            return []
        except (OSError, ValueError, csv.Error) as error:
            self.problems.append(f"{path} cannot be read as CSV: {one_line(error)[:120]}")
            return []
        header, body = (lines[0][1], lines[1:]) if lines else ([], [])
        if "prompt" not in header:
            self.problems.append(
                f"{path} has no column 'prompt' (it has:"
                f" {visible(', '.join(header))[:200] or 'none'})"
            )
            return []
        twice = [name for name in ("prompt", "id", "group", "reference") if header.count(name) > 1]
        long = [line for line, cells in body if len(cells) > len(header)]
        self.rows_problem(path, twice, "a column that stands more than once:")
        self.rows_problem(
            path, long, "more fields than the header has (a comma without quotes?), line"
        )
        rows = []
        for number, (line, cells) in enumerate(body, 1):
            row = dict(zip(header, cells))
            own = row.get("id") or ""
            rows.append(
                Row(
                    line,
                    own or f"{letter}{number:05d}",
                    row.get("prompt", ""),
                    row.get("group") or "",
                    row.get("reference") or "",
                    bool(own),
                )
            )
        self.rows_problem(
            path, [row.line for row in rows if not row.prompt.strip()], "empty prompts, line"
        )
        self.rows_problem(
            path,
            [id for id, count in Counter(row.id for row in rows).items() if count > 1],
            "ids that stand more than once:",
        )
        if not rows:
            self.problems.append(f"{path} has no prompts")
        again = len(rows) - len({same(row.prompt) for row in rows})
        if again and all(row.prompt.strip() for row in rows):
            self.notes.append(
                f"{path.name}: {again} prompts repeat an earlier one; such prompts stay on one side"
                " of the split"
            )
        return rows

    def find_references(self, rows: list[Row], report: Report) -> tuple[int, int]:
        """Fill every row's references; how many were expected, and how many are there and
        decode.
        """
        assert self.given.prompts is not None
        folder, beside = self.given.images, self.given.prompts.parent
        if folder is not None and not folder.is_dir():
            self.problems.append(f"{folder} is no folder of training pictures")
            return 0, 0
        if folder is None and not any(row.listed for row in rows):
            return 0, 0
        if folder is not None and rows and not any(row.listed or row.has_id for row in rows):
            self.problems.append(
                f"{self.given.prompts} has neither a column 'reference' nor 'id', so no picture of"
                f" {folder} can be matched"
            )
            return len(rows), 0
        by_name: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()) if folder else ():
            if path.suffix.lower() in SUFFIXES and path.is_file():
                for key in {_normal(path.name), _normal(path.stem)}:
                    by_name.setdefault(key, []).append(path)
        wanted: list[tuple[Row, str, list[Path]]] = []
        for row in rows:
            names = [name for name in row.listed.split("|") if name]
            for name in names:
                places = [place / name for place in (folder, beside) if place is not None]
                wanted.append((row, name, [path for path in places if _is_file(path)][:1]))
            if not names:
                wanted.append((row, row.id, by_name.get(_normal(row.id), []) if row.has_id else []))
        candidates = list(dict.fromkeys(path for _, _, paths in wanted for path in paths))
        broken = {
            path: why for path, why in zip(candidates, self._decoded(candidates, report)) if why
        }
        absent = [name for _, name, paths in wanted if not paths]
        for row, _, paths in wanted:
            row.references += [
                path for path in paths if path not in broken and path not in row.references
            ]
        expected = sum(max(len(paths), 1) for _, _, paths in wanted)
        found = sum(path not in broken for _, _, paths in wanted for path in paths)
        odd = [path.name for row in rows for path in row.references if "|" in str(absolute(path))]
        self.rows_problem(self.given.prompts, odd, "training pictures with '|' in their path:")
        spare = len({path for paths in by_name.values() for path in paths} - set(candidates))
        if spare:
            self.notes.append(f"{spare} pictures of {folder} belong to no prompt")
        why = [f"{len(absent)} missing: {examples(absent)}"] if absent else []
        why += (
            [
                f"{len(broken)} do not decode:"
                f" {examples([f'{path.name} ({reason})' for path, reason in broken.items()])}"
            ]
            if broken
            else []
        )
        if why:
            said = f"{found} of {expected} training pictures found; {'; '.join(why)}"
            bare = [row.id for row in rows if not row.references]
            if self.given.missing == "refuse":
                self.problems.append(f"{said} (or drop the prompts without one)")
            elif len(bare) == len(rows):
                self.problems.append(f"{said}; no prompt is left")
            else:
                self.notes.append(
                    f"{said}; {len(bare)} prompts were"
                    f" dropped{': ' + examples(bare) if bare else ''}"
                )
        return expected, found

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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    # a name too long for the system, say: a caption in the wrong column
    except (OSError, ValueError):
        return False


def _undecodable(path: Path) -> str:
    """Why a picture cannot be used; empty when it can."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except Exception as error:  # each format's decoder raises its own
        return one_line(error)[:60]
    return ""


def _fields(content: str) -> list[tuple[int, list[str]]]:
    """The records of a CSV, each with the line where it begins; separated by what gives a column
    `prompt`: comma, semicolon or tab.
    """

    def reader(delimiter: str, strict: bool) -> Any:
        return csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=strict)

    chosen = next(
        (delimiter for delimiter in ",;\t" if "prompt" in next(reader(delimiter, False), [])), ","
    )
    lines, records, begins = reader(chosen, True), [], 1
    for cells in lines:
        if cells:
            records.append((begins, cells))
        begins = lines.line_num + 1
    return records
