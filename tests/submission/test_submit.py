"""Strangers' records: a good one is taken, and each lie that a record can tell is named."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bench.base import limits
from bench.base.errors import UserError
from bench.base.parameters import configure
from bench.records.record import content_digest, load_record
from bench.registry.registry import find
from bench.statistics import intervals as stats
from bench.statistics.intervals import clopper_pearson
from bench.store.store import SampleStore, encode_png
from bench.submission import submit as submitting
from bench.submission.submit import BYTES, differences, submit, text
from bench.suite.load import load_suite
from conftest import SUITE
from one_run import Run

CPU = torch.device("cpu")
ATTACK = """
[attacks.knn_extraction]
images = 2
neighbours = 3

[attacks.clique_extraction]
images = 3
clique = 2
threshold = 0.5

[attacks."./lucky.py"]
"""
LUCKY = """from bench import Attack, PerImage
import numpy as np


class Lucky(Attack):
    'Finds something in every second prompt.'

    names = ("lucky",)

    def run(self, target):
        prompts = target.suite.prompts("memorized")[:3]
        table = np.array([[i % 2] for i in range(3)], dtype=float)
        return {"lucky": PerImage(table, prompts, "share of prompts", False, proportion=True)}
"""


@pytest.fixture(scope="module")
def suite(tiny_folder):
    (tiny_folder / "lucky.py").write_text(LUCKY)
    (tiny_folder / "submitted.toml").write_text(
        SUITE.replace('name = "tiny"', 'name = "submitted"').replace("steps = 3", "steps = 2")
        + ATTACK
    )
    return load_suite(str(tiny_folder / "submitted.toml"))


@pytest.fixture(scope="module")
def made(suite, tmp_path_factory):
    """A run of two generations: its folder, with records and store."""
    folder = tmp_path_factory.mktemp("made")
    Run(
        suite,
        "cfg_delay",
        {"transition": 300.0},
        folder / "records",
        folder / "store",
        CPU,
        seeds=2,
    ).execute()
    return folder


@pytest.fixture(scope="module")
def good(made):
    return json.loads(next((made / "records").glob("*/*/*.json")).read_text())


def written(content, folder, forged=True):
    """A record as a file; a forger makes its digest again."""
    content = json.loads(json.dumps(content))
    if forged:
        content["content_sha256"] = content_digest(content)
    path = folder / "theirs.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module", autouse=True)
def _intervals_once():
    """The same intervals are asked for in nearly every test."""
    with pytest.MonkeyPatch.context() as patch:
        known, bootstrap = {}, stats.cluster_bootstrap

        def remembered(table, *more, **named):
            key = (table.tobytes(), table.shape, *more, *named.items())
            if key not in known:
                known[key] = bootstrap(table, *more, **named)
            return known[key]

        patch.setattr(stats, "cluster_bootstrap", remembered)
        yield


@pytest.fixture
def no_pages(monkeypatch):
    """Pages take longer than all other checks together."""
    monkeypatch.setattr(
        submitting,
        "CHECKS",
        [check for check in submitting.CHECKS if check[1] is not submitting._pages],
    )


def submitted(content, tmp_path, suite, store=None):
    return submit(
        written(content, tmp_path), tmp_path / "out", store, tmp_path / "committed", suite
    )


def png(picture):
    return base64.b64encode(encode_png(picture)).decode()


def test_a_good_record_is_taken_and_stays_as_it_is(good, suite, tmp_path):
    submission = submitted(good, tmp_path, suite)
    assert (
        submission.failures == ()
        and submission.path == tmp_path / "out" / "submitted" / "cfg_delay" / f"{good['run']}.json"
    )
    assert (
        json.loads(submission.path.read_text()) == good
        and load_record(submission.path).run == good["run"]
    )
    shown = text(submission)
    assert (
        shown.endswith(f"submitted: {submission.path}")
        and "images themselves were not seen" in shown
    )
    believed = next(
        finding.text
        for finding in submission.findings
        if finding.text.startswith("believed, not checked")
    )
    kinds = (
        "fid, ",
        "sscd_p95",
        "clique_precision",
        "time_ratio",
        "facts",
        "tuning",
        "environment",
        "details",
    )
    assert (
        all(kind in believed for kind in kinds)
        and "clip_score" not in believed
        and "where" not in believed
    )


def test_the_images_of_a_sent_store_are_compared(good, suite, made, tmp_path):
    submission = submitted(good, tmp_path, suite, made / "store")
    total = sum(
        len(digests)
        for samples in good["samples"].values()
        for digests in samples["sha256"].values()
    )
    assert (
        submission.path
        and f"{total} images were compared with their digests, and all agree" in text(submission)
    )


def test_the_same_record_again_is_fine_and_another_of_the_run_is_not(good, suite, tmp_path):
    first = submitted(good, tmp_path, suite)
    before = first.path.stat().st_mtime_ns
    again = submitted(good, tmp_path, suite)
    assert (
        again.path == first.path
        and "is the same record" in text(again)
        and first.path.stat().st_mtime_ns == before
    )
    good = good | {"warnings": ["warm"]}
    other = submitted(good, tmp_path, suite)
    assert (
        other.path is None
        and "among the submitted records already, with other content" in other.failures[0]
    )
    load_record(written(good, tmp_path)).save(tmp_path / "committed")
    first.path.unlink()
    ours = submitted(good, tmp_path, suite)
    assert (
        ours.path == tmp_path / "committed" / "submitted" / "cfg_delay" / f"{good['run']}.json"
        and "our own" in text(ours)
    )
    assert not first.path.exists()
    assert (
        "among our own records already, with other content"
        in submitted(good | {"warnings": []}, tmp_path, suite).failures[0]
    )


def score(record, name):
    return next(
        record[part][name] for part in ("scores", "cost", "attacks") if name in record[part]
    )


def set_to(*path):
    """An edit: the last of `path` is put at the place that the others lead to."""

    def edit(record):
        place = record
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]

    return edit


def shift_value(record):
    score(record, "sscd")["value"] -= 1e-4


def shift_all_values(record):
    """Better by as much everywhere, but for the values by prompt."""
    sscd = score(record, "sscd")
    for key in ("value", "low", "high"):
        sscd[key] -= 0.01
    sscd["by_seed"] = [value - 0.01 for value in sscd["by_seed"]]
    sscd["groups"] = {group: value - 0.01 for group, value in sscd["groups"].items()}


def narrow_interval(record):
    clip = score(record, "clip_score")
    clip["low"] += 0.1 * (clip["high"] - clip["low"]) + 1e-4
    clip["low"] = min(clip["low"], clip["value"])


def narrow_proportion(record):
    score(record, "lucky")["high"] -= 0.01


def no_interval(record):
    score(record, "diversity").update(low=None, high=None)


def rename_prompt(record):
    for means in record["per_prompt"].values():
        if "p2" in means:
            means["p99"] = means.pop("p2")


def leave_out_a_prompt(record):
    means, sscd = record["per_prompt"]["sscd"], score(record, "sscd")
    worst = max(means, key=means.get)
    del means[worst]
    sscd["value"] = float(np.mean(list(means.values())))


def pass_a_share_off(record):
    """A share of four images cannot be a third."""
    ratio = score(record, "memorized_ratio")
    means = record["per_prompt"]["memorized_ratio"]
    for prompt in means:
        means[prompt] = 0.333333
    ratio.update(
        value=0.333333,
        by_seed=[0.333333] * 2,
        groups=dict.fromkeys(ratio["groups"], 0.333333),
        low=0.3,
        high=0.4,
    )


def swap_digests(record):
    digests = record["samples"]["memorized"]["sha256"]
    digests["p2"], digests["p3"] = digests["p3"], digests["p2"]


def repaint_thumbnail(record):
    record["thumbnails"][0]["png"] = png(np.zeros((32, 32, 3), dtype=np.uint8))


def bomb(record):
    """A PNG of a few bytes that says it has 9000 x 9000 pixels."""
    head = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    data = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(head))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
    )
    record["thumbnails"][0]["png"] = base64.b64encode(
        data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    ).decode()


def jpeg(record):
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "JPEG")
    record["thumbnails"][0]["png"] = base64.b64encode(stream.getvalue()).decode()


def exhibit(**changes):
    shown = {
        "attack": "knn_extraction",
        "prompt_id": "p2",
        "prompt": "brakfo zund: owl",
        "group": "1",
        "caption": "c",
        "pictures": [],
    } | changes
    return set_to("exhibits", [shown])


def many_exhibits(record):
    exhibit()(record)
    (shown,) = record["exhibits"]
    record["exhibits"] = [
        shown | {"attack": f"a{number}"} for number in range(limits.RECORD_PICTURES)
    ]


LIES = {
    "no digest of the content": (
        lambda record: record.update(schema_version=1, content_sha256=""),
        "content_sha256 is missing",
    ),
    "unfinished": (set_to("status", "partial"), "status is partial"),
    "errors": (
        set_to("errors", ["ZeroDivisionError: division by zero"]),
        "a complete run has no errors",
    ),
    "limited": (set_to("limit", 3), "limited to 3 prompts"),
    "suite version": (
        set_to("suite_version", 9),
        "suite_version is 9 and 1 here; it would stand apart",
    ),
    "fingerprint": (
        set_to("suite_fingerprint", "0" * 16),
        "suite_fingerprint is 0000000000000000 and",
    ),
    "method version": (set_to("method_version", 9), "method_version is 9 and 1 here"),
    "unknown parameter": (
        set_to("parameters", "speed", 3),
        "unknown parameter of method cfg_delay 'speed'",
    ),
    "impossible parameter": (
        set_to("parameters", "transition", -1.0),
        "method cfg_delay: transition",
    ),
    "other parameters": (
        set_to("parameters", "transition", 200.0),
        "follows from suite, method, parameters",
    ),
    "changed": (set_to("changed", {}), "changed is {} and"),
    "where": (set_to("where", "weights"), 'where is "weights" and "guidance" here'),
    "against weights": (
        set_to("holds_against", ["api", "weights"]),
        'holds_against is ["api", "weights"] and ["api"] by the method',
    ),
    "against nobody": (set_to("holds_against", []), 'holds_against is [] and ["api"]'),
    "against whom is not said": (
        set_to("holds_against", None),
        'holds_against is null and ["api"]',
    ),
    "evaluations": (
        set_to("cost", "nfe_per_image", "value", 1.9),
        "nfe_per_image is 1.9, and sampling takes at least 2",
    ),
    "no evaluations": (
        set_to("cost", "nfe_per_image", "value", 0.0),
        "no image is made without the model",
    ),
    "generations of FID": (set_to("scores", "fid", "by_seed", [1.0, 2.0]), "fid is"),
    "number of generations of percentiles": (
        set_to("scores", "sscd_p95", "by_seed", []),
        "sscd_p95 has values of 0 generations, and there are 2",
    ),
    "no generation of an attack": (
        set_to("attacks", "clique_identified", "by_seed", []),
        "clique_identified has values of 0 generations",
    ),
    "images of an attack": (
        set_to("attacks", "clique_identified", "by_seed", [1.0]),
        "clique_identified is of 8 images, and the suite asks for 4",
    ),
    "paper": (set_to("paper", "http://buy.example"), "paper is"),
    "other run": (set_to("run", "0123456789ab"), "run is 0123456789ab, and"),
    "other seeds": (set_to("seeds", 3), "follows from suite, method, parameters, seeds"),
    "other code of metrics": (
        set_to("sources", "attack ./lucky.py", "f" * 64),
        "sources of metrics and attacks",
    ),
    "unknown method without code": (set_to("method", "magic"), "has no digest of its code"),
    "a built-in's name": (
        set_to("sources", "method cfg_delay", "f" * 64),
        "is a built-in, and this was made by other code of that name",
    ),
    "a path for a method": (set_to("method", "lucky.py"), "is not known here"),
    "missing score": (lambda record: record["scores"].pop("fid"), "scores has no fid"),
    "unknown score": (
        lambda record: record["scores"].update(beauty=score(record, "sscd")),
        "scores.beauty is no score of sscd",
    ),
    "unknown metric": (
        set_to("scores", "sscd", "metric", "mine"),
        "scores.sscd is by 'mine', which is none of the suite's",
    ),
    "metric version": (
        set_to("scores", "sscd", "metric_version", 2),
        "scores.sscd is of version 2 of sscd, which is version 1 here",
    ),
    "threat": (set_to("attacks", "knn_score", "threat", "weights"), "has the threat model weights"),
    "heading": (
        set_to("scores", "sscd", "shown", {"heading": "best", "decimals": 3, "meaning": "m"}),
        "is not shown in tables as sscd says",
    ),
    "value above its interval": (
        lambda record: score(record, "fid").update(low=0.0, high=1.0),
        "outside its interval [0.0, 1.0]",
    ),
    "half an interval": (set_to("scores", "sscd", "high", None), "sscd has one end of an interval"),
    "share": (set_to("per_prompt", "memorized_ratio", "p2", 1.5), "'share' is within [0, 1]"),
    "cosine": (set_to("scores", "clip_score", "groups", "10", -1.5), "'cosine' is within [-1, 1]"),
    "negative time": (
        set_to("cost", "fit_seconds", "value", -1.0),
        "fit_seconds has the value -1.0",
    ),
    "null with values": (
        lambda record: score(record, "sscd").update(value=None, reason="lost"),
        "sscd is null and has",
    ),
    "value": (shift_value, "and the mean over its prompts is"),
    "value with all but the prompts": (shift_all_values, "and the mean over its prompts is"),
    "group": (set_to("scores", "sscd", "groups", "10", 0.5), "values by group that do not follow"),
    "groups": (set_to("scores", "sscd", "groups", {}), "values by group that do not follow"),
    "groups of percentiles": (
        set_to("scores", "sscd_p95", "groups", {"7": 0.5}),
        "sscd_p95 has groups that the suite has not",
    ),
    "generations": (
        set_to("scores", "sscd", "by_seed", [0.1, 0.2]),
        "and the mean over its generations is",
    ),
    "number of generations": (
        set_to("scores", "sscd", "by_seed", []),
        "has values of 0 generations, and there are 2",
    ),
    "no values by prompt": (
        lambda record: record["per_prompt"].pop("sscd"),
        "sscd has no values by prompt",
    ),
    "values of nothing": (
        set_to("per_prompt", "beauty", {"p2": 1.0}),
        "per_prompt has beauty, which is no score",
    ),
    "prompts": (
        rename_prompt,
        "sscd has values of 4 prompts that are not the suite's prompts of one role",
    ),
    "one prompt less": (leave_out_a_prompt, "sscd has values of 3 prompts that are not"),
    "an impossible share": (
        pass_a_share_off,
        "memorized_ratio is of 16 images and 4 prompts, which does not fit",
    ),
    "number of prompts": (
        set_to("scores", "sscd", "prompts", 5),
        "sscd is of 16 images and 5 prompts",
    ),
    "interval": (narrow_interval, "clip_score has the interval"),
    "exact interval": (narrow_proportion, "lucky has the interval"),
    "no interval": (no_interval, "diversity has the interval [None, None]"),
    "images": (set_to("images", "memorized", 800), "and the suite with 2 seeds has"),
    "images of a score": (
        set_to("scores", "sscd", "n", 1600),
        "sscd is of 1600 images, and the suite asks for 16",
    ),
    "images of FID": (
        set_to("scores", "fid", "n", 50000),
        "fid is of 50000 images, and the suite asks for 6",
    ),
    "no samples": (set_to("samples", {}), "there are none: measure it again"),
    "a role less": (
        lambda record: record["samples"].pop("clean"),
        "of the roles memorized, quality, and images are of",
    ),
    "images of samples": (
        set_to("samples", "clean", "images", 7),
        "clean has 6 prompts of 7 images",
    ),
    "ids of samples": (
        set_to("samples", "clean", "sha256", "x", ["0" * 16] * 2),
        "clean has digests of 7 prompts",
    ),
    "too few digests": (
        lambda record: record["samples"]["clean"]["sha256"]["c0"].pop(),
        "more or fewer than 2 digests",
    ),
    "no digest": (
        set_to("samples", "clean", "sha256", "c0", 0, "none"),
        "clean has a digest that is not 16 hex digits",
    ),
    "digests of two roles": (
        set_to("samples", "quality", "sha256", "c0", 0, "0" * 16),
        "has another digest than the same prompt and seed",
    ),
    "digests of other prompts": (
        swap_digests,
        "thumbnail of p2 is not the image of the recorded digest",
    ),
    "thumbnail's text": (
        set_to("thumbnails", 0, "prompt", "buy"),
        "has another text, group or seed",
    ),
    "thumbnail's seed": (set_to("thumbnails", 0, "seed", 1), "has another text, group or seed"),
    "thumbnail's group": (set_to("thumbnails", 0, "group", "7"), "has another text, group or seed"),
    "thumbnail less": (
        lambda record: record["thumbnails"].pop(),
        "3 thumbnails, and not one of each of 4",
    ),
    "thumbnail twice": (
        lambda record: record["thumbnails"].append(record["thumbnails"][0]),
        "5 thumbnails",
    ),
    "thumbnail repainted": (repaint_thumbnail, "is not the image of the recorded digest"),
    "thumbnail's size": (
        set_to("thumbnails", 0, "png", png(np.zeros((64, 64, 3), np.uint8))),
        "has 64x64 pixels, and images have 32x32",
    ),
    "thumbnail that is none": (
        set_to("thumbnails", 0, "png", "AAAA"),
        "thumbnail of p2 is no picture",
    ),
    "thumbnail in another format": (jpeg, "no whole picture of a format that is read (PNG)"),
    "thumbnail that fills all memory": (bomb, "9000x9000 pixels"),
    "training picture": (
        set_to("thumbnails", 0, "reference", png(np.zeros((32, 32, 3), np.uint8))),
        "another training picture than the suite",
    ),
    "no training picture": (
        set_to("thumbnails", 0, "reference", None),
        "has no training picture, and by the suite it has one",
    ),
    "exhibit of no attack": (
        exhibit(attack="mine"),
        "one of 'mine' for prompt 'p2' is of no attack",
    ),
    "exhibit of no prompt": (exhibit(prompt="buy"), "is of no attack or prompt of the suite"),
    "exhibit without picture": (exhibit(pictures=["AAAA"]), "has a picture that is none"),
    "exhibits of many attacks": (many_exhibits, "1000 of 1000 attacks; the suite has "),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_named_and_nothing_is_written(lie, good, suite, tmp_path, no_pages):
    edit, told = LIES[lie]
    content = json.loads(json.dumps(good))
    edit(content)
    path = written(content, tmp_path, forged=lie != "no digest of the content")
    submission = submit(path, tmp_path / "out", None, tmp_path / "committed", suite)
    assert submission.path is None and not (tmp_path / "out").exists()
    assert any(told in failure for failure in submission.failures), submission.failures
    assert all(
        "\n" not in failure and "cannot be checked" not in failure
        for failure in submission.failures
    ), submission.failures


def test_all_failures_are_listed_together(good, suite, tmp_path, no_pages):
    content = json.loads(json.dumps(good))
    for lie in ("value", "images", "thumbnail's text", "other run"):
        LIES[lie][0](content)
    failures = submitted(content, tmp_path, suite).failures
    assert all(
        any(LIES[lie][1] in failure for failure in failures)
        for lie in ("value", "images", "thumbnail's text", "other run")
    )


def test_many_failures_of_one_kind_are_counted(good, suite, tmp_path, no_pages):
    content = json.loads(json.dumps(good))
    for score in content["scores"].values():
        score["metric_version"] = 9
    assert any(
        "2 more of this kind" in failure for failure in submitted(content, tmp_path, suite).failures
    )


def test_a_digest_that_is_wrong_is_refused(good, suite, tmp_path):
    path = written(good | {"warnings": ["changed"]}, tmp_path, forged=False)
    with pytest.raises(UserError, match="was changed after it was made"):
        submit(path, tmp_path / "out", None, tmp_path / "committed", suite)


@pytest.fixture
def own(good, tmp_path):
    """Our own record of the same protocol: the good one under the name of the reference."""
    load_record(written(good | {"method": "none", "parameters": {}, "changed": {}}, tmp_path)).save(
        tmp_path / "committed"
    )


def test_units_are_those_of_our_own_records(good, own, suite, tmp_path):
    assert submitted(good, tmp_path, suite).path
    content = json.loads(json.dumps(good))
    content["scores"]["fid"].update(unit="ratio", higher_is_better=True)
    assert any(
        "scores.fid is 'ratio', better when higher: True; our own: 'distance', False" in failure
        for failure in submitted(content, tmp_path, suite).failures
    )


def lost(record, *names):
    """Scores whose numbers are left out."""
    for name in names:
        score(record, name).update(
            value=None, low=None, high=None, groups={}, by_seed=[], n=0, prompts=0, reason="lost"
        )
        record["per_prompt"].pop(name, None)


def test_what_our_own_record_has_may_not_be_left_out(good, own, suite, tmp_path, no_pages):
    content = json.loads(json.dumps(good))
    lost(content, "sscd", "fid", "nfe_per_image", "clique_precision", "knn_unique", "lucky")
    failures = submitted(content, tmp_path, suite).failures
    assert {failure.partition(": ")[2].partition(" ")[0] for failure in failures} == {
        "sscd",
        "fid",
        "nfe_per_image",
        "clique_precision",
        "knn_unique",
    }
    assert all(
        "is null (lost), and our own record of this protocol has a number" in failure
        for failure in failures
    )
    (tmp_path / "committed").rename(tmp_path / "away")
    submission = submitted(content, tmp_path, suite)
    assert submission.path and "fid is null: lost" in text(submission)


def test_without_flagged_prompts_there_is_no_precision(good, own, suite, tmp_path, no_pages):
    content = json.loads(json.dumps(good))
    lost(content, "clique_precision")
    identified = score(content, "clique_identified")
    none = {
        "value": 0.0,
        "low": 0.0,
        "high": 1 - 0.025**0.25,
        "by_seed": [0.0, 0.0],
        "groups": dict.fromkeys(identified["groups"], 0.0),
        "group_intervals": {},
    }
    identified.update(none)
    content["per_prompt"]["clique_identified"] = dict.fromkeys(
        content["per_prompt"]["clique_identified"], 0.0
    )
    assert submitted(content, tmp_path, suite).failures == ()


def test_a_search_that_was_undecided_in_one_generation_is_no_lie(good, suite, tmp_path, no_pages):
    content = json.loads(json.dumps(good))
    for name in ("clique_identified", "clique_extracted"):
        found, means = score(content, name), content["per_prompt"][name]
        del means["p2"]
        low, high = clopper_pearson(int(sum(means.values())), 3)
        found.update(
            n=6, prompts=3, low=low, high=high, group_intervals={}, group_prompts={"1": 1, "10": 2}
        )
    # nothing was flagged in the other
    score(content, "clique_precision").update(by_seed=[0.25], n=4, value=0.25)
    score(content, "clique_recall").update(
        by_seed=[0.5], n=2, value=0.5, threat="api", unit="share", higher_is_better=True, reason=""
    )
    assert submitted(content, tmp_path, suite).failures == ()
    for name in ("clique_identified", "clique_extracted"):  # without any number in one
        score(content, name).update(n=3, by_seed=score(content, name)["by_seed"][:1])
    (tmp_path / "out").rename(tmp_path / "before")
    assert submitted(content, tmp_path, suite).failures == ()


@pytest.mark.parametrize(
    ("method", "said", "right"),
    [
        ("none", [], True),
        ("none", ["api"], False),
        ("wanda", ["api"], True),
        ("wanda", ["api", "weights"], True),
        ("wanda", ["weights"], False),
        ("wanda", [], False),
        ("wen", ["api"], True),
        ("wen", ["api", "weights"], False),
    ],
)
def test_who_meets_a_built_in_follows_as_far_as_its_code_tells(method, said, right, good, tmp_path):
    record = load_record(written(good, tmp_path)).model_copy(
        update={"method": method, "holds_against": said}
    )
    problems = [
        problem
        for problem in differences(
            record, configure("method", method, find("method", method).load(), {})
        )
        if "holds_against" in problem
    ]
    assert bool(problems) != right


def test_a_suite_is_found_by_name_only(good, tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text("name = 3")
    monkeypatch.chdir(tmp_path)
    for name in ("mine.toml", "unheard"):
        submission = submit(
            written(good | {"suite": name}, tmp_path),
            tmp_path / "out",
            None,
            tmp_path / "committed",
        )
        assert (
            submission.path is None
            and f"suite '{name}' is not known here" in submission.failures[0]
        )
    assert "testbed" in submission.failures[0]
    other = submit(
        written(good | {"suite": "testbed-quick"}, tmp_path),
        tmp_path / "out",
        None,
        tmp_path / "committed",
    )
    assert "it would stand apart" in other.failures[0] and "not checked" in text(other)


MINE = "from bench import Method\n\n\nclass Mine(Method):\n    strength: float = 1.0\n"


@pytest.fixture(scope="module")
def plain(tiny_folder):
    """The suite without attacks."""
    (tiny_folder / "plain.toml").write_text(
        SUITE.replace('name = "tiny"', 'name = "plain"').replace("steps = 3", "steps = 2")
    )
    return load_suite(str(tiny_folder / "plain.toml"))


@pytest.fixture(scope="module")
def unknown(plain, tmp_path_factory):
    """A record of a method that is not known here, and its store."""
    folder = tmp_path_factory.mktemp("unknown")
    (folder / "mine.py").write_text(MINE)
    record = Run(
        plain, str(folder / "mine.py"), {"strength": 2.0}, folder / "records", folder / "store", CPU
    ).execute()
    return json.loads(record.path(folder / "records").read_text()), folder / "store"


def test_a_method_that_is_not_known_here_is_taken_with_the_digest_of_its_code(
    unknown, plain, tmp_path
):
    content, store = unknown
    submission = submitted(content, tmp_path, plain, store)
    assert (
        submission.path
        and content["sources"]["method mine"] in text(submission)
        and "all agree" in text(submission)
    )
    assert (
        "what a method that is not known here says of itself: changed, where, needs, paper"
        in text(submission)
    )


def test_a_method_that_is_not_known_here_may_do_with_few_evaluations_but_not_with_none(
    unknown, plain, tmp_path, no_pages
):
    def spent(value):
        """An edit of evaluations that contradicts nothing else."""
        for name in ("nfe_per_image", "nfe_per_image_clean"):
            changed = score(content, name)
            changed |= {"value": value, "low": value, "high": value}
            changed["groups"] = dict.fromkeys(changed["groups"], value)
            changed["group_intervals"] = {
                group: [value, value] for group in changed["group_intervals"]
            }
            content["per_prompt"][name] = dict.fromkeys(content["per_prompt"][name], value)

    content = json.loads(json.dumps(unknown[0]))
    spent(0.5)
    assert submitted(content, tmp_path, plain).path
    spent(0.0)
    assert "no image is made without the model" in submitted(content, tmp_path, plain).failures[0]


@pytest.mark.parametrize(
    "edit",
    [
        set_to("parameters", "strength", 3.0),
        set_to("sources", "method mine", "f" * 64),
        set_to("method_version", 2),
    ],
)
def test_also_its_run_follows_from_what_it_says(unknown, plain, tmp_path, edit, no_pages):
    content = json.loads(json.dumps(unknown[0]))
    edit(content)
    assert any(
        "follows from suite, method, parameters" in failure
        for failure in submitted(content, tmp_path, plain).failures
    )


def store_of(made):
    folder = next((made / "store" / "submitted").glob("cfg_delay-*"))
    return SampleStore(
        made / "store", "submitted", "cfg_delay", json.loads((folder / "key.json").read_text())
    )


def test_images_that_are_not_in_the_sent_store_are_counted(good, suite, made, tmp_path, no_pages):
    import shutil

    assert (
        "has no images of cfg_delay with these parameters"
        in submitted(good, tmp_path, suite, tmp_path).failures[0]
    )
    shutil.copytree(made / "store", tmp_path / "store")
    shards = sorted((tmp_path / "store").glob("*/*/*.parquet"))
    shards[0].unlink()
    assert (
        " images are not there" in submitted(good, tmp_path, suite, tmp_path / "store").failures[0]
    )


def test_an_image_that_is_not_that_of_its_digest_is_named(good, suite, made, tmp_path, no_pages):
    theirs = store_of(made)
    copy = SampleStore(tmp_path / "store", "submitted", "cfg_delay", theirs._identity)
    copy.prepare()
    keys = list(theirs._index)
    pictures = theirs.pictures(keys)
    row = next(i for i, key in enumerate(keys) if key.prompt == "a guitar with a rose")
    pictures[row] = 255 - pictures[row]
    copy.append(keys, np.stack(pictures))
    failure = submitted(good, tmp_path, suite, tmp_path / "store").failures[0]
    assert (
        " differ from their digests; the first is one of prompt p5 (memorized)" in failure
        and failure.startswith("images in the store")
    )


def test_prompts_with_the_same_images_are_noted(unknown, plain, tmp_path, no_pages):
    content = json.loads(json.dumps(unknown[0]))
    content["samples"]["quality"]["sha256"] |= {"c4": content["samples"]["quality"]["sha256"]["c5"]}
    content["samples"]["clean"]["sha256"] |= {"c4": content["samples"]["quality"]["sha256"]["c5"]}
    memorized = content["samples"]["memorized"]["sha256"]
    memorized["p4"] = [content["samples"]["clean"]["sha256"]["c4"][0], memorized["p5"][1]]
    submission = submitted(content, tmp_path, plain)
    assert any(
        "c4 and c5 of the role clean have the same images" in finding.text
        for finding in submission.findings
        if finding.verdict == "note"
    )


def test_intervals_of_another_version_are_left_unchecked(good, suite, tmp_path):
    submission = submitted(good | {"intervals": "guessed"}, tmp_path, suite)
    assert submission.path and "intervals were made in another way ('guessed')" in text(submission)


def test_a_record_never_leaves_its_folder(good, suite, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "submitted").symlink_to(tmp_path / "elsewhere")
    submission = submitted(good, tmp_path, suite)
    assert (
        submission.path is None
        and "lies outside" in submission.failures[0]
        and not any((tmp_path / "elsewhere").iterdir())
    )


HOSTILE = {
    "no object": "[]",
    "no JSON": "{",
    "depth": "[" * 200_000,
    "NaN": '{"seed": NaN}',
    "digits": '{"seeds": ' + "9" * 5000 + "}",
    "seeds beyond counting": {"seeds": 10**12},
    "suite": {"suite": "../../etc"},
    "method": {"method": "../../../root"},
    "run": {"run": "../0123"},
    "text for a table": {"scores": "all good"},
    "table for a text": {"method": {"name": "none"}},
    "list of lists": {"thumbnails": [[]]},
    "infinity": {"environment": {"threads": "INFINITY"}},
    "half a character": {"paper": "\ud800"},
    "unknown field": {"score": {}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_gives_one_line(name, good, suite, tmp_path):
    path, hostile = tmp_path / "theirs.json", HOSTILE[name]
    if isinstance(hostile, str):
        path.write_text(hostile)
    else:
        written(good | hostile, tmp_path)
        path.write_text(path.read_text().replace('"INFINITY"', "1e999"))
    with pytest.raises(UserError) as refused:
        submit(path, tmp_path / "out", None, tmp_path / "committed", suite)
    assert (
        "\n" not in str(refused.value)
        and "theirs.json" in str(refused.value)
        and not (tmp_path / "out").exists()
    )


def test_a_huge_file_is_not_read(suite, tmp_path):
    path = tmp_path / "theirs.json"
    with path.open("wb") as stream:
        stream.truncate(BYTES + 1)
    with pytest.raises(UserError, match="has 64 MiB; records have at most 64"):
        submit(path, tmp_path / "out", None, tmp_path / "committed", suite)
    with pytest.raises(UserError, match="cannot be read"):
        submit(tmp_path / "absent.json", tmp_path / "out", None, tmp_path / "committed", suite)


@pytest.mark.parametrize("images", [1, 3, 4])
def test_intervals_can_be_made_again_from_written_decimals(images):
    """Also of shares in thirds, whose means tie with each other only before they are rounded: the
    bootstrap counts ties.
    """
    from bench.contracts.metric import PerImage
    from bench.running.scoring import as_score
    from bench.submission.check_scores import _intervals_of, _near
    from bench.suite.prompts import Prompt

    random = np.random.default_rng(images)
    prompts = [Prompt(str(i), str(i), "", ()) for i in range(18)]
    for unit, table in (
        ("share", (random.random((18, images)) < 0.3).astype(float)),
        ("share", np.ones((18, images))),
        ("cosine", random.normal(0.5, 0.1, (18, images)).astype(np.float32)),
    ):
        made = as_score("m", 1, PerImage(table, prompts, unit, False, proportion=unit == "share"))
        means = np.round(table.mean(1, dtype=np.float64), 12)[:, None]
        low, high = next(_intervals_of(means, made, built_in=True, units=None))
        assert _near(made, low, high) and (unit == "cosine" or (made.low, made.high) == (low, high))
        assert not _near(made.model_copy(update={"low": low - 0.01}), low, high) and not _near(
            made.model_copy(update={"high": None}), low, high
        )
