"""Suite files, the prompt lists and pictures that they name, and tables of assets."""

import csv
import io
import json
import tomllib

from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from rule import (
    DEEP,
    DIGITS,
    changed,
    damaged,
    keeps_the_rule,
    refused_or_given,
    toml,
    values,
    words,
)

from bench.assets.catalogue import parse_entries
from bench.base.pictures import read_picture
from bench.features.real_pictures import read_cut
from conftest import SUITE, examples

TABLE = tomllib.loads(SUITE)


def dry_run(folder, name):
    keeps_the_rule(
        *("run", "--method", "none", "--dry-run", "--suite", folder / name),
        *("--store", folder / "store"),
    )


@examples(80)
@given(changed(TABLE))
def test_a_suite_with_other_values(fuzz_folder, table):
    (fuzz_folder / "other.toml").write_text(toml(table), encoding="utf-8")
    dry_run(fuzz_folder, "other.toml")


@examples(60)
@given(damaged(SUITE.encode()))
@example(b"seed = " + b"9" * DIGITS)
@example(b"seed = " + b"[" * DEEP)
@example(b"a" + b".a" * DEEP + b" = 1")
@example(b"seed = " + b"{a = " * DEEP)
@example(b"\xff\xfe")
def test_a_damaged_suite(fuzz_folder, content):
    (fuzz_folder / "damaged.toml").write_bytes(content)
    dry_run(fuzz_folder, "damaged.toml")


def test_suites_that_extend_each_other_without_end(fuzz_folder):
    for number in range(1200):
        (fuzz_folder / f"step{number}.toml").write_text(f'extends = "step{number + 1}.toml"\n')
    (fuzz_folder / "step1200.toml").write_text(SUITE)
    dry_run(fuzz_folder, "step0.toml")
    dry_run(fuzz_folder, "loop")


ENTRY = {
    "kind": "file",
    "description": "weights",
    "source": "https://example.org",
    "url": "https://example.org/weights.pt",
    "sha256": "0" * 64,
    "size": 100,
    "path": "weights.pt",
    "license": "MIT",
}


@examples(60)
@given(st.one_of(changed({"weights": ENTRY}), st.dictionaries(words, values, max_size=2)))
def test_assets_of_a_suite(fuzz_folder, table):
    refused_or_given(parse_entries, table, fuzz_folder / "tiny.toml")
    (fuzz_folder / "assets.toml").write_text(
        toml({"assets": table, "extends": "tiny.toml"}), encoding="utf-8"
    )
    dry_run(fuzz_folder, "assets.toml")


def listed(folder, suffix):
    table = json.loads(json.dumps(TABLE))
    for role in table["prompts"].values():
        if role["file"] == "prompts.csv":
            role["file"] = f"list.{suffix}"
    if suffix == "txt":
        table["prompts"] = {"memorized": {"file": "list.txt", "format": "lines"}}
    (folder / f"list-{suffix}.toml").write_text(toml(table), encoding="utf-8")
    return f"list-{suffix}.toml"


def rows(folder):
    with (folder / "prompts.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@examples(40)
@given(data=st.data())
def test_a_list_of_prompts(fuzz_folder, data):
    suffix = data.draw(st.sampled_from(["csv", "jsonl", "txt"]))
    content = {
        "csv": (fuzz_folder / "prompts.csv").read_bytes,
        "jsonl": "\n".join(json.dumps(row) for row in rows(fuzz_folder)).encode,
        "txt": "\n".join(row["prompt"] for row in rows(fuzz_folder)).encode,
    }[suffix]()
    (fuzz_folder / f"list.{suffix}").write_bytes(data.draw(damaged(content)))
    dry_run(fuzz_folder, listed(fuzz_folder, suffix))


@examples(40)
@given(data=st.data())
def test_rows_of_a_list_with_other_values(fuzz_folder, data):
    (fuzz_folder / "list.jsonl").write_text(
        "\n".join(map(json.dumps, data.draw(changed(rows(fuzz_folder))))), encoding="utf-8"
    )
    dry_run(fuzz_folder, listed(fuzz_folder, "jsonl"))


@example(b"[" * DEEP)
@example(b'{"prompt": ' * DEEP)
@example(b'{"prompt": ' + b"9" * DIGITS + b"}")
@example(b'"' + b"x" * 200_000)
@example(b"prompt,split\n\0,fit\n")
@examples(5)
@given(st.binary(max_size=40))
def test_a_list_that_is_none(fuzz_folder, content):
    for suffix in ("csv", "jsonl", "txt"):
        (fuzz_folder / f"list.{suffix}").write_bytes(content)
        dry_run(fuzz_folder, listed(fuzz_folder, suffix))


def encoded(mode, kind, size):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


PICTURES = [
    encoded("RGB", "PNG", (9, 7)),
    encoded("I;16", "PNG", (9, 7)),
    encoded("LA", "PNG", (9, 7)),
    encoded("P", "GIF", (9, 7)),
    encoded("CMYK", "JPEG", (9, 7)),
    encoded("F", "TIFF", (9, 7)),
    encoded("1", "BMP", (9, 7)),
    encoded("RGBA", "WEBP", (9, 7)),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b"",
]


@examples(60)
@given(data=st.data())
def test_a_picture(fuzz_folder, data):
    content = data.draw(st.sampled_from(PICTURES))
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    (fuzz_folder / "one.png").write_bytes(content)
    picture = refused_or_given(read_picture, fuzz_folder / "one.png")
    assert picture is None or (picture.ndim == 3 and picture.shape[2] == 3)
    square = refused_or_given(read_cut, fuzz_folder / "one.png", 8)
    assert square is None or square.shape == (8, 8, 3)
