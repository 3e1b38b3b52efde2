import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.base.errors import UserError
from bench.base.parameters import parse_assignments
from bench.contracts.method import Method
from bench.records.record import load_record
from bench.running.sampling import sample
from bench.running.timing import time_against_none
from bench.suite.load import load_suite
from bench.suite.suite import Suite
from conftest import bench
from one_run import Run

CPU = torch.device("cpu")


def new_run(suite, tmp_path, method="none", **parameters):
    return Run(suite, method, parameters, tmp_path / "records", tmp_path / "store", CPU)


def without_cost(record):
    return {name: score.model_dump() for name, score in record.scores.items()}


def test_a_run_gives_every_score_of_the_contract(tiny_suite, tmp_path):
    record = new_run(tiny_suite, tmp_path).execute()
    assert record.status == "complete"
    assert {
        "sscd",
        "sscd_p95",
        "memorized_ratio",
        "diversity",
        "clip_score",
        "clip_score_clean",
        "fid",
    } <= set(record.scores)
    assert {"fit_seconds", "fit_nfe", "seconds_per_image", "nfe_per_image", "time_ratio"} <= set(
        record.cost
    )
    assert record.scores["fid"].n == 6
    assert record.cost["nfe_per_image"].value == 2 * 3
    assert set(record.scores["sscd"].groups) == {"1", "10"}
    assert load_record(record.path(tmp_path / "records")) == record


def test_a_record_lists_what_made_its_images_and_warns_where_that_differs(
    tiny_suite, tmp_path, monkeypatch
):
    """Images of a device and version that were there before are not passed off as this run's."""
    from bench.running.engine import Engine

    first = new_run(tiny_suite, tmp_path)
    alone = first.execute()
    total = len({key for part in first.experiment.asked() for key in part})
    (maker,) = alone.made_by
    assert (maker.images, maker.device, maker.dtype) == (total, "cpu", "float32")
    assert maker.batch_size == tiny_suite.settings.model.batch_size
    assert maker.packages["torch"] == torch.__version__.partition("+")[0] and not alone.warnings

    store = tmp_path / "mixed"
    older = Run(tiny_suite, "none", {}, tmp_path / "older", store, CPU)
    there = Engine.made_by.fget(older.engine) | {"device": "cuda", "packages": {"torch": "2.0"}}
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "made_by", property(lambda engine: there))
        older.generate({}, older.keys("memorized"))
    mixed = Run(tiny_suite, "none", {}, tmp_path / "records", store, CPU).execute()
    count = len(older.keys("memorized"))
    by_device = {maker.device: maker.images for maker in mixed.made_by}
    assert by_device == {"cuda": count, "cpu": total - count}
    (warning,) = mixed.warnings
    assert warning.startswith(f"not all {total} images were made as this run makes them: ")
    assert "device cuda and not cpu" in warning and "'torch': '2.0'" in warning

    # All of them from elsewhere: a store that somebody copied from a machine with a GPU.
    store = tmp_path / "copied"
    older = Run(tiny_suite, "none", {}, tmp_path / "older", store, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "made_by", property(lambda engine: there))
        older.generate({}, older.missing())
    copied = Run(tiny_suite, "none", {}, tmp_path / "copied-records", store, CPU).execute()
    assert [maker.device for maker in copied.made_by] == ["cuda"]
    (warning,) = copied.warnings
    assert f"{total} with device cuda and not cpu" in warning


def test_images_of_an_older_release_need_no_warning(tiny_suite, tmp_path, monkeypatch):
    """What decides their pixels is in their key; the record lists both versions."""
    from bench.running.engine import Engine

    older = new_run(tiny_suite, tmp_path)
    there = Engine.made_by.fget(older.engine) | {"bench": "0.0.1"}
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "made_by", property(lambda engine: there))
        older.generate({}, older.keys("memorized"))
    record = new_run(tiny_suite, tmp_path).execute()
    assert len({maker.bench for maker in record.made_by}) == 2 and not record.warnings


def test_evaluations_are_counted_over_all_images_of_the_run(tiny_suite, tmp_path):
    """Not on the batches that are timed; `cfg_delay` saves some of the 6."""
    record = new_run(tiny_suite, tmp_path, "cfg_delay").execute()
    for name, role in (("nfe_per_image", "memorized"), ("nfe_per_image_clean", "clean")):
        score = record.cost[name]
        images = record.samples[role].prompts * record.samples[role].images
        assert score.n == images and 3 <= score.value < 6
        assert set(record.per_prompt[name].values()) == {score.value}


def test_another_sampler_or_code_of_a_method_makes_images_anew(tiny_suite, tmp_path, monkeypatch):
    before = new_run(tiny_suite, tmp_path, "wanda").store.name
    assert new_run(tiny_suite, tmp_path, "wanda").store.name == before
    with monkeypatch.context() as patch:
        patch.setattr("bench.running.experiment.code_of", lambda module: module)
        assert new_run(tiny_suite, tmp_path, "wanda").store.name != before
    monkeypatch.setattr("bench.running.experiment.SAMPLER", 2)
    assert new_run(tiny_suite, tmp_path, "wanda").store.name != before


def test_details_that_differ_between_generations_are_listed():
    from bench.contracts.metric import PerSet
    from bench.running.scoring import together

    sets = [
        PerSet(0.5, 4, "share", False, details={"unknown": unknown, "threshold": 0.1} | more)
        for unknown, more in ((1, {}), (0, {}), (3, {"late": True}))
    ]
    score, _ = together(sets)
    assert score.details == {"unknown": [1, 0, 3], "threshold": 0.1, "late": [None, None, True]}


def test_a_record_never_holds_nan(tiny_suite, tmp_path):
    text = new_run(tiny_suite, tmp_path).execute().path(tmp_path / "records").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"the record holds {name}"))


def test_the_second_run_generates_nothing_and_needs_no_model(tiny_suite, tmp_path, monkeypatch):
    first = new_run(tiny_suite, tmp_path).execute()
    first.path(tmp_path / "records").unlink()
    monkeypatch.setattr(
        "bench.running.engine.load_denoiser", lambda *_: pytest.fail("the model was loaded again")
    )
    second = new_run(tiny_suite, tmp_path).execute()
    assert second.scores == first.scores and second.cost == first.cost


def test_wanda_with_sparsity_zero_is_bit_identical_to_none(tiny_suite, tmp_path):
    none, neutral = (
        new_run(tiny_suite, tmp_path),
        new_run(tiny_suite, tmp_path, "wanda", sparsity=0.0),
    )
    none.execute(), neutral.execute()
    assert none.samples("memorized").store.png(none.samples("memorized").keys) == neutral.samples(
        "memorized"
    ).store.png(neutral.samples("memorized").keys)


def test_a_run_samples_with_its_method_attached(tiny_suite, tmp_path):
    from bench.running.sampling import sample

    none, pruned = (
        new_run(tiny_suite, tmp_path),
        new_run(tiny_suite, tmp_path, "wanda", sparsity=0.5),
    )
    none.execute(), pruned.execute()
    keys = none.samples("memorized").keys
    stored = pruned.store.pictures(keys)
    assert not np.array_equal(stored, none.store.pictures(keys))
    state = pruned.fitted().state
    with pruned.method.attach(pruned.engine.denoiser.pipe, state):
        batch = keys[:4]  # as the run batched them
        denoiser = pruned.engine.denoiser
        request = denoiser.request([key.prompt for key in batch], [key.seed for key in batch])
        by_hand = pruned.engine.denoiser.decode(
            sample(pruned.engine.denoiser, request, pruned.method, state)
        )
    assert np.array_equal(stored[:4], by_hand)


def test_an_edited_file_is_another_run(tiny_suite, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from bench import Method\nclass Mine(Method):\n    'x'\n")
    first = new_run(tiny_suite, tmp_path, str(path))
    path.write_text("from bench import Method\nclass Mine(Method):\n    'y'\n")
    second = new_run(tiny_suite, tmp_path, str(path))
    assert first.id != second.id and first.store.folder != second.store.folder


@pytest.mark.parametrize(
    ("statement", "raised"),
    [
        ("return 1 / 0", ZeroDivisionError),
        ("raise SystemExit", SystemExit),
        ("return {'sscd': PerSet(0.0, 1, 'x', False)}", UserError),
        ("return {'a/b': PerSet(0.0, 1, 'x', False)}", UserError),
        ("return {'bad': PerSet(float('nan'), 1, 'x', False)}", UserError),
        ("return {'bad': PerSet(0.0, 1, 'x', False, details={'a': float('nan')})}", UserError),
        ("return {'bad': PerSet(0.0, 1, 'x', False, details={'a': np.float32(1)})}", UserError),
    ],
)
def test_one_broken_metric_costs_only_its_own_numbers(tiny_folder, tmp_path, statement, raised):
    from conftest import SUITE

    path = tmp_path / "bad.py"
    path.write_text(
        "import numpy as np\nfrom bench import Metric, PerSet\nclass Bad(Metric):\n    names ="
        " ('bad',)\n    roles = ('clean',)\n    def measure(self, evaluation):\n        "
        + statement
        + "\n"
    )
    (tiny_folder / "bad.toml").write_text(
        SUITE.replace("[metrics.sscd]", f"[metrics.'{path}']\n\n[metrics.sscd]")
    )
    run = new_run(load_suite(str(tiny_folder / "bad.toml")), tmp_path)
    with pytest.raises(raised):
        run.execute()
    record = load_record(next((tmp_path / "records").glob("*/*/*.json")))
    assert record.status == "failed"
    assert record.scores["bad"].value is None and raised.__name__ in record.scores["bad"].reason
    assert record.scores["sscd"].value is not None and record.scores["fid"].value is not None


def test_a_missing_scorer_is_noticed_before_any_image_is_made(tiny_folder, tmp_path):
    from conftest import SUITE

    (tiny_folder / "early.toml").write_text(
        SUITE.replace("./descriptor.safetensors", "descriptr.safetensors")
    )
    with pytest.raises(UserError, match="'descriptr.safetensors' is missing"):
        new_run(load_suite(str(tiny_folder / "early.toml")), tmp_path)
    assert not (tmp_path / "store").exists()


def test_wanda_pays_for_fitting_once(tiny_suite, tmp_path):
    record = new_run(tiny_suite, tmp_path, "wanda", sparsity=0.2).execute()
    # steps cut the calls to 3; two fit prompts and the empty one
    assert record.cost["fit_nfe"].value == 2 * 3 * (2 + 1)
    assert record.per_prompt["sscd"].keys() == {"p2", "p3", "p4", "p5"}
    again = new_run(tiny_suite, tmp_path, "wanda", sparsity=0.2)
    assert again.fitted().rows == record.cost["fit_nfe"].value
    assert "denoiser" not in vars(again)


def test_a_plan_counts_what_is_missing(tiny_suite, tmp_path):
    run = new_run(tiny_suite, tmp_path)
    plan = run.plan()
    assert plan["images"] == {"memorized": 8, "clean": 6, "quality": 6}
    # quality asks for the same as clean
    assert plan["images_missing"] == len(
        {*run.samples("memorized").keys, *run.samples("clean").keys}
    )
    run.execute()
    assert new_run(tiny_suite, tmp_path).plan()["images_missing"] == 0


def test_duplicate_texts_in_a_list_are_different_images(tiny_folder, tmp_path):
    from conftest import SUITE, write_csv

    write_csv(
        tiny_folder / "twice.csv", [["id", "prompt"], ["a", "owl"], ["b", "owl"], ["c", "bus"]]
    )
    (tiny_folder / "twice.toml").write_text(
        SUITE.replace('[prompts.clean]\nfile = "clean.csv"', '[prompts.clean]\nfile = "twice.csv"')
    )
    keys = new_run(load_suite(str(tiny_folder / "twice.toml")), tmp_path).samples("clean").keys
    assert len(set(keys)) == 3


def test_a_failing_method_leaves_a_failed_record_and_its_images(tiny_suite, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from bench import Method\nclass Mine(Method):\n    'x'\n    def guide(self, step,"
        " state):\n        return step.conditional * float('nan')\n"
    )
    run = new_run(tiny_suite, tmp_path, str(path))
    with pytest.raises(UserError, match="method bench_file_mine|method mine"):
        run.execute()
    record = load_record(next((tmp_path / "records").glob("*/*/*.json")))
    assert record.status == "failed" and "NaN" in record.errors[0]


KILLED_SUITE_IMAGES = 48  # a prompt; 4 prompts give 192 images in three shards


def test_a_killed_run_ends_with_the_scores_of_an_undisturbed_one(tiny_folder, tmp_path):
    from conftest import SUITE

    suite = tiny_folder / "long.toml"
    suite.write_text(
        SUITE.replace(
            "images_per_prompt = 2", f"images_per_prompt = {KILLED_SUITE_IMAGES}"
        ).replace("[metrics.walltime]\nrounds = 2\nimages = 2\n", "")
    )

    def command(place):
        return [
            *("run", "--method", "none", "--suite", str(suite), "--json"),
            *("--records", str(place / "records"), "--store", str(place / "store")),
        ]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    calm, hit = tmp_path / "calm", tmp_path / "hit"
    calm.mkdir(), hit.mkdir()
    undisturbed = json.loads(bench(*command(calm)).stdout)
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *command(hit)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not list(hit.glob("store/*/*/*.parquet")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    shards = list(hit.glob("store/*/*/*.parquet"))
    assert shards, "killed before the first shard"
    kept = {shard: shard.stat().st_mtime_ns for shard in shards}
    finished = json.loads(bench(*command(hit)).stdout)
    assert finished["status"] == "complete"
    assert finished["scores"] == undisturbed["scores"]
    assert all(shard.stat().st_mtime_ns == when for shard, when in kept.items()), (
        "a finished shard was made again"
    )


def test_ctrl_c_leaves_a_partial_record_and_says_how_to_go_on(tiny_folder, tmp_path):
    suite = tiny_folder / "interrupted.toml"
    from conftest import SUITE

    suite.write_text(
        SUITE.replace("images_per_prompt = 2", f"images_per_prompt = {KILLED_SUITE_IMAGES}")
    )
    command = [
        sys.executable,
        "-m",
        "bench",
        "run",
        "--method",
        "none",
        "--suite",
        str(suite),
        "--records",
        str(tmp_path / "r"),
        "--store",
        str(tmp_path / "s"),
    ]
    # A shell that starts the tests in the background makes their children ignore Ctrl-C; this one
    # must not.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,
    ) as process:
        while not list(tmp_path.glob("s/*/*/*.parquet")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert (
        process.returncode == 130
        and "goes on where it stopped" in errors
        and "Traceback" not in errors
    )
    assert load_record(next((tmp_path / "r").glob("*/*/*.json"))).status == "partial"


def test_scores_of_a_run_equal_scores_from_its_pictures(tiny_suite, tmp_path):
    """The number in the record, recomputed the slow way from the stored pictures."""
    from bench.features.networks import CopyDescriptor
    from bench.store.store import decode_png

    run = new_run(tiny_suite, tmp_path)
    record = run.execute()
    describe = CopyDescriptor(tiny_suite.path("./descriptor.safetensors"), "testbed", CPU)
    samples = run.samples("memorized")
    similarities = []
    for row, prompt in enumerate(samples.prompts):
        reference = describe([decode_png(Path(prompt.references[0]).read_bytes())])[0]
        for key in samples.keys[row * samples.images : (row + 1) * samples.images]:
            similarities.append(float(describe(run.store.pictures([key]))[0] @ reference))
    assert record.scores["sscd"].value == pytest.approx(np.mean(similarities), abs=1e-5)
    assert record.scores["sscd_p95"].value == pytest.approx(
        np.percentile(similarities, 95), abs=1e-5
    )
    assert record.scores["memorized_ratio"].value == np.mean(np.array(similarities) > 0.5)


def test_alignment_in_a_record_is_of_each_picture_with_its_own_prompt(tiny_suite, tmp_path):
    from bench.features.networks import OpenClip

    run = new_run(tiny_suite, tmp_path)
    record = run.execute()
    clip = OpenClip("clip", tiny_suite.path("./clip"), None, CPU)
    for score, role in (("clip_score", "memorized"), ("clip_score_clean", "clean")):
        samples = run.samples(role)
        cosines = []
        for row, prompt in enumerate(samples.prompts):
            for key in samples.keys[row * samples.images : (row + 1) * samples.images]:
                cosines.append(
                    float(clip(run.store.pictures([key]))[0] @ clip.texts([prompt.text])[0][0])
                )
        assert record.scores[score].value == pytest.approx(np.mean(cosines), abs=1e-5)


@pytest.mark.parametrize(("method", "role"), [("wanda", "fit"), ("wen", "calibration")])
def test_a_method_whose_prompts_the_suite_lacks_fails_before_any_work(
    tiny_suite, tmp_path, method, role
):
    prompts = {name: part for name, part in tiny_suite.settings.prompts.items() if name != role}
    suite = Suite(tiny_suite.settings.model_copy(update={"prompts": prompts}), tiny_suite.file)
    with pytest.raises(UserError, match=rf"{method} needs .* has no \[prompts.{role}\]"):
        Run(suite, method, {}, tmp_path / "records", tmp_path / "store", CPU)
    if method == "wen":  # with a target of its own it needs no clean prompts
        Run(suite, method, {"target": 1.5}, tmp_path / "records", tmp_path / "store", CPU)


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ("target=inf", "finite"),
        ("iterations=many", "integer"),
        ("preset=wild", "'image' or 'reference'"),
        ("lr=0", "greater"),
    ],
)
def test_parameters_of_the_wrong_type_are_one_line(tiny_suite, tmp_path, parameter, says):
    with pytest.raises(UserError, match=says) as error:
        Run(
            tiny_suite,
            "wen",
            parse_assignments([parameter]),
            tmp_path / "records",
            tmp_path / "store",
            CPU,
        )
    assert "\n" not in str(error.value)


def test_what_a_method_reports_of_its_images_is_stored_and_averaged(tiny_suite, tmp_path):
    run = Run(
        tiny_suite,
        "wen",
        {"target": 0.7, "iterations": 1},
        tmp_path / "records",
        tmp_path / "store",
        CPU,
    )
    record = run.execute()
    keys = run.samples("memorized").keys
    stored = run.store.facts(keys)
    assert len(stored) == 8 and all(
        set(facts) == {"converged", "updates", "magnitude_before", "magnitude_after"}
        for facts in stored
    )
    assert record.facts["memorized"]["updates"] == pytest.approx(
        sum(facts["updates"] for facts in stored) / 8, abs=1e-6
    )
    again = Run(
        tiny_suite,
        "wen",
        {"target": 0.7, "iterations": 1},
        tmp_path / "records",
        tmp_path / "store",
        CPU,
    )
    assert again.store.facts(keys) == stored


def test_what_a_method_costs_is_timed_on_prompts_from_the_whole_list(
    tiny_suite, tmp_path, monkeypatch
):
    class Metrics:
        rounds, images = 2, 4

    run = new_run(tiny_suite, tmp_path)
    seen = []
    monkeypatch.setattr(
        "bench.running.timing.timed",
        lambda run, batch, state, mitigated: (seen.append([key.prompt for key in batch]), (1.0, 1))[
            1
        ],
    )
    timing = time_against_none(*run, {}, "memorized", Metrics.rounds, Metrics.images)
    prompts = [prompt.text for prompt in tiny_suite.prompts("memorized")]
    assert timing.images == 8 and seen[-1] == seen[-2], (
        "with the method and without on the same batch"
    )
    assert (
        seen[2] == [prompts[0]] * 2 + [prompts[2]] * 2
        and seen[4] == [prompts[1]] * 2 + [prompts[3]] * 2
    )
    assert time_against_none(*run, {}, "memorized", 2, 4) == timing and len(seen) == 6, "kept"
    time_against_none(*run, {}, "memorized", 1, 4)
    assert len(seen) > 6, "another choice of images is another timing"


def test_two_judges_that_name_the_same_score_are_refused(tiny_suite, tmp_path):
    file = tmp_path / "again.py"
    file.write_text(
        "from bench import Metric\n\nclass Again(Metric):\n    names = ('sscd',)\n    roles ="
        " ('memorized',)\n"
    )
    settings = tiny_suite.settings.model_copy(
        update={"metrics": tiny_suite.settings.metrics | {str(file): {}}}
    )
    with pytest.raises(UserError, match="'sscd'"):
        new_run(Suite(settings, tiny_suite.file), tmp_path)


def test_a_metric_that_returns_nonsense_does_not_cost_the_others_their_numbers(
    tiny_suite, tmp_path
):
    file = tmp_path / "odd.py"
    body = (
        "    names = ('odd',)\n    roles = ('memorized',)\n\n    def measure(self, evaluation):\n  "
        "      return None\n"
    )
    file.write_text(f"from bench import Metric\n\nclass Odd(Metric):\n{body}")
    metrics = {str(file): {}, "clip_score": tiny_suite.settings.metrics["clip_score"]}
    run = new_run(
        Suite(tiny_suite.settings.model_copy(update={"metrics": metrics}), tiny_suite.file),
        tmp_path,
    )
    with pytest.raises(UserError, match="NoneType instead of its scores"):
        run.execute()
    record = load_record(next((tmp_path / "records").glob("*/*/*.json")))
    assert (
        record.status == "failed"
        and record.scores["clip_score"].value is not None
        and record.scores["odd"].reason
    )


def test_the_batch_size_is_part_of_images_that_influence_each_other(tiny_suite, tmp_path):
    larger = Suite(
        tiny_suite.settings.model_copy(
            update={"model": tiny_suite.settings.model.model_copy(update={"batch_size": 8})}
        ),
        tiny_suite.file,
    )
    folders = {
        preset: {
            new_run(suite, tmp_path, "wen", preset=preset).store.folder
            for suite in (tiny_suite, larger)
        }
        for preset in ("image", "reference")
    }
    assert len(folders["image"]) == 1 and len(folders["reference"]) == 2


def test_facts_of_the_wrong_length_or_kind_are_named(denoiser):
    class Talkative(Method):
        def adjust(self, denoiser, request, state):
            request.facts["converged"] = [True]
            return request

    with pytest.raises(UserError, match=r"facts\['converged'\] must be a list of"):
        sample(denoiser, denoiser.request(["a", "b"], [1, 2]), Talkative(), {})
