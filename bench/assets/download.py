"""One file from one source: downloads that are resumed after a cut, with retries, time limits and
checks of size and sha256.

An unfinished download lies in a hidden file (`Part`) with a note beside it. It is resumed where it
stopped when the server supports that and says that its file is still the same; otherwise it begins
again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import ssl
import string
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError

from bench.assets.addresses import Asked, PrivateAddress
from bench.assets.archive import CHUNK, writable, write_all
from bench.assets.hub import hub_token, is_hub
from bench.assets.session import MIB, Session, Stopped
from bench.base.errors import one_line
from bench.base.files import write_atomically

PAUSE = 0.5  # seconds before the first retry; twice as long before every further one
SLOWEST = 1024  # bytes that must come in every `timeout` seconds
GONE = (404, 410)
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may be another the next time


class Refused(Exception):
    """A source that cannot be used, and would give the same answer if it were asked again.

    `status` is the HTTP status, where that is the answer.
    """

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class Wrong(Refused):
    """A source that gives another file than the one that was asked for."""


class Broken(Exception):
    """A download that failed and may not fail the next time."""


@dataclass(frozen=True)
class Part:
    """An unfinished download, and beside it a note with what is needed to resume it: its source,
    the version that the server states (ETag or Last-Modified), and its size in bytes.
    """

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def kept(self, source: str) -> tuple[int, str, int | None]:
        """Bytes kept of a source, their version and the size of the whole file; (0, "", None) when
        the download cannot be resumed.
        """
        try:
            size, note = self.path.stat().st_size, json.loads(self.note.read_bytes())
            version, total = (
                str(note["version"]),
                (note["total"] if note["total"] is None else int(note["total"])),
            )
            usable = (
                note["source"] == source
                and (total is None or size <= total)
                and (version or size == total)
            )
        except (OSError, ValueError, TypeError, KeyError):
            return 0, "", None
        return (size, version, total) if usable else (0, "", None)

    def begin(self, source: str, version: str, total: int | None) -> None:
        self.drop()  # the old bytes first, so that the new note never stands beside them
        write_atomically(
            self.note, json.dumps({"source": source, "version": version, "total": total}).encode()
        )

    def drop(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Wanted:
    """What must be true of a download.

    `whole_by_itself`: a cut is noticed later, even where the server does not tell the size.
    `from_list`: a list of links gave the address, so that it is no file of this machine. `public`:
    it may not lead into a private network either. `login`: the user's login is sent along to the
    hub.
    """

    sha256: str | None = None
    bytes: int | None = None
    most: int | None = None
    whole_by_itself: bool = False
    from_list: bool = False
    public: bool = False
    login: bool = False


def obtain(source: str, part: Part, wanted: Wanted, session: Session) -> str:
    """Download one source's file into `part`, with retries; returns its sha256.

    Raises `Refused` when the source cannot be used; wrong bytes are then not kept.
    """
    left, pause = session.retries, PAUSE
    while True:
        session.check()
        before, resumed = part.kept(source)[0], False
        try:
            resumed = _download(source, part, wanted, session)
            digest = _part_digest(part, session)
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
                # a long file through a line that is often cut: every try brings it further
                continue
            if left == 0:
                kept = (
                    f"; {part.kept(source)[0]:,} bytes are kept for the next time"
                    if part.kept(source)[0]
                    else ""
                )
                # from here the part is not dropped
                raise Refused(f"{one_line(error)[:300]}{kept}") from error
            left -= 1
            if session.stop.wait(pause):
                raise Stopped from error
            pause *= 2


def _part_digest(part: Part, session: Session) -> str:
    """sha256 of what lies on the disk, which is what will be used."""
    digest = hashlib.sha256()
    with part.path.open("rb") as stream:
        while chunk := stream.read(4 * MIB):
            session.check()
            digest.update(chunk)
    return digest.hexdigest()


def local_path(source: str) -> Path | None:
    """The path that a file:// address or a plain path means; None for another address."""
    scheme, _, rest = source.partition("://")
    if not rest:
        try:
            return Path(source).expanduser()
        except RuntimeError as error:
            raise Refused(f"names nobody's home folder: {one_line(error)[:100]}") from error
    if scheme.lower() != "file":
        return None
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise Refused(f"names the machine '{host}', and a file of this one is needed (file:///...)")
    return Path(urllib.request.url2pathname(f"/{path}"))


def _download(source: str, part: Part, wanted: Wanted, session: Session) -> bool:
    """Download all of a source into `part`.

    Returns whether a download was resumed. Raises `Refused` or `Broken`.
    """
    local = local_path(source)
    if local is not None:
        if wanted.from_list:
            raise Refused("names a file of this machine, and it comes from a list of links")
        _copy_local(local, source, part, wanted, session)
        return False
    kept, version, total = part.kept(source)
    if kept and kept == total:
        _expect(source, kept, kept, session)
        return True
    answer, start = _ask(source, kept, version, total, wanted, session)
    with answer:
        if not start:
            strong = answer.headers.get("ETag", "")
            # A time of modification has seconds: it does for a file whose digest will tell, not for
            # one that nobody knows.
            version = (
                strong
                if strong.startswith('"')
                else (wanted.sha256 and answer.headers.get("Last-Modified")) or ""
            )
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() and not answer.chunked else None
            coding = answer.headers.get("Content-Encoding", "identity")
            if coding != "identity":
                raise Refused(
                    f"comes compressed ({one_line(Exception(coding))[:40]}), which was not"
                    " asked for"
                )
            if total is None and not (
                answer.chunked
                or wanted.sha256
                or wanted.bytes is not None
                or wanted.whole_by_itself
            ):
                raise Refused(
                    "tells no size, and neither size nor sha256 is known: a cut could not be"
                    " noticed"
                )
            _check_size(total, wanted, whole=True)
            part.begin(source, version, total)
        _expect(source, start, wanted.bytes if total is None else total, session)
        _receive(lambda: answer.read1(CHUNK), part, start, total, wanted, session)
    return start > 0


def _expect(source: str, start: int, total: int | None, session: Session) -> None:
    with session.lock:
        session.received += start
        if total is not None:
            session.expected[source] = total


def _check_size(size: int | None, wanted: Wanted, whole: bool) -> None:
    if size is None:
        return
    if wanted.bytes is not None and (size > wanted.bytes or (whole and size != wanted.bytes)):
        raise Wrong(f"has {size:,} bytes, and {wanted.bytes:,} were expected: refused and deleted")
    if wanted.most is not None and size > wanted.most:
        raise Wrong(f"has more than {wanted.most:,} bytes")


def _copy_local(local: Path, source: str, part: Part, wanted: Wanted, session: Session) -> None:
    try:
        if not local.is_file():
            raise Refused("is no file" if local.exists() else "is not there")
        stream = local.open("rb")
    # also a name that no system takes: a picture inside its address (data:)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read: {one_line(error)[:200]}") from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        _check_size(size, wanted, whole=True)
        part.begin(source, "", size)
        _expect(source, 0, size, session)
        _receive(lambda: stream.read(CHUNK), part, 0, size, wanted, session)


def _receive(
    read: Callable[[], bytes],
    part: Part,
    start: int,
    total: int | None,
    wanted: Wanted,
    session: Session,
) -> None:
    """Read to the end and write behind what is kept."""
    size, since, window = start, time.monotonic(), 0
    with writable(part.path, "ab") as stream:
        while True:
            try:
                chunk = read()
            except TimeoutError as error:
                raise Broken(
                    f"sent nothing for {session.timeout:g} s after {size:,} {_of(total)}bytes"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                raise Broken(f"the connection broke after {size:,} {_of(total)}bytes") from error
            session.check()
            if not chunk:
                break
            size, window = size + len(chunk), window + len(chunk)
            _check_size(size, wanted, whole=False)
            write_all(stream, chunk, part.path)
            session.count(len(chunk))
            if time.monotonic() - since > session.timeout:
                if window < SLOWEST:
                    raise Broken(f"sent only {window} bytes in {session.timeout:g} s")
                since, window = time.monotonic(), 0
    needed = wanted.bytes if total is None else total
    if needed is not None and size < needed:
        raise Broken(f"the connection ended after {size:,} {_of(needed)}bytes")
    if size == 0 and total is None:
        raise Broken("sent nothing")


def _of(total: int | None) -> str:
    return "" if total is None else f"of {total:,} "


def _ask(
    source: str, kept: int, version: str, total: int | None, wanted: Wanted, session: Session
) -> tuple[http.client.HTTPResponse, int]:
    """The server's answer, and the byte that its body begins with: `kept`, or 0 where the server
    does not resume there.
    """
    if kept:
        headers = {"Range": f"bytes={kept}-", "If-Range": version}
        answer = _open(source, headers, wanted, session)
        if answer is not None:
            part = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "")
            )
            same = version in (
                answer.headers.get("ETag", version),
                answer.headers.get("Last-Modified"),
            )
            if answer.status == 200:
                return answer, 0
            if part and same and int(part[1]) == kept and part[2] in ("*", str(total)):
                return answer, kept
            answer.close()  # another part, or of another file: from the start, then
    answer = _open(source, {}, wanted, session)
    if answer is None or answer.status != 200:
        raise Refused(f"answers {answer.status if answer else 416} to a plain request")
    return answer, 0


def _open(
    source: str, headers: dict[str, str], wanted: Wanted, session: Session
) -> http.client.HTTPResponse | None:
    """One request. None for 416, which says that the bytes asked for are not there."""
    if not re.match("https?://", source, re.IGNORECASE):
        raise Refused("is no address that can be asked (http, https, file, or a path)")
    headers = {
        "User-Agent": "diffusion-memorization-bench",
        "Accept-Encoding": "identity",
        **headers,
    }
    try:
        # lists from the web hold spaces and letters of all languages
        url = urllib.parse.quote(source.strip(), safe=string.punctuation)
        request = Asked(url, headers=headers)
        request.may_be_private = not wanted.public
        token = hub_token(url) if wanted.login else None
        if token:  # for the hub, and not for the servers that it redirects to
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        answer: http.client.HTTPResponse = session.opener.open(request, timeout=session.timeout)
        if urllib.parse.urldefrag(answer.url).url != urllib.parse.urldefrag(url).url:
            with session.lock:
                session.redirected[source] = answer.url
        return answer
    except PrivateAddress as error:
        raise Refused(
            f"leads to {error}, an address of this machine or of a private network: links of"
            " lists and redirects from outside may not"
        ) from error
    except HTTPError as error:
        with error:
            said = f"HTTP {error.code} {one_line(Exception(error.reason))[:60]}"
        if error.code == 416 and "Range" in headers:
            return None
        if error.code in (301, 302, 303, 307, 308):
            raise Refused(
                "redirects in a loop, too often, or to what is no web address", error.code
            ) from error
        if error.code in PASSING:
            raise Broken(said) from error
        if error.code in (401, 403) and is_hub(url):
            said += _about_login(wanted)
        raise Refused(said, error.code) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            raise Broken(f"did not answer within {session.timeout:g} s") from error
        if isinstance(reason, (ssl.SSLCertVerificationError, http.client.InvalidURL, ValueError)):
            raise Refused(f"cannot be asked: {one_line(Exception(reason))[:150]}") from error
        raise Broken(f"cannot be reached: {one_line(Exception(reason))[:150]}") from error


def _about_login(wanted: Wanted) -> str:
    """What to do where the hub answers that it wants to know who asks."""
    if wanted.login:
        return "; for a gated model: accept its licence on its page, then `hf auth login`"
    if wanted.from_list:
        return ""
    return (
        "; your login was not sent along, since it is the suite that names this file: if you trust"
        " the suite, bench fetch --login ASSET"
    )


def flush(path: Path) -> None:
    """Bring a file's bytes to the disk, so that its new name never stands for less than all of
    them.
    """
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
