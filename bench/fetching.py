"""What `bench fetch` does: many files at once, from the first of their sources that gives the right bytes; and pictures from live links.

A file arrives under a hidden name and gets its own only when it is whole and its digest is right. A cut download goes on
where it stopped, when the server can do that and says that its file is still the same; else it begins again.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import io
import json
import os
import queue
import re
import shutil
import ssl
import string
import threading
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.error import HTTPError, URLError

from PIL import Image

from bench.assets import CHUNK, Asset, BadArchive, Memory, beside, facts_of, locate, recall, remember, unpack, writable, write_all
from bench.atomic import write_atomically
from bench.errors import UserError, one_line
from bench.progress import Report, silent

try:
    import fcntl
except ImportError:  # Windows: two commands at once in one cache are not noticed there
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
PAUSE = 0.5  # seconds before the first retry; twice as long before every further one
SLOWEST = 1024  # bytes that must come in every `timeout` seconds
MIB = 1 << 20
GONE = (404, 410)
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may be another the next time
FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
MAX_PIXELS, MAX_BYTES = 64_000_000, 64 * MIB  # of a picture: more is refused before it is decoded, or read
COLUMNS = ("id", "url", "status", "file", "sha256", "bytes")
SAVE_EVERY = 5.0  # seconds between two savings of images.csv
_DECODING = threading.Lock()  # one picture at a time, so that large ones do not fill the memory together


class Refused(Exception):
    """A source that gives the same answer when it is asked again. `status` is the HTTP status, where that is the answer."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class Wrong(Refused):
    """A source that gives something else than what was asked for."""


class Broken(Exception):
    """A download that failed and may not fail the next time."""


class Stopped(Exception):
    """The work is to end; nothing more is written."""


@dataclass(frozen=True)
class Fetched:
    """What became of one asset. `dead`: every address answers 404 or 410. `missing`: not here, and `offline` forbids to ask."""

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


@dataclass(frozen=True)
class ImageRow:
    """One row of images.csv. The first word of `status`: found, 404, 410, wrong (no picture, or another), failed, unasked."""

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
        return {"folder": str(self.folder), "n_expected": self.n_expected, "n_found": self.n_found, "images": [asdict(row) for row in self.rows]}


@dataclass
class _Crew:
    """What all downloads of one command share."""

    timeout: float
    retries: int
    offline: bool
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    come: int = 0  # bytes that came, or were there already when their download began
    expected: dict[str, int] = field(default_factory=dict)  # bytes of every download whose size is known

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retries < 0:
            raise UserError(f"a timeout must be above 0 and retries at least 0, not {self.timeout:g} and {self.retries}")
        # Of the standard handlers, only these: a redirect cannot lead to a file of this machine or to FTP.
        self.opener = urllib.request.OpenerDirector()
        handlers = ("ProxyHandler", "UnknownHandler", "HTTPHandler", "HTTPSHandler", "HTTPDefaultErrorHandler", "HTTPRedirectHandler", "HTTPErrorProcessor")
        for handler in handlers:
            self.opener.add_handler(getattr(urllib.request, handler)())

    def check(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def count(self, more: int) -> None:
        with self.lock:
            self.come += more

    def run(self, tasks: Sequence[Callable[[], T]], workers: int, tick: Callable[[], None]) -> Generator[tuple[int, T], None, None]:
        """Results as they come, each with its task's index. An error of one task ends all. `tick` is called a few times a second."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        for index in range(len(tasks)):
            todo.put(index)

        def work() -> None:
            while not self.stop.is_set():
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, tasks[index](), None))
                except BaseException as error:
                    done.put((index, None, error))

        # Daemons: one that waits for a silent server must not hold up Ctrl-C. After `stop` they write nothing.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(tasks)))]
        for thread in threads:
            thread.start()
        left, shown = len(tasks), 0.0
        try:
            while left:
                if time.monotonic() - shown > 0.2:
                    tick()
                    shown = time.monotonic()
                try:
                    index, result, error = done.get(timeout=0.2)
                except queue.Empty:
                    continue
                if error is not None:
                    raise error
                left -= 1
                yield index, result
        finally:
            self.stop.set()
            until = time.monotonic() + 2
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            tick()


@dataclass(frozen=True)
class _Part:
    """A file that is arriving, and beside it what is needed to go on after a cut: its source, what the server calls its version, its size."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def kept(self, source: str) -> tuple[int, str, int | None]:
        """Bytes kept of this source, their version and the size of the whole; nothing when they cannot be gone on with."""
        try:
            size, note = self.path.stat().st_size, json.loads(self.note.read_bytes())
            version, total = str(note["version"]), note["total"] if note["total"] is None else int(note["total"])
            usable = note["source"] == source and (total is None or size <= total) and (version or size == total)
        except (OSError, ValueError, TypeError, KeyError):
            return 0, "", None
        return (size, version, total) if usable else (0, "", None)

    def begin(self, source: str, version: str, total: int | None) -> None:
        self.drop()  # first the old bytes go, then the note that would speak for them
        write_atomically(self.note, json.dumps({"source": source, "version": version, "total": total}).encode())

    def drop(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Wanted:
    """What must be true of a download. `whole_by_itself`: a cut is noticed later, even where the server does not tell the size."""

    sha256: str | None = None
    bytes: int | None = None
    most: int | None = None
    whole_by_itself: bool = False


def _obtain(source: str, part: _Part, wanted: _Wanted, crew: _Crew) -> str:
    """Bring one source's file into `part`, with retries; its sha256. Raises `Refused` when this source will not do, and then nothing wrong is kept."""
    left, pause = crew.retries, PAUSE
    while True:
        crew.check()
        before, resumed = part.kept(source)[0], False
        try:
            resumed = _download(source, part, wanted, crew)
            digest = _part_digest(part, crew)
            if digest == (wanted.sha256 or digest):
                return digest
            part.drop()
            why = f"sha256 is {digest}, and {wanted.sha256} was expected: refused and deleted"
            raise Broken(why) if resumed else Wrong(why)
        except Refused:
            part.drop()
            raise
        except Broken as error:
            gained = part.kept(source)[0] - before
            if not resumed and gained >= MIB:
                continue  # a long file through a line that is often cut: every try brings it further
            if left == 0:
                kept = f"; {part.kept(source)[0]:,} bytes are kept for the next time" if part.kept(source)[0] else ""
                raise Refused(f"{one_line(error)[:300]}{kept}") from error  # from here the part is not dropped
            left -= 1
            if crew.stop.wait(pause):
                raise Stopped from error
            pause *= 2


def _part_digest(part: _Part, crew: _Crew) -> str:
    """sha256 of what lies on the disk, which is what will be used."""
    digest = hashlib.sha256()
    with part.path.open("rb") as stream:
        while chunk := stream.read(4 * MIB):
            crew.check()
            digest.update(chunk)
    return digest.hexdigest()


def local_path(source: str) -> Path | None:
    """The path that a file:// address or a plain path means; None for another address."""
    scheme, _, rest = source.partition("://")
    if not rest:
        return Path(source).expanduser()
    if scheme.lower() != "file":
        return None
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise Refused(f"names the machine '{host}', and a file of this one is needed (file:///...)")
    return Path(urllib.request.url2pathname(f"/{path}"))


def _download(source: str, part: _Part, wanted: _Wanted, crew: _Crew) -> bool:
    """Bring all of a source into `part`. Returns whether it went on with bytes kept from before. Raises `Refused` or `Broken`."""
    local = local_path(source)
    if local is not None:
        _copy_local(local, source, part, wanted, crew)
        return False
    kept, version, total = part.kept(source)
    if kept and kept == total:
        _expect(source, kept, kept, crew)
        return True
    answer, start = _ask(source, kept, version, total, crew)
    with answer:
        if not start:
            strong = answer.headers.get("ETag", "")
            # A time of modification has seconds: it does for a file whose digest will tell, not for one that nobody knows.
            version = strong if strong.startswith('"') else (wanted.sha256 and answer.headers.get("Last-Modified")) or ""
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() and not answer.chunked else None
            coding = answer.headers.get("Content-Encoding", "identity")
            if coding != "identity":
                raise Refused(f"comes compressed ({one_line(Exception(coding))[:40]}), which was not asked for")
            if total is None and not (answer.chunked or wanted.sha256 or wanted.bytes is not None or wanted.whole_by_itself):
                raise Refused("tells no size, and neither size nor sha256 is known: a cut could not be noticed")
            _check_size(total, wanted, whole=True)
            part.begin(source, version, total)
        _expect(source, start, wanted.bytes if total is None else total, crew)
        _receive(lambda: answer.read1(CHUNK), part, start, total, wanted, crew)
    return start > 0


def _expect(source: str, start: int, total: int | None, crew: _Crew) -> None:
    with crew.lock:
        crew.come += start
        if total is not None:
            crew.expected[source] = total


def _check_size(size: int | None, wanted: _Wanted, whole: bool) -> None:
    if size is None:
        return
    if wanted.bytes is not None and (size > wanted.bytes or (whole and size != wanted.bytes)):
        raise Wrong(f"has {size:,} bytes, and {wanted.bytes:,} were expected: refused and deleted")
    if wanted.most is not None and size > wanted.most:
        raise Wrong(f"has more than {wanted.most:,} bytes")


def _copy_local(local: Path, source: str, part: _Part, wanted: _Wanted, crew: _Crew) -> None:
    if not local.is_file():
        raise Refused("is no file" if local.exists() else "is not there")
    try:
        stream = local.open("rb")
    except OSError as error:
        raise Refused(f"cannot be read: {one_line(error)}") from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        _check_size(size, wanted, whole=True)
        part.begin(source, "", size)
        _expect(source, 0, size, crew)
        _receive(lambda: stream.read(CHUNK), part, 0, size, wanted, crew)


def _receive(read: Callable[[], bytes], part: _Part, start: int, total: int | None, wanted: _Wanted, crew: _Crew) -> None:
    """Read to the end and write behind what is kept."""
    size, since, window = start, time.monotonic(), 0
    with writable(part.path, "ab") as stream:
        while True:
            try:
                chunk = read()
            except TimeoutError as error:
                raise Broken(f"sent nothing for {crew.timeout:g} s after {size:,} {_of(total)}bytes") from error
            except (OSError, http.client.HTTPException) as error:
                raise Broken(f"the connection broke after {size:,} {_of(total)}bytes") from error
            crew.check()
            if not chunk:
                break
            size, window = size + len(chunk), window + len(chunk)
            _check_size(size, wanted, whole=False)
            write_all(stream, chunk, part.path)
            crew.count(len(chunk))
            if time.monotonic() - since > crew.timeout:
                if window < SLOWEST:
                    raise Broken(f"sent only {window} bytes in {crew.timeout:g} s")
                since, window = time.monotonic(), 0
    needed = wanted.bytes if total is None else total
    if needed is not None and size < needed:
        raise Broken(f"the connection ended after {size:,} {_of(needed)}bytes")
    if size == 0 and total is None:
        raise Broken("sent nothing")


def _of(total: int | None) -> str:
    return "" if total is None else f"of {total:,} "


def _ask(source: str, kept: int, version: str, total: int | None, crew: _Crew) -> tuple[http.client.HTTPResponse, int]:
    """The server's answer, and the byte that its body begins with: `kept`, or 0 where it does not go on from there."""
    if kept:
        answer = _open(source, {"Range": f"bytes={kept}-", "If-Range": version}, crew)
        if answer is not None:
            part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            same = version in (answer.headers.get("ETag", version), answer.headers.get("Last-Modified"))
            if answer.status == 200:
                return answer, 0
            if part and same and int(part[1]) == kept and part[2] in ("*", str(total)):
                return answer, kept
            answer.close()  # another part, or of another file: from the start, then
    answer = _open(source, {}, crew)
    if answer is None or answer.status != 200:
        raise Refused(f"answers {answer.status if answer else 416} to a plain request")
    return answer, 0


def _open(source: str, headers: dict[str, str], crew: _Crew) -> http.client.HTTPResponse | None:
    """One request. None for 416, which says that the bytes asked for are not there."""
    if not re.match("https?://", source, re.IGNORECASE):
        raise Refused("is no address that can be asked (http, https, file, or a path)")
    url = urllib.parse.quote(source.strip(), safe=string.punctuation)  # lists from the web hold spaces and letters of all languages
    headers = {"User-Agent": "diffusion-memorization-bench", "Accept-Encoding": "identity", **headers}
    try:
        answer: http.client.HTTPResponse = crew.opener.open(urllib.request.Request(url, headers=headers), timeout=crew.timeout)
        return answer
    except HTTPError as error:
        with error:
            said = f"HTTP {error.code} {one_line(Exception(error.reason))[:60]}"
        if error.code == 416 and "Range" in headers:
            return None
        if error.code in (301, 302, 303, 307, 308):
            raise Refused("redirects in a loop, too often, or to what is no web address", error.code) from error
        if error.code in PASSING:
            raise Broken(said) from error
        raise Refused(said, error.code) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            raise Broken(f"did not answer within {crew.timeout:g} s") from error
        if isinstance(reason, (ssl.SSLCertVerificationError, http.client.InvalidURL, ValueError)):
            raise Refused(f"cannot be asked: {one_line(Exception(reason))[:150]}") from error
        raise Broken(f"cannot be reached: {one_line(Exception(reason))[:150]}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two commands that write the same part files would mix them. Raises `UserError` when another has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written: {one_line(error)}") from error
    with stream:
        try:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another command is fetching into {folder}: wait until it ends, or choose another folder") from error
        except OSError:  # a file system without locks
            pass
        yield


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

    `mirrors` (addresses or folders with the layout of the cache, or with the files under the names that their addresses end with) are asked
    first. `offline` asks nothing but local paths. `timeout` is in seconds: for an answer, and for every `SLOWEST` bytes. A source that fails
    for now is asked `retries` times more. Raises `UserError` when two assets share a place, when another command fetches into the cache, and
    when the cache cannot be written; what has come is kept.
    """
    assets = list(dict.fromkeys(assets))
    _refuse_clashes(assets)
    _refuse_no_workers(workers)
    found = {index: _present(asset, cache) for index, asset in enumerate(assets)}
    missing = [index for index, there in found.items() if there is None]
    if missing:
        crew = _Crew(timeout, retries, offline)

        def tick() -> None:
            with crew.lock:
                come, expected = crew.come, sum(crew.expected.values())
            report("MiB", come // MIB, max(come, expected) // MIB)
            report("files", sum(there is not None for there in found.values()), len(assets))

        tasks = [_task(assets[index], cache, mirrors, crew) for index in missing]
        with _alone(cache), closing(crew.run(tasks, workers, tick)) as results:
            for number, fetched in results:
                found[missing[number]] = fetched
    report("files", len(assets), len(assets))
    return [there for there in found.values() if there is not None]


def _refuse_no_workers(workers: int) -> None:
    if workers < 1:
        raise UserError(f"at least 1 worker is needed, not {workers}")


def _task(asset: Asset, cache: Path, mirrors: Sequence[str], crew: _Crew) -> Callable[[], Fetched]:
    return lambda: _fetch_one(asset, cache, mirrors, crew)


def _refuse_clashes(assets: Sequence[Asset]) -> None:
    names: dict[str, Asset] = {}
    places: dict[str, Asset] = {}
    for asset in assets:
        if names.setdefault(asset.name, asset) is not asset:
            raise UserError(f"two different assets are called '{asset.name}'")
        if (other := places.setdefault(asset.path.lower(), asset)) is not asset:
            raise UserError(f"the assets '{other.name}' and '{asset.name}' have the same place in the cache: {asset.path}")
    for asset in assets:
        parts = asset.path.lower().split("/")
        for length in range(1, len(parts)):
            if other := places.get("/".join(parts[:length])):  # type: ignore[assignment]
                raise UserError(f"the asset '{asset.name}' would lie inside the asset '{other.name}': {asset.path}")


def _present(asset: Asset, cache: Path) -> Fetched | None:
    path = locate(asset, cache)
    memory = recall(asset, cache) if path else None
    if path is None:
        return None
    if memory is None:  # right, in a cache that may only be read
        return Fetched(asset.name, "present", path, asset.sha256, path.stat().st_size, "put there by hand")
    return Fetched(asset.name, "present", path, memory.sha256, memory.bytes, memory.source)


def _sources(asset: Asset, mirrors: Sequence[str]) -> list[str]:
    """Everything that may have the asset: mirrors under both names, then its own addresses."""
    names = [asset.file] + [name for url in asset.urls[:1] if (name := re.split("[?#]", url)[0].rpartition("/")[2]) not in ("", ".", "..")]
    return list(dict.fromkeys([f"{mirror.rstrip('/')}/{name}" for mirror in mirrors for name in names] + list(asset.urls)))


def _fetch_one(asset: Asset, cache: Path, mirrors: Sequence[str], crew: _Crew) -> Fetched:
    if there := _present(asset, cache):  # another command brought it before this one had the lock
        return there
    part, path, before = _Part(beside(cache / asset.path, "part")), cache / asset.path, recall(asset, cache)
    wanted, problems, statuses, unasked = _Wanted(asset.sha256, asset.bytes), [], [], 0
    for source in _sources(asset, mirrors):
        try:
            if crew.offline and local_path(source) is None:
                unasked += 1
                continue
            digest = _obtain(source, part, wanted, crew)
            memory = _settle(asset, path, cache, part, Memory(digest, source, {}), crew)
        except (Refused, BadArchive) as error:
            if isinstance(error, BadArchive):
                part.drop()
            statuses += [getattr(error, "status", None)] if source in asset.urls else []
            problems.append(f"{source} {one_line(error)}")
            continue
        changed = asset.sha256 is None and before is not None and before.sha256 != digest
        why = f"nobody pinned its sha256, and it is another than last time ({before.sha256})" if changed and before else ""
        return Fetched(asset.name, "fetched", path, digest, memory.bytes, source, None, why)
    if unasked:
        return Fetched(asset.name, "missing", why="; ".join(["it is not in the cache, and --offline forbids to fetch it", *problems]))
    if not problems:
        return Fetched(asset.name, "failed", why="it has no address: get it by hand, and name its folder as a mirror")
    state: Literal["dead", "failed"] = "dead" if statuses and all(status in GONE for status in statuses) else "failed"
    return Fetched(asset.name, state, status=next((status for status in reversed(statuses) if status), None), why="; ".join(problems))


def _settle(asset: Asset, path: Path, cache: Path, part: _Part, memory: Memory, crew: _Crew) -> Memory:
    """Give a whole and right file its name, or unpack it. What is remembered is written first: it fits nothing until the renaming is done."""
    try:
        if asset.unpack == "none":
            memory = replace(memory, files={"": facts_of(part.path, memory.sha256)})
            _flush(part.path)
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
                os.replace(fresh, path)
            finally:
                for folder in (fresh, old):
                    shutil.rmtree(folder, ignore_errors=True)
        part.drop()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {one_line(error)}; what has come is kept, and the same command goes on with it") from error
    return memory


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def text(found: Sequence[Fetched]) -> str:
    """What became of every asset, one line each, and how many are here of how many are needed."""
    width = max((len(one.name) for one in found), default=0)
    lines = [f"{one.name:<{width}}  {one.state:<8} {_about(one)}".rstrip() for one in found]
    here = sum(one.path is not None for one in found)
    return "\n".join([*lines, f"{here} of {len(found)} assets are here"])


def _about(one: Fetched) -> str:
    facts = f"{one.bytes or 0:,} bytes, {one.path}" if one.path else ""
    return ": ".join(part for part in (facts, one_line(Exception(one.why)) if one.why else "") if part)


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
) -> Images:
    """Bring pictures (id, address, sha256 or empty) into a folder, each under its own sha256, and write `images.csv` there.

    What images.csv says is found is not asked again while its file has its size (`again`: and its sha256). Links that answered 404 or 410, or
    something other than the picture, are asked again only with `retry_dead`; those that failed otherwise, always. Rows of other lists in the
    same folder stay in images.csv. A picture must decode: at most `MAX_BYTES` bytes and `MAX_PIXELS` pixels, in one of `FORMATS`.
    """
    if len({id for id, _, _ in rows}) != len(rows):
        raise UserError(f"the ids of the {len(rows)} pictures for {folder} are not unique")
    _refuse_no_workers(workers)
    crew = _Crew(timeout, retries, offline)
    with _alone(folder):
        recorded = read_images(folder)
        known = {id: recorded.get(id) for id, _, _ in rows}
        todo = [index for index, row in enumerate(rows) if not _settled(known[row[0]], row, folder, retry_dead, again)]
        result = {id: known[id] or ImageRow(id, url, "unasked") for id, url, _ in rows}
        result.update((rows[index][0], ImageRow(*rows[index][:2], "unasked")) for index in todo)
        others = [row for id, row in recorded.items() if id not in known]
        saved = time.monotonic()

        def tick() -> None:
            report("pictures", sum(row.state != "unasked" for row in result.values()), len(rows))

        def save() -> None:
            _write_images(folder, [*result.values(), *others])

        try:
            with closing(crew.run([_image_task(rows[index], folder, crew) for index in todo], workers, tick)) as results:
                for number, row in results:
                    result[rows[todo[number]][0]] = row
                    if time.monotonic() - saved > SAVE_EVERY:
                        save()
                        saved = time.monotonic()
        finally:
            save()
    tick()
    return Images(folder, tuple(result.values()))


def _settled(known: ImageRow | None, row: tuple[str, str, str], folder: Path, retry_dead: bool, again: bool) -> bool:
    """Whether what images.csv says of a picture spares asking for it."""
    _, url, sha256 = row
    if known is None or known.url != url:
        return False
    if known.state != "found":
        return known.state in ("404", "410", "wrong") and not retry_dead
    path = folder / known.file
    try:
        whole = path.stat().st_size == known.bytes and (not again or hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256)
    except OSError:
        return False
    return whole and sha256 in ("", known.sha256)


def _image_task(row: tuple[str, str, str], folder: Path, crew: _Crew) -> Callable[[], ImageRow]:
    return lambda: _fetch_image(*row, folder, crew)


def _fetch_image(id: str, url: str, sha256: str, folder: Path, crew: _Crew) -> ImageRow:
    part = _Part(folder / f".{hashlib.sha256(json.dumps([id, url]).encode()).hexdigest()[:24]}.part")
    try:
        if not url:
            raise Refused("it has no address")
        if crew.offline and local_path(url) is None:
            return ImageRow(id, url, "unasked: --offline forbids it")
        digest = _obtain(url, part, _Wanted(sha256 or None, most=MAX_BYTES, whole_by_itself=True), crew)
    except Refused as error:
        if error.status in GONE:
            return ImageRow(id, url, str(error.status))
        return ImageRow(id, url, f"{'wrong' if isinstance(error, Wrong) else 'failed'}: {one_line(error)}")
    try:
        suffix = _picture_suffix(part.path)
    except Wrong as error:
        part.drop()
        return ImageRow(id, url, f"wrong: {one_line(error)}")
    name, size = f"{digest}.{suffix}", part.path.stat().st_size
    try:
        crew.check()
        _flush(part.path)
        os.replace(part.path, folder / name)
        part.drop()
    except OSError as error:
        raise UserError(f"{folder / name} cannot be written: {one_line(error)}; what has come is kept, and the same command goes on") from error
    return ImageRow(id, url, "found", name, digest, size)


def _picture_suffix(path: Path) -> str:
    """The suffix of a picture that decodes. Raises `Wrong` for anything else."""
    with _DECODING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused below
        try:
            with Image.open(path, formats=[name for name in FORMATS if name != "MPO"]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Wrong(f"the picture has {image.width}x{image.height} pixels, and {MAX_PIXELS:,} are allowed")
                image.convert("RGB")
                suffix = FORMATS[str(image.format)]
            content = path.read_bytes() if suffix in ("png", "gif") else b""
            if (suffix == "png" and b"IEND\xaeB`\x82" not in content) or (suffix == "gif" and not content.rstrip(b"\0").endswith(b";")):
                raise Wrong("it is no whole picture: its end is missing")  # which Pillow does not need to decode these two
            return suffix
        except Wrong:
            raise
        except Exception as error:  # Pillow's decoders raise all sorts for damaged files
            raise Wrong(f"it is no whole picture: {one_line(error).replace(str(path), 'it')[:120]}") from error


def read_images(folder: Path) -> dict[str, ImageRow]:
    """The rows of images.csv by id; none where there is no such file. Raises `UserError` for one that is damaged."""
    file = folder / "images.csv"
    rows: dict[str, ImageRow] = {}
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream, strict=True):
                if set(row) != set(COLUMNS) or not re.fullmatch(r"([0-9a-f]{64}[.][a-z]{3,4})?", row["file"]):
                    raise ValueError(f"row {len(rows) + 1} is not of the form {','.join(COLUMNS)}")
                rows[row["id"]] = ImageRow(**{**row, "bytes": int(row["bytes"])})  # type: ignore[arg-type]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)[:150]}): delete it and repeat the command; its pictures are asked for again") from error
    return rows


def _write_images(folder: Path, rows: Sequence[ImageRow]) -> None:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomically(folder / "images.csv", stream.getvalue().encode())


def images_text(images: Images) -> str:
    """How many pictures are here, how many links are dead, and every other answer with how often it came."""
    counts: dict[str, int] = {}
    for row in images.rows:
        if row.state != "found":
            counts[row.status] = counts.get(row.status, 0) + 1
    lines = [f"{images.n_found} of {images.n_expected} pictures are in {images.folder}"]
    return "\n".join(lines + [f"  {count} x {one_line(Exception(status))}" for status, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))])
