"""The work folder of an audit: what is a user's own stays, and what an audit left goes."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.auditing.asked import Asked, Lora
from bench.auditing.work import WRITTEN, claim, forget_images, keep_image, refuse_out, shown_images
from bench.base.errors import UserError
from bench.base.pictures import encode_png
from conftest import bench


def refused(*call) -> str:
    with pytest.raises(UserError) as error:
        refuse_out(*call)
    assert "\n" not in str(error.value)
    return str(error.value)


def pictures(folder: Path, count=2) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.full((32, 32, 3), 40 * number, np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
        (folder / f"{number}.txt").write_text(f"picture {number}\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_audit_touches_no_picture_of_a_folder_that_it_reads(tmp_path, monkeypatch):
    pictures(tmp_path / "images")
    pictures(tmp_path / "generations")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    words = ["--like", "testbed", "--out", "."]
    for more in (
        ["--data", "images", "--generations", "generations"],
        ["--data", "generations", "--generations", "images"],
        ["--data", "images", "--quick"],
    ):
        done = bench("audit", *more, *words)
        assert done.returncode == 2
        assert "choose another work folder" in done.stderr
        assert contents(tmp_path) == before


def test_folders_of_pictures_may_not_lie_in_the_work_folder(tmp_path):
    out = tmp_path / "out"
    inside, outside = pictures(out / "deep/inside"), pictures(tmp_path / "outside")
    for asked, more in (
        (Asked(inside, out), ()),
        (Asked(outside, out, holdout=inside), ()),
        (Asked(outside, out), (inside,)),
    ):
        assert "which is read: choose another work folder" in refused(asked, *more)
    linked = tmp_path / "linked"
    linked.symlink_to(inside)
    assert "which is read" in refused(Asked(linked, out))
    refuse_out(Asked(outside, out))


@pytest.mark.parametrize("name", WRITTEN)
def test_files_of_names_that_an_audit_writes_are_refused_in_a_folder_of_no_audit(tmp_path, name):
    data, out = pictures(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine\n")
    (out / "notes.txt").write_text("mine too\n")
    assert f"holds {name}" in refused(Asked(data, out))
    (out / name).rename(out / "other")
    refuse_out(Asked(data, out))


def test_a_folder_of_an_audit_is_used_again_whoever_marked_it(tmp_path):
    data = pictures(tmp_path / "data")
    marked, toml, result = (tmp_path / name for name in ("marked", "toml", "result"))
    for out in (marked, toml, result):
        out.mkdir()
        (out / "index.html").write_text("a page\n")
    claim(marked)
    (toml / "audit.toml").write_text(
        "# Written by `bench audit`; `bench run --suite` takes it too.\n"
    )
    (result / "audit.json").write_text(json.dumps({"version": 1, "answer": "", "pictures": []}))
    for out in (marked, toml, result):
        refuse_out(Asked(data, out))


def test_other_files_that_are_read_may_not_be_written_over(tmp_path):
    data, out = pictures(tmp_path / "data"), tmp_path / "out"
    claim(out)
    (out / "prompts").mkdir()
    scenes = out / "prompts/novel.csv"
    scenes.write_text("a house\n")
    assert "would write over it" in refused(Asked(data, out, novel=scenes))
    assert "would write over it" in refused(Asked(data, out, loras=(Lora(out / "views/a"),)))
    assert "would write over it" in refused(Asked(data, out, like=str(out / "audit.toml")))
    refuse_out(Asked(data, out, loras=(Lora(out / "mine.safetensors"),)))


def test_only_pictures_that_an_earlier_audit_showed_are_forgotten(tmp_path):
    out = tmp_path
    older, newer = (keep_image(out, np.full((8, 8, 3), value, np.uint8)) for value in (10, 20))
    (out / "images/mine.png").write_bytes(b"mine")
    (out / "mine.png").write_bytes(b"mine")
    named = [older, newer, "images/mine.png", "mine.png", "images/../mine.png", 7, None]
    found = {
        "version": 1,
        "answer": "",
        "pictures": [{"nearest": [{"file": name} for name in named]}, {}, 3],
    }
    (out / "audit.json").write_text(json.dumps(found))
    shown = shown_images(out)
    assert shown == {older, newer}
    forget_images(out, shown, {newer})
    left = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert left == {newer, "images/mine.png", "mine.png"}


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"\xff", b"[" * 5000])
def test_a_result_of_nobody_names_no_picture(tmp_path, content):
    (tmp_path / "audit.json").write_bytes(content)
    assert shown_images(tmp_path) == set()
