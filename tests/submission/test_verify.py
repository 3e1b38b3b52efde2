"""A part of a record made again: what is true is found identical, what rounds otherwise agrees,
what was made up differs.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.base.errors import UserError
from bench.cli.verify import verify as verify_command
from bench.contracts.metric import PerImage
from bench.diffusion.denoiser import Denoiser
from bench.records.record import RunRecord, load_record
from bench.submission.check_scores import FREE, _intervals_of
from bench.submission.verification import Compared, Verification, text
from bench.submission.verify import SAME, _drawn, _of_score, verify
from bench.suite.load import load_suite
from bench.suite.prompts import Prompt
from conftest import SUITE
from one_run import Run

CPU = torch.device("cpu")
MIXING = """from bench import Method


class Mixing(Method):
    'Every image depends on those that it is sampled with.'

    def mixes_images(self):
        return True

    def guide(self, step, state):
        guided = step.guided(step.guidance_scale)
        return guided + 0.5 * guided.mean(0, keepdim=True)
"""


@pytest.fixture(scope="module")
def suite(tiny_folder):
    (tiny_folder / "verified.toml").write_text(SUITE.replace("steps = 3", "steps = 2"))
    return load_suite(str(tiny_folder / "verified.toml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified")
    (folder / "mixing.py").write_text(MIXING)
    return folder


@pytest.fixture(scope="module")
def records(suite, folder):
    """Whole runs by method."""

    def made(method, seeds=1, **parameters):
        run = Run(suite, method, parameters, folder / "records", folder / "store", CPU, seeds=seeds)
        return load_record(run.execute().path(folder / "records"))

    return {
        "none": made("none", 2),
        "wanda": made("wanda", sparsity=0.5),
        "mixing": made(str(folder / "mixing.py")),
    }


@pytest.fixture(scope="module")
def known(records, suite, tmp_path_factory):
    """A folder with the store of a verification of `none` on all its prompts, for tests of what is
    made of its images.
    """
    folder = tmp_path_factory.mktemp("known")
    again(records["none"], suite, folder, 99)
    return folder


def again(record, suite, tmp_path, prompts=2, seed=0, **more):
    return verify(record, suite, prompts, seed, tmp_path / "again", CPU, **more)


def forged(record, **changes):
    return RunRecord.model_validate(json.loads(json.dumps(record.model_dump())) | changes)


def consistent(record, suite):
    """Everything that follows from the values by prompt made again, as a careful forger would."""
    prompts = {
        prompt.id: prompt for role in ("memorized", "clean") for prompt in suite.prompts(role)
    }
    for name, means in record.per_prompt.items():
        if name not in record.scores:
            continue
        score, groups = record.scores[name], {}
        for prompt, mean in means.items():
            groups.setdefault(prompts[prompt].group, []).append(mean)
        score.value = float(np.mean(list(means.values())))
        score.groups = {
            group: round(float(np.mean(values)), 6) for group, values in groups.items() if group
        }
        each = max(score.n // len(means), 1)
        score.group_intervals = {
            group: next(_intervals_of(np.array(values)[:, None], score, True, None, each))
            for group, values in groups.items()
            if group in score.group_intervals
        }
        score.by_seed = [score.value] * len(score.by_seed)
        score.low, score.high = next(
            _intervals_of(np.array(list(means.values()))[:, None], score, True, None)
        )
    return record


def test_a_true_record_is_identical_on_the_same_machine(records, suite, tmp_path):
    found = again(records["none"], suite, tmp_path)
    # prompts, images, generations
    assert found.verdict == "identical" and found.equal == found.images == 2 * 2 * 2 + 2 * 2 + 2 * 2
    assert (
        {role: len(ids) for role, ids in found.prompts.items()}
        == {"memorized": 2, "clean": 2, "quality": 2}
        and found.made
        and not found.problems
    )
    assert {one.name for one in found.compared} == {
        "sscd",
        "memorized_ratio",
        "diversity",
        "clip_score",
        "clip_score_clean",
        "picture",
    }
    assert all(one.largest < 1e-5 for one in found.compared)
    assert (
        text(found).splitlines()[-1]
        == "identical: 16 of 16 images equal; and all numbers that were compared agree"
    )
    assert not (tmp_path / "again" / "records").exists() and not list(
        (tmp_path / "again").rglob("timing*")
    )
    assert set(found.not_compared) == {
        "sscd_p95",
        "fid",
        "fit_seconds",
        "fit_nfe",
        "seconds_per_image",
        "nfe_per_image",
        "nfe_per_image_clean",
        "time_ratio",
        "seconds_per_image_clean",
        "time_ratio_clean",
        *FREE,
    }
    told = json.loads(json.dumps(found.as_json()))
    assert (
        told["seed"] == 0
        and told["prompts"]["memorized"] == list(found.prompts["memorized"])
        and "fid" in told["not_compared"]
    )
    second = again(records["none"], suite, tmp_path)
    assert second.made == 0 and second.verdict == "identical"
    assert f"the store held {found.made} images" in text(second) and "the store held" not in text(
        found
    )


def test_what_a_method_learned_is_learned_again(records, suite, tmp_path):
    assert records["wanda"].holds_against == ["api", "weights"]
    wanda = forged(records["wanda"], holds_against=["api"])
    found = again(wanda, suite, tmp_path)
    assert (
        found.problems
        == ('holds_against is ["api"] in the record, and ["api", "weights"] was measured here',)
        and found.verdict == "differs"
    )
    assert again(records["wanda"], suite, tmp_path).verdict == "identical"
    assert len(list((tmp_path / "again").rglob("fit.safetensors"))) == 1


def test_the_seed_draws_the_prompts(records, suite):
    run = Run(suite, "none", {}, Path("records"), Path("store"), CPU, seeds=2)
    asked = run.experiment
    drawn = [tuple(_drawn(asked, records["none"], 2, seed)["memorized"]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] == tuple(sorted(drawn[0]))
    assert tuple(_drawn(asked, records["none"], 99, 0)["memorized"]) == ("p2", "p3", "p4", "p5")


STATEMENTS = {
    "clip_score is ": (
        lambda record: vars(record.scores["clip_score"]).update(
            value=record.scores["clip_score"].value - 0.001
        )
    ),
    "clip_score_clean has the interval": lambda record: setattr(
        record.scores["clip_score_clean"], "low", record.scores["clip_score_clean"].value
    ),
    "memorized_ratio has values by group": (
        lambda record: record.scores["memorized_ratio"].groups.update({"10": 0.1})
    ),
    "sscd has no values by prompt": lambda record: record.per_prompt.pop("sscd"),
    "diversity has no values by prompt, and can be measured here": lambda record: (
        record.per_prompt.pop("diversity"),
        vars(record.scores["diversity"]).update(
            value=None, low=None, high=None, groups={}, by_seed=[], reason="lost"
        ),
    ),
    'where is "weights" and "nothing" here': lambda record: setattr(record, "where", "weights"),
    'holds_against is ["api", "weights"] and []': lambda record: setattr(
        record, "holds_against", ["api", "weights"]
    ),
    "fid is of 50000 images": lambda record: setattr(record.scores["fid"], "n", 50000),
    "is no picture": lambda record: setattr(record.thumbnails[0], "png", "AAAA"),
    "quality has prompts with more or fewer than 2 digests": (
        lambda record: record.samples["quality"].sha256["c0"].pop()
    ),
    "nfe_per_image is 1.0, and sampling takes at least 2": lambda record: setattr(
        record.cost["nfe_per_image"], "value", 1.0
    ),
    "knn is by 'lies'": lambda record: record.attacks.update(
        knn=record.scores["fid"].model_copy(update={"metric": "lies"})
    ),
}


def test_what_does_not_follow_from_the_values_by_prompt_is_named(records, suite, known):
    record = forged(records["none"])
    for lie in STATEMENTS.values():
        lie(record)
    found = again(record, suite, known)
    assert found.verdict == "differs" and found.equal == found.images
    for told in STATEMENTS:
        assert any(line.startswith("FAIL") and told in line for line in text(found).splitlines()), (
            told,
            found.problems,
        )
    assert text(found).endswith(f"{len(found.problems)} of the record's statements are wrong")


def test_a_forged_headline_alone_is_enough(records, suite, known):
    record = forged(records["none"])
    record.scores["sscd"].value -= 0.3
    found = again(record, suite, known)
    assert (
        found.verdict == "differs"
        and all(one.within for one in found.compared)
        and all("sscd is " in problem for problem in found.problems)
    )


@pytest.mark.parametrize(
    ("name", "by"),
    [("sscd", 0.03), ("clip_score_clean", 0.03), ("diversity", 0.03), ("memorized_ratio", -1.0)],
)
def test_values_that_were_made_up_differ_and_are_named(records, suite, known, name, by):
    record = forged(records["none"])
    for prompt in record.per_prompt[name]:
        record.per_prompt[name][prompt] += by
    found = again(consistent(record, suite), suite, known)
    beyond = next(one for one in found.compared if one.name == name)
    assert (
        found.verdict == "differs"
        and found.equal == found.images
        and not beyond.within
        and not found.problems
    ), found.problems
    assert all(one.within for one in found.compared if one.name != name)
    worst = beyond.worst[0]
    recorded, measured = beyond.values[worst]
    assert f"    {worst}: recorded {recorded:.6f}, measured {measured:.6f}" in text(found)
    assert text(found).endswith(
        f"images equal; beyond tolerance: {name}"
    ) and recorded - measured == pytest.approx(by, abs=1e-5)


def test_one_value_of_many_that_was_made_up_differs(records, suite, known):
    record = forged(records["none"])
    record.per_prompt["sscd"]["p3"] -= 0.012
    found = again(consistent(record, suite), suite, known, 4)
    assert found.verdict == "differs" and found.compared[0].worst[0] == "p3" and not found.problems


def test_a_wrong_digest_widens_the_tolerance_of_its_prompt_only(records, suite, known):
    record = forged(records["none"])
    record.samples["memorized"].sha256["p3"][1] = "0" * 16
    found = again(record, suite, known, 99)
    strict, wide = (one for one in found.compared if one.name == "sscd")
    assert (
        found.verdict == "agrees"
        and found.equal == found.images - 1
        and set(wide.values) == {"p3"}
        and len(strict.values) == 3
    )
    assert (
        strict.mean_allowed == pytest.approx(SAME * wide.mean_allowed) and wide.mean_allowed == 0.02
    )
    assert f"agrees: {found.equal} of {found.images} images equal" in text(
        found
    ) and "suspect" not in text(found)
    record.per_prompt["sscd"]["p4"] -= 0.012
    assert again(consistent(record, suite), suite, known, 99).verdict == "differs"


def test_a_shift_of_all_values_differs_also_where_all_images_do(records, suite, known):
    record = forged(records["none"])
    for samples in record.samples.values():
        for digests in samples.sha256.values():  # all but the first, which is that of the thumbnail
            digests[1:] = [f"{int(digest, 16) ^ 1:016x}" for digest in digests[1:]]
    found = again(record, suite, known, 99)
    assert (
        found.equal == 16
        and found.verdict == "agrees"
        and "16 of 40 images equal" in text(found).splitlines()[-1]
        and "suspect: most images differ" in text(found)
    )
    assert all(one.within for one in found.compared)
    elsewhere = forged(record, environment=record.environment | {"device_name": "abacus"})
    assert "suspect" not in text(again(elsewhere, suite, known, 99))
    for prompt in record.per_prompt["sscd"]:
        record.per_prompt["sscd"][prompt] -= 0.019
    (sscd,) = (
        one
        for one in again(consistent(record, suite), suite, known, 99).compared
        if one.name == "sscd"
    )
    assert (
        not sscd.within
        and sscd.mean <= sscd.mean_allowed
        and sscd.shift == pytest.approx(0.019, abs=1e-5)
    )


def test_images_of_another_method_differ(records, suite, tmp_path):
    parts = ("samples", "thumbnails", "per_prompt", "scores")
    theirs = forged(
        records["wanda"], **{part: records["mixing"].model_dump()[part] for part in parts}
    )
    found = again(theirs, suite, tmp_path, 4)
    assert found.verdict == "differs" and found.equal == 0
    assert (
        "picture" in text(found).splitlines()[-1]
        and "beyond tolerance" in text(found).splitlines()[-1]
    )


def test_images_that_round_otherwise_agree(records, suite, tmp_path, monkeypatch):
    decode = Denoiser.decode

    def rounded(self, latents):
        pictures = decode(self, latents).copy()
        pictures[::2, 0, 0, 0] ^= 1
        return pictures

    monkeypatch.setattr(Denoiser, "decode", rounded)
    found = again(records["none"], suite, tmp_path)
    assert found.verdict == "agrees" and 0 < found.equal < found.images
    assert (
        text(found)
        .splitlines()[-1]
        .startswith(f"agrees: {found.equal} of {found.images} images equal; others differ")
    )


def test_methods_that_mix_images_get_the_batches_of_a_run_and_a_file_is_needed(
    records, suite, folder, tmp_path
):
    with pytest.raises(UserError, match="method 'mixing' is not known here; give its Python file"):
        again(records["mixing"], suite, tmp_path)
    found = again(records["mixing"], suite, tmp_path, 1, 3, method=str(folder / "mixing.py"))
    assert found.verdict == "identical" and found.made > found.images  # the others of their batches
    assert "whole batches were made" in text(found)
    (tmp_path / "mixing.py").write_text(MIXING + "# as before\n")
    with pytest.raises(
        UserError,
        match=(
            "the code of method mixing is another than the record's: [0-9a-f]{64} there,"
            " [0-9a-f]{64} here"
        ),
    ):
        again(records["mixing"], suite, tmp_path, method=str(tmp_path / "mixing.py"))
    with pytest.raises(UserError, match="the record is of mixing version 1, and here is wanda"):
        again(records["mixing"], suite, tmp_path, method="wanda")


def test_a_text_that_stands_twice_keeps_its_seeds(tiny_folder, tmp_path):
    with (tiny_folder / "twice.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [
                ["id", "prompt", "reference"],
                *([f"t{i}", "a red apple", "reference-0.png"] for i in range(3)),
            ]
        )
    short = SUITE.replace("steps = 3", "steps = 1").partition("[metrics.clip_score]")[0]
    (tiny_folder / "twice.toml").write_text(
        short.replace('file = "prompts.csv"\nwhere = { split = "memorized" }', 'file = "twice.csv"')
    )
    suite = load_suite(str(tiny_folder / "twice.toml"))
    record = Run(suite, "none", {}, tmp_path / "records", tmp_path / "store", CPU).execute()
    found = again(record, suite, tmp_path, 1, seed=2)
    # whose seeds a list of one would give
    assert found.verdict == "identical" and found.prompts["memorized"] != ("t0",)


REFUSED = {
    "suite": ({"suite_version": 9}, "suite_version is 9 and 1 here"),
    "fingerprint": ({"suite_fingerprint": "0"}, "suite_fingerprint is 0 and"),
    "unknown method": ({"method": "magic"}, "method 'magic' is not known here"),
    "a file for a method": ({"method": "mixing.py"}, "method 'mixing.py' is not known here"),
    "version": ({"method_version": 9}, "none version 9, and here is none version 1"),
    "code": (
        {"sources": {"method none": "f" * 64}},
        "the code of method none is another than the record's",
    ),
    "no digests": ({"samples": {}}, "has no digests of its images.*measure it again"),
    "unfinished": ({"status": "partial"}, "its status is partial"),
    "run": ({"run": "0123456789ab"}, "run is 0123456789ab in the record, and"),
    "seeds": ({"seeds": 3}, "run is .* in the record, and"),
    "parameters": ({"parameters": {"speed": 1}}, "unknown parameter of method none 'speed'"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_made_again_is_refused_in_one_line(records, suite, tmp_path, why):
    changes, told = REFUSED[why]
    with pytest.raises(UserError, match=told) as refused:
        again(forged(records["none"], **changes), suite, tmp_path)
    assert "\n" not in str(refused.value) and not (tmp_path / "again").exists()


def test_digests_that_are_of_no_images_of_the_suite_are_refused(records, suite, tmp_path):
    record = forged(records["none"])
    for samples in record.samples.values():
        samples.sha256 |= {"p99": ["0" * 16] * 4}
    with pytest.raises(
        UserError,
        match="digests of no role that the suite's metrics read, or not of the suite's images",
    ):
        again(record, suite, tmp_path)
    with pytest.raises(UserError, match="--prompts must be at least 1, not 0"):
        again(records["none"], suite, tmp_path, 0)


def test_the_command_draws_by_a_seed_that_nobody_knows_and_tells_it(
    records, suite, tmp_path, monkeypatch, capsys
):
    records["none"].save(tmp_path)
    seeds = []

    def verified(record, suite, prompts, seed, *others):
        seeds.append(seed)
        return Verification("identical", seed, {"memorized": ("p2",)}, 1, 1, 1, (), (), ("fid",))

    monkeypatch.setattr("bench.submission.verify.verify", verified)
    for given in (None, None, 3):
        verify_command(
            records["none"].path(tmp_path), 1, given, str(suite.file), None, None, "cpu", True
        )
        told = json.loads(capsys.readouterr().out)
        assert (
            told["seed"] == seeds[-1]
            and told["prompts"] == {"memorized": ["p2"]}
            and told["not_compared"] == ["fid"]
        )
    assert len(set(seeds)) == 3 and seeds[2] == 3


def test_a_record_that_names_a_file_as_its_suite_opens_none(records, tmp_path, monkeypatch):
    (tmp_path / "evil.toml").write_text("name = 3")
    monkeypatch.chdir(tmp_path)
    record = forged(records["none"], suite="evil.toml").save(tmp_path / "records")
    with pytest.raises(UserError, match="suite 'evil.toml' is not known here; known: .*testbed"):
        verify_command(record, 1, 0, None, None, None, "cpu", True)


def test_tolerances_hold_for_the_mean_the_worst_and_one_direction():
    def compared(*differences, mean=0.02, largest=0.1, shift=0.2):
        return Compared(
            "s",
            {f"p{i}": (0.5, 0.5 + difference) for i, difference in enumerate(differences)},
            mean,
            largest,
            shift,
        )

    assert compared(0.02, -0.02).within and not compared(0.021, -0.021).within
    assert compared(0.1, 0, 0, 0, 0).within and not compared(0.11, *[0] * 9).within
    assert (
        compared(0.02, -0.02, shift=0).within
        and not compared(0.01, -0.001, shift=0.004).within
        and not compared(-0.01, 0.001, shift=0.004).within
    )
    assert compared(0.01, -0.03, 0, 0.02, 0.005).worst == ["p1", "p3", "p0"] and np.isclose(
        compared(0.01, -0.03).mean, 0.02
    )


def test_many_prompts_may_not_shift_as_far_as_few():
    allowed = []
    for count in (1, 4, 16, 100):
        prompts = [Prompt(str(i), str(i), "", ()) for i in range(count)]
        score = PerImage(np.zeros((count, 2)), prompts, "cosine", False)
        (one,) = _of_score(
            "sscd",
            score,
            dict.fromkeys(map(str, range(count)), 0.0),
            {str(i) for i in range(count)},
            [],
        )
        allowed.append(one.shift_allowed)
    assert allowed == pytest.approx([0.02, 0.01, 0.005, 0.005])


def test_one_image_may_cross_the_threshold_of_a_share():
    prompts = [Prompt(str(i), str(i), "", ()) for i in range(2)]
    score = PerImage(np.array([[1.0, 0.0], [0.0, 0.0]]), prompts, "share", False, proportion=True)
    for recorded, within in (({"0": 1.0, "1": 0.0}, True), ({"0": 1.0, "1": 0.5}, False)):
        (compared,) = _of_score("memorized_ratio", score, recorded, {"0", "1"}, [])
        assert compared.within == within
    plain = PerImage(score.table, prompts, "share", False)
    assert not _of_score("memorized_ratio", plain, {"0": 1.0, "1": 0.0}, {"0", "1"}, [])[0].within
