"""Several generations: other images each time, the first ones those of a single run, and one number
with its spread.
"""

import numpy as np
import pytest
import torch

from bench.base.errors import Unmeasurable, UserError
from bench.contracts.metric import OfTables, PerImage, PerSet
from bench.running.scoring import as_score, together
from bench.statistics.intervals import difference_of_shares, independent_shares
from bench.store.store import pixel_digest
from bench.suite.load import load_suite
from bench.suite.prompts import Prompt
from bench.suite.suite import Suite
from one_run import Run

CPU = torch.device("cpu")


def new_run(suite, tmp_path, method="none", seeds=1, **parameters):
    return Run(
        suite, method, parameters, tmp_path / "records", tmp_path / "store", CPU, seeds=seeds
    )


@pytest.fixture(scope="module")
def attacked(tiny_folder):
    tiny_suite = load_suite(str(tiny_folder / "tiny.toml"))
    attacks = {
        "clique_extraction": {"images": 3, "clique": 2, "threshold": 0.2, "clean_prompts": 2},
        "knn_extraction": {"images": 2, "neighbours": 3},
    }
    return Suite(tiny_suite.settings.model_copy(update={"attacks": attacks}), tiny_suite.file)


@pytest.fixture(scope="module")
def one_and_three(attacked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return new_run(attacked, folder).execute(), new_run(attacked, folder, seeds=3).execute()


def test_generations_share_no_image_and_the_first_is_that_of_a_single_run(attacked, tmp_path):
    one, three = new_run(attacked, tmp_path), new_run(attacked, tmp_path, seeds=3)
    sets = [three.samples("memorized", generation).keys for generation in range(3)]
    assert sets[0] == one.samples("memorized").keys
    assert (
        len({key for keys in sets for key in keys})
        == 3 * len(sets[0])
        == len(three.keys("memorized"))
    )
    # whoever asks for fewer gets the first of them
    assert three.sample_set(three.suite.prompts("memorized"), 1, 2).keys == sets[2][::2]
    assert one.id != three.id and one.store.folder == three.store.folder


def test_a_score_is_that_of_all_images_and_its_spread_is_that_of_the_generations(one_and_three):
    one, three = one_and_three
    for name in (
        "sscd",
        "memorized_ratio",
        "sscd_p95",
        "clip_score",
        "clip_score_clean",
        "diversity",
        "fid",
    ):
        before, after = one.scores[name], three.scores[name]
        assert (
            before.by_seed == []
            and len(after.by_seed) == 3
            and after.by_seed[0] == pytest.approx(before.value, abs=1e-9)
        )
        if name != "sscd_p95":
            assert after.value == pytest.approx(np.mean(after.by_seed))
    assert (
        three.scores["sscd"].n == 3 * one.scores["sscd"].n
        and three.scores["fid"].n == one.scores["fid"].n
    )
    # an interval still resamples prompts
    assert three.scores["sscd"].prompts == one.scores["sscd"].prompts
    assert (
        len(three.attacks["clique_identified"].by_seed) == 3
        and three.attacks["clique_identified"].threat == "api"
    )
    # A cost is measured once, and evaluations are those of all images.
    spent = [record.cost["nfe_per_image"] for record in (one, three)]
    assert spent[1].by_seed == [] and spent[1].n == 3 * spent[0].n
    assert (
        three.images == {role: 3 * count for role, count in one.images.items()} and three.seeds == 3
    )


def test_a_record_holds_the_digests_of_its_images(one_and_three, attacked, tmp_path):
    one, three = one_and_three
    again = new_run(attacked, tmp_path)
    again.generate({}, again.samples("clean").keys)
    digests = [pixel_digest(picture) for picture in again.samples("clean").pictures()]
    assert [
        digest for of_prompt in one.samples["clean"].sha256.values() for digest in of_prompt
    ] == digests
    for prompt, of_prompt in one.samples["memorized"].sha256.items():
        assert three.samples["memorized"].sha256[prompt][: len(of_prompt)] == of_prompt
    assert three.samples["memorized"].images == 3 * one.samples["memorized"].images
    assert pixel_digest(np.zeros((2, 8, 3), np.uint8)) != pixel_digest(
        np.zeros((4, 4, 3), np.uint8)
    )


def test_whom_a_method_holds_against_is_measured(attacked, tmp_path):
    bare = Suite(
        attacked.settings.model_copy(
            update={
                "attacks": {},
                "metrics": {"clip_score": attacked.settings.metrics["clip_score"]},
            }
        ),
        attacked.file,
    )
    found = {
        method: new_run(bare, tmp_path, method, **given).execute().holds_against
        for method, given in {
            "none": {},
            "wanda": {"sparsity": 0.1},
            "cfg_delay": {},
            "random_tokens": {},
        }.items()
    }
    assert found == {
        "none": [],
        "wanda": ["api", "weights"],
        "cfg_delay": ["api"],
        "random_tokens": ["api"],
    }


def test_a_run_needs_at_least_one_generation(attacked, tmp_path):
    with pytest.raises(UserError, match="--seeds must be at least 1, not 0"):
        new_run(attacked, tmp_path, seeds=0)


def prompts(*ids):
    return [Prompt(name, f"text {name}", "1", ()) for name in ids]


def test_tables_of_generations_stand_side_by_side_in_the_rows_of_their_prompts():
    first = PerImage(np.array([[1.0, 2.0], [3.0, 4.0]]), prompts("a", "b"), "cosine", False)
    second = PerImage(np.array([[7.0, 8.0], [5.0, 6.0]]), prompts("b", "a"), "cosine", False)
    joined, by_seed = together([first, second])
    assert joined.table.tolist() == [[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]] and by_seed == [
        2.5,
        6.5,
    ]
    # a search that was not decided has no row
    third = PerImage(np.array([[9.0, 9.0]]), prompts("b"), "cosine", False)
    joined, by_seed = together([first, third])
    assert [prompt.id for prompt in joined.prompts] == ["b"] and joined.table.tolist() == [
        [3.0, 4.0, 9.0, 9.0]
    ]
    assert by_seed == [3.5, 9.0]  # of the same prompts as the value
    nothing, _ = together([first, PerImage(np.array([[1.0, 1.0]]), prompts("c"), "cosine", False)])
    assert isinstance(nothing, Unmeasurable)


def test_shares_of_sets_are_pooled_and_other_values_averaged():
    share, by_seed = together(
        [
            PerSet(0.5, 10, "share of flagged", True, (0.2, 0.8), 10),
            PerSet(1.0, 30, "share of flagged", True, (0.7, 1.0), 30),
        ]
    )
    assert (
        share.value == pytest.approx(35 / 40)
        and share.n == 40
        and share.interval == (0.2, 1.0)
        and by_seed == [0.5, 1.0]
    )
    distance, _ = together(
        [PerSet(10.0, 500, "distance", False), PerSet(20.0, 500, "distance", False)]
    )
    assert distance.value == 15 and distance.n == 500 and distance.interval is None


def of_tables(memorized, control):
    """Copies of memorized pictures less those of controls, as attackers on known pictures have
    it.
    """

    def number(tables):
        one, other = tables["memorized"], tables["control"]
        if one.mean() <= other.mean():
            return Unmeasurable("nothing comes back")
        interval = independent_shares(one, other)
        size = one.size + other.size
        return PerSet(float(one.mean() - other.mean()), size, "d", False, interval, 4, {"n": size})

    tables = {"memorized": np.array(memorized, float), "control": np.array(control, float)}
    return OfTables(tables, number)


def test_what_follows_from_tables_follows_from_those_of_all_generations():
    """Two generations of two pictures are two pictures with twice as many images, so the interval
    narrows; each generation keeps its own value.
    """
    first = of_tables([[1, 1], [0, 1]], [[0, 0], [0, 0]])
    second = of_tables([[1, 0], [0, 1]], [[0, 1], [0, 0]])
    joined, by_seed = together([first, second])
    whole = of_tables([[1, 1, 1, 0], [0, 1, 0, 1]], [[0, 0, 0, 1], [0, 0, 0, 0]]).alone()
    assert (joined.value, joined.interval, joined.n) == (whole.value, whole.interval, 16)
    assert by_seed == [0.75, 0.25] and joined.details == {"n": 8}
    alone, none = together([first])
    assert alone == first.alone() and none == []


def test_a_generation_in_which_nothing_follows_counts_in_the_joined_tables():
    first = of_tables([[1, 1], [0, 1]], [[0, 0], [0, 0]])
    nothing = of_tables([[0, 0], [0, 0]], [[0, 0], [0, 0]])
    joined, by_seed = together([first, nothing])
    assert joined.value == 0.375 and by_seed == [0.75, None]
    lost, by_seed = together([nothing, nothing])
    assert isinstance(lost, Unmeasurable) and by_seed == []


def test_a_difference_of_shares_has_a_width_where_no_prompt_changes():
    """A bootstrap has none there, and covers too little where few do."""
    table = np.zeros((48, 1))
    names = [f"p{i}" for i in range(48)]
    score = PerImage(table, prompts(*names), "difference of shares", False)
    found = as_score("paraphrase", 1, score)
    assert found.low < -0.03 and found.high > 0.03
    assert (found.low, found.high) == pytest.approx(difference_of_shares(table[:, 0]))


def test_a_generation_without_a_number_costs_only_itself():
    number = PerSet(0.5, 10, "share of flagged", True, (0.2, 0.8), 10)
    share, by_seed = together([Unmeasurable("nothing was flagged"), number])
    assert share == number and by_seed == [None, 0.5]
    why, _ = together([Unmeasurable("nothing was flagged")] * 2)
    assert str(why) == "nothing was flagged"


def test_a_generation_that_cannot_be_measured_at_all_costs_only_itself(tiny_folder, tmp_path):
    body = """from bench import Metric, PerSet, Unmeasurable

class Odd(Metric):
    names = ("odd",)
    roles = ("memorized",)

    def measure(self, evaluation):
        first = evaluation.samples("memorized").keys[0].seed
        if %s:
            raise Unmeasurable("not this one")
        return {"odd": PerSet(float(first %% 7), 3, "u", None)}
"""
    suite = load_suite(str(tiny_folder / "tiny.toml"))
    seeds = [
        new_run(suite, tmp_path).samples("memorized", generation).keys[0].seed
        for generation in range(3)
    ]
    for when, value in (
        (f"first == {seeds[0]}", (seeds[1] % 7 + seeds[2] % 7) / 2),
        ("True", None),
    ):
        (tmp_path / "odd.py").write_text(body % when)
        only = Suite(
            suite.settings.model_copy(update={"metrics": {str(tmp_path / "odd.py"): {}}}),
            suite.file,
        )
        score = new_run(only, tmp_path, seeds=3).execute().scores["odd"]
        assert score.value == value and (value is not None or score.reason == "not this one")


def test_one_generation_stays_as_it_is():
    score = PerImage(np.array([[1.0, 2.0], [3.0, 4.0]]), prompts("a", "b"), "cosine", False)
    assert together([score]) == (score, [])
    assert as_score("m", 1, score).by_seed == []
