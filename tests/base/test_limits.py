"""What a stranger's file may ask for, and what the page about it says."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bench.assets.archive import BadArchive, unpack
from bench.base import limits
from bench.base.arrays import open_arrays
from bench.base.digests import path_digest
from bench.base.errors import UserError
from bench.base.foreign import read_table
from bench.base.prompt_lists import read_list
from bench.base.safetensors_header import read_header
from bench.records.record import load_record
from bench.statistics.frechet import read_statistics
from bench.store.folders import OnDisk
from bench.studies.tuning import load_tuning
from bench.suite.load import load_suite
from bench.testbed.bundle import read_manifest

PAGE = Path(__file__).parents[2] / "docs/security.md"


def test_the_page_repeats_the_limits():
    said = dict(re.findall(r"^\| `([A-Z_]+)`: .* \| ([\d,]+) \|$", PAGE.read_text(), re.M))
    known = {name: value for name, value in vars(limits).items() if name.isupper()}
    del known["MIB"]
    assert {name: int(value.replace(",", "")) for name, value in said.items()} == known


def test_an_archive_that_grows_a_thousandfold_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(limits.ARCHIVE_RATIO * limits.MIB + 1))
    with pytest.raises(BadArchive, match="times its size"):
        unpack(path, "zip", tmp_path / "out", lambda: None)
    assert not (tmp_path / "out").exists()


def test_an_archive_of_too_many_members_is_refused_while_it_is_read(tmp_path, monkeypatch):
    path, read = tmp_path / "many.tar.gz", []
    with tarfile.open(path, "w:gz") as archive:
        for number in range(200):
            archive.addfile(tarfile.TarInfo(f"f{number}"))
    monkeypatch.setattr(limits, "ARCHIVE_FILES", 20)
    following = tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda self: read.append(1) or following(self))
    with pytest.raises(BadArchive, match="more than 20 members"):
        unpack(path, "tar", tmp_path / "out", lambda: None)
    assert len(read) < 30


@pytest.mark.parametrize("name", ["/dev/zero", "pipe"])
def test_devices_and_pipes_are_no_tables_and_have_no_digest(tmp_path, name):
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    manifest = tmp_path / "bundle/manifest.json"
    manifest.parent.mkdir()
    manifest.symlink_to(path)
    of_files = (read_table, path_digest, load_tuning, read_statistics, open_arrays, read_header)
    readers = [(read, path) for read in (*of_files, OnDisk(tmp_path).read)]
    for read, of in [*readers, (read_manifest, manifest.parent)]:
        with pytest.raises((UserError, OSError, ValueError), match="no regular file|no header"):
            read(of)


def test_arrays_that_grow_a_thousandfold_are_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, mu=np.zeros(8), sigma=np.zeros((1000, 1000)))
    with pytest.raises(UserError, match="would unpack to") as error:
        read_statistics(path)
    assert "\n" not in str(error.value)


def test_a_heading_of_many_columns_takes_no_time(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text(",".join(f"c{n}" for n in range(200_000)) + "\n" + "," * 199_999 + "\n")
    read_list(path)


def test_a_record_is_a_regular_file_of_a_usual_size(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no regular file"):
        load_record("/dev/zero")
    path = tmp_path / "large.json"
    monkeypatch.setattr(limits, "RECORD_BYTES", 10)
    path.write_text("[" + " " * 100 + "]")
    with pytest.raises(UserError, match="are allowed"):
        load_record(path)


def test_a_suite_asks_for_no_more_images_than_anyone_needs(tiny_folder, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "mine"\nextends = "{tiny_folder}/tiny.toml"\n[prompts.memorized]\n'
        "images_per_prompt = 1000000000000\n"
    )
    with pytest.raises(UserError) as error:
        load_suite(str(path))
    assert "\n" not in str(error.value) and "10000" in str(error.value)
