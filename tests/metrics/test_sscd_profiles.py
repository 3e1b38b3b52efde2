"""The papers' own protocols: chains of reducers against slow loops, what they cannot compute, and
training pictures that were lost.
"""

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.base.errors import Unmeasurable
from bench.contracts.metric import Evaluation, PerImage
from bench.contracts.samples import SampleSet
from bench.features.architectures.small import Colours
from bench.features.networks import CopyDescriptor
from bench.features.weights import save_network
from bench.registry.registry import entries, find
from bench.running.scoring import as_score, together
from bench.statistics import intervals as stats
from bench.store.store import SampleStore, decode_png, encode_png
from bench.suite.load import load_suite
from conftest import CAPTIONS, SUITE, write_csv
from metrics._sscd_paper import PaperSscd, by_image, by_prompt, pair_medians
from metrics.sscd_dcr23 import background, top1

PAPERS = {
    "sscd_wen24": "wen",
    "sscd_nemo24": "nemo",
    "sscd_jeon25": "jeon",
    "sscd_han25": "han",
    "sscd_membench25": "membench",
    "sscd_concept_prune24": "concept_prune",
    "sscd_dcr23": "dcr",
}
IMAGES = 4


def table_of(seed, prompts=7, images=IMAGES):
    """Similarities of prompts with one to four training pictures."""
    random = np.random.default_rng(seed)
    return [random.uniform(-0.1, 1, (images, int(random.integers(1, 5)))) for _ in range(prompts)]


def slow(tables, references, seeds, prompts):
    """The chain, one number at a time, as the table of the papers' protocols says."""

    def torch_median(values):
        return float(torch.tensor(values, dtype=torch.float64).median())

    reduce = {
        "max": max,
        "min": min,
        "mean": lambda values: sum(values) / len(values),
        "lower_median": torch_median,
        "first": lambda values: values[0],
        "top3": lambda values: sum(sorted(values)[-3:]) / 3,
        "mad": lambda values: torch_median([abs(value - torch_median(values)) for value in values]),
    }
    by_seed = [
        [reduce[references]([float(value) for value in image]) for image in table]
        for table in tables
    ]
    return reduce[prompts]([reduce[seeds](values) for values in by_seed])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 8), st.integers(1, 9))
def test_every_chain_equals_the_loop(seed, images, prompts):
    tables = table_of(seed, prompts, images)
    for references, seeds in itertools.product(
        ("max", "mean", "lower_median"), ("mean", "max", "min", "lower_median", "top3", "first")
    ):
        values = by_prompt(by_image(tables, references), seeds)
        assert float(values.mean()) == pytest.approx(slow(tables, references, seeds, "mean"))
        assert float(stats.lower_median(values)) == pytest.approx(
            slow(tables, references, seeds, "lower_median")
        )
        assert float(stats.lower_mad(values)) == pytest.approx(
            slow(tables, references, seeds, "mad")
        )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(IMAGES)))
def test_reducers_order_themselves_and_know_no_order_of_seeds(seed, order):
    tables = table_of(seed)
    table = by_image(tables, "max")
    best, three, mean = (by_prompt(table, seeds) for seeds in ("max", "top3", "mean"))
    assert (best >= three - 1e-12).all() and (three >= mean - 1e-12).all()
    for seeds in ("mean", "max", "min", "lower_median", "top3"):
        np.testing.assert_allclose(
            by_prompt(table[:, order], seeds), by_prompt(table, seeds), atol=1e-12
        )
    shares = [(table > threshold).mean() for threshold in (0.3, 0.5, 0.7)]
    assert shares == sorted(shares, reverse=True)
    more = [
        np.hstack([one, np.random.default_rng(seed).uniform(-0.1, 1, (IMAGES, 1))])
        for one in tables
    ]
    assert (by_image(more, "max") >= table).all()


def test_the_lower_median_is_that_of_torch_and_the_deviation_has_no_factor():
    for n in range(1, 12):
        values = np.random.default_rng(n).normal(size=n)
        middle = torch.tensor(values).median()
        assert float(stats.lower_median(values)) == float(middle)
        assert float(stats.lower_mad(values)) == pytest.approx(
            float((torch.tensor(values) - middle).abs().median())
        )
    assert float(stats.lower_median(np.array([1.0, 2.0, 3.0, 4.0]))) == 2  # numpy says 2.5
    assert float(stats.lower_mad(np.array([1.0, 1.0, 5.0, 9.0]))) == 0


def test_the_median_of_pairs_is_over_every_unordered_pair_once():
    features = np.random.default_rng(3).normal(size=(3, 10, 6))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    for images in (2, 3, 5, 10):
        expected = [
            float(
                torch.tensor(
                    [a @ b for a, b in itertools.combinations(prompt[:images], 2)]
                ).median()
            )
            for prompt in features
        ]
        np.testing.assert_allclose(pair_medians(features[:, :images]), expected, atol=1e-12)
        np.testing.assert_allclose(
            pair_medians(features[:, :images][:, ::-1]), expected, atol=1e-12
        )
    assert pair_medians(np.repeat(features[:, :1], 4, axis=1)) == pytest.approx(1)
    with pytest.raises(Unmeasurable, match="at least 2 images"):
        pair_medians(features[:, :1])


def test_fewer_images_than_a_reducer_needs_have_no_number():
    with pytest.raises(Unmeasurable, match="top3 needs 3 images a prompt, and there are 2"):
        by_prompt(np.zeros((4, 2)), "top3")


def test_the_nearest_of_all_and_the_background_equal_their_loops():
    random = np.random.default_rng(5)
    generated, references = (
        values / np.linalg.norm(values, axis=1, keepdims=True)
        for values in (random.normal(size=(1030, 5)), random.normal(size=(9, 5)))
    )
    np.testing.assert_allclose(
        top1(generated, references),
        [max(float(g @ r) for r in references) for g in generated],
        atol=1e-12,
    )
    second = [sorted(float(a @ b) for b in references)[-2] for a in references]
    found = background(references)
    assert found["mean"] == pytest.approx(np.mean(second)) and found["std"] == pytest.approx(
        np.std(second)
    )
    assert found["p95"] == pytest.approx(np.percentile(second, 95)) and found[
        "share"
    ] == pytest.approx(np.mean(np.array(second) > 0.5))
    assert top1(references, references) == pytest.approx(1) and background(references[:1]) == {}


def test_a_median_has_the_median_as_value_by_group_and_an_interval_around_it():
    values = np.random.default_rng(0).beta(2, 5, (40, 1))
    prompts = [Prompted(f"p{i}", "VM" if i < 9 else "TM") for i in range(40)]
    score = as_score("m", 1, PerImage(values, prompts, "cosine", False, statistic="lower_median"))
    assert (
        score.value == float(torch.tensor(values[:, 0]).median())
        and score.low < score.value < score.high
    )
    assert score.statistic == "lower_median" and score.group_prompts == {"VM": 9, "TM": 31}
    for group, rows in (("VM", values[:9, 0]), ("TM", values[9:, 0])):
        assert score.groups[group] == pytest.approx(float(torch.tensor(rows).median()), abs=1e-6)
        low, high = score.group_intervals[group]
        assert low <= score.groups[group] <= high
    deviation = as_score("m", 1, PerImage(values, prompts, "cosine", None, statistic="lower_mad"))
    assert deviation.value == pytest.approx(
        float((torch.tensor(values) - score.value).abs().median())
    )


def test_generations_stand_side_by_side_under_the_median_too():
    prompts = [Prompted(f"p{i}", "") for i in range(3)]
    tables = [np.array([[0.1], [0.5], [0.9]]), np.array([[0.2], [0.6], [0.3]])]
    score, by_seed = together(
        [PerImage(table, prompts, "cosine", False, statistic="lower_median") for table in tables]
    )
    # the lower one of 0.3 and 0.5
    assert by_seed == [0.5, 0.3] and as_score("m", 1, score).value == 0.3


class Prompted:
    def __init__(self, name, group):
        self.id, self.group = name, group


# The metrics themselves, on stored pictures.


def drawn(*seed):
    """A picture of 4 by 4 coloured blocks."""
    return (
        np.random.default_rng(seed)
        .integers(0, 256, (4, 4, 3), dtype=np.uint8)
        .repeat(16, 0)
        .repeat(16, 1)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny suite with 4 images a prompt, some prompts with two training pictures."""
    folder = tmp_path_factory.mktemp("profiles")
    rows = [
        [
            f"p{i}",
            caption,
            ["1", "10"][i % 2],
            "fit" if i < 2 else "memorized",
            f"reference-{i}.png",
        ]
        for i, caption in enumerate(CAPTIONS)
    ]
    write_csv(folder / "prompts.csv", [["id", "prompt", "group", "split", "reference"], *rows])
    for name in ("clean.csv", "calibration.csv"):
        write_csv(folder / name, [["prompt"], ["a red apple"]])
    for number in range(len(CAPTIONS)):
        (folder / f"reference-{number}.png").write_bytes(encode_png(drawn(100 + number)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # much sooner than the tiny descriptor
        save_network(Colours(16), folder / "descriptor.safetensors")
    listed = (
        (folder / "prompts.csv")
        .read_text()
        .replace("reference-3.png", "reference-3.png|reference-0.png|reference-5.png")
    )
    (folder / "prompts.csv").write_text(listed)
    (folder / "lost.csv").write_text(
        listed.replace("reference-4.png", "").replace("reference-2.png", "")
    )
    (folder / "none.csv").write_text(
        "\n".join(line.rpartition(",")[0] + "," for line in listed.splitlines()[1:]).join(
            [listed.splitlines()[0] + "\n", "\n"]
        )
    )
    return folder


def evaluation_of(folder, prompts="prompts.csv", images=IMAGES):
    """An evaluation whose samples are pictures drawn at random, the same for a prompt whichever
    list it stands in.
    """
    text = SUITE.replace('"prompts.csv"', f'"{prompts}"').replace(
        "images_per_prompt = 2", f"images_per_prompt = {images}"
    )
    (folder / f"{prompts}.toml").write_text(text)
    suite = load_suite(str(folder / f"{prompts}.toml"))

    class Drawn(SampleStore):
        def __init__(self):
            pass

        def pictures(self, keys):
            return [drawn(int(prompt[1:]), image) for prompt, image in keys]

        def features(self, keys, fingerprint, extractor):
            return extractor(self.pictures(keys))

    def samples(role):
        listed = suite.prompts(role)
        return SampleSet(
            listed,
            images,
            tuple((prompt.id, image) for prompt in listed for image in range(images)),
            Drawn(),
        )

    return Evaluation(suite, torch.device("cpu"), samples, lambda rounds, images: None)


def metric_of(name, **settings):
    return find("metric", name).load()(weights="descriptor.safetensors", **settings)


def tables_by_hand(evaluation, profile, references=None):
    """Similarities one picture at a time: by prompt `[images, references]`."""
    describe = CopyDescriptor(
        evaluation.suite.file.parent / "descriptor.safetensors", profile, torch.device("cpu")
    )
    samples, found = evaluation.samples("memorized"), {}
    for row, prompt in enumerate(samples.prompts):
        paths = references if references is not None else prompt.references
        pictures = [describe([decode_png(path.read_bytes())])[0] for path in paths]
        if pictures:
            found[prompt.id] = np.array(
                [
                    [float(describe([image])[0] @ picture) for picture in pictures]
                    for image in samples.pictures_of(row)
                ]
            )
    return found


CHAINS = {  # name: references, seeds, prompts, score
    "sscd_wen24": ("max", "mean", "mean", "sscd_wen24_mean"),
    "sscd_jeon25": ("max", "mean", "mean", "sscd_jeon25_mean"),
    "sscd_han25": ("max", "mean", "mean", "sscd_han25_mean"),
    "sscd_concept_prune24": ("mean", "first", "mean", "sscd_concept_prune24_first"),
    "sscd_membench25": ("max", "top3", "mean", "sscd_membench25_top3"),
    "sscd_nemo24": ("lower_median", "lower_median", "lower_median", "sscd_nemo24_orig"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_each_paper_has_its_own_chain_on_its_own_preprocessing(name, folder):
    references, seeds, prompts, score_name = CHAINS[name]
    evaluation = evaluation_of(folder)
    scores = metric_of(name).measure(evaluation)
    tables = list(tables_by_hand(evaluation, PAPERS[name]).values())
    score = as_score(name, 1, scores[score_name])
    assert score.value == pytest.approx(slow(tables, references, seeds, prompts), abs=1e-5)
    assert (
        score.details["images"] == IMAGES
        and score.details["images_of_paper"] == find("metric", name).load().paper.images
    )
    assert score.details["n_expected"] == score.details["n_found"] == 4
    if name == "sscd_nemo24":
        assert as_score(name, 1, scores["sscd_nemo24_orig_mad"]).value == pytest.approx(
            slow(tables, references, seeds, "mad"), abs=1e-5
        )
        assert score.details["median_of_max"] == pytest.approx(
            slow(tables, references, "max", prompts), abs=1e-5
        )
    if name == "sscd_wen24":
        assert score.details["max_over_seeds"] == pytest.approx(
            slow(tables, "max", "max", "mean"), abs=1e-5
        )
        assert score.details["min_over_seeds"] == pytest.approx(
            slow(tables, "max", "min", "mean"), abs=1e-5
        )
    if name == "sscd_membench25":
        values = [max(image) for table in tables for image in table]
        assert as_score(name, 1, scores["sscd_membench25_share"]).value == np.mean(
            np.array(values) > 0.5
        )
        assert as_score(name, 1, scores["sscd_membench25_top1"]).value == pytest.approx(
            slow(tables, "max", "max", "mean"), abs=1e-5
        )


def test_dcr_searches_every_training_picture_of_the_suite(folder):
    evaluation = evaluation_of(folder, "lost.csv")
    # of prompts to fit on too; 2 and 4 were lost
    listed = [folder / f"reference-{i}.png" for i in (0, 1, 3, 5)]
    values = np.array(
        [table.max(1) for table in tables_by_hand(evaluation, "dcr", listed).values()]
    ).ravel()
    scores = {
        name: as_score(name, 1, score)
        for name, score in metric_of("sscd_dcr23").measure(evaluation).items()
    }
    expected = {"mean": values.mean(), "std": values.std(), "share": (values > 0.5).mean()} | {
        f"p{p}": np.percentile(values, p) for p in (75, 90, 95)
    }
    for suffix, value in expected.items():
        assert scores[f"sscd_dcr23_{suffix}"].value == pytest.approx(value, abs=1e-5), suffix
    details = scores["sscd_dcr23_mean"].details
    assert (
        details["references"] == 4
        and details["n_expected"] == 4
        and details["n_found"] == 2
        and "whole training set" in details["searched"]
    )


def test_every_profile_declares_itself_and_a_column_for_each_score():
    assert PAPERS.keys() == {name for name in entries("metric") if name.startswith("sscd_")}
    for name, profile in PAPERS.items():
        cls = find("metric", name).load()
        assert issubclass(cls, PaperSscd) and cls.paper.profile == profile
        assert all(
            checkpoint in sys.modules[cls.__module__].__doc__
            for checkpoint in cls.paper.checkpoint.replace(" or", ",").split(", ")
        )
        assert set(cls.names) == set(cls.shown)
        assert all(score.startswith(f"{name}_") for score in cls.names)
        for shown in cls.shown.values():
            assert (
                cls.paper.work in shown.meaning
                and cls.paper.checkpoint in shown.meaning
                and cls.paper.preprocessing in shown.meaning
            )


def test_another_profile_is_another_fingerprint_and_preprocessing_is_said_in_words(folder):
    weights = folder / "descriptor.safetensors"
    assert len(
        {
            CopyDescriptor(weights, profile, torch.device("cpu")).fingerprint
            for profile in PAPERS.values()
        }
    ) == len(PAPERS)
    said = {name: find("metric", name).load().paper.preprocessing for name in PAPERS}
    assert said["sscd_nemo24"] == "320x320, ImageNet mean and deviation" and said[
        "sscd_membench25"
    ].startswith("288x288")
    assert (
        said["sscd_wen24"]
        == said["sscd_dcr23"]
        == "short side 256, centre 224, mean and deviation 0.5"
    )


def test_what_cannot_be_computed_says_why_and_the_rest_has_numbers(folder):
    scores = metric_of("sscd_membench25").measure(evaluation_of(folder, images=2))
    assert isinstance(scores["sscd_membench25_top3"], Unmeasurable) and "needs 3 images" in str(
        scores["sscd_membench25_top3"]
    )
    assert isinstance(scores["sscd_membench25_top1"], PerImage) and isinstance(
        scores["sscd_membench25_share"], PerImage
    )
    scores = metric_of("sscd_nemo24").measure(evaluation_of(folder, images=1))
    assert isinstance(scores["sscd_nemo24_d"], Unmeasurable) and isinstance(
        scores["sscd_nemo24_orig"], PerImage
    )


def test_declared_statistics_are_the_given_ones(folder):
    for name in ("sscd", *PAPERS):
        metric = metric_of(name)
        for score_name, score in metric.measure(evaluation_of(folder)).items():
            given = "percentile" if score.percentile is not None else score.statistic
            assert metric.over_prompts.get(score_name, "mean") == given, score_name
            assert score.table.shape[1] == (1 if score_name in metric.one_a_prompt else IMAGES), (
                score_name
            )
            assert score_name not in metric.over_prompts or score_name in metric.names


# Training pictures that were lost.


def test_prompts_whose_picture_was_lost_are_left_out_and_counted(folder):
    whole, some = evaluation_of(folder), evaluation_of(folder, "lost.csv")
    for name in ("sscd", "sscd_wen24", "sscd_nemo24", "sscd_membench25", "sscd_concept_prune24"):
        metric = metric_of(name)
        before, after = metric.measure(whole), metric.measure(some)
        for score_name, score in after.items():
            kept = ["p3", "p5"] if score_name in metric.pictured else ["p2", "p3", "p4", "p5"]
            assert [prompt.id for prompt in score.prompts] == kept, score_name
            rows = [
                row for row, prompt in enumerate(before[score_name].prompts) if prompt.id in kept
            ]
            np.testing.assert_allclose(score.table, before[score_name].table[rows], atol=1e-6)
            if score_name in metric.pictured:
                assert (score.details["n_expected"], score.details["n_found"]) == (4, 2)
        with pytest.raises(
            Unmeasurable, match="none of the 4 memorized prompts has a training picture"
        ):
            metric.measure(evaluation_of(folder, "none.csv"))
    with pytest.raises(Unmeasurable, match="no training pictures"):
        metric_of("sscd_dcr23").measure(evaluation_of(folder, "none.csv"))
