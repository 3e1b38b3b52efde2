"""Folders of captioned pictures in all their layouts, and what each leaves open."""

import csv
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from bench.base.errors import UserError
from bench.captioned.folder import read_folder


def picture(number=0, size=(20, 12)):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)
    return path


def found(folder, **how):
    read = read_folder(folder, **how)
    return read.layout, [(one.name, one.caption, one.repeats) for one in read.pictures]


def refused(folder, **how):
    with pytest.raises(UserError) as error:
        read_folder(folder, **how)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_metadata_file_names_pictures_in_folders_too(tmp_path):
    saved(tmp_path / "a.png")
    saved(tmp_path / "more/b.jpg")
    with (tmp_path / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["file_name", "text"], ["more/b.jpg", "two, three"], ["a.png", "one"]]
        )
    assert found(tmp_path) == ("listed", [("a.png", "one", 1), ("more/b.jpg", "two, three", 1)])
    (tmp_path / "metadata.csv").unlink()
    rows = [{"file_name": "a.png", "tags": "x"}, {"file_name": "more/b.jpg", "tags": "y"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert found(tmp_path, caption_column="tags")[1] == [("a.png", "x", 1), ("more/b.jpg", "y", 1)]
    assert "has not both file_name and text" in refused(tmp_path)
    assert "leave one of them out" in refused(tmp_path, instance_prompt="sks")


def test_captions_beside_pictures_are_the_first_line_and_alternatives(tmp_path):
    saved(tmp_path / "a.png")
    saved(tmp_path / "b.png")
    saved(tmp_path / "c.png")
    (tmp_path / "a.txt").write_text("\nfirst\n\nsecond\nfirst\n")
    (tmp_path / "b.caption").write_text("of the other suffix")
    layout, rows = found(tmp_path)
    assert layout == "beside"
    assert rows == [("a.png", "first", 1), ("b.png", "of the other suffix", 1), ("c.png", "", 1)]
    read = read_folder(tmp_path)
    assert read.pictures[0].captions == ("first", "second")
    assert read.pictures[2].captions == ()


def test_kohyas_folders_repeat_their_pictures_and_name_them(tmp_path):
    saved(tmp_path / "10_sks dog/a.png")
    saved(tmp_path / "10_sks dog/b.png")
    saved(tmp_path / "2_cat/c.png")
    saved(tmp_path / "0_never/d.png")
    (tmp_path / "10_sks dog/a.txt").write_text("on a chair")
    layout, rows = found(tmp_path)
    assert layout == "kohya"
    assert rows == [
        ("10_sks dog/a.png", "on a chair", 10),
        ("10_sks dog/b.png", "sks dog", 10),
        ("2_cat/c.png", "cat", 2),
    ]
    assert {one.words for one in read_folder(tmp_path).pictures} == {"sks dog", "cat"}
    saved(tmp_path / "regular/e.png")
    assert "folder regular holds pictures and has no number of repeats" in refused(tmp_path)
    saved(tmp_path / "loose.png")
    assert "loose.png lies in" in refused(tmp_path)


def test_an_instance_prompt_is_the_caption_of_every_picture(tmp_path):
    saved(tmp_path / "a.png")
    saved(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("ignored, as DreamBooth's scripts do")
    layout, rows = found(tmp_path, instance_prompt=" a photo of sks dog ")
    assert layout == "instance"
    assert [caption for _, caption, _ in rows] == ["a photo of sks dog"] * 2
    assert [caption for _, caption, _ in found(tmp_path, instance_prompt="")[1]] == ["", ""]


def packed(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def encoded(number, kind="PNG"):
    stream = io.BytesIO()
    picture(number).save(stream, kind)
    return stream.getvalue()


def test_an_archive_is_read_in_place(tmp_path):
    packed(
        tmp_path / "shard.tar",
        {
            "000.png": encoded(0),
            "000.txt": b"a text",
            "001.jpg": encoded(1, "JPEG"),
            "001.json": json.dumps({"caption": "of json"}).encode(),
            "002.webp": encoded(2, "WEBP"),
        },
    )
    layout, rows = found(tmp_path)
    assert layout == "tar"
    assert [(name.split("/")[1], caption) for name, caption, _ in rows] == [
        ("000.png", "a text"),
        ("001.jpg", "of json"),
        ("002.webp", ""),
    ]
    read = read_folder(tmp_path).pictures
    assert np.array_equal(np.asarray(read[0].image()), np.asarray(picture(0)))
    packed(tmp_path / "shard.tar", {"a.png": encoded(0), "a.jpg": encoded(1, "JPEG")})
    assert "holds two pictures called a" in refused(tmp_path)
    (tmp_path / "shard.tar").write_bytes(b"not a tar" * 100)
    assert "is no whole tar file" in refused(tmp_path)


def test_pictures_are_upright(tmp_path):
    """A mark that says 'turn me' is followed: scripts that train do."""
    image = picture(3, (20, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    image.save(tmp_path / "a.png", exif=exif)
    upright = read_folder(tmp_path).pictures[0].image()
    assert upright.size == (12, 20)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("name", ["x.avif", "x.jxl", "x.HEIC"])
def test_pictures_of_other_formats_are_named_and_not_passed_over(tmp_path, name):
    saved(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"?")
    assert f"{name} is of a format that is not read" in refused(tmp_path)


def test_what_is_missing_is_said(tmp_path):
    assert "is not there" in refused(tmp_path / "nowhere")
    assert "holds no captioned pictures" in refused(tmp_path)
    saved(tmp_path / "a.png")
    saved(tmp_path / "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    assert "has no row for picture b.png" in refused(tmp_path)
    assert found(tmp_path, every_picture=False)[1] == [("a.png", "x", 1)]
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\nb.png,y\nc.png,z\nd.png,z\n")
    assert "picture c.png is missing (and 1 more)" in refused(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("{}")
    assert "holds both" in refused(tmp_path)


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(0)[:-20])
    with pytest.raises(UserError, match=r"picture a\.png cannot be read"):
        read_folder(tmp_path).pictures[0].image()


def test_nothing_is_passed_over_in_silence(tmp_path):
    saved(tmp_path / "10_x/deeper/a.png")
    saved(tmp_path / "10_x/b.png")
    assert "10_x/deeper/a.png lies two folders deep" in refused(tmp_path)
    (tmp_path / "10_x/deeper/a.png").unlink()
    saved(tmp_path / "10_x/.ipynb_checkpoints/b.png")
    saved(tmp_path / ".hidden/c.png")
    assert [name for name, _, _ in found(tmp_path)[1]] == ["10_x/b.png"]
    assert found(tmp_path, instance_prompt="sks") == ("instance", [("10_x/b.png", "sks", 10)])
    other = tmp_path / "other"
    saved(other / "a.png")
    packed(other / "shard.tar", {"000.png": encoded(0)})
    assert "a.png lies beside shard.tar" in refused(other)
    (other / "a.png").unlink()
    assert found(other, instance_prompt="sks")[1] == [("shard.tar/000.png", "sks", 1)]


def test_captions_are_short_texts_of_the_folder_itself(tmp_path):
    saved(tmp_path / "data/a.png")
    (tmp_path / "data/a.TXT").write_text("in capitals")
    assert found(tmp_path / "data")[1] == [("a.png", "in capitals", 1)]
    (tmp_path / "secret").write_text("a password")
    (tmp_path / "data/a.txt").symlink_to(tmp_path / "secret")
    assert "is a link out of the folder" in refused(tmp_path / "data")
    (tmp_path / "data/a.txt").unlink()
    (tmp_path / "data/a.txt").write_text("x" * (2**20 + 1))
    assert "allowed" in refused(tmp_path / "data")
    packed(tmp_path / "tar.tar", {})
    (tmp_path / "packed").mkdir()
    packed(tmp_path / "packed/x.tar", {"0.png": encoded(0), "0.txt": b"x" * (2**20 + 1)})
    assert "0.txt is no caption" in refused(tmp_path / "packed")


@pytest.mark.parametrize("layout", ["beside", "kohya", "listed", "tar", "instance"])
def test_names_that_are_no_unicode_are_one_line(tmp_path, layout):
    name = os.fsdecode(b"b\xff.png")
    folder = tmp_path / (f"3_{name[:2]}" if layout == "kohya" else "")
    saved(folder / "a.png").with_suffix(".txt").write_text("one")
    saved(folder / (name if layout != "kohya" else "c.png"))
    (folder / "c.txt").write_text("two")
    if layout == "tar":
        for path in list(tmp_path.iterdir()):
            with tarfile.open(tmp_path / "a.tar", "a") as archive:
                archive.add(path, path.name)
            path.unlink()
    if layout == "listed":
        (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\n")
    how = {"instance_prompt": "x"} if layout == "instance" else {}
    said = refused(tmp_path, **how)
    assert "b\\udcff" in said and said.isascii()


def test_captions_are_whole_characters(tmp_path):
    content = {"a.png": b"", "a.json": json.dumps({"text": "half \ud800"}).encode()}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, text in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    assert "half a character" in refused(tmp_path)
