"""What `bench fetch` does with assets: many at once, each from the first of its sources that gives
the right bytes.

A file arrives under a hidden name and gets its own only when it is whole and its digest is right.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.assets.archive import BadArchive, facts_of, unpack, unwritable
from bench.assets.asset import (
    Asset,
    Receipt,
    beside,
    locate,
    read_receipt,
    was_fetched,
    write_receipt,
)
from bench.assets.download import GONE, Part, Refused, Wanted, flush, local_path, obtain
from bench.assets.session import MIB, Session, folder_lock
from bench.base import limits
from bench.base.errors import UserError, one_line
from bench.base.progress import Report, silent


@dataclass(frozen=True)
class Fetched:
    """What became of one asset.

    `dead`: every address answers 404 or 410. `missing`: not here, and `offline` forbids to ask.
    """

    name: str
    state: Literal["present", "fetched", "dead", "failed", "missing"]
    path: Path | None = None
    sha256: str | None = None  # of the file as it came
    bytes: int | None = None  # that are here now: of the file, or of all that was unpacked
    source: str | None = None
    status: int | None = None  # of the last HTTP answer that was an error
    why: str = ""  # what every source answered; or a warning

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path) if self.path else None}


def fetch(
    assets: Sequence[Asset],
    cache: Path,
    workers: int = 8,
    mirrors: Sequence[str] = (),
    offline: bool = False,
    timeout: float = 30.0,
    retries: int = 2,
    report: Report = silent,
) -> list[Fetched]:
    """Fetch every asset that is not in the cache yet; returns what became of each, in the order
    given.

    `mirrors` are asked first: addresses or folders with the layout of the cache, or with the files
    under the names that their addresses end with. `offline` asks nothing but local paths. `timeout`
    is in seconds: for an answer, and for every `SLOWEST` bytes of a download. A source that fails
    for the moment is asked `retries` times more. Raises `UserError` when two assets share a place,
    when another command fetches into the cache, and when the cache cannot be written; unfinished
    downloads are kept.
    """
    assets = list(dict.fromkeys(assets))
    _refuse_clashes(assets)
    session = Session(workers, timeout, retries, offline)
    found = {index: _present(asset, cache) for index, asset in enumerate(assets)}
    missing = [index for index, there in found.items() if there is None]
    if missing:

        def tick() -> None:
            with session.lock:
                received, expected = session.received, sum(session.expected.values())
            report("MiB", received // MIB, max(received, expected) // MIB)
            report("files", sum(there is not None for there in found.values()), len(assets))

        tasks = [_task(assets[index], cache, mirrors, session) for index in missing]
        with folder_lock(cache), closing(session.run(tasks, tick)) as results:
            for number, fetched in results:
                found[missing[number]] = fetched
    report("files", len(assets), len(assets))
    return [there for there in found.values() if there is not None]


def _task(
    asset: Asset, cache: Path, mirrors: Sequence[str], session: Session
) -> Callable[[], Fetched]:
    return lambda: _fetch_one(asset, cache, mirrors, session)


def _refuse_clashes(assets: Sequence[Asset]) -> None:
    names: dict[str, Asset] = {}
    places: dict[str, Asset] = {}
    for asset in assets:
        if names.setdefault(asset.name, asset) is not asset:
            raise UserError(f"two different assets are called '{asset.name}'")
        if (other := places.setdefault(asset.path.lower(), asset)) is not asset:
            raise UserError(
                f"the assets '{other.name}' and '{asset.name}' have the same place in the cache:"
                f" {asset.path}"
            )
    for asset in assets:
        parts = asset.path.lower().split("/")
        for length in range(1, len(parts)):
            if other := places.get("/".join(parts[:length])):  # type: ignore[assignment]
                raise UserError(
                    f"the asset '{asset.name}' would lie inside the asset '{other.name}':"
                    f" {asset.path}"
                )


def _present(asset: Asset, cache: Path) -> Fetched | None:
    path = locate(asset, cache)
    receipt = read_receipt(asset, cache) if path else None
    if path is None:
        return None
    if receipt is None:  # right, in a cache that may only be read
        return Fetched(
            asset.name, "present", path, asset.sha256, path.stat().st_size, "put there by hand"
        )
    return Fetched(asset.name, "present", path, receipt.sha256, receipt.bytes, receipt.source)


def _sources(asset: Asset, mirrors: Sequence[str]) -> list[str]:
    """Everything that may have the asset: mirrors under both names, then its own addresses."""
    # Many files have the same bare name (every part of a model has a config.json), so a mirror is
    # asked for it only where a pinned sha256 decides.
    names = [asset.file] + [
        name
        for url in asset.urls[:1]
        if asset.sha256
        and (name := re.split("[?#]", url)[0].rpartition("/")[2]) not in ("", ".", "..")
    ]
    return list(
        dict.fromkeys(
            [f"{mirror.rstrip('/')}/{name}" for mirror in mirrors for name in names]
            + list(asset.urls)
        )
    )


def _fetch_one(asset: Asset, cache: Path, mirrors: Sequence[str], session: Session) -> Fetched:
    """Fetch an asset from the first of its sources that has the right bytes."""
    if there := _present(asset, cache):  # another command fetched it before this one had the lock
        return there
    path = cache / asset.path
    if _is_somebody_elses(asset, path, cache):
        why = f"{path} is there and was not fetched by bench: move it away, and repeat the command"
        return Fetched(asset.name, "failed", why=why)
    part, before = Part(beside(path, "part")), read_receipt(asset, cache)
    problems: list[str] = []
    statuses: list[int | None] = []  # of the asset's own addresses; what mirrors lack is no news
    forbidden = False  # whether --offline kept a source from being asked
    for source in _sources(asset, mirrors):
        try:
            if session.offline and local_path(source) is None:
                forbidden = True
                continue
            digest = obtain(
                source,
                part,
                Wanted(asset.sha256, asset.bytes, limits.DOWNLOAD_BYTES, login=asset.login),
                session,
            )
            receipt = _settle(asset, path, cache, part, Receipt(digest, source, {}), session)
        except (Refused, BadArchive) as error:
            if isinstance(error, BadArchive):
                part.drop()
            if source in asset.urls:
                statuses.append(getattr(error, "status", None))
            problems.append(f"{source} {one_line(error)}")
            continue
        why = ""
        if asset.sha256 is None and before is not None and before.sha256 != digest:
            why = f"nobody pinned its sha256, and it is another than last time ({before.sha256})"
        return Fetched(asset.name, "fetched", path, digest, receipt.bytes, source, None, why)
    return _not_fetched(asset, problems, statuses, forbidden)


def _is_somebody_elses(asset: Asset, path: Path, cache: Path) -> bool:
    """Whether a folder lies at the place of an asset that no fetching made: it holds files of its
    owner's, who may have named it as the cache.
    """
    if asset.unpack == "none":
        return path.is_dir()
    return path.exists() and not was_fetched(asset, cache)


def _not_fetched(
    asset: Asset, problems: Sequence[str], statuses: Sequence[int | None], forbidden: bool
) -> Fetched:
    """What is said of an asset that no source gave."""
    if forbidden:
        why = "; ".join(["it is not in the cache, and --offline forbids to fetch it", *problems])
        return Fetched(asset.name, "missing", why=why)
    if not problems:
        why = "it has no address: get it by hand, and name its folder as a mirror"
        return Fetched(asset.name, "failed", why=why)
    dead = bool(statuses) and all(status in GONE for status in statuses)
    last = next((status for status in reversed(statuses) if status), None)
    state: Literal["dead", "failed"] = "dead" if dead else "failed"
    return Fetched(asset.name, state, status=last, why="; ".join(problems))


def _settle(
    asset: Asset, path: Path, cache: Path, part: Part, receipt: Receipt, session: Session
) -> Receipt:
    """Give a complete download its name, or unpack it; returns its receipt.

    The receipt is written first: until the renaming is done it fits no file, so that a command that
    is killed in between leaves nothing that is trusted.
    """
    try:
        if asset.unpack == "none":
            receipt = replace(receipt, files={"": facts_of(part.path, receipt.sha256)})
            flush(part.path)
            write_receipt(asset, cache, receipt)
            os.replace(part.path, path)
        else:
            fresh, old = beside(path, "unpacking"), beside(path, "old")
            for folder in (fresh, old):
                shutil.rmtree(folder, ignore_errors=True)
            try:
                receipt = replace(
                    receipt, files=unpack(part.path, asset.unpack, fresh, session.check)
                )
                write_receipt(asset, cache, receipt)
                if path.exists():
                    os.replace(path, old)
                try:
                    os.replace(fresh, path)
                except OSError:
                    if old.exists():
                        os.replace(old, path)
                    raise
            finally:
                for folder in (fresh, old):
                    shutil.rmtree(folder, ignore_errors=True)
        part.drop()
    except OSError as error:
        raise unwritable(path, error) from error
    return receipt


def text(found: Sequence[Fetched]) -> str:
    """What became of every asset, one line each, and how many are here of how many are needed."""
    width = max((len(asset.name) for asset in found), default=0)
    lines = [f"{asset.name:<{width}}  {asset.state:<8} {_about(asset)}".rstrip() for asset in found]
    here = sum(asset.path is not None for asset in found)
    return "\n".join([*lines, f"{here} of {len(found)} assets are here"])


def _about(asset: Fetched) -> str:
    facts = f"{asset.bytes or 0:,} bytes, {asset.path}" if asset.path else ""
    why = one_line(Exception(asset.why)) if asset.why else ""
    return ": ".join(part for part in (facts, why) if part)
