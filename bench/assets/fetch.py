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
from bench.assets.asset import Asset, Memory, beside, locate, recall, remember
from bench.assets.crew import MIB, Crew, alone
from bench.assets.download import GONE, Part, Refused, Wanted, flush, local_path, obtain
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
    """Bring every asset that is not there into the cache; what became of each, in the order given.

    `mirrors` (addresses or folders with the layout of the cache, or with the files under the names
     that their addresses end with) are asked
    first. `offline` asks nothing but local paths. `timeout` is in seconds: for an answer, and for
    every `SLOWEST` bytes. A source that fails
    for now is asked `retries` times more. Raises `UserError` when two assets share a place, when
    another command fetches into the cache, and
    when the cache cannot be written; what has come is kept.
    """
    assets = list(dict.fromkeys(assets))
    _refuse_clashes(assets)
    crew = Crew(workers, timeout, retries, offline)
    found = {index: _present(asset, cache) for index, asset in enumerate(assets)}
    missing = [index for index, there in found.items() if there is None]
    if missing:

        def tick() -> None:
            with crew.lock:
                come, expected = crew.come, sum(crew.expected.values())
            report("MiB", come // MIB, max(come, expected) // MIB)
            report("files", sum(there is not None for there in found.values()), len(assets))

        tasks = [_task(assets[index], cache, mirrors, crew) for index in missing]
        with alone(cache), closing(crew.run(tasks, tick)) as results:
            for number, fetched in results:
                found[missing[number]] = fetched
    report("files", len(assets), len(assets))
    return [there for there in found.values() if there is not None]


def _task(asset: Asset, cache: Path, mirrors: Sequence[str], crew: Crew) -> Callable[[], Fetched]:
    return lambda: _fetch_one(asset, cache, mirrors, crew)


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
    memory = recall(asset, cache) if path else None
    if path is None:
        return None
    if memory is None:  # right, in a cache that may only be read
        return Fetched(
            asset.name, "present", path, asset.sha256, path.stat().st_size, "put there by hand"
        )
    return Fetched(asset.name, "present", path, memory.sha256, memory.bytes, memory.source)


def _sources(asset: Asset, mirrors: Sequence[str]) -> list[str]:
    """Everything that may have the asset: mirrors under both names, then its own addresses."""
    # A bare name says nothing (every part of a model has a config.json), so it counts only where
    # the digest decides.
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


def _fetch_one(asset: Asset, cache: Path, mirrors: Sequence[str], crew: Crew) -> Fetched:
    if there := _present(asset, cache):  # another command brought it before this one had the lock
        return there
    part, path, before = (
        Part(beside(cache / asset.path, "part")),
        cache / asset.path,
        recall(asset, cache),
    )
    wanted, problems, statuses, unasked = Wanted(asset.sha256, asset.bytes), [], [], 0
    for source in _sources(asset, mirrors):
        try:
            if crew.offline and local_path(source) is None:
                unasked += 1
                continue
            digest = obtain(source, part, wanted, crew)
            memory = _settle(asset, path, cache, part, Memory(digest, source, {}), crew)
        except (Refused, BadArchive) as error:
            if isinstance(error, BadArchive):
                part.drop()
            statuses += [getattr(error, "status", None)] if source in asset.urls else []
            problems.append(f"{source} {one_line(error)}")
            continue
        changed = asset.sha256 is None and before is not None and before.sha256 != digest
        why = (
            f"nobody pinned its sha256, and it is another than last time ({before.sha256})"
            if changed and before
            else ""
        )
        return Fetched(asset.name, "fetched", path, digest, memory.bytes, source, None, why)
    if unasked:
        return Fetched(
            asset.name,
            "missing",
            why="; ".join(["it is not in the cache, and --offline forbids to fetch it", *problems]),
        )
    if not problems:
        return Fetched(
            asset.name,
            "failed",
            why="it has no address: get it by hand, and name its folder as a mirror",
        )
    state: Literal["dead", "failed"] = (
        "dead" if statuses and all(status in GONE for status in statuses) else "failed"
    )
    return Fetched(
        asset.name,
        state,
        status=next((status for status in reversed(statuses) if status), None),
        why="; ".join(problems),
    )


def _settle(
    asset: Asset, path: Path, cache: Path, part: Part, memory: Memory, crew: Crew
) -> Memory:
    """Give a whole and right file its name, or unpack it.

    What is remembered is written first: it fits nothing until the renaming is done.
    """
    try:
        if asset.unpack == "none":
            memory = replace(memory, files={"": facts_of(part.path, memory.sha256)})
            flush(part.path)
            remember(asset, cache, memory)
            os.replace(part.path, path)
        else:
            fresh, old = beside(path, "unpacking"), beside(path, "old")
            for folder in (fresh, old):
                shutil.rmtree(folder, ignore_errors=True)
            try:
                memory = replace(memory, files=unpack(part.path, asset.unpack, fresh, crew.check))
                remember(asset, cache, memory)
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
    return memory


def text(found: Sequence[Fetched]) -> str:
    """What became of every asset, one line each, and how many are here of how many are needed."""
    width = max((len(one.name) for one in found), default=0)
    lines = [f"{one.name:<{width}}  {one.state:<8} {_about(one)}".rstrip() for one in found]
    here = sum(one.path is not None for one in found)
    return "\n".join([*lines, f"{here} of {len(found)} assets are here"])


def _about(one: Fetched) -> str:
    facts = f"{one.bytes or 0:,} bytes, {one.path}" if one.path else ""
    return ": ".join(
        part for part in (facts, one_line(Exception(one.why)) if one.why else "") if part
    )
