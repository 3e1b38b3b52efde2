"""A part of a record made again: what is true is found identical, what rounds otherwise agrees, what was made up differs."""

import csv
import json

import numpy as np
import pytest
import torch

from bench.errors import UserError
from bench.metric import PerImage
from bench.record import RunRecord, load_record
from bench.runner import Run
from bench.sampler import Denoiser
from bench.suite import Prompt, load_suite
from bench.verifying import SAME, Compared, _of_score, text, verify
from conftest import SUITE

CPU = torch.device("cpu")
FILES = {
    "mine": "from bench import Method\n\n\nclass Mine(Method):\n    def guide(self, step, state):\n        return step.guided(1.5)\n",
    # Every image depends on those that it is sampled with.
    "mixing": """from bench import Method


class Mixing(Method):
    def mixes_images(self):
        return True

    def guide(self, step, state):
        guided = step.guided(step.guidance_scale)
        return guided + 0.5 * guided.mean(0, keepdim=True)
""",
}


@pytest.fixture(scope="module")
def suite(tiny_folder):
    return load_suite(str(tiny_folder / "tiny.toml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified")
    for name, source in FILES.items():
        (folder / f"{name}.py").write_text(source)
    return folder


@pytest.fixture(scope="module")
def records(suite, folder):
    """Whole runs by method, as their files say."""

    def made(method, seeds=1, **parameters):
        run = Run.resolve(suite, method, parameters, folder / "records", folder / "store", CPU, seeds=seeds)
        return load_record(run.execute().path(folder / "records"))

    return {"none": made("none", 2), "wanda": made("wanda", sparsity=0.5)} | {name: made(str(folder / f"{name}.py")) for name in FILES}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A folder whose store soon holds the images of `none`, for tests of what is made of them."""
    return tmp_path_factory.mktemp("known")


def again(record, suite, tmp_path, prompts=2, seed=0, **more):
    return verify(record, suite, prompts, seed, tmp_path / "again", CPU, **more)


def forged(record, **changes):
    return RunRecord.model_validate(json.loads(json.dumps(record.model_dump())) | changes)


def test_a_true_record_is_identical_on_the_same_machine(records, suite, tmp_path):
    found = again(records["none"], suite, tmp_path)
    assert found.verdict == "identical" and found.equal == found.images == 2 * 2 * 2 + 2 * 2 + 2 * 2  # prompts, images, generations
    assert {role: len(ids) for role, ids in found.prompts.items()} == {"memorized": 2, "clean": 2, "quality": 2} and found.made
    assert {one.name for one in found.compared} == {"sscd", "memorized_ratio", "diversity", "clip_score", "clip_score_clean", "picture"}
    assert all(one.largest < 1e-5 for one in found.compared)
    assert text(found).splitlines()[-1].startswith("identical:") and "16 of 16 are bit-identical" in text(found)
    assert not (tmp_path / "again" / "records").exists() and not list((tmp_path / "again").rglob("timing*"))


def test_what_a_method_learned_is_learned_again(records, suite, tmp_path):
    assert again(records["wanda"], suite, tmp_path).verdict == "identical"
    assert len(list((tmp_path / "again").rglob("fit.safetensors"))) == 1


def test_the_seed_draws_the_prompts(records, suite, known):
    drawn = [again(records["none"], suite, known, 2, seed).prompts["memorized"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] == tuple(sorted(drawn[0]))
    assert again(records["none"], suite, known, 99).prompts["memorized"] == ("p2", "p3", "p4", "p5")


def test_images_that_the_store_holds_are_not_made_again(records, suite, tmp_path):
    first = again(records["none"], suite, tmp_path)
    second = again(records["none"], suite, tmp_path)
    assert first.made and second.made == 0 and second.verdict == "identical"
    assert f"the store held {first.made} images" in text(second) and "the store held" not in text(first)


@pytest.mark.parametrize(("name", "by"), [("sscd", 0.03), ("clip_score_clean", 0.03), ("diversity", -0.03), ("memorized_ratio", -1.0)])
def test_values_that_were_made_up_differ_and_are_named(records, suite, known, name, by):
    record = forged(records["none"])
    for prompt in record.per_prompt[name]:
        record.per_prompt[name][prompt] += by
    found = again(record, suite, known)
    beyond = next(one for one in found.compared if one.name == name)
    assert found.verdict == "differs" and found.equal == found.images and not beyond.within
    assert all(one.within for one in found.compared if one.name != name)
    worst = beyond.worst[0]
    recorded, measured = beyond.values[worst]
    assert f"    {worst}: recorded {recorded:.6f}, measured {measured:.6f}" in text(found)
    assert text(found).endswith(f"differs: beyond tolerance: {name}") and recorded - measured == pytest.approx(by, abs=1e-5)


def test_one_value_of_many_that_was_made_up_differs(records, suite, known):
    record = forged(records["none"])
    record.per_prompt["sscd"]["p3"] -= 0.012
    found = again(record, suite, known, 4)
    assert found.verdict == "differs" and found.compared[0].worst[0] == "p3"


def test_images_of_another_method_differ(records, suite, tmp_path):
    parts = ("samples", "thumbnails", "per_prompt", "scores")
    theirs = forged(records["wanda"], **{part: records["mine"].model_dump()[part] for part in parts})
    found = again(theirs, suite, tmp_path, 4)
    assert found.verdict == "differs" and found.equal == 0
    assert "picture" in text(found).splitlines()[-1]


def test_images_that_round_otherwise_agree(records, suite, tmp_path, monkeypatch):
    decode = Denoiser.decode

    def rounded(self, latents):
        pictures = decode(self, latents).copy()
        pictures[::2, 0, 0, 0] ^= 1
        return pictures

    monkeypatch.setattr(Denoiser, "decode", rounded)
    found = again(records["none"], suite, tmp_path)
    assert found.verdict == "agrees" and 0 < found.equal < found.images
    assert text(found).splitlines()[-1].startswith("agrees: images differ")


def test_the_tolerance_is_narrower_where_every_image_is_the_recorded_one(records, suite, known):
    other = forged(records["none"])
    other.samples["clean"].sha256["c0"][0] = "0" * 16
    strict, wide = again(records["none"], suite, known, 99), again(other, suite, known, 99)
    allowed = {name: [one.mean_allowed for one in found.compared if one.name == "sscd"] for name, found in (("strict", strict), ("wide", wide))}
    assert strict.verdict == "identical" and wide.verdict == "agrees" and wide.equal == wide.images - 1
    assert allowed["strict"] == [pytest.approx(SAME * allowed["wide"][0])] and allowed["wide"] == [0.02]


def test_methods_that_mix_images_get_the_batches_of_a_run(records, suite, folder, tmp_path):
    found = again(records["mixing"], suite, tmp_path, 1, 3, method=str(folder / "mixing.py"))
    assert found.verdict == "identical" and found.made > found.images  # the others of their batches
    assert "whole batches were made" in text(found)


def test_a_text_that_stands_twice_keeps_its_seeds(tiny_folder, tmp_path):
    with (tiny_folder / "twice.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "prompt", "reference"], *([f"t{i}", "a red apple", "reference-0.png"] for i in range(3))])
    (tiny_folder / "twice.toml").write_text(SUITE.replace('file = "prompts.csv"\nwhere = { split = "memorized" }', 'file = "twice.csv"'))
    suite = load_suite(str(tiny_folder / "twice.toml"))
    record = Run.resolve(suite, "none", {}, tmp_path / "records", tmp_path / "store", CPU).execute()
    found = again(record, suite, tmp_path, 1, seed=2)
    assert found.verdict == "identical" and found.prompts["memorized"] != ("t0",)  # whose seeds a list of one would give


def test_a_method_of_a_file_is_verified_with_that_file(records, suite, folder, tmp_path):
    with pytest.raises(UserError, match="method 'mine' is not known here; give its Python file"):
        again(records["mine"], suite, tmp_path)
    assert again(records["mine"], suite, tmp_path, method=str(folder / "mine.py")).verdict == "identical"
    (tmp_path / "mine.py").write_text(FILES["mine"] + "# as before\n")
    with pytest.raises(UserError, match="the code of method mine is another than the record's: [0-9a-f]{64} there, [0-9a-f]{64} here"):
        again(records["mine"], suite, tmp_path, method=str(tmp_path / "mine.py"))
    with pytest.raises(UserError, match="the record is of mine version 1, and here is wanda"):
        again(records["mine"], suite, tmp_path, method="wanda")


REFUSED = {
    "suite": ({"suite_version": 9}, "suite_version is 9 in the record and 1 here"),
    "fingerprint": ({"suite_fingerprint": "0"}, "suite_fingerprint is 0 in the record"),
    "unknown method": ({"method": "magic"}, "method 'magic' is not known here"),
    "a file for a method": ({"method": "mine.py"}, "method 'mine.py' is not known here"),
    "version": ({"method_version": 9}, "none version 9, and here is none version 1"),
    "code": ({"sources": {"method none": "f" * 64}}, "the code of method none is another than the record's"),
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


def test_digests_that_are_not_of_the_suites_images_are_refused(records, suite, tmp_path):
    for digests in ({"p2": ["0" * 16]}, {"p99": ["0" * 16] * 4}):
        record = forged(records["none"])
        record.samples["memorized"].sha256 |= digests
        with pytest.raises(UserError, match="digests of the role memorized are not those"):
            again(record, suite, tmp_path)
    with pytest.raises(UserError, match="--prompts must be at least 1, not 0"):
        again(records["none"], suite, tmp_path, 0)


def test_a_picture_that_is_none_is_refused(records, suite, known):
    record = forged(records["none"])
    for thumbnail in record.thumbnails:
        thumbnail.png = "AAAA"
    with pytest.raises(UserError, match="picture of prompt p. cannot be read"):
        again(record, suite, known)


def test_tolerances_hold_for_the_mean_and_for_the_worst():
    def compared(*differences, mean=0.02, largest=0.1):
        return Compared("s", {f"p{i}": (0.5, 0.5 + difference) for i, difference in enumerate(differences)}, mean, largest)

    assert compared(0.02, -0.02).within and not compared(0.021, -0.021).within
    assert compared(0.1, 0, 0, 0, 0).within and not compared(0.11, *[0] * 9).within
    assert compared(0.01, -0.03, 0, 0.02, 0.005).worst == ["p1", "p3", "p0"] and np.isclose(compared(0.01, -0.03).mean, 0.02)


def test_one_image_may_cross_the_threshold_of_a_share():
    prompts = [Prompt(str(i), str(i), "", ()) for i in range(2)]
    score = PerImage(np.array([[1.0, 0.0], [0.0, 0.0]]), prompts, "share", False, proportion=True)
    for recorded, within in (({"0": 1.0, "1": 0.0}, True), ({"0": 1.0, "1": 0.5}, False)):
        (compared,) = _of_score("memorized_ratio", score, recorded, False, [])
        assert compared.within == within
    plain = PerImage(score.table, prompts, "share", False)
    assert not _of_score("memorized_ratio", plain, {"0": 1.0, "1": 0.0}, False, [])[0].within
