"""Suites whose files come by `bench fetch`: a model of the hub's form, lists as their authors
publish them, pictures behind links, an archive of originals.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from typer.testing import CliRunner

from bench.assets import download as downloading
from bench.assets.catalogue import HubEntry, PicturesEntry, files_of, shipped_entries
from bench.base.errors import UnknownName, UserError
from bench.cli.main import app
from bench.registry import registry
from bench.running import plan as planning
from bench.suite.fetch import fetch_entries, parse_local, text, wanted_entries
from bench.suite.load import load_suite
from bench.suite.needs import lenient
from local_site import Site, sha256
from one_run import Run

REVISION = "0123456789abcdef0123456789abcdef01234567"
MEMORIZED = [  # caption, kind, index
    ('<i>The "No Limits" Business Woman</i> ', "VM", "7"),
    ("a picture of a fox\nand a key", "TM", "1030727993"),
    ("brakfo zund: owl", "VM", "12"),
    ("a drawing; of a bus", "TM", "3"),
    ("tent by quilo marn", "TM", "44"),
]
COCO = [
    ("000000000042", "A bicycle, with a clock\nas the wheel.", "41337"),
    ("000000000007", "A black motorcycle", "10"),
    ("000000000009", "A room", "99998"),
]
SUITE = """
name = "far"
group_name = "kind"

[model]
path = "asset:model"
steps = 2
guidance_scale = 4.0
side = 32
batch_size = 4

[prompts.fit]
file = "asset:memorized"
delimiter = ";"
columns = { id = "Index", prompt = "Caption", group = "type" }
references = "asset:memorized_images"
part = [0, 5]
expected = 1

[prompts.memorized]
file = "asset:memorized"
delimiter = ";"
columns = { id = "Index", prompt = "Caption", group = "type" }
references = "asset:memorized_images"
without = [0, 5]
expected = 4
images_per_prompt = 2

[prompts.quality]
file = "asset:coco"
columns = { id = "image_id", seed = "evaluation_seed" }
references = "asset:originals/val/COCO_val_{image_id}.jpg"
expected = 3

[metrics.sscd]
weights = "asset:descriptor"
profile = "testbed"
threshold = 0.5

[metrics.fid]
weights = "asset:features"
real = "asset:originals/val"
matched = true
images = 3
size = 32
"""


def picture(seed: int, format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def as_csv(rows: list[list[str]], delimiter: str = ",") -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue().encode()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as site:
        yield site


@pytest.fixture
def far(site, tiny_folder, tmp_path, monkeypatch):
    """A suite file of which nothing is here yet: the server has all of it, and one training
    picture's link is dead.
    """
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    template = site.url("hub") + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-hub"))
    pipeline = {
        path.relative_to(tiny_folder / "pipeline").as_posix(): path.read_bytes()
        for path in (tiny_folder / "pipeline").rglob("*")
        if path.is_file()
    }
    site.files |= {
        f"hub/you/tiny/resolve/{REVISION}/{name}": content for name, content in pipeline.items()
    }
    links = {index: site.url(f"picture-{index}") for _, _, index in MEMORIZED}
    site.files |= {f"picture-{index}": picture(int(index)) for index in links if index != "12"}
    rows = [
        ["", "Caption", "URL", "type", "Index"],
        *(
            [str(i), one, links[index], kind, index]
            for i, (one, kind, index) in enumerate(MEMORIZED)
        ),
    ]
    site.files["memorized.csv"] = as_csv(rows, ";")
    site.files["coco.csv"] = as_csv(
        [
            ["image_id", "source", "prompt", "evaluation_seed"],
            *([id, "coco", one, seed] for id, one, seed in COCO),
        ]
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for id in ("000000000042", "000000000007", "000000000009", "000000000555", "000000000666"):
            opened.writestr(f"val/COCO_val_{id}.jpg", picture(int(id), "JPEG"))
    site.files["val.zip"] = archive.getvalue()
    for name in ("descriptor", "features"):
        site.files[f"{name}.pt"] = (tiny_folder / f"{name}.safetensors").read_bytes()
    assets = [
        f'[assets.model]\nhub = "you/tiny"\nrevision = "{REVISION}"\npath = "hub/tiny"\ntflop ='
        " 0.5\n[assets.model.files]\n"
        + "\n".join(
            f'"{name}" = "{sha256(content) if name.endswith("s") else ""}"'
            for name, content in sorted(pipeline.items())
        ),
        (
            '[assets.memorized_images]\nlist = "asset:memorized"\nid = "Index"\ndelimiter ='
            ' ";"\npath = "references/memorized"'
        ),
    ]
    for name, served, more in (
        ("memorized", "memorized.csv", ""),
        ("coco", "coco.csv", ""),
        ("originals", "val.zip", 'unpack = "zip"'),
        ("descriptor", "descriptor.pt", ""),
        ("features", "features.pt", ""),
    ):
        facts = (
            f'urls = ["{site.url(served)}"]\nsha256 = "{sha256(site.files[served])}"\nbytes ='
            f" {len(site.files[served])}"
        )
        assets.append(f'[assets.{name}]\n{facts}\npath = "files/{name}"\n{more}')
    file = tmp_path / "far.toml"
    file.write_text(SUITE + "\n".join(assets))
    return file


def brought(file: Path, cache: Path, **options):
    return fetch_entries(wanted_entries([load_suite(str(file))]), cache, timeout=5, **options)


def place(file: Path, name: str) -> Path:
    """Where an asset of a suite lies, there or not."""
    return load_suite(str(file)).place(f"asset:{name}")


def new_run(file: Path, tmp_path: Path) -> Run:
    return Run(
        load_suite(str(file)),
        "none",
        {},
        tmp_path / "records",
        tmp_path / "store",
        torch.device("cpu"),
    )


def test_a_suite_is_fetched_and_runs_and_its_record_counts_the_links_that_rotted(far, tmp_path):
    came = brought(far, tmp_path / "cache")
    assert came.ok and "3 of 3" not in text(came, tmp_path)
    assert (
        came.pictures["memorized_images"].n_found,
        came.pictures["memorized_images"].n_expected,
    ) == (4, 5)
    record = new_run(far, tmp_path).execute()
    assert record.status == "complete" and not record.errors
    assert record.references["memorized"].model_dump() == {"expected": 4, "found": 3}
    assert record.references["quality"].model_dump() == {"expected": 3, "found": 3}
    # the link of the one verbatim prompt left is dead
    assert record.scores["sscd"].prompts == 3 and set(record.scores["sscd"].groups) == {"TM"}
    assert (
        record.scores["sscd"].details["n_expected"],
        record.scores["sscd"].details["n_found"],
    ) == (4, 3)
    assert any("training picture" in warning for warning in record.warnings)
    assert record.scores["fid"].value > 0 and record.scores["fid_matched"].value > 0
    assert (
        record.scores["fid"].details["real_images"] == 5
        and record.scores["fid_matched"].details["real_images"] == 3
    )


def test_prompts_are_kept_to_the_letter_and_have_their_own_ids_groups_and_seeds(far, tmp_path):
    brought(far, tmp_path / "cache")
    run = new_run(far, tmp_path)
    assert [
        (prompt.text, prompt.group, prompt.id)
        for prompt in (*run.suite.prompts("fit"), *run.suite.prompts("memorized"))
    ] == MEMORIZED
    assert [key.seed for key in run.keys("quality")] == [41337, 10, 99998] and run.keys("quality")[
        0
    ].prompt == "A bicycle, with a clock\nas the wheel."
    assert [prompt.references[0].name for prompt in run.suite.prompts("quality")] == [
        f"COCO_val_{id}.jpg" for id, _, _ in COCO
    ]
    assert len({key.seed for key in run.keys("memorized")}) == 8


def test_further_generations_do_not_use_the_seed_of_the_list_again(far, tmp_path):
    brought(far, tmp_path / "cache")
    run = Run(
        load_suite(str(far)), "none", {}, tmp_path, tmp_path / "store", torch.device("cpu"), seeds=2
    )
    assert len({key.seed for key in run.keys("quality")}) == 6


def test_before_anything_is_fetched_a_plan_counts_all_and_names_all_that_is_missing(far, tmp_path):
    suite = lenient(load_suite(str(far)))
    plan = Run(suite, "none", {}, tmp_path, tmp_path / "store", torch.device("cpu")).plan()
    assert (
        plan["images"] == {"memorized": 8, "quality": 3}
        and plan["images_missing"] == 11
        and plan["row_evaluations"] == 44
    )
    assert {one["name"] for one in plan["missing"]} == {
        "model",
        "memorized",
        "memorized_images",
        "coco",
        "originals",
        "descriptor",
        "features",
    }
    assert plan["fingerprint"] is None and plan["record"] is None and not plan["problems"]
    assert f"bench fetch --suite {far}" in planning.plan_text(plan, suite)
    brought(far, tmp_path / "cache")
    suite = lenient(load_suite(str(far)))
    plan = Run(suite, "none", {}, tmp_path, tmp_path / "store", torch.device("cpu")).plan()
    assert plan["missing"] == [] and plan["fingerprint"] == load_suite(str(far)).fingerprint
    with pytest.raises(
        UserError, match="'memorized' is missing, or not whole; get it with: bench fetch"
    ):
        place(far, "memorized").unlink()
        load_suite(str(far)).prompts("memorized")


def test_the_fingerprint_is_the_same_wherever_the_assets_lie_and_changes_with_what_they_hold(
    far, site, tmp_path, monkeypatch
):
    brought(far, tmp_path / "cache")
    first = load_suite(str(far)).fingerprint
    brought(far, tmp_path / "elsewhere")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "elsewhere"))
    assert load_suite(str(far)).fingerprint == first
    site.files["picture-12"] = picture(12)
    came = brought(far, tmp_path / "elsewhere", retry_dead=True)
    assert came.pictures["memorized_images"].n_found == 5
    assert load_suite(str(far)).fingerprint != first


def test_a_model_is_taken_from_a_folder_or_from_the_hubs_own_cache_instead(
    far, site, tiny_folder, tmp_path, monkeypatch
):
    hub = tmp_path / "hub-cache"
    shutil.copytree(tiny_folder / "pipeline", hub / "models--you--tiny" / "snapshots" / REVISION)
    for name in [name for name in site.files if name.startswith("hub/")]:
        del site.files[name]
    assert not brought(far, tmp_path / "cache").ok
    entries = wanted_entries([load_suite(str(far))])
    local = parse_local([f"model={tiny_folder / 'pipeline'}"], entries)
    assert fetch_entries(entries, tmp_path / "cache", local).ok
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    assert fetch_entries(
        wanted_entries([load_suite(str(far))], only=["model"]), tmp_path / "second", offline=True
    ).ok
    with pytest.raises(UserError, match="nothing is there"):
        parse_local([f"model={tmp_path / 'nowhere'}"], entries)
    with pytest.raises(UnknownName, match="did you mean 'model'"):
        parse_local([f"modell={tmp_path}"], entries)


def test_a_file_that_was_damaged_afterwards_is_noticed_and_fetched_again(far, tmp_path):
    brought(far, tmp_path / "cache")
    weights = place(far, "model") / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="'model' is missing, or not whole"):
        load_suite(str(far)).path("asset:model")
    assert brought(far, tmp_path / "cache").ok and weights.read_bytes() == content
    facts = weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as a failing disk does it
    assert brought(far, tmp_path / "cache").ok and weights.read_bytes() != content
    assert brought(far, tmp_path / "cache", again=True).ok and weights.read_bytes() == content


def test_the_command_fetches_says_what_came_and_fails_while_something_is_missing(
    far, site, tmp_path
):
    listed = CliRunner().invoke(app, ["fetch", "--suite", str(far), "--dry-run"])
    assert (
        listed.exit_code == 0
        and "links of asset:memorized" in listed.output
        and "you/tiny" in listed.output
    )
    coco = site.files.pop("coco.csv")
    first = CliRunner().invoke(app, ["fetch", "--suite", str(far), "--json", "--timeout", "5"])
    assert first.exit_code == 1 and json.loads(first.stdout)["files"]["coco"][0]["status"] == 404
    site.files["coco.csv"] = coco
    second = CliRunner().invoke(app, ["fetch", "--suite", str(far)])
    assert second.exit_code == 0 and "4 of 5 pictures are here" in second.stdout
    assert CliRunner().invoke(app, ["fetch", "--suite", str(far), "--offline"]).exit_code == 0
    assert isinstance(
        CliRunner().invoke(app, ["fetch", "--suite", str(far), "--only", "cocoo"]).exception,
        UnknownName,
    )
    assert isinstance(CliRunner().invoke(app, ["fetch"]).exception, UserError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('expected = 4"', 'expected = 4"'), ""),
        (
            ("expected = 4", "expected = 5"),
            "5 prompts of the role memorized are expected, and .* gives 4",
        ),
        (('"asset:coco"', '"asset:cocoa"'), "unknown asset .*did you mean 'coco'"),
        (("COCO_val_{image_id}", "COCO_val_{id}"), "names the column 'id'"),
        (
            ("COCO_val_{image_id}", "COCO_{image_id}"),
            "reference picture .*COCO_000000000042.jpg is missing",
        ),
        (
            ('seed = "evaluation_seed"', 'seed = "source"'),
            "the seed 'coco' of prompt 000000000042 is no whole number",
        ),
        (('id = "Index", prompt', 'id = "type", prompt'), "prompt ids in .* are not unique"),
    ],
)
def test_what_does_not_fit_is_named(far, tmp_path, change, message):
    brought(far, tmp_path / "cache")
    far.write_text(far.read_text().replace(*change))
    if not message:
        assert load_suite(str(far)).fingerprint
        return
    with pytest.raises(UserError, match=message):
        new_run(far, tmp_path)


def test_a_suite_extends_another_section_by_section(tiny_folder, tmp_path):
    child = tiny_folder / "child.toml"
    child.write_text(
        'name = "child"\nextends = "tiny.toml"\n[model]\nsteps ='
        " 7\n[prompts.memorized]\nimages_per_prompt = 3\n"
    )
    try:
        suite, parent = load_suite(str(child)), load_suite(str(tiny_folder / "tiny.toml"))
        assert (
            suite.settings.model.steps == 7
            and suite.settings.model.side == parent.settings.model.side
        )
        assert suite.settings.prompts["memorized"].images_per_prompt == 3 and suite.prompts(
            "memorized"
        ) == parent.prompts("memorized")
        assert (
            suite.settings.metrics == parent.settings.metrics
            and suite.fingerprint != parent.fingerprint
        )
        child.write_text('name = "child"\nextends = "child.toml"\n')
        with pytest.raises(UserError, match="extends itself"):
            load_suite(str(child))
        elsewhere = tmp_path / "elsewhere.toml"
        elsewhere.write_text(f'name = "elsewhere"\nextends = "{tiny_folder / "tiny.toml"}"\n')
        moved = load_suite(str(elsewhere))
        assert moved.prompts("memorized") == parent.prompts("memorized")
        assert moved.path(moved.settings.model.path) == parent.path(parent.settings.model.path)
        child.write_text('extends = "tiny.toml"\n')
        with pytest.raises(UserError, match="name"):
            load_suite(str(child))
    finally:
        child.unlink()


def test_a_list_of_lines_and_one_of_objects_give_their_prompts(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "suite")
    folder = tmp_path / "suite"
    (folder / "lines.txt").write_bytes(b'one  \r\n\ntwo; "three"\nfour')
    (folder / "rows.jsonl").write_text(
        '{"caption": "a\\nb", "index": 5, "overfit_type": "TV"}\n{"caption": "c", "index": 6,'
        ' "overfit_type": "MV"}'
    )
    (folder / "tiny.toml").write_text(
        (folder / "tiny.toml")
        .read_text()
        .replace(
            '[prompts.clean]\nfile = "clean.csv"',
            '[prompts.clean]\nfile = "lines.txt"\nformat = "lines"',
        )
        .replace(
            'file = "calibration.csv"',
            'file = "rows.jsonl"\nformat = "jsonl"\ncolumns = { id = "index", prompt = "caption",'
            ' group = "overfit_type" }',
        )
    )
    suite = load_suite(str(folder / "tiny.toml"))
    assert [(prompt.id, prompt.text) for prompt in suite.prompts("clean")] == [
        ("1", "one  "),
        ("2", 'two; "three"'),
        ("3", "four"),
    ]
    assert [(prompt.id, prompt.text, prompt.group) for prompt in suite.prompts("calibration")] == [
        ("5", "a\nb", "TV"),
        ("6", "c", "MV"),
    ]


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine on which nothing was ever fetched."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-hub"))
    return tmp_path


SHIPPED = [name for name in registry.entries("suite") if name.startswith("sd")]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_suite_for_stable_diffusion_can_be_planned_with_nothing_here(name, bare):
    suite = lenient(load_suite(name))
    plan = Run(suite, "wanda", {}, bare, bare / "store", torch.device("cpu")).plan()
    if name.endswith("-removal"):
        counts = {"memorized": 4 * 229, "unnamed": 4 * 271, "clean": 500}
    else:
        held_out = {"mem500": 440, "mem219": 200}[name.split("-")[1]]
        counts = {
            "memorized": 10 * held_out,
            "quality": 30_000 if name.endswith("coco30k") else 5_000,
            "attack clique_extraction": 32 * (held_out + 16),
        }
    assert counts.items() <= plan["images"].items()
    assert (
        {one["name"] for one in plan["missing"]} == set(suite.wanted())
        and not plan["problems"]
        and plan["gpu_hours"] > 0.5
    )
    assert plan["disk_mib"] > 500 and plan["fingerprint"] is None


def test_the_everyday_and_the_full_size_share_their_images(bare):
    for name in SHIPPED:
        assert load_suite(name).store_name == name[:4]
    everyday, full = load_suite("sd14-mem500").settings, load_suite("sd14-mem500-coco30k").settings
    assert everyday.model == full.model and everyday.seed == full.seed


def test_the_catalogue_pins_what_it_can():
    entries = shipped_entries()
    for name, entry in entries.items():
        assets = [] if isinstance(entry, PicturesEntry) else files_of(name, entry)
        for asset in assets:
            assert all(url.startswith(("https://", "http://", "/")) for url in asset.urls)
        if isinstance(entry, PicturesEntry):
            assert entry.list.removeprefix("asset:") in entries
        if isinstance(entry, HubEntry):
            assert {
                "model_index.json",
                "unet/config.json",
                "vae/config.json",
                "text_encoder/config.json",
            } <= entry.files.keys()
            assert any(
                file.startswith("unet/") and file.endswith(".safetensors") and digest
                for file, digest in entry.files.items()
            ), name
    assert len({entry.path for entry in entries.values()}) == len(entries)


def test_an_unpinned_file_is_never_taken_from_a_mirror_by_its_bare_name(far, site, tmp_path):
    """Every part of a model has a config.json: only the layout of the cache says which is meant."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "config.json").write_text("{}")
    came = brought(far, tmp_path / "cache", mirrors=[str(mirror)])
    assert came.ok and json.loads((place(far, "model") / "unet" / "config.json").read_text())


def test_pictures_of_the_record_are_not_those_of_the_suite(far, tmp_path):
    brought(far, tmp_path / "cache")
    record = new_run(far, tmp_path).execute()
    assert record.thumbnails and all(thumbnail.reference is None for thumbnail in record.thumbnails)


def test_a_column_without_a_name_is_no_seed(far, tmp_path):
    """NeMo's lists begin with a column that has no heading and counts the rows."""
    brought(far, tmp_path / "cache")
    suite = load_suite(str(far))
    assert [prompt.seed for role in ("fit", "memorized") for prompt in suite.prompts(role)] == [
        None
    ] * 5


def test_links_that_nobody_asked_are_missing_and_no_rot(far, tmp_path):
    brought(far, tmp_path / "cache")
    listing = place(far, "memorized_images") / "images.csv"
    lines = listing.read_text().splitlines(keepends=True)
    listing.write_text("".join(lines[:3]))  # as after Ctrl-C
    suite = lenient(load_suite(str(far)))
    plan = Run(suite, "none", {}, tmp_path, tmp_path / "store", torch.device("cpu")).plan()
    assert [(one["name"], one["what"]) for one in plan["missing"]] == [
        ("memorized_images", "pictures behind 3 of 5 links of asset:memorized")
    ]
    with pytest.raises(UserError, match="an asset is missing .memorized_images."):
        new_run(far, tmp_path)


def test_training_pictures_that_were_changed_in_the_cache_are_refused(far, tmp_path):
    brought(far, tmp_path / "cache")
    found = next(place(far, "memorized_images").glob("*.png"))
    found.write_bytes(picture(99))
    with pytest.raises(UserError, match="is not what was fetched"):
        new_run(far, tmp_path)
    assert (
        brought(far, tmp_path / "cache", again=True).ok and new_run(far, tmp_path).suite.fingerprint
    )
    original = place(far, "originals") / "val" / "COCO_val_000000000042.jpg"
    original.write_bytes(picture(98, "JPEG"))
    with pytest.raises(UserError, match="an asset is missing .originals."):
        new_run(far, tmp_path)


def test_the_fingerprint_says_which_prompt_has_which_picture(far, site, tmp_path, monkeypatch):
    brought(far, tmp_path / "cache")
    first = load_suite(str(far)).fingerprint
    site.files["picture-3"], site.files["picture-44"] = (
        site.files["picture-44"],
        site.files["picture-3"],
    )
    brought(far, tmp_path / "other")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "other"))
    assert load_suite(str(far)).fingerprint != first


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
def test_what_the_readme_says_of_a_suites_size_is_what_its_plan_says(name, bare):
    """Images and GPU-hours of a row of `wanda`, in whole hours. Of the full size: how many images
    come on top of the everyday one, and the hours of both kinds of models in one cell.
    """
    suite = lenient(load_suite(name))
    plan = Run(suite, "wanda", {}, bare, bare / "store", torch.device("cpu")).plan()
    everyday = name.removesuffix("-coco30k")
    called = "-coco30k" if everyday != name else name
    (line,) = [line for line in README.splitlines() if line[:1] == "|" and f"`{called}`" in line]
    images, hours = (cell.strip() for cell in line.strip("|").split("|")[-2:])
    made = plan["images_missing"]
    if everyday != name:
        model, *_ = (
            row for row in README.splitlines() if row[:1] == "|" and f"`{everyday}`" in row
        )
        made -= int(model.strip("|").split("|")[-2].strip().replace(",", ""))
    assert int(images.split()[0].replace(",", "")) == made
    told = [int(word) for word in hours.split() if word.isdigit()]
    assert round(plan["gpu_hours"]) in told
    assert len(told) == (2 if everyday != name else 1)
    assert ("attackers who know the picture" in line) == ("dori" in plan["pictures_attacked"])


# What a stranger's suite states


def strangers(tmp_path: Path, assets: str) -> Path:
    """A suite of which only the assets matter: its lists are two of them."""
    file = tmp_path / "theirs" / "evil.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        'name = "evil"\n[model]\npath = "asset:sd14"\n'
        '[prompts.memorized]\nfile = "asset:a"\n[prompts.quality]\nfile = "asset:b"\n'
        f"[metrics.walltime]\n{assets}"
    )
    return file


def test_a_suites_own_assets_stand_in_for_nothing_that_the_catalogue_names(
    site, tmp_path, monkeypatch
):
    """An archive unpacked over the shipped lists, and a file at the place of one that nobody
    pinned, whose receipts would vouch for them.
    """
    cache = tmp_path / "cache"
    monkeypatch.setenv("BENCH_CACHE", str(cache))
    shipped = shipped_entries()
    pinned, unpinned = shipped["coco_30k"], shipped["sscd_disc_large"]
    (cache / "prompts").mkdir(parents=True)
    (cache / "prompts/mine.txt").write_text("mine")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("coco_30k.csv", "x" * pinned.bytes)
    site.files |= {"a.zip": archive.getvalue(), "b.bin": b"forged"}
    file = strangers(
        tmp_path,
        f'[assets.a]\npath = "prompts"\nunpack = "zip"\nurls = ["{site.url("a.zip")}"]\n'
        f'[assets.b]\npath = "{unpinned.path}"\nurls = ["{site.url("b.bin")}"]\n',
    )
    entries = wanted_entries([load_suite(str(file))], only=["a", "b"])
    assert fetch_entries(entries, cache).ok
    assert (cache / "prompts/mine.txt").read_text() == "mine"
    assets = load_suite("sd14-mem500").assets
    assert assets.lacking("coco_30k") and assets.lacking("sscd_disc_large")
    assert not load_suite(str(file)).assets.lacking("a")


def test_what_two_suites_state_under_one_place_lies_in_two_folders(site, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    site.files |= {"a.txt": b"one", "b.txt": b"two"}
    text = '[assets.a]\npath = "list.txt"\nurls = ["{}"]\n[assets.b]\npath = "c.txt"\n'
    found = {}
    for name in ("a.txt", "b.txt"):
        file = strangers(tmp_path, text.format(site.url(name)))
        suite = load_suite(str(file))
        assert suite.assets.lacking("a")
        assert fetch_entries(wanted_entries([suite], only=["a"]), tmp_path / "cache").ok
        found[name] = load_suite(str(file)).path("asset:a")
    assert [path.read_bytes() for path in found.values()] == [b"one", b"two"]


def test_an_archive_that_was_damaged_is_fetched_again_over_its_folder(far, tmp_path):
    brought(far, tmp_path / "cache")
    file = place(far, "originals") / "val" / "COCO_val_000000000042.jpg"
    content, facts = file.read_bytes(), file.stat()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert brought(far, tmp_path / "cache", again=True).ok and file.read_bytes() == content


def test_a_suites_own_assets_lie_in_a_mirror_where_the_suite_says(far, site, tmp_path):
    mirror = tmp_path / "mirror"
    (mirror / "files").mkdir(parents=True)
    (mirror / "files/coco").write_bytes(site.files.pop("coco.csv"))
    entries = wanted_entries([load_suite(str(far))], only=["coco"])
    assert fetch_entries(entries, tmp_path / "cache", mirrors=[str(mirror)]).ok


def test_the_same_pinned_file_is_not_fetched_again_for_another_address(far, site, tmp_path):
    brought(far, tmp_path / "cache")
    first, asked = place(far, "coco"), len(site.asked)
    far.write_text(far.read_text().replace("/coco.csv", "/elsewhere.csv"))
    assert place(far, "coco") == first and brought(far, tmp_path / "cache").ok
    assert len(site.asked) == asked


def test_the_users_login_goes_along_for_a_suites_own_model_at_the_users_word_only(
    far, site, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", site.url("hub"))
    asked = ["--suite", str(far), "--only", "model"]
    assert CliRunner().invoke(app, ["fetch", *asked]).exit_code == 0
    assert site.authorized == []
    again = [*asked, "--cache", str(tmp_path / "other")]
    assert CliRunner().invoke(app, ["fetch", *again, "--login", "model"]).exit_code == 0
    assert site.authorized and all(path.startswith("hub/") for path, _ in site.authorized)
    unknown = CliRunner().invoke(app, ["fetch", *again, "--login", "modell"])
    assert isinstance(unknown.exception, UnknownName)


def test_the_users_login_goes_along_for_every_model_of_the_catalogue():
    for name, entry in shipped_entries().items():
        if not isinstance(entry, PicturesEntry):
            assert all(one.login for one in files_of(name, entry))
            other = entry.model_copy(update={"path": "elsewhere"})
            assert not any(one.login for one in files_of(name, other))


MODEL = (
    f'[assets.a]\nhub = "x/y"\nrevision = "{REVISION}"\npath = "p"\nfiles = {{ "c.json" = "" }}\n'
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"c.json" = ""', '"../a" = ""'), "'../a' is not a relative path"),
        (('"c.json" = ""', '"/a" = ""'), "'/a' is not a relative path"),
        (('"c.json" = ""', '".a.fetched.json" = ""'), "is not a relative path"),
        (('"c.json" = ""', '"a" = "zz"'), "'zz' of the file 'a' is no sha256"),
        (("x/y", "x/y--z"), "'x/y--z' is no namespace/name"),
        (("x/y", "../.."), "'../..' is no namespace/name"),
        (("x/y", "x/y.git"), "is no namespace/name"),
        (("x/y", "x"), "is no namespace/name"),
        (("x/y", "x/y/z"), "is no namespace/name"),
        (("x/y", "-x/y"), "is no namespace/name"),
        (("x/y", "x/" + "y" * 97), "is no namespace/name"),
        (("[assets.a]", '[assets."\\u001b[2J"]'), "an asset's name has letters"),
        (("[assets.a]", '[assets."a/b"]'), "an asset's name has letters"),
        (("[assets.a]", '[assets."ä"]'), "an asset's name has letters"),
    ],
)
def test_what_is_wrong_with_an_asset_of_a_suite_is_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        load_suite(str(strangers(tmp_path, MODEL.replace(*change))))
    assert "evil.toml" in str(error.value) and "\n" not in str(error.value)


def test_repositories_are_those_that_the_hubs_own_tools_take():
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    names = ["a", "_", "a-b", "a.b", "a-.b", "a--b", "a..b", "a_-b", "-a", "a-", ".a", "a.", "a b"]
    names += ["a" * 96, "a" * 97, "", "ab.git", "A1"]
    for hub in [f"{one}/{name}" for one in names for name in names]:
        try:
            validate_repo_id(hub)
            taken = hub.isascii()
        except HFValidationError:
            taken = False
        facts = {"hub": hub, "revision": REVISION, "path": "p", "files": {"a": ""}}
        try:
            HubEntry.model_validate(facts)
            assert taken, hub
        except ValueError:
            assert not taken, hub


def test_a_list_of_pictures_that_is_no_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    pictures = '[assets.a]\nlist = "asset:a"\nid = "x"\npath = "p"\n[assets.b]\npath = "b"\n'
    suite = load_suite(str(strangers(tmp_path, pictures)))
    came = fetch_entries(wanted_entries([suite], only=["a"]), tmp_path / "cache")
    assert "is no file" in came.pictures["a"]


def test_what_a_suite_states_reaches_no_terminal_raw(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    file = strangers(
        tmp_path,
        '[assets.b]\npath = "b.txt"\nurls = ["http://never.invalid/\\u001b[2J"]\n'
        'licence = "MIT\\u001b]0;x\\u0007\\nsd14  here"\n'
        '[assets.a]\npath = "p"\nlist = "asset:b/\\u001b[31m"\nid = "x"\n',
    )
    for more, code in ((["--dry-run"], 0), (["--offline"], 1), ([], 1)):
        told = CliRunner().invoke(
            app, ["fetch", "--suite", str(file), "--only", "a", "--retries", "0", *more]
        )
        assert told.exit_code == code and "\x1b" not in told.output and "\x07" not in told.output
        assert ("MIT\\x1b]0;x\\x07 sd14" in told.output) == ("--dry-run" in more)


@pytest.mark.parametrize("how", ["itself", "extended"])
def test_a_relative_path_of_an_asset_is_beside_the_suite_file_that_states_it(
    tmp_path, monkeypatch, how
):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    file = strangers(
        tmp_path, '[assets.a]\npath = "a.txt"\nurls = ["lists/a.txt"]\n[assets.b]\npath = "b"\n'
    )
    (file.parent / "lists").mkdir()
    (file.parent / "lists/a.txt").write_text("beside the suite")
    if how == "extended":
        file = tmp_path / "mine.toml"
        file.write_text('name = "mine"\nextends = "./theirs/evil.toml"\n')
    (tmp_path / "here/lists").mkdir(parents=True)
    (tmp_path / "here/lists/a.txt").write_text("of whoever stands here")
    monkeypatch.chdir(tmp_path / "here")
    entries = wanted_entries([load_suite(str(file))], only=["a"])
    assert fetch_entries(entries, tmp_path / "cache", offline=True).ok
    assert load_suite(str(file)).path("asset:a").read_text() == "beside the suite"
