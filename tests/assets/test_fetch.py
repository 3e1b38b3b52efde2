"""Fetching from a server of the test's own, which cuts connections, is slow, forgets ranges,
redirects in circles, sends something else and goes away.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from bench.assets import addresses, links
from bench.assets import asset as assets
from bench.assets import download as downloading
from bench.assets import fetch as fetching
from bench.assets import links as fetching_images
from bench.assets.archive import BadArchive, unpack
from bench.assets.asset import Asset, cache_folder, locate, read_receipt
from bench.assets.fetch import fetch, text
from bench.assets.links import images_text, read_images
from bench.assets.session import folder_lock
from bench.base import locks
from bench.base.errors import UserError
from local_site import Site, sha256

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as site:
        site.files["body.bin"] = BODY
        yield site


def asset(
    site: Site | None, served: str = "body.bin", pinned: bytes | None = BODY, **more
) -> Asset:
    urls = more.pop("urls", (site.url(served),) if site else ())
    digest = sha256(pinned) if pinned is not None else None
    return Asset(**{"name": served, "urls": urls, "sha256": digest, "path": f"in/{served}"} | more)


def visible_files(folder: Path) -> list[str]:
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(
        str(file) for file in found if not any(part.startswith(".") for part in file.parts)
    )


def parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".*.part*"))


# One file


def test_a_file_is_fetched_once_and_found_afterwards(site, tmp_path):
    for state in ("fetched", "present"):
        (one,) = fetch([asset(site)], tmp_path)
        assert (one.state, one.path, one.sha256, one.bytes) == (
            state,
            tmp_path / "in/body.bin",
            sha256(BODY),
            len(BODY),
        )
    assert one.path.read_bytes() == BODY and len(site.asked) == 1 and not parts(tmp_path)
    assert one.source == site.url("body.bin")


@pytest.mark.parametrize("sent", ["length", "chunked", "neither"])
def test_every_way_to_send_a_body(site, tmp_path, sent):
    site.length, site.chunked = sent == "length", sent == "chunked"
    (one,) = fetch([asset(site)], tmp_path)
    assert one.state == "fetched" and one.path.read_bytes() == BODY


def test_a_cut_download_goes_on_where_it_stopped(site, tmp_path):
    site.cuts["body.bin"] = [100_000, 50_000]
    (one,) = fetch([asset(site)], tmp_path)
    assert one.state == "fetched" and one.path.read_bytes() == BODY
    assert site.requests("body.bin") == [None, "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize("lacking", ["ranges", "etag"])
def test_without_ranges_or_a_version_it_begins_again(site, tmp_path, lacking):
    setattr(site, lacking, False)
    site.cuts["body.bin"] = [100_000]
    (one,) = fetch([asset(site, pinned=None)], tmp_path)
    assert one.state == "fetched" and one.path.read_bytes() == BODY
    assert site.requests("body.bin")[1:] == ["bytes=100000-" if lacking == "ranges" else None]


def test_a_weak_version_is_not_enough_to_go_on(site, tmp_path):
    site.weak, site.cuts["body.bin"] = "W/", [100_000]
    assert fetch([asset(site, pinned=None)], tmp_path)[0].path.read_bytes() == BODY
    assert site.requests("body.bin") == [None, None]


def test_a_file_that_changed_between_two_tries_is_not_mixed(site, tmp_path):
    site.cuts["body.bin"] = [100_000]
    assert fetch([asset(site, pinned=None)], tmp_path, retries=0)[0].state == "failed"
    site.files["body.bin"] = OTHER
    (one,) = fetch([asset(site, pinned=None)], tmp_path)
    assert site.requests("body.bin") == [None, "bytes=100000-"] and one.path.read_bytes() == OTHER


def test_a_server_that_gives_ranges_of_another_file_is_not_trusted(site, tmp_path):
    site.cuts["body.bin"], site.heedless = [100_000], True
    fetch([asset(site, pinned=None)], tmp_path, retries=0)
    site.files["body.bin"] = OTHER
    assert fetch([asset(site, pinned=None)], tmp_path)[0].path.read_bytes() == OTHER
    assert site.requests("body.bin") == [None, "bytes=100000-", None]


def test_what_came_is_kept_for_the_next_command_and_never_used(site, tmp_path):
    site.cuts["body.bin"] = [100_000]
    (one,) = fetch([asset(site)], tmp_path, retries=0)
    assert (
        one.state == "failed"
        and "ended after 100,000 of 300,000 bytes; 100,000 bytes are kept" in one.why
    )
    assert visible_files(tmp_path) == [] and locate(asset(site), tmp_path) is None
    assert fetch([asset(site)], tmp_path)[0].path.read_bytes() == BODY
    assert site.requests("body.bin") == [None, "bytes=100000-"]


def test_a_damaged_part_is_noticed_and_fetched_again_from_the_start(site, tmp_path):
    site.cuts["body.bin"] = [100_000]
    fetch([asset(site)], tmp_path, retries=0)
    part = next(path for path in parts(tmp_path) if path.suffix == ".part")
    part.write_bytes(bytes(100_000))
    assert fetch([asset(site)], tmp_path)[0].path.read_bytes() == BODY
    assert site.requests("body.bin") == [None, "bytes=100000-", None]


def test_a_part_that_was_whole_when_the_command_ended_is_not_asked_again(
    site, tmp_path, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fetching, "_settle", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch([asset(site)], tmp_path)
    assert visible_files(tmp_path) == []
    assert fetch([asset(site)], tmp_path)[0].path.read_bytes() == BODY and len(site.asked) == 1


@pytest.mark.parametrize("cut", [0, 1, 150_000, 299_999])
def test_a_truncated_chunked_body_is_not_taken(site, tmp_path, cut):
    site.chunked, site.cuts["body.bin"] = True, [cut] * 9
    (one,) = fetch([asset(site, pinned=None)], tmp_path)
    assert one.state == "failed" and visible_files(tmp_path) == []


def test_a_body_of_untold_size_and_digest_is_not_taken(site, tmp_path):
    site.length = False
    (one,) = fetch([asset(site, pinned=None)], tmp_path)
    assert (
        one.state == "failed"
        and "a cut could not be noticed" in one.why
        and visible_files(tmp_path) == []
    )
    site.cuts["body.bin"] = [299_999] * 9  # with a size that the asset tells, it is
    assert (
        "ended after 299,999 of 300,000 bytes"
        in fetch([asset(site, pinned=None, bytes=300_000)], tmp_path)[0].why
    )


def test_a_wrong_body_is_refused_and_deleted_with_both_digests(site, tmp_path):
    site.files["body.bin"] = OTHER
    (one,) = fetch([asset(site)], tmp_path)
    assert (
        one.state == "failed"
        and sha256(BODY) in one.why
        and sha256(OTHER) in one.why
        and "deleted" in one.why
    )
    assert visible_files(tmp_path) == [] and not parts(tmp_path) and len(site.asked) == 1


def test_a_body_of_the_wrong_size_is_refused_before_it_is_read(site, tmp_path):
    for size in (299_999, 300_001):
        (one,) = fetch([asset(site, pinned=None, bytes=size)], tmp_path)
        assert (
            f"has 300,000 bytes, and {size:,} were expected" in one.why
            and not parts(tmp_path)
            and visible_files(tmp_path) == []
        )


@pytest.mark.parametrize("status", [404, 410])
def test_a_link_that_is_gone_is_dead_with_its_status_and_asked_once(site, tmp_path, status):
    site.status["body.bin"] = [status] * 9
    (one,) = fetch([asset(site)], tmp_path)
    assert (one.state, one.status, one.path) == ("dead", status, None) and len(site.asked) == 1
    assert "0 of 1 assets are here" in text([one]) and str(status) in text([one])


def test_a_server_in_trouble_is_asked_again_and_one_that_forbids_is_not(site, tmp_path):
    site.status["body.bin"] = [503, 429]
    assert fetch([asset(site)], tmp_path)[0].state == "fetched"
    site.files["secret"], site.status["secret"] = BODY, [403]
    (one,) = fetch([asset(site, "secret")], tmp_path)
    assert (one.state, one.status) == ("failed", 403) and len(site.requests("secret")) == 1


def test_a_redirect_is_followed_but_not_in_circles_and_not_to_files(site, tmp_path):
    (tmp_path / "own.bin").write_bytes(BODY)
    assert fetch([asset(site, "to//body.bin", path="a", name="a")], tmp_path)[0].state == "fetched"
    for path in ("loop0", f"to/{(tmp_path / 'own.bin').as_uri()}"):
        (one,) = fetch([asset(site, path, path="b", name="b")], tmp_path)
        assert (
            one.state == "failed"
            and "redirects in a loop, too often, or to what is no web address" in one.why
        ), one.why
    assert len(site.asked) < 20


def test_a_slow_server_is_left_after_the_timeout_and_gone_on_with(site, tmp_path):
    site.silent["body.bin"] = 10_000  # longer than a test may take
    (one,) = fetch([asset(site)], tmp_path, timeout=0.3, retries=0)
    assert (
        one.state == "failed" and "sent nothing for 0.3 s after 150,000 of 300,000 bytes" in one.why
    )
    site.silent.clear()
    assert (
        fetch([asset(site)], tmp_path)[0].path.read_bytes() == BODY
        and site.requests("body.bin")[1] == "bytes=150000-"
    )


def test_a_server_that_drips_is_left_too(site, tmp_path):
    site.drip.add("body.bin")
    (one,) = fetch([asset(site)], tmp_path, timeout=0.3, retries=0)
    assert "bytes in 0.3 s" in one.why and one.state == "failed"


def test_a_server_that_goes_away_half_way_leaves_what_came(site, tmp_path):
    site.cuts["body.bin"] = [100_000]
    real = site.answer

    def last(to) -> None:
        real(to)
        threading.Thread(target=site.close).start()

    site.answer = last
    (one,) = fetch([asset(site)], tmp_path)
    assert one.state == "failed" and visible_files(tmp_path) == [] and "bytes are kept" in one.why
    with Site() as back:  # another address has no part of it: from the start
        back.files["body.bin"] = BODY
        assert fetch([asset(back)], tmp_path)[0].path.read_bytes() == BODY


def test_a_full_disk_is_one_line_and_leaves_no_file(site, tmp_path, monkeypatch):
    def full(path, mode):
        return Path("/dev/full").open("wb", buffering=0)

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(downloading, "writable", full)
    with pytest.raises(
        UserError, match=r"body.bin.part cannot be written: .*No space left on device.*goes on"
    ) as error:
        fetch([asset(site)], tmp_path)
    assert "\n" not in str(error.value) and visible_files(tmp_path) == []


# Sources


def test_mirrors_are_asked_first_and_the_next_source_when_one_fails(site, tmp_path):
    site.files["mirror/in/body.bin"] = OTHER
    (one,) = fetch([asset(site)], tmp_path, mirrors=[site.url("mirror/")])
    assert [path for path, _ in site.asked] == [
        "mirror/in/body.bin",
        "mirror/body.bin",
        "body.bin",
    ] and one.source == site.url("body.bin")


@pytest.mark.parametrize("how", ["uri", "path", "mirror", "flat mirror"])
def test_files_of_this_machine_are_sources_even_offline(tmp_path, how):
    folder, cache = tmp_path / "a folder", tmp_path / "cache"
    file = folder / ("in/body.bin" if how == "mirror" else "body.bin")
    file.parent.mkdir(parents=True)
    file.write_bytes(BODY)
    urls = {"uri": (file.as_uri(),), "path": (str(file),)}.get(
        how, ("http://never.invalid/x/body.bin?y=1",)
    )
    mirrors = [str(folder)] if "mirror" in how else []
    (one,) = fetch([asset(None, urls=urls)], cache, mirrors=mirrors, offline=True)
    assert one.state == "fetched" and one.path.read_bytes() == BODY and file.read_bytes() == BODY


def test_offline_asks_nothing_and_says_what_is_missing(site, tmp_path):
    fetch([asset(site)], tmp_path)
    site.asked.clear()
    there, missing = fetch([asset(site), asset(site, "more.bin")], tmp_path, offline=True)
    assert (there.state, missing.state, site.asked) == (
        "present",
        "missing",
        [],
    ) and "--offline" in missing.why


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/b",
        "s3://a/b",
        "no/such/file",
        "http://",
        "http://[",
        "http://127.0.0.1:99999999/",
        "file://other/x",
        "",
        "a\0b",
    ],
)
def test_an_address_that_cannot_be_asked_is_a_line_and_not_a_crash(tmp_path, url):
    (one,) = fetch([asset(None, urls=(url,))], tmp_path, retries=0)
    assert one.state == "failed" and one.why and "\n" not in text([one]).split("\n", 1)[0]


def test_addresses_with_spaces_and_foreign_letters_are_asked(site, tmp_path):
    site.files["%C3%BC%20ber.bin"] = BODY
    assert fetch([asset(None, urls=(site.url("ü ber.bin"),))], tmp_path)[0].state == "fetched"


def test_an_unpinned_digest_is_recorded_and_a_change_is_told(site, tmp_path):
    wild = asset(site, pinned=None)
    (one,) = fetch([wild], tmp_path)
    assert one.sha256 == sha256(BODY) == read_receipt(wild, tmp_path).sha256
    site.files["body.bin"] = OTHER
    # what came once does not satisfy a pin
    assert locate(asset(site, pinned=OTHER), tmp_path) is None
    one.path.unlink()
    (two,) = fetch([wild], tmp_path)
    assert two.sha256 == sha256(OTHER) and sha256(BODY) in two.why


def test_many_come_in_parallel_and_are_reported(site, tmp_path):
    wanted = []
    for i in range(12):
        site.files[f"{i}.bin"] = BODY + bytes([i])
        site.silent[f"{i}.bin"] = 0.1
        wanted.append(asset(site, f"{i}.bin", BODY + bytes([i])))
    reports: list[tuple[str, int, int]] = []
    found = fetch(wanted, tmp_path, workers=6, report=lambda *facts: reports.append(facts))
    assert [one.name for one in found] == [one.name for one in wanted] and all(
        one.state == "fetched" for one in found
    )
    assert 2 < site.most_together <= 6 and ("files", 12, 12) in reports and ("MiB", 3, 3) in reports
    assert "12 of 12 assets are here" in text(found) and json.dumps(
        [one.as_json() for one in found]
    )


def test_two_commands_in_one_cache_do_not_mix(site, tmp_path):
    with folder_lock(tmp_path), pytest.raises(UserError, match="another command is fetching into"):
        fetch([asset(site)], tmp_path)
    assert site.asked == []


def test_assets_that_share_a_place_are_refused(tmp_path):
    for other in (
        {"path": "IN/body.bin", "name": "b"},
        {"path": "in/body.bin/x", "name": "b"},
        {"path": "c"},
    ):
        with pytest.raises(UserError):
            fetch([asset(None), asset(None, **other)], tmp_path)


@pytest.mark.parametrize(
    "path", ["../a", "/a", "a/../b", "", ".", "a//b", "a\\b", ".hidden", "C:/a", "a/.b", "a\n"]
)
def test_an_asset_cannot_lie_outside_the_cache(path):
    with pytest.raises(ValidationError):
        Asset(name="a", path=path)


# The cache


def test_the_cache_folder_is_the_one_given_else_of_the_environment_else_of_the_user(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "named"))
    assert cache_folder(tmp_path) == tmp_path and cache_folder() == tmp_path / "named"
    monkeypatch.setenv("BENCH_CACHE", "")
    monkeypatch.setitem(
        sys.modules,
        "platformdirs",
        types.SimpleNamespace(user_cache_dir=lambda name, appauthor: f"/cache/{name}"),
    )
    assert cache_folder() == Path("/cache/diffusion-memorization-bench")


def test_a_file_is_hashed_once_and_again_when_it_changed(site, tmp_path, monkeypatch):
    (one,) = fetch([asset(site)], tmp_path)
    hashed: list[Path] = []
    real = assets.sha256_of
    monkeypatch.setattr(assets, "sha256_of", lambda path: hashed.append(path) or real(path))
    assert locate(asset(site), tmp_path) == one.path and hashed == []
    os.utime(one.path)
    assert (
        locate(asset(site), tmp_path) == locate(asset(site), tmp_path) == one.path
        and len(hashed) == 1
    )
    assert locate(asset(site), tmp_path, again=True) == one.path and len(hashed) == 2
    one.path.write_bytes(OTHER)
    assert locate(asset(site), tmp_path) is None


def test_a_file_put_there_by_hand_needs_its_pinned_digest(tmp_path):
    file = tmp_path / "in/body.bin"
    file.parent.mkdir()
    file.write_bytes(BODY)
    assert (
        locate(asset(None, pinned=None), tmp_path) is None
        and locate(asset(None, pinned=OTHER), tmp_path) is None
    )
    assert locate(asset(None), tmp_path) == file
    assert read_receipt(asset(None), tmp_path).bytes == len(BODY)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"sha256": 1}',
        b'{"sha256": "a", "source": "b", "files": {"": 3}}',
        b"\xff",
    ],
)
def test_a_damaged_memory_is_no_memory(site, tmp_path, damage):
    fetch([asset(site)], tmp_path)
    (tmp_path / "in/.body.bin.fetched.json").write_bytes(damage)
    # remembered by the first
    assert (
        locate(asset(site), tmp_path) is not None
        and locate(asset(site, pinned=None), tmp_path) is not None
    )


def test_a_receipt_vouches_for_the_file_that_came_and_for_no_other(tmp_path):
    """As an archive of a stranger could have brought it: the pinned digest of the download, and
    what another file is.
    """
    file = tmp_path / "in/body.bin"
    file.parent.mkdir()
    file.write_bytes(OTHER)
    facts = file.stat()
    for digest in (sha256(OTHER), sha256(BODY)):
        entry = {"": [facts.st_size, facts.st_mtime_ns - 1, digest]}
        told = {"sha256": sha256(BODY), "source": "", "files": entry}
        (tmp_path / "in/.body.bin.fetched.json").write_text(json.dumps(told))
        assert locate(asset(None), tmp_path) is None
    entry = {"": [facts.st_size, facts.st_mtime_ns, sha256(OTHER)]}
    told = {"sha256": sha256(BODY), "source": "", "files": entry}
    (tmp_path / "in/.body.bin.fetched.json").write_text(json.dumps(told))
    assert locate(asset(None), tmp_path) is None
    assert locate(asset(None, pinned=None), tmp_path) is None


@pytest.mark.parametrize("kind", ["none", "zip"])
def test_a_folder_that_was_not_fetched_is_never_replaced(site, tmp_path, kind):
    site.files["data"] = zipped({"a.txt": b"theirs"})
    diary = tmp_path / "in/data/diary.txt"
    diary.parent.mkdir(parents=True)
    diary.write_text("mine")
    (found,) = fetch([asset(site, "data", site.files["data"], unpack=kind)], tmp_path)
    assert found.state == "failed" and "was not fetched by bench: move it away" in found.why
    assert diary.read_text() == "mine" and site.asked == []


# Archives


def zipped(members: dict[str, bytes], **more: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = more.get("mode", 0o100644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def tarred(
    members: dict[str, bytes | str], kind: bytes = tarfile.SYMTYPE, mode: str = "w:gz"
) -> bytes:
    """A str is what a link points to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = kind, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = {"a.txt": b"one", "deep/er/b.bin": BODY, "./c.txt": b"three", "empty.txt": b""}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_becomes_a_folder_whole_and_is_watched(site, tmp_path, kind):
    site.files["data"] = zipped(GOOD) if kind == "zip" else tarred(GOOD)
    wanted = asset(site, "data", site.files["data"], unpack=kind)
    (one,) = fetch([wanted], tmp_path)
    assert one.state == "fetched" and one.path == tmp_path / "in/data" and one.bytes == 300_008
    assert {
        str(file.relative_to(one.path)): file.read_bytes()
        for file in one.path.rglob("*")
        if file.is_file()
    } == {name.removeprefix("./"): content for name, content in GOOD.items()}
    assert (
        fetch([wanted], tmp_path)[0].state == "present"
        and len(site.asked) == 1
        and not parts(tmp_path)
    )
    for spoil in (
        lambda: (one.path / "a.txt").write_bytes(b"two"),
        lambda: (one.path / "new.txt").touch(),
        (one.path / "a.txt").unlink,
    ):
        spoil()
        assert locate(wanted, tmp_path) is None
        assert fetch([wanted], tmp_path)[0].state == "fetched" and len(visible_files(one.path)) == 4


def test_a_folder_that_came_unpinned_does_not_satisfy_a_pin(site, tmp_path):
    site.files["data"] = zipped(GOOD)
    assert fetch([asset(site, "data", None, unpack="zip")], tmp_path)[0].state == "fetched"
    assert (
        locate(asset(site, "data", site.files["data"], unpack="zip"), tmp_path)
        == tmp_path / "in/data"
    )
    assert locate(asset(site, "data", OTHER, unpack="zip"), tmp_path) is None


HOSTILE = [
    "../out.txt",
    "/tmp/out.txt",
    "a/../../out.txt",
    "..",
    "C:/out.txt",
    "a\\..\\..\\out.txt",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_leads_out_is_refused_before_anything_is_written(site, tmp_path, kind, name):
    members = {"good.txt": b"good", name: b"evil"}
    site.files["data"] = zipped(members) if kind == "zip" else tarred(members)
    (one,) = fetch([asset(site, "data", site.files["data"], unpack=kind)], tmp_path / "cache")
    assert one.state == "failed" and "leads out of the folder: nothing was unpacked" in one.why
    assert (
        sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "cache", "in"]
        and not Path("/tmp/out.txt").exists()
    )


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    for how, content in (
        ("tar", tarred({"good.txt": b"", "x": "/etc/passwd"}, kind)),
        ("zip", zipped({"x": b"/etc/passwd"}, mode=0o120777)),
    ):
        (tmp_path / "archive").write_bytes(content)
        with pytest.raises(
            BadArchive, match="'x' is a (link|device or pipe): nothing was unpacked"
        ):
            unpack(tmp_path / "archive", how, tmp_path / "out", lambda: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        ".list.csv.fetched.json",
        "in/.list.csv.FETCHED.json",
        ".a.part",
        ".a.part.json",
        ".a.old/x",
        ".lock",
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_called_like_a_file_of_the_cache_is_refused(tmp_path, kind, name):
    members = {"good.txt": b"good", ".DS_Store": b"", name: b"{}"}
    (tmp_path / "archive").write_bytes(zipped(members) if kind == "zip" else tarred(members))
    with pytest.raises(BadArchive, match="a file of the cache's own: nothing was unpacked"):
        unpack(tmp_path / "archive", kind, tmp_path / "out", lambda: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_come_twice_or_are_file_and_folder_are_refused(tmp_path):
    for members in ({"a": b"", "./a": b""}, {"a": b"", "a/b": b""}, {".": b""}):
        (tmp_path / "archive").write_bytes(tarred(members))
        with pytest.raises(BadArchive, match="nothing was unpacked"):
            unpack(tmp_path / "archive", "tar", tmp_path / "out", lambda: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_archive_is_refused_and_nothing_of_it_is_used(site, tmp_path, kind):
    whole = zipped(GOOD) if kind == "zip" else tarred(GOOD)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], bytes(damaged), b"", b"no archive"):
        site.files["data"] = content
        (one,) = fetch([asset(site, "data", content, unpack=kind)], tmp_path)
        assert (
            one.state == "failed"
            and "archive" in one.why
            and visible_files(tmp_path) == []
            and not parts(tmp_path)
        ), one


# Pictures


def fetch_images(*arguments, **settings):
    """From the tests' own server, which stands in a private network."""
    return links.fetch_images(*arguments, **{"private": True} | settings)


def picture(number: int, kind: str = "PNG", side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    ).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def gallery(site):
    """Six rows: two good, one gone, one no picture, one another than pinned, one pinned and
    good.
    """
    site.files |= {
        "0": picture(0),
        "1": picture(1, "JPEG"),
        "3": b"<html>not here",
        "4": picture(4),
        "5": picture(5, "WEBP"),
    }
    return [
        (f"id{i}", site.url(str(i)), {4: sha256(b"else"), 5: sha256(picture(5, "WEBP"))}.get(i, ""))
        for i in range(6)
    ]


def test_links_lead_neither_to_this_machine_nor_into_its_network(gallery, site, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(9))
    rows = [gallery[0], ("a", f"file://{secret}", ""), ("b", str(secret), "")]
    rows.append(("c", "http://[::1]:1/x.png", ""))
    found = fetch_images(rows, tmp_path / "images", private=False, retries=0)
    assert found.n_found == 0 and site.asked == []
    assert "127.0.0.1, an address of this machine" in found.rows[0].status
    assert all("a file of this machine" in row.status for row in found.rows[1:3])


@pytest.mark.parametrize("private", [True, False])
def test_a_list_never_names_files_of_this_machine_and_takes_no_login_along(
    site, tmp_path, monkeypatch, private
):
    (tmp_path / "secret.png").write_bytes(picture(9))
    rows = [("a", f"file://{tmp_path}/secret.png", "")]
    assert fetch_images(rows, tmp_path / "images", private=private).n_found == 0
    site.files["0"] = picture(0)
    monkeypatch.setattr(downloading, "hub_token", lambda url: "secret")
    assert fetch_images([("0", site.url("0"), "")], tmp_path / "images").n_found == 1
    assert site.authorized == []


def test_behind_a_proxy_private_addresses_are_refused_too(site, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", site.url("").rstrip("/"))
    rows = [("1", "http://10.0.0.1/admin.png", ""), ("2", "http://localhost/admin.png", "")]
    found = fetch_images(rows, tmp_path, private=False, retries=0)
    assert all("private network" in row.status for row in found.rows) and site.asked == []


def test_a_public_address_may_not_redirect_to_a_private_one(site, tmp_path, monkeypatch):
    site.files["there.png"] = picture(1)
    site.moved["moved.png"] = "/there.png"
    rows = [("1", site.url("moved.png"), "")]
    answers = iter([False, True])
    monkeypatch.setattr(addresses, "is_private", lambda host: next(answers))
    found = fetch_images(rows, tmp_path, private=False, retries=0)
    assert "private network" in found.rows[0].status and site.requests("there.png") == []
    monkeypatch.setattr(addresses, "is_private", lambda host: False)
    assert fetch_images(rows, tmp_path, private=False, retries=0).n_found == 1
    # an asset of the suite's own, which the user wrote, may lie in a private network
    asset = Asset(name="a", urls=(site.url("there.png"),), sha256=None, bytes=None, path="a.png",
                  unpack="none")  # fmt: skip
    monkeypatch.undo()
    assert fetch([asset], tmp_path / "cache")[0].state == "fetched"


@pytest.mark.parametrize(
    ("host", "private"),
    [("127.0.0.1", True), ("10.1.2.3", True), ("169.254.169.254", True), ("::1", True),
     ("fd00::1", True), ("fe80::1%eth0", True), ("::ffff:192.168.0.1", True), ("0.0.0.0", True),
     ("64:ff9b::7f00:1", True), ("2002:7f00:1::1", True), ("::127.0.0.1", True),
     ("224.0.0.1", True), ("64:ff9b::808:808", False), ("8.8.8.8", False),
     ("2606:4700::1", False), ("a.name", False)],
)  # fmt: skip
def test_private_addresses(host, private):
    assert addresses.is_private(host) == private


def test_pictures_get_their_digest_as_name_and_every_link_its_status(gallery, tmp_path):
    found = fetch_images(gallery, tmp_path)
    assert (found.n_expected, found.n_found) == (6, 3)
    assert [row.state for row in found.rows] == ["found", "found", "404", "wrong", "wrong", "found"]
    names = [
        f"{sha256(picture(0))}.png",
        f"{sha256(picture(1, 'JPEG'))}.jpg",
        f"{sha256(picture(5, 'WEBP'))}.webp",
    ]
    assert visible_files(tmp_path) == sorted([*names, "images.csv"]) and not parts(tmp_path)
    assert (tmp_path / "images.csv").read_text().splitlines()[:2] == [
        "id,url,status,file,sha256,bytes",
        f"id0,{gallery[0][1]},found,{names[0]},{sha256(picture(0))},{len(picture(0))}",
    ]
    assert tuple(read_images(tmp_path).values()) == found.rows
    assert sha256(b"else") in found.rows[4].status and sha256(picture(4)) in found.rows[4].status
    assert images_text(found).splitlines()[
        0
    ] == f"3 of 6 pictures are in {tmp_path}" and "  1 x 404" in images_text(found)


def test_nothing_known_is_asked_again_and_dead_links_only_on_request(site, gallery, tmp_path):
    first = fetch_images(gallery, tmp_path)
    site.asked.clear()
    assert fetch_images(gallery, tmp_path) == first and site.asked == []
    site.files["2"] = picture(2)
    found = fetch_images(gallery, tmp_path, retry_dead=True)
    assert (
        sorted(path for path, _ in site.asked) == ["2", "3", "4"] and found.rows[2].state == "found"
    )


def test_a_picture_that_is_gone_or_damaged_and_a_row_that_changed_are_asked_again(
    site, gallery, tmp_path
):
    first = fetch_images(gallery, tmp_path)
    site.asked.clear()
    (tmp_path / first.rows[0].file).unlink()
    (tmp_path / first.rows[1].file).write_bytes(b"short")
    pinned = [*gallery[:5], (*gallery[5][:2], sha256(b"another"))]
    found = fetch_images(pinned, tmp_path)
    assert sorted(path for path, _ in site.asked) == ["0", "1", "5"]
    assert found.rows[:5] == first.rows[:5] and found.rows[5].state == "wrong"
    same_size = bytes(first.rows[0].bytes)
    (tmp_path / first.rows[0].file).write_bytes(same_size)
    assert (
        tmp_path / fetch_images(pinned, tmp_path, again=True).rows[0].file
    ).read_bytes() == picture(0)


def test_a_row_with_another_address_is_asked_again(site, gallery, tmp_path):
    fetch_images(gallery, tmp_path)
    assert fetch_images([("id0", gallery[1][1], "")], tmp_path).rows[0].sha256 == sha256(
        picture(1, "JPEG")
    )


def test_links_that_fail_for_now_are_asked_again_next_time(site, gallery, tmp_path):
    site.status["0"] = [503] * 3
    assert fetch_images(gallery, tmp_path).rows[0].status == "failed: HTTP 503 Service Unavailable"
    assert fetch_images(gallery, tmp_path).rows[0].state == "found"


def test_rows_of_another_list_stay_and_offline_asks_nothing(site, gallery, tmp_path):
    fetch_images(gallery[:3], tmp_path)
    found = fetch_images(gallery[3:], tmp_path, offline=True)
    assert {row.status for row in found.rows} == {"unasked: --offline forbids it"} and len(
        read_images(tmp_path)
    ) == 6
    assert fetch_images(gallery, tmp_path).n_found == 3 and len(site.asked) == 6
    with pytest.raises(UserError, match="not unique"):
        fetch_images([gallery[0]] * 2, tmp_path)


def test_the_same_picture_behind_two_links_is_one_file(site, tmp_path):
    site.files |= {"a": picture(0), "b": picture(0)}
    found = fetch_images([("1", site.url("a"), ""), ("2", site.url("b"), "")], tmp_path)
    assert found.n_found == 2 and len(visible_files(tmp_path)) == 2


def test_a_decompression_bomb_and_a_flood_are_refused(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching_images, "MAX_PIXELS", 255)
    site.files["0"] = picture(0)
    assert (
        "16x16 pixels, and 255 are allowed"
        in fetch_images([("0", site.url("0"), "")], tmp_path).rows[0].status
    )
    monkeypatch.setattr(fetching_images, "MAX_BYTES", 100)
    assert (
        fetch_images([("1", site.url("0"), "")], tmp_path).rows[0].status
        == "wrong: has more than 100 bytes"
    )
    assert visible_files(tmp_path) == ["images.csv"] and not parts(tmp_path)


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]),
    cut=st.integers(1, 2000) | st.integers(1, 25),
)
def test_no_cut_picture_is_taken_even_where_its_size_is_untold(tmp_path, kind, cut):
    file = tmp_path / "picture"
    whole = picture(0, kind)
    file.write_bytes(whole)
    assert fetching_images._picture_suffix(file) == fetching_images.FORMATS[kind]
    file.write_bytes(whole[: max(0, len(whole) - cut)])
    with pytest.raises(downloading.Wrong, match="no whole picture"):
        fetching_images._picture_suffix(file)


def test_a_damaged_list_of_images_is_one_line(gallery, tmp_path):
    for content in (
        b"\xff",
        b"id,url\n1,2\n",
        b"id,url,status,file,sha256,bytes\n1,2,found,../../etc/passwd,,3\n",
        b"id,url,status,file,sha256,bytes\n1,2\n",
    ):
        (tmp_path / "images.csv").write_bytes(content)
        with pytest.raises(UserError, match="images.csv cannot be read"):
            fetch_images(gallery, tmp_path)


def test_an_address_with_half_a_character_or_a_picture_inside_costs_its_own_row(
    site, gallery, tmp_path
):
    odd = [
        ("half", site.url("\ud800"), ""),
        ("long", "data:image/png;base64," + "A" * 200_000, ""),
        ("home", "~nobody-here/a.png", ""),
    ]
    found = fetch_images([*odd, gallery[0]], tmp_path)
    assert [row.state for row in found.rows] == ["failed", "failed", "failed", "found"]
    assert fetch_images([*odd, gallery[0]], tmp_path).n_found == 1 and list(
        read_images(tmp_path)
    ) == ["half", "long", "home", gallery[0][0]]


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_no_socket_takes_is_refused(tmp_path, timeout):
    with pytest.raises(UserError, match="a timeout must be above 0"):
        fetch([asset(None, urls=("http://never.invalid/x",))], tmp_path, timeout=timeout)


def test_an_unpacked_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("new.txt", "new")
    (tmp_path / "cache" / "a").mkdir(parents=True)
    (tmp_path / "cache" / "a" / "old.txt").write_text("old")
    (tmp_path / "cache" / ".a.fetched.json").write_text("{}")
    real = os.replace

    def busy(source, target):
        if str(source).endswith(".unpacking"):
            raise PermissionError("in use")
        real(source, target)

    monkeypatch.setattr(fetching.os, "replace", busy)
    with pytest.raises(UserError, match="cannot be written: in use"):
        fetch([Asset(name="a", urls=(str(archive),), path="a", unpack="zip")], tmp_path / "cache")
    assert (tmp_path / "cache" / "a" / "old.txt").read_text() == "old"


def test_a_file_system_that_knows_no_locks_can_be_fetched_into(site, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    assert fetch([asset(site)], tmp_path)[0].state == "fetched"


def test_a_lock_is_free_again_after_its_command_failed(tmp_path):
    with pytest.raises(RuntimeError), folder_lock(tmp_path):
        raise RuntimeError
    with folder_lock(tmp_path):
        pass


def test_a_source_that_is_no_path_is_a_problem_of_that_source_offline_too(tmp_path):
    urls = ("~nobody-of-this-name/a.bin", "file://another-machine/a.bin")
    (found,) = fetch([Asset(name="a", urls=urls, path="a.bin")], tmp_path, offline=True)
    assert found.state == "failed" and "nobody's home" in found.why and "machine" in found.why


# The Hugging Face hub


def test_addresses_that_lead_to_one_picture_are_not_found(site, tmp_path):
    """A server's picture that says that the pictures are gone is no training picture."""
    site.files |= {
        "gone.png": picture(1),
        "there.png": picture(2),
        "own.png": picture(3),
        "twice.png": picture(2),
    }
    site.moved |= {"a.png": "/gone.png", "b.png": "/gone.png", "moved.png": "/there.png"}
    rows = [
        (str(number), site.url(path), "")
        for number, path in enumerate(["a.png", "moved.png", "own.png", "twice.png"])
    ]
    other = ("4", site.url("b.png"), "")
    first = fetch_images(rows, tmp_path)
    assert [row.state for row in first.rows] == ["found"] * 4  # one alone may have moved
    later = fetch_images([*rows, other], tmp_path)
    assert [row.state for row in later.rows] == ["wrong", "found", "found", "found", "wrong"]
    assert "2 addresses lead to this one picture" in later.rows[0].status
    assert later.n_found == 3 and later.path(later.rows[0]) is None
    asked = len(site.asked)
    assert fetch_images([*rows, other], tmp_path).rows == later.rows
    assert len(site.asked) == asked  # settled
    # Whoever knows the picture gets it wherever it lies.
    known = [(id, url, sha256(picture(1))) for id, url, _ in [rows[0], other]]
    assert fetch_images(known, tmp_path / "known").n_found == 2


def test_the_users_token_goes_to_the_hub_and_to_no_server_that_it_redirects_to(
    site, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", site.url("to"))
    gated = f"to/{site.url('body.bin')}"
    far = asset(None, "far.bin", urls=(site.url(gated),), login=True)
    assert [one.state for one in fetch([asset(site), far], tmp_path)] == ["fetched", "fetched"]
    assert site.authorized == [(gated, "Bearer hf_secret")]


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_says_how_to_get_access(site, tmp_path, monkeypatch, status):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", site.url("hub"))
    monkeypatch.setattr(downloading, "hub_token", lambda url: None)
    site.status = {"hub/model": [status], "elsewhere": [status]}
    gated, other = fetch(
        [asset(site, "hub/model", login=True), asset(site, "elsewhere", login=True)], tmp_path
    )
    assert gated.state == other.state == "failed"
    assert "`hf auth login`" in gated.why and "login" not in other.why
    site.status = {"hub/model": [status]}
    (of_a_suite,) = fetch([asset(site, "hub/model")], tmp_path)
    assert "bench fetch --login ASSET" in of_a_suite.why


# Interruptions


SCRIPT = """
import signal
import sys
from pathlib import Path
from bench.assets.asset import Asset
from bench.assets.fetch import fetch
from bench.assets.links import fetch_images
# Whoever started the tests may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, *urls = sys.argv[1:]
try:
    fetch_images([(url, url, "") for url in urls[1:]], Path(folder) / "images", private=True)
    fetch([Asset(name="body", urls=(urls[0],), path="body.bin")], Path(folder))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_command_goes_on_where_it_stopped(site, tmp_path, sent):
    site.files |= {"0": picture(0), "1": picture(1)}
    site.silent["body.bin"] = 10_000  # the first half came, and the second never does
    urls = [site.url("body.bin"), site.url("0"), site.url("1")]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *urls], stderr=subprocess.PIPE
    )
    part = tmp_path / ".body.bin.part"
    with closing(process.stderr):
        while not (part.exists() and part.stat().st_size == 150_000) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(sent)
        assert process.wait() == (130 if sent == signal.SIGINT else -signal.SIGKILL)
        assert process.stderr.read() == b""
    assert visible_files(tmp_path) == sorted(
        f"images/{name}"
        for name in [f"{sha256(picture(0))}.png", f"{sha256(picture(1))}.png", "images.csv"]
    )
    site.silent.clear()
    site.asked.clear()
    assert (
        fetch([Asset(name="body", urls=(urls[0],), path="body.bin")], tmp_path)[0].path.read_bytes()
        == BODY
    )
    assert fetch_images([(url, url, "") for url in urls[1:]], tmp_path / "images").n_found == 2
    assert site.asked == [("body.bin", "bytes=150000-")]
