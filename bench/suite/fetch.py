"""`bench fetch` for suites: the files and models that they need and this project does not ship,
then the pictures behind the links of their lists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.assets.addresses import leads_to_private
from bench.assets.asset import Asset, distrust, locate, read_receipt
from bench.assets.catalogue import (
    Assets,
    Entry,
    FileEntry,
    HubEntry,
    PicturesEntry,
    files_of,
    name_of,
    shipped_entries,
)
from bench.assets.fetch import Fetched, fetch
from bench.assets.links import Images, fetch_images
from bench.base.errors import UnknownName, UserError, one_line, visible
from bench.base.progress import Report, silent
from bench.suite.suite import Suite


@dataclass(frozen=True)
class Brought:
    """What became of every file, by the name of its asset, and of every list of pictures."""

    files: dict[str, tuple[Fetched, ...]]
    pictures: dict[str, Images | str]  # a text says why they could not be asked for
    licences: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether everything that can be fetched is here.

        Dead links are counted and are no failure; links that failed for now are a failure.
        """
        whole = all(file.path is not None for files in self.files.values() for file in files)
        return whole and all(
            isinstance(images, Images) and not _unsettled(images)
            for images in self.pictures.values()
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "files": {
                name: [file.as_json() for file in files] for name, files in self.files.items()
            },
            "pictures": {
                name: images if isinstance(images, str) else images.as_json()
                for name, images in self.pictures.items()
            },
            "licences": self.licences,
        }


def wanted_entries(
    suites: Sequence[Suite], only: Sequence[str] = (), skip: Sequence[str] = ()
) -> dict[str, Entry]:
    """The assets of some suites by name, without those in `skip`. With `only`, the assets named
    there and the lists that their links stand in; without suites they are of the shipped catalogue.

    Raises `UserError` for unknown names, where two suites mean different things by one name, and
    where there are neither suites nor `only`.
    """
    entries: dict[str, Entry] = {}
    for suite in suites:
        for name in suite.wanted():
            entry = suite.assets.entry(name)
            if entries.setdefault(name, entry) != entry:
                raise UserError(
                    f"two of the suites mean different things by the asset '{name}': fetch them one"
                    " by one"
                )
    known = entries if suites else shipped_entries()
    for name in (*only, *skip):
        if name not in known:
            raise UnknownName("asset", name, known)
    if only:
        behind = [
            name_of(entry.list)[0]
            for name in only
            if isinstance(entry := known[name], PicturesEntry)
        ]
        entries = {name: known[name] for name in dict.fromkeys([*behind, *only])}
    elif not suites:
        raise UserError("name a suite with --suite, or assets of the catalogue with --only")
    return {name: entry for name, entry in entries.items() if name not in skip}


def parse_logins(names: Sequence[str], entries: Mapping[str, Entry]) -> frozenset[str]:
    """The assets that the user's login is sent along for. Raises `UserError` for unknown names."""
    for name in names:
        if name not in entries:
            raise UnknownName("asset in --login:", visible(name), entries)
    return frozenset(names)


def parse_local(assignments: Sequence[str], entries: Mapping[str, Entry]) -> dict[str, Path]:
    """`["sd14=/models/sd14", ...]`, from the command line, to paths by the name of the asset.

    Raises `UserError` for unknown names and for paths where nothing is.
    """
    found: dict[str, Path] = {}
    for assignment in assignments:
        name, _, path = assignment.partition("=")
        if name not in entries or not path:
            raise UnknownName("asset in --local NAME=PATH:", visible(name), entries)
        found[name] = Path(path).expanduser().absolute()
        if not found[name].exists():
            raise UserError(f"--local {name}={path}: nothing is there")
    return found


def fetch_entries(
    entries: Mapping[str, Entry],
    cache: Path,
    local: Mapping[str, Path] | None = None,
    mirrors: Sequence[str] = (),
    offline: bool = False,
    workers: int = 8,
    timeout: float = 30.0,
    retries: int = 2,
    retry_dead: bool = False,
    again: bool = False,
    report: Report = silent,
    logins: Collection[str] = (),
) -> Brought:
    """Bring assets into the cache. What has arrived is kept, whatever fails later.

    `local` names files, or folders of models, to copy an asset from instead; they must have the
    right digest. With `again` files that are here already are hashed, and damaged ones fetched
    again. Pictures come after the lists that their links stand in. The user's login of the hub is
    sent along for files of the catalogue; for those that a suite states itself, which may be a
    stranger's, where `logins` names the asset.
    """
    plain = {
        name: _from_local(files_of(name, entry, name in logins), entry, (local or {}).get(name))
        for name, entry in entries.items()
        if not isinstance(entry, PicturesEntry)
    }
    before: dict[str, str] = {}
    if again:  # what is found damaged is forgotten, and so fetched
        for asset in (asset for assets in plain.values() for asset in assets):
            if locate(asset, cache, again=True) is None:
                receipt = read_receipt(asset, cache)
                before |= {asset.name: receipt.sha256} if receipt and asset.sha256 is None else {}
                distrust(asset, cache)
    wanted = [asset for assets in plain.values() for asset in assets]
    fetched = iter(
        [
            _compared(file, before.get(file.name))
            for file in fetch(wanted, cache, workers, mirrors, offline, timeout, retries, report)
        ]
    )
    files = {name: tuple(next(fetched) for _ in assets) for name, assets in plain.items()}
    pictures: dict[str, Images | str] = {}
    for name, entry in entries.items():
        if isinstance(entry, PicturesEntry):
            pictures[name] = _pictures(
                entry,
                Assets("", {**shipped_entries(), **entries}, cache),
                (workers, offline, timeout, retries, retry_dead, again, report),
            )
    return Brought(
        files, pictures, {name: entry.licence for name, entry in entries.items() if entry.licence}
    )


def _compared(file: Fetched, before: str | None) -> Fetched:
    """What was fetched; with a remark where it differs from the file that was here before and no
    sha256 says which one is right.
    """
    if before is None or file.state != "fetched" or file.sha256 == before or file.why:
        return file
    return replace(
        file, why=f"nobody pinned its sha256, and it is another than last time ({before})"
    )


def _from_local(assets: list[Asset], entry: Entry, folder: Path | None) -> list[Asset]:
    if folder is None:
        return assets
    places = [folder / file for file in entry.files] if isinstance(entry, HubEntry) else [folder]
    return [
        asset.model_copy(update={"urls": (str(place), *asset.urls)})
        for asset, place in zip(assets, places, strict=True)
    ]


def _pictures(
    entry: PicturesEntry, assets: Assets, options: tuple[int, bool, float, int, bool, bool, Report]
) -> Images | str:
    try:
        rows = assets.picture_rows(entry)
    except UserError as error:
        return one_line(error)
    private = _came_from_private(name_of(entry.list)[0], assets)
    return fetch_images(rows, assets.cache / entry.path, *options, private)


def _came_from_private(name: str, assets: Assets) -> bool:
    """Whether a list came from a private network, by the suite's own address: its links then lie
    there too. What else the suite names as an address says nothing.
    """
    entry = assets.entry(name)
    if not isinstance(entry, FileEntry):
        return False
    receipt = read_receipt(files_of(name, entry)[0], assets.cache)
    source = receipt.source if receipt else ""
    return source in entry.urls and "://" in source and leads_to_private(source)


def _unsettled(images: Images) -> int:
    return sum(row.state in ("failed", "unasked") for row in images.rows)


def plan_text(entries: Mapping[str, Entry], cache: Path) -> str:
    """What fetching would bring: a line for every asset, with its place, size and licence, and
    whether it is here.
    """
    assets = Assets("", {**shipped_entries(), **entries}, cache)
    lines = []
    for name, entry in entries.items():
        here = (
            "here"
            if not assets.lacking(name)
            else (
                "to be got by hand"
                if isinstance(entry, FileEntry) and not entry.urls
                else "to fetch"
            )
        )
        size = getattr(entry, "bytes", None)
        what = (
            entry.hub
            if isinstance(entry, HubEntry)
            else f"links of {entry.list}"
            if isinstance(entry, PicturesEntry)
            else entry.path
        )
        lines.append(
            f"{name:<28} {here:<10} {f'{size / 2**20:,.1f} MiB' if size else 'size not known':>16} "
            f" {visible(what)}  ({visible(entry.licence) or 'no licence stated'})"
        )
    return "\n".join([*lines, f"cache: {cache}"])


def text(brought: Brought, cache: Path) -> str:
    """What became of every asset, a line each, and what every source of a failed one said."""
    return "\n".join([*_lines(brought), f"cache: {cache}"])


def _lines(brought: Brought) -> Iterator[str]:
    width = max((len(name) for name in (*brought.files, *brought.pictures)), default=0)
    for name, files in brought.files.items():
        here = [file for file in files if file.path is not None]
        new = sum(file.state == "fetched" for file in files)
        count = f"{len(here)} of {len(files)} files, " if len(files) > 1 else ""
        state = (
            ("fetched" if new else "present")
            if len(here) == len(files)
            else next(file.state for file in files if file.path is None)
        )
        yield (
            f"{name:<{width}}  {state:<8}"
            f" {count}{sum(file.bytes or 0 for file in here) / 2**20:,.1f} MiB"
        )
        for file in files:
            if file.why:
                yield f"{'':<{width}}  {file.name}: {one_line(Exception(file.why))}"
    for name, images in brought.pictures.items():
        if isinstance(images, str):
            yield f"{name:<{width}}  failed   {images}"
            continue
        rest = (
            f", {_unsettled(images)} failed for now: repeat the command"
            if _unsettled(images)
            else ""
        )
        yield (
            f"{name:<{width}}  {images.n_found} of {images.n_expected} pictures are here; the links"
            f" of the others are dead or give something else{rest}"
        )
