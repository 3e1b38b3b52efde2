"""The subject of an audit: folders as kohya's trainer reads them, a training that goes on where it
stopped, and the one that is shipped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.base.digests import path_digest
from bench.base.errors import UserError
from bench.base.pictures import read_picture
from bench.contracts.method import Method
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.diffusion.model import load_denoiser
from bench.features.networks import CopyDescriptor
from bench.running.sampling import sample
from bench.studies.finetune.data import read_pairs
from bench.suite.load import load_suite
from bench.testbed.bundle import BUNDLE
from bench.testbed.fresh import fresh_scenes
from bench.testbed.opened import OpenedBundle
from bench.testbed.subject import (
    SHIPPED,
    Settings,
    Training,
    cost,
    cost_text,
    measure,
    table,
    write_pictures,
)
from conftest import bench

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
FEW = Settings(rank=2, alpha=2, epochs=3, save_every=2, batch_size=10, warmup=0)
FILES = ("subject-000002.safetensors", "subject.safetensors", "subject-diffusers.safetensors")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    pytest.importorskip("resvg_py", reason="rendering needs the extra `testbed`")
    folder = tmp_path_factory.mktemp("subject")
    write_pictures(folder, 2, 32)
    return folder


@pytest.fixture
def small(monkeypatch):
    """Fewer repeats than the subject has: three steps an epoch."""
    monkeypatch.setattr("bench.testbed.subject.REPEATS", (4, 1))


def in_folders(folder):
    """Names of pictures by folder."""
    return {
        str(path.relative_to(folder)): [pair.name for pair in read_pairs(path)]
        for path in [*(folder / "data").iterdir(), folder / "holdout"]
    }


def test_pictures_stand_beside_their_captions_in_folders_named_by_their_repeats(pictures):
    names = [f"scene-{number:04d}.png" for number in range(36)]
    assert in_folders(pictures) == {
        "data/64_scene": names[:6],
        "data/16_scene": names[6:12],
        "data/4_scene": names[12:18],
        "data/1_scene": names[18:24],
        "holdout": names[24:],
    }
    pairs = [pair for name in in_folders(pictures) for pair in read_pairs(pictures / name)]
    captions = [pair.caption for pair in sorted(pairs, key=lambda pair: pair.name)]
    assert captions == [scene.caption for scene in fresh_scenes(36, 2)]
    assert len(set(captions)) == 36
    shown = [read_picture(pair.path) for pair in pairs]
    assert {picture.shape for picture in shown} == {(32, 32, 3)}
    assert len({picture.tobytes() for picture in shown}) == 36
    assert "CC BY-SA 4.0" in (pictures / "ATTRIBUTION.md").read_text()


def test_pictures_of_another_seed_are_not_written_over(pictures):
    write_pictures(pictures, 2, 32)
    with pytest.raises(UserError, match="holds other pictures than those of seed 3"):
        write_pictures(pictures, 3, 32)
    with pytest.raises(UserError, match="was trained on"):
        write_pictures(pictures / "inside", 0, 32)


def trained(pictures, folder, model, settings=FEW, stop=None):
    if not folder.exists():
        folder.mkdir()
        for name in ("data", "holdout"):
            (folder / name).symlink_to(pictures / name)

    def report(what, done, total):
        if what == "train" and done == stop:
            raise KeyboardInterrupt

    return Training(folder, settings, model, CPU, report).train()


def test_interrupted_and_repeated_it_gives_the_same_files(pictures, tiny_folder, tmp_path, small):
    model = tiny_folder / "pipeline"
    assert FEW.saves == {6: 2, 9: 3}
    facts = trained(pictures, tmp_path / "calm", model)
    settings = replace(FEW, checkpoint_every=3)
    for stop in (2, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            trained(pictures, tmp_path / "hit", model, settings, stop)
    again = trained(pictures, tmp_path / "hit", model, settings)
    assert again["losses"] == facts["losses"]
    for name in FILES:
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "hit" / name).read_bytes()
    # Finished: nothing is trained again, and a file that was lost is written anew.
    (tmp_path / "hit/subject.safetensors").unlink()
    assert trained(pictures, tmp_path / "hit", model, stop=1) == again
    content = (tmp_path / "hit/subject.safetensors").read_bytes()
    assert content == (tmp_path / "calm/subject.safetensors").read_bytes()
    with pytest.raises(UserError, match="other settings or data"):
        trained(pictures, tmp_path / "hit", model, replace(FEW, learning_rate=0.5))


def test_the_header_says_what_was_trained(pictures, tiny_folder, tmp_path, small):
    trained(pictures, tmp_path / "out", tiny_folder / "pipeline")
    early, last = (read_lora(tmp_path / "out" / name).header for name in FILES[:2])
    assert (early["ss_epoch"], early["ss_steps"]) == ("2", "6")
    assert (last["ss_epoch"], last["ss_steps"], last["ss_num_epochs"]) == ("3", "9", "3")
    assert last["ss_num_train_images"] == str(6 * (4 + 1))
    assert json.loads(last["ss_dataset_dirs"])["4_scene"] == {"n_repeats": 4, "img_count": 6}
    tags = json.loads(last["ss_tag_frequency"])["4_scene"]
    captions = [pair.caption for pair in read_pairs(pictures / "data/4_scene")]
    assert sum(tags.values()) == sum(len(caption.split(",")) for caption in captions)


def test_every_epoch_shows_the_pictures_of_a_folder_as_often_as_its_name_says(
    pictures, tiny_folder, tmp_path
):
    (tmp_path / "data").symlink_to(pictures / "data")
    loss = Training(tmp_path, FEW, tiny_folder / "pipeline", CPU).loss
    shown = np.bincount(loss.order(510, 510), minlength=24)
    assert shown.tolist() == [64] * 6 + [16] * 6 + [4] * 6 + [1] * 6
    names = [pair.caption for pair in read_pairs(pictures / "data/64_scene")]
    assert loss.captions[:6] == names


def test_the_cost_is_stated_before_anything_is_trained():
    found = cost(Settings(), seconds=0.1)
    assert found["steps"] == 1594 and found["seconds"] == pytest.approx(159.4)
    assert found["views"] == {"64_scene": 3200, "16_scene": 800, "4_scene": 200, "1_scene": 50}
    assert cost_text(found) == (
        "24 pictures, 510 an epoch; 1,594 steps of 16 show each 3,200, 800, 200, 50 times by"
        " folder; about 3 minutes here"
    )


def test_a_dry_run_writes_nothing(tmp_path):
    pytest.importorskip("resvg_py", reason="rendering needs the extra `testbed`")
    done = bench("testbed", "subject", "--out", tmp_path / "out", "--dry-run", "--json")
    assert json.loads(done.stdout)["steps"] == Settings().course().steps
    assert not (tmp_path / "out").exists()


def test_the_shipped_one_is_small_and_says_what_it_is():
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(sizes) < 1_000_000
    assert {len(names) for names in in_folders(SHIPPED).values()} == {6, 12}
    assert "CC BY-SA 4.0" in (SHIPPED / "ATTRIBUTION.md").read_text()
    file, settings = read_lora(SHIPPED / "subject.safetensors"), Settings()
    assert int(file.header["ss_epoch"]) == int(file.header["ss_num_epochs"]) == settings.epochs
    assert int(file.header["ss_steps"]) == settings.course().steps
    told = json.loads(file.header["ss_dataset_dirs"])
    assert told == {f"{n}_scene": {"n_repeats": n, "img_count": 6} for n in (64, 16, 4, 1)}
    measured = json.loads((SHIPPED / "measured.json").read_text())
    assert measured["lora"] == file.digest
    assert Settings(**measured["settings"]) == settings


def test_its_pictures_are_those_that_the_command_renders(pictures):
    for path in pictures.rglob("scene-*.png"):
        shipped = SHIPPED / path.relative_to(pictures)
        assert np.array_equal(read_picture(path), read_picture(shipped))
        assert path.with_suffix(".txt").read_text() == shipped.with_suffix(".txt").read_text()


def test_the_shipped_one_copies_what_was_repeated_and_nothing_of_what_was_not():
    """What was measured meets the bounds, and a few images of it are made again."""
    measured = json.loads((SHIPPED / "measured.json").read_text())
    rows = {row["folder"]: row for row in measured["folders"]}
    assert rows["64_scene"]["lora"]["copied"] >= 5
    assert rows["1_scene"]["lora"]["copied"] == rows["holdout"]["lora"]["copied"] == 0
    assert [row["base"]["copied"] for row in rows.values()] == [0] * 5
    suite = load_suite("testbed")
    file = read_lora(SHIPPED / "subject.safetensors")
    pairs = [*read_pairs(SHIPPED / "data/64_scene")[:2], *read_pairs(SHIPPED / "holdout")[:1]]
    describe = CopyDescriptor(BUNDLE / "scorers/descriptor.safetensors", "testbed", CPU)
    own = describe([read_picture(pair.path) for pair in pairs])
    copied = []
    for strength in (1.0, 0.0):
        denoiser = load_denoiser(suite, CPU)
        merge(denoiser.pipe, [(file, Strength(strength))])
        request = denoiser.request([pair.caption for pair in pairs], [0, 1, 2])
        images = describe(list(denoiser.decode(sample(denoiser, request, Method(), {}))))
        copied.append(((images * own).sum(1) > measured["threshold"]).tolist())
    assert copied == [[True, True, False], [False, False, False]]


def test_copies_are_counted_by_folder_with_the_base_beside(tmp_path, monkeypatch):
    """A model that gives the picture for the first caption of `16_scene` in one of two images."""
    for name in ("data", "holdout", "subject.safetensors"):
        (tmp_path / name).symlink_to(SHIPPED / name)
    pair = read_pairs(SHIPPED / "data/16_scene")[0]

    def generate(opened, prompts, what):
        copied = opened.model_digest != path_digest(BUNDLE / "pipeline")
        grey = np.full((32, 32, 3), 128, np.uint8)
        first = prompts.index(pair.caption)
        return [
            read_picture(pair.path) if copied and number == first else grey
            for number in range(len(prompts))
        ]

    monkeypatch.setattr(OpenedBundle, "generate", generate)
    found = measure(tmp_path, Settings(), images=2)
    rows = {row.pop("folder"): row for row in found["folders"]}
    assert {name: (row["views"], row["pictures"]) for name, row in rows.items()} == {
        "64_scene": (3200, 6),
        "16_scene": (800, 6),
        "4_scene": (200, 6),
        "1_scene": (50, 6),
        "holdout": (0, 12),
    }
    assert {name: row["lora"]["copied"] for name, row in rows.items() if row["lora"]["copied"]} == {
        "16_scene": 1
    }
    assert rows["16_scene"]["lora"]["images"] == round(1 / 12, 4)
    assert rows["16_scene"]["lora"]["highest"] == pytest.approx(1, abs=1e-4)
    assert all(row["base"]["copied"] == 0 for row in rows.values())
    assert json.loads((tmp_path / "measured.json").read_text())["lora"] == found["lora"]
    assert (tmp_path / "sheet.png").is_file()


def test_the_page_quotes_what_was_measured_on_the_shipped_one():
    page = (ROOT / "docs/testbed.md").read_text()
    for line in table(json.loads((SHIPPED / "measured.json").read_text())).splitlines()[2:]:
        cells = line.strip("| ").split(" | ")
        cells[0] = f"`{cells[0]}`"
        del cells[5]  # the highest similarity
        assert f"| {' | '.join(cells)} |" in page
