"""The ratio of distances against a slow oracle for every reading of it, what it is for, and the
attack as the harness runs it.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks._training_set import TrainingSet
from attacks.knn_extraction import KnnExtraction, ratios
from bench.base.digests import path_digest
from bench.base.errors import Unmeasurable, UserError
from bench.base.parameters import configure
from bench.checks.check import check
from bench.contracts.samples import SampleSet
from bench.registry import registry
from bench.store.store import SampleKey, SampleStore, encode_png
from bench.suite.load import load_suite
from bench.suite.prompts import Prompt
from bench.suite.suite import Suite
from one_run import Run

READINGS = [("generated", True), ("generated", False), ("train", True), ("train", False)]


def pictures_of(count, seed=0, low=0, high=256, side=8):
    return np.random.default_rng(seed).integers(low, high, (count, side, side, 3), dtype=np.uint8)


def batches(pictures, size=4):
    def parts(self):
        return (
            (
                [str(i) for i in range(start, min(start + size, len(pictures)))],
                pictures[start : start + size],
            )
            for start in range(0, len(pictures), size)
        )

    return type("Batches", (SimpleNamespace,), {"__iter__": parts})(
        side=pictures.shape[1], count=len(pictures)
    )


def l2(a, b):
    return float(np.sqrt(((a / 255.0 - b / 255.0) ** 2).mean()))


def oracle(generated, training, n, alpha, anchor, include_self):
    """As section 5.1 reads, one generation and one training picture at a time."""
    scores, matched = [], []
    for picture in generated:
        x = min(range(len(training)), key=lambda i: (l2(picture, training[i]), i))
        centre = picture if anchor == "generated" else training[x]
        others = sorted(l2(centre, training[i]) for i in range(len(training)) if i != x)
        own = l2(centre, training[x])
        among = [own, *others[: n - 1]] if include_self else others[:n]
        scores.append(l2(picture, training[x]) / (alpha * (sum(among) / n)))
        matched.append(x)
    return scores, matched


@pytest.mark.parametrize("anchor, include_self", READINGS)
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(2, 6),
    alpha=st.sampled_from([0.3, 0.5, 1.0]),
    size=st.integers(1, 12),
)
def test_every_reading_equals_its_oracle(anchor, include_self, seed, n, alpha, size):
    training = pictures_of(11, seed)
    generated = np.concatenate(
        [
            pictures_of(3, seed + 1),
            np.clip(training[:3].astype(int) + 9, 0, 255).astype(np.uint8),
            training[3:5],
        ]
    )
    scores, matched = ratios(generated, batches(training, size), n, alpha, anchor, include_self)
    expected, whose = oracle(generated, training, n, alpha, anchor, include_self)
    assert matched.tolist() == whose
    assert scores.tolist() == pytest.approx(expected, rel=1e-12)
    assert (scores[-2:] == 0).all()


def test_the_four_readings_are_four_numbers():
    training, generated = (
        pictures_of(11),
        np.clip(pictures_of(1).astype(int) + 40, 0, 255).astype(np.uint8),
    )
    assert (
        len(
            {
                float(ratios(generated, batches(training), 4, 0.5, *reading)[0][0])
                for reading in READINGS
            }
        )
        == 4
    )


def test_numbers_worked_out_by_hand():
    """Grey pictures 0, 10, 20 and 40, a generation of 12: distances 12, 2, 8 and 28; of 10 they are
    10, 0, 10 and 30.
    """
    grey = np.array([0, 10, 20, 40], dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, 3), dtype=np.uint8
    )
    generated = np.full((1, 8, 8, 3), 12, dtype=np.uint8)
    expected = {
        ("generated", True): 2 / (2 + 8) * 2,
        ("generated", False): 2 / (8 + 12) * 2,
        ("train", True): 2 / (0 + 10) * 2,
        ("train", False): 2 / 20 * 2,
    }
    for reading, ratio in expected.items():
        assert ratios(generated, batches(grey), 2, 0.5, *reading)[0][0] == pytest.approx(2 * ratio)
        assert ratios(generated, batches(grey), 2, 1.0, *reading)[0][0] == pytest.approx(ratio)


@pytest.mark.parametrize("anchor, include_self", READINGS)
def test_a_flat_picture_is_near_to_everything_and_not_extracted_and_a_copy_is(anchor, include_self):
    rng = np.random.default_rng(0)
    flat = np.clip(128 + rng.integers(-3, 4, (20, 8, 8, 3)), 0, 255).astype(np.uint8)
    training = np.concatenate([flat, pictures_of(20, 1)])
    grey = np.full((1, 8, 8, 3), 128, dtype=np.uint8)
    noisy = np.clip(
        training[30:31].astype(int) + rng.integers(-25, 26, (1, 8, 8, 3)), 0, 255
    ).astype(np.uint8)
    scores, matched = ratios(
        np.concatenate([grey, noisy, training[31:32]]),
        batches(training),
        10,
        0.5,
        anchor,
        include_self,
    )
    assert l2(grey[0], training[matched[0]]) < 0.01 < l2(noisy[0], training[30]), (
        "by distance alone the flat one is the better match"
    )
    assert scores[0] > 1 > scores[1] > scores[2] == 0
    assert matched[1:].tolist() == [30, 31]


@pytest.mark.parametrize("anchor, include_self", READINGS)
def test_the_order_of_the_training_set_changes_nothing(anchor, include_self):
    training, generated = pictures_of(15, high=60), pictures_of(5, 1, high=60)
    order = np.random.default_rng(3).permutation(15)
    one, whose = ratios(generated, batches(training), 4, 0.5, anchor, include_self)
    other, theirs = ratios(generated, batches(training[order], 7), 4, 0.5, anchor, include_self)
    assert np.array_equal(one, other) and np.array_equal(whose, order[theirs])


def test_copies_inside_the_training_set():
    """x stands before its copies, so it is itself that is left out; with as many copies as
    neighbours no ratio is left.
    """
    training = np.concatenate([pictures_of(1)] * 3 + [pictures_of(4, 1)])
    near = np.clip(training[:1].astype(int) + 20, 0, 255).astype(np.uint8)
    for reading in READINGS:
        scores, matched = ratios(near, batches(training), 5, 0.5, *reading)
        assert matched.tolist() == [0] and scores == pytest.approx(
            oracle(near, training, 5, 0.5, *reading)[0]
        )
    assert ratios(near, batches(training), 3, 0.5, "generated", True)[0] == pytest.approx([2.0])
    with pytest.raises(Unmeasurable, match="holds 0 at least 3 times"):
        ratios(near, batches(training), 3, 0.5, "train", True)
    assert ratios(training[:1], batches(training), 3, 0.5, "train", True)[0] == 0


@pytest.mark.parametrize("anchor, include_self", READINGS)
def test_too_few_training_pictures_have_no_ratio(anchor, include_self):
    enough = 5 if include_self else 6
    ratios(pictures_of(2, 1), batches(pictures_of(enough)), 5, 0.5, anchor, include_self)
    with pytest.raises(
        Unmeasurable,
        match=f"{enough} training pictures are needed for the 5 nearest and there are {enough - 1}",
    ):
        ratios(pictures_of(2, 1), batches(pictures_of(enough - 1)), 5, 0.5, anchor, include_self)


# The attack


def target(tmp_path, pictures, references, images):
    """What the attack meets when a model generates exactly these pictures."""
    files = []
    for number, reference in enumerate(references):
        files.append(tmp_path / f"reference-{number}.png")
        files[-1].write_bytes(encode_png(reference))
    prompts = tuple(
        Prompt(f"p{i}", f"prompt {i}", "", (files[i], files[0]))
        for i in range(len(pictures) // images)
    )
    rest = Prompt("rest", "the rest", "", tuple(files[len(prompts) :]))
    by_role = {"memorized": prompts, "fit": (rest,)}
    settings = SimpleNamespace(prompts=by_role, model=SimpleNamespace(side=pictures.shape[1]))
    suite = SimpleNamespace(
        settings=settings,
        prompts=lambda role: by_role.get(role, ()),
        path=lambda relative: tmp_path / relative,
    )
    store = SampleStore(tmp_path / "store", "suite", "none", {})
    keys = tuple(SampleKey(prompt.text, image) for prompt in prompts for image in range(images))
    store.append(keys, pictures)
    reports = []

    def generate(asked, count):
        assert (tuple(asked), count) == (prompts, images)
        return SampleSet(prompts, images, keys, store)

    return SimpleNamespace(
        suite=suite, generate=generate, report=lambda *line: reports.append(line), reports=reports
    )


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_scores_count_images_and_different_training_pictures(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("attacks.knn_extraction.MEMORY", at_once * 2 * 8 * 8 * 3)
    references = pictures_of(9)
    # nearest to a picture that no other is, and no copy of it
    between = (0.55 * references[5] + 0.45 * references[6]).astype(np.uint8)
    pictures = np.stack(
        [references[0], references[0] ^ 1, references[1], references[0] ^ 2, between, references[8]]
    )
    met = target(tmp_path, pictures, references, 2)
    scores = KnnExtraction(images=2, neighbours=5).run(met)
    assert set(scores) == set(KnnExtraction.names)
    assert scores["knn_extracted"].table.tolist() == [[1, 1], [1, 1], [0, 1]]
    assert scores["knn_extracted"].proportion and scores["knn_extracted"].higher_is_better is False
    assert (
        scores["knn_unique"].value == 3
        and scores["knn_unique"].n == 6
        and scores["knn_unique"].prompts == 3
    )
    assert scores["knn_score"].table.ravel().tolist() == pytest.approx(
        oracle_or_zero(pictures, references, 5)
    )
    assert scores["knn_score"].higher_is_better is True
    for score in scores.values():
        details = score.details
        assert (
            details["neighbours"],
            details["alpha"],
            details["anchor"],
            details["include_self"],
        ) == (5, 0.5, "generated", True)
        assert (
            details["distance"] == "l2"
            and details["side"] == 8
            and details["training_pictures"] == 9
            and len(details["training_sha256"]) == 64
        )
        assert "bicubic" in details["resize"]
    assert met.reports[-1] == ("compare", 3, 3)


def oracle_or_zero(pictures, references, n):
    return oracle(pictures, references, n, 0.5, "generated", True)[0]


def test_training_pictures_from_a_folder_of_the_suite(tmp_path):
    references = pictures_of(9)
    met = target(tmp_path, references[:2], references[:4], 1)
    (tmp_path / "training").mkdir()
    for number, picture in enumerate(references):
        (tmp_path / "training" / f"{number}.png").write_bytes(encode_png(picture))
    scores = KnnExtraction(images=1, neighbours=6, training="training").run(met)
    assert (
        scores["knn_unique"].value == 2 and scores["knn_unique"].details["training_pictures"] == 9
    )
    assert scores["knn_unique"].details["training_sha256"] == path_digest(tmp_path / "training")
    with pytest.raises(Unmeasurable, match="there are 4"):
        KnnExtraction(images=1, neighbours=6).run(met)


def test_nothing_to_attack_is_said(tmp_path):
    references = pictures_of(4)
    met = target(tmp_path, references[:2], references, 1)
    with pytest.raises(Unmeasurable, match="no prompts of the role clean"):
        KnnExtraction(role="clean").run(met)
    met.suite.prompts = lambda role: (
        tuple(Prompt(f"p{i}", f"prompt {i}", "", ()) for i in range(2))
        if role == "memorized"
        else ()
    )
    with pytest.raises(Unmeasurable, match="no reference pictures"):
        KnnExtraction(images=1).run(met)


@pytest.mark.parametrize(
    "wrong",
    [
        {"neighbours": 0},
        {"neighbours": 1},
        {"alpha": 0},
        {"images": 0},
        {"anchor": "both"},
        {"role": "others"},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    named = "include_self" if wrong == {"neighbours": 1} else next(iter(wrong))
    with pytest.raises(UserError, match=f"attack knn_extraction.*{named}"):
        configure("attack", "knn_extraction", KnnExtraction, wrong)
    configure("attack", "knn_extraction", KnnExtraction, {"neighbours": 1, "include_self": False})


def test_it_keeps_the_contracts_of_attacks(tiny_folder):
    results = check(
        registry.find("attack", "knn_extraction"), {"neighbours": 3, "images": 2}, tiny_folder
    )
    assert (
        results
        and {result.contract: result.note for result in results if result.verdict != "kept"} == {}
    )


def test_a_run_of_a_suite_that_names_it(tiny_suite, tiny_folder, tmp_path):
    attack = {
        "knn_extraction": {
            "neighbours": 3,
            "images": 2,
            "anchor": "train",
            "include_self": False,
            "training": "reference-0.png",
        }
    }
    numbers = {}
    for training in ("", "reference-0.png"):
        attack["knn_extraction"]["training"] = training
        settings_ = tiny_suite.settings.model_copy(update={"metrics": {}, "attacks": attack})
        run = Run(
            Suite(settings_, tiny_suite.file),
            "none",
            {},
            tmp_path / "records",
            tmp_path / "store",
            torch.device("cpu"),
        )
        numbers[training] = run.execute().attacks
    found = numbers[""]
    assert (
        found["knn_extracted"].n == 8
        and found["knn_extracted"].value == 0
        and found["knn_unique"].value == 0
    )
    assert found["knn_score"].value > 1 and found["knn_score"].details["training_pictures"] == 6
    assert (
        numbers["reference-0.png"]["knn_score"].value is None
        and "there are 1" in numbers["reference-0.png"]["knn_score"].reason
    )


def test_a_training_set_that_is_missing_is_noticed_before_any_work(tiny_suite, tmp_path):
    settings_ = tiny_suite.settings.model_copy(
        update={"metrics": {}, "attacks": {"knn_extraction": {"training": "shards"}}}
    )
    with pytest.raises(UserError, match="'shards' is missing"):
        Run(Suite(settings_, tiny_suite.file), "none", {}, tmp_path, tmp_path, torch.device("cpu"))


def test_the_fingerprint_follows_the_training_pictures(tiny_folder, tmp_path):
    suite = load_suite(str(tiny_folder / "tiny.toml"))
    files = [tiny_folder / f"reference-{i}.png" for i in (0, 1)]
    prints = [
        Suite(
            suite.settings.model_copy(
                update={"attacks": {"knn_extraction": {"training": file.name}}}
            ),
            suite.file,
        ).fingerprint
        for file in files
    ]
    assert len({*prints, suite.fingerprint}) == 3
    assert TrainingSet.open(files, 32).files[0][0] == "reference-0.png"
