"""What the digest of a folder covers."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from bench.base.digests import digest_of, path_digest


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def by_hand(files: dict[str, bytes]) -> str:
    return digest_of({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


FILES = {"model_index.json": b"{}", "unet/config.json": b"{}", "unet/deep/w.bin": b"weights"}


def test_a_folder_without_links_is_its_names_and_contents(tmp_path):
    code = {"unet/__pycache__/a.pyc": b"x", "__pycache__/b.pyc": b"x"}
    folder = written(tmp_path / "model", FILES | code)
    assert path_digest(folder) == by_hand(FILES)


def test_a_folder_counts_wherever_it_lies(tmp_path):
    folder = written(tmp_path / "__pycache__/model", FILES)
    assert path_digest(folder) == by_hand(FILES)


@pytest.mark.parametrize("how", ["folder", "part", "file"])
def test_what_lies_behind_links_counts(tmp_path, how):
    there = written(tmp_path / "there", FILES)
    folder = tmp_path / "model"
    if how == "folder":
        folder.symlink_to(there)
    else:
        folder.mkdir()
        shutil.copy(there / "model_index.json", folder)
        if how == "part":
            (folder / "unet").symlink_to(there / "unet")
        else:
            (folder / "unet/deep").mkdir(parents=True)
            for name in ("unet/config.json", "unet/deep/w.bin"):
                (folder / name).symlink_to(there / name)
    assert path_digest(folder) == by_hand(FILES)
    (there / "unet/deep/w.bin").write_bytes(b"others!")
    assert path_digest(folder) == by_hand(FILES | {"unet/deep/w.bin": b"others!"})


def test_links_in_circles_come_to_an_end_and_say_where_they_lead(tmp_path):
    digests = set()
    for number, target in enumerate((".", "unet", "unet/deep")):
        folder = written(tmp_path / str(number), FILES)
        (folder / "unet/deep/again").symlink_to(folder / target)
        digests.add(path_digest(folder))
    assert len(digests) == 3


def test_two_links_to_one_folder_are_two_parts(tmp_path):
    there = written(tmp_path / "there", {"w.bin": b"weights"})
    found = set()
    for names in (("unet", "vae"), ("unet",), ("vae",)):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(there)
        found.add(path_digest(folder))
    assert len(found) == 3


def test_many_links_into_one_another_take_no_time(tmp_path):
    """Every folder has two links to the next: 2^60 paths."""
    for number in range(60):
        (tmp_path / f"{number}").mkdir()
        for name in "ab":
            (tmp_path / f"{number}" / name).symlink_to(tmp_path / f"{number + 1}")
    written(tmp_path / "60", {"w.bin": b"weights"})
    assert path_digest(tmp_path / "0")
