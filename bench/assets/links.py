"""Pictures from lists of live links that rot: each under its own sha256, and `images.csv`, which
says what became of every link.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.assets.archive import sha256_of, unwritable
from bench.assets.download import GONE, Part, Refused, Wanted, Wrong, flush, local_path, obtain
from bench.assets.session import Session, folder_lock
from bench.base import limits
from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically
from bench.base.pictures import FORMATS, MAX_PIXELS, BadPicture, decode_image
from bench.base.progress import Report, silent

MAX_BYTES = limits.LINKED_PICTURE_BYTES
COLUMNS = ("id", "url", "status", "file", "sha256", "bytes")
# characters kept in images.csv: a picture inside its address (data:) makes a field that no reader
# of CSV takes
LONGEST_URL = 100_000
REDIRECTED = "found: behind a redirect to "  # the status of such a picture, before its address
SAVE_EVERY = 5.0  # seconds between two savings of images.csv
# one picture at a time, so that large ones do not fill the memory together
_DECODING = threading.Lock()


@dataclass(frozen=True)
class ImageRow:
    """One row of images.csv.

    The first word of `status`: found, 404, 410, wrong (no picture, or another), failed, unasked.
    Of a picture that was found behind a redirect, the address that it led to follows.
    """

    id: str
    url: str
    status: str
    file: str = ""
    sha256: str = ""
    bytes: int = 0

    @property
    def state(self) -> str:
        return self.status.partition(":")[0]


@dataclass(frozen=True)
class Images:
    """The pictures that were asked for, in the order asked."""

    folder: Path
    rows: tuple[ImageRow, ...]

    @property
    def n_expected(self) -> int:
        return len(self.rows)

    @property
    def n_found(self) -> int:
        return sum(row.state == "found" for row in self.rows)

    def path(self, row: ImageRow) -> Path | None:
        return self.folder / row.file if row.file else None

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "n_expected": self.n_expected,
            "n_found": self.n_found,
            "images": [asdict(row) for row in self.rows],
        }


def fetch_images(
    rows: Sequence[tuple[str, str, str]],
    folder: Path,
    workers: int = 8,
    offline: bool = False,
    timeout: float = 30.0,
    retries: int = 2,
    retry_dead: bool = False,
    again: bool = False,
    report: Report = silent,
    private: bool = False,
) -> Images:
    """Fetch pictures into a folder, each under its own sha256, and write `images.csv` there.

    `rows`: (id, address, sha256 or empty) of each. A picture that images.csv has as found is not
    asked for again while its file has the same size (with `again`: and the same sha256). Links that
    answered 404 or 410, or with something other than the picture, are asked again only with
    `retry_dead`; links that failed otherwise, always. Rows of other lists in the same folder stay
    in images.csv. A picture must decode, have at most `MAX_BYTES` bytes and `MAX_PIXELS` pixels,
    and be in one of `FORMATS`. Addresses of this machine and of private networks are refused, and
    redirects to them, unless `private`; files of this machine always.
    """
    if len({id for id, _, _ in rows}) != len(rows):
        raise UserError(f"the ids of the {len(rows)} pictures for {folder} are not unique")
    session = Session(workers, timeout, retries, offline, private_links=private)
    with folder_lock(folder):
        recorded = read_images(folder)
        known = {id: recorded.get(id) for id, _, _ in rows}
        todo = [
            index
            for index, row in enumerate(rows)
            if not _settled(known[row[0]], row, folder, retry_dead, again)
        ]
        result = {id: known[id] or ImageRow(id, url, "unasked") for id, url, _ in rows}
        result.update((rows[index][0], ImageRow(*rows[index][:2], "unasked")) for index in todo)
        others = [row for id, row in recorded.items() if id not in known]
        saved = time.monotonic()

        def tick() -> None:
            report("pictures", sum(row.state != "unasked" for row in result.values()), len(rows))

        def save() -> None:
            _write_images(folder, [*result.values(), *others])

        try:
            with closing(
                session.run([_image_task(rows[index], folder, session) for index in todo], tick)
            ) as results:
                for number, row in results:
                    result[rows[todo[number]][0]] = row
                    if time.monotonic() - saved > SAVE_EVERY:
                        save()
                        saved = time.monotonic()
        finally:
            save()
        asked = {id: sha256 for id, _, sha256 in rows}
        if placeholders := _placeholders(row for row in result.values() if not asked[row.id]):
            result |= placeholders
            save()
    tick()
    return Images(folder, tuple(result.values()))


def _placeholders(rows: Iterable[ImageRow]) -> dict[str, ImageRow]:
    """Of found pictures those that stand for missing ones, as wrong: servers redirect what they no
    longer have to one picture that says so.
    """
    led: dict[str, list[ImageRow]] = {}
    for row in rows:
        if row.status.startswith(REDIRECTED):
            led.setdefault(row.status.removeprefix(REDIRECTED), []).append(row)
    return {
        row.id: ImageRow(
            row.id,
            row.url,
            f"wrong: {len(addresses)} addresses lead to this one picture, {target[:200]}, which"
            " stands for what is gone",
        )
        for target, members in led.items()
        if len(addresses := {_address(row.url) for row in members}) > 1
        for row in members
    }


def _address(url: str) -> str:
    """An address without what servers take for the same: the protocol, and www."""
    return re.sub(r"^https?://(www\.)?", "", url.strip(), flags=re.IGNORECASE)


def _settled(
    known: ImageRow | None, row: tuple[str, str, str], folder: Path, retry_dead: bool, again: bool
) -> bool:
    """Whether a picture need not be asked for, by what images.csv says of it."""
    _, url, sha256 = row
    if known is None or known.url != url:
        return False
    if known.state != "found":
        return known.state in ("404", "410", "wrong") and not retry_dead
    path = folder / known.file
    try:
        whole = path.stat().st_size == known.bytes and (
            not again or sha256_of(path) == known.sha256
        )
    except OSError:
        return False
    return whole and sha256 in ("", known.sha256)


def _image_task(
    row: tuple[str, str, str], folder: Path, session: Session
) -> Callable[[], ImageRow]:
    return lambda: _fetch_image(*row, folder, session)


def _fetch_image(id: str, url: str, sha256: str, folder: Path, session: Session) -> ImageRow:
    part = Part(folder / f".{hashlib.sha256(json.dumps([id, url]).encode()).hexdigest()[:24]}.part")
    try:
        if not url:
            raise Refused("it has no address")
        if session.offline and local_path(url) is None:
            return ImageRow(id, url, "unasked: --offline forbids it")
        digest = obtain(
            url,
            part,
            Wanted(
                sha256 or None,
                most=MAX_BYTES,
                whole_by_itself=True,
                from_list=True,
                public=not session.private_links,
            ),
            session,
        )
    except Refused as error:
        if error.status in GONE:
            return ImageRow(id, url, str(error.status))
        return ImageRow(
            id, url, f"{'wrong' if isinstance(error, Wrong) else 'failed'}: {one_line(error)}"
        )
    try:
        suffix = _picture_suffix(part.path)
    except Wrong as error:
        part.drop()
        return ImageRow(id, url, f"wrong: {one_line(error)}")
    name, size = f"{digest}.{suffix}", part.path.stat().st_size
    try:
        session.check()
        flush(part.path)
        os.replace(part.path, folder / name)
        part.drop()
    except OSError as error:
        raise unwritable(folder / name, error) from error
    led = session.redirected.get(url)
    return ImageRow(id, url, f"{REDIRECTED}{led}" if led else "found", name, digest, size)


def _picture_suffix(path: Path) -> str:
    """The suffix of a picture that can be used. Raises `Wrong` for anything else."""
    try:
        with _DECODING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged marks, which change no pixel
            return FORMATS[decode_image(path.read_bytes(), most_pixels=MAX_PIXELS)[1]]
    except BadPicture as error:
        raise Wrong(one_line(error)) from error


def read_images(folder: Path) -> dict[str, ImageRow]:
    """The rows of images.csv by id; none where there is no such file.

    Raises `UserError` for one that is damaged.
    """
    file = folder / "images.csv"
    rows: dict[str, ImageRow] = {}
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream, strict=True):
                if set(row) != set(COLUMNS) or not re.fullmatch(
                    r"([0-9a-f]{64}[.][a-z]{3,4})?", row["file"]
                ):
                    raise ValueError(f"row {len(rows) + 1} is not of the form {','.join(COLUMNS)}")
                rows[row["id"]] = ImageRow(**{**row, "bytes": int(row["bytes"])})  # type: ignore[arg-type]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)[:150]}): delete it and repeat the command;"
            " its pictures are asked for again"
        ) from error
    return rows


def _write_images(folder: Path, rows: Sequence[ImageRow]) -> None:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) | {"url": row.url[:LONGEST_URL]} for row in rows)
    # lists in JSON may hold half a character
    write_atomically(folder / "images.csv", stream.getvalue().encode("utf-8", "backslashreplace"))


def images_text(images: Images) -> str:
    """How many pictures are here, and how often each other answer was given."""
    counts: dict[str, int] = {}
    for row in images.rows:
        if row.state != "found":
            counts[row.status] = counts.get(row.status, 0) + 1
    lines = [f"{images.n_found} of {images.n_expected} pictures are in {images.folder}"]
    return "\n".join(
        lines
        + [
            f"  {count} x {one_line(Exception(status))}"
            for status, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
    )
