import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from typer.testing import CliRunner

from bench.base.errors import UserError
from bench.checks.snapshots import first_difference, snapshot
from bench.cli.main import app
from bench.contracts.attack import Attack, edited_weights
from bench.contracts.method import FitData
from bench.diffusion.denoiser import Denoiser
from bench.running.fitting import FACTS
from bench.running.judging import target_of
from bench.studies.tuning import (
    Setting,
    choose,
    load_tuning,
    parse_grid,
    text,
    tune,
    tuned_parameters,
    tuning_suites,
)
from bench.suite.suite import Suite
from bench.testbed.tiny import build_tiny_pipeline
from conftest import CAPTIONS
from methods.cross_attention import CrossAttention
from methods.wanda import Wanda
from one_run import Run

CPU = torch.device("cpu")
TOLERANCE = {"clip_score": 0.1, "clip_score_clean": 0.02}


def test_a_grid_is_every_combination_in_the_order_given():
    assert parse_grid(["a=1,2", "b=x, y"]) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    with pytest.raises(UserError, match="not of the form"):
        parse_grid(["a"])
    with pytest.raises(UserError, match="nothing to choose from"):
        parse_grid([])
    with pytest.raises(UserError, match="the grid has 20000 combinations; at most 10000"):
        parse_grid(["a=" + "1," * 199 + "1", "b=" + "1," * 99 + "1"])


@pytest.mark.parametrize("folds", [1, 2])
def test_held_out_prompts_and_prompts_learned_from_are_never_scored(tiny_suite, folds):
    held_out = {prompt.text for prompt in tiny_suite.prompts("memorized")}
    scored = []
    for derived in tuning_suites(tiny_suite, folds, clean=2, images=3):
        texts = {
            role: {prompt.text for prompt in derived.prompts(role)}
            for role in ("fit", "memorized", "calibration", "clean")
        }
        assert not texts["calibration"] & texts["clean"] and not texts["clean"] & {
            p.text for p in tiny_suite.prompts("clean")
        }
        assert texts["memorized"] <= {prompt.text for prompt in tiny_suite.prompts("fit")}
        assert not held_out & (texts["fit"] | texts["memorized"])
        if folds == 2:
            assert not texts["fit"] & texts["memorized"]
        scored += sorted(texts["memorized"])
        assert set(derived.settings.prompts) == {"fit", "memorized", "calibration", "clean"}
    assert sorted(scored) == sorted(prompt.text for prompt in tiny_suite.prompts("fit"))


def setting(name, sscd, clip, clean):
    return Setting(
        parameters={"name": name},
        scores={"sscd": sscd, "clip_score": clip, "clip_score_clean": clean},
    )


def test_the_rule_takes_the_lowest_replication_that_keeps_alignment():
    none = {"sscd": 0.6, "clip_score": 0.6, "clip_score_clean": 0.7}
    settings = [
        setting("weak", 0.5, 0.59, 0.7),
        setting("good", 0.3, 0.52, 0.685),
        setting("broken", 0.1, 0.2, 0.2),
        setting("dull", 0.2, 0.55, 0.6),
    ]
    assert choose(none, settings, TOLERANCE) == {"name": "good"}
    assert choose(none, settings[2:], TOLERANCE) == {"name": "dull"}


def test_tuning_is_recorded_and_a_run_with_it_says_so(tiny_suite, tmp_path, tiny_folder):
    result = tune(
        tiny_suite,
        "wanda",
        parse_grid(["sparsity=0,0.5"]),
        tmp_path / "work",
        CPU,
        TOLERANCE,
        clean=2,
        images=2,
    )
    assert (
        result.folds == 2
        and result.prompts == {"memorized": 2, "clean": 2}
        and len(result.settings) == 2
    )
    assert result.settings[0].scores == result.none, "without pruning a setting is `none`"
    steps = tiny_suite.settings.model.steps
    images = 3 * 2 * (1 * 2 + 2)  # settings and `none`, folds, a fit prompt twice, clean prompts
    learned = [json.loads(path.read_text()) for path in (tmp_path / "work").rglob(FACTS)]
    assert len(learned) == 2 * 2 and all(facts["rows"] > 0 for facts in learned)
    rows = images * 2 * steps + sum(facts["rows"] for facts in learned)
    assert result.evaluations == rows
    assert f"{rows:,} evaluations of the model" in text(result)
    file = tmp_path / "wanda.json"
    result.save(file)
    assert load_tuning(file)[0] == result
    values, about = tuned_parameters(file, tiny_suite, "wanda")
    assert values == result.chosen and about["settings"] == 2
    assert about["evaluations"] == rows
    for method in ("none", "cfg_delay"):
        with pytest.raises(UserError, match="another method"):
            tuned_parameters(file, tiny_suite, method)
    suite = Suite(
        tiny_suite.settings.model_copy(
            update={"metrics": {"clip_score": tiny_suite.settings.metrics["clip_score"]}}
        ),
        tiny_suite.file,
    )
    run = Run(suite, "wanda", values, tmp_path / "records", tmp_path / "store", CPU)
    run.tuning = about
    record = run.execute()
    assert (
        record.tuning == about
        and json.loads(record.path(tmp_path / "records").read_text())["tuning"]["rule"]
        == result.rule
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:200], "tuning file"),
        (lambda text: text.replace('"rule"', '"rul"'), "rul"),
    ],
)
def test_a_damaged_tuning_file_is_one_line(tmp_path, tiny_suite, damage, says):
    result = tune(
        tiny_suite,
        "random_tokens",
        [{"count": 1}],
        tmp_path / "work",
        CPU,
        TOLERANCE,
        clean=1,
        images=1,
    )
    file = tmp_path / "tuning.json"
    result.save(file)
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=says) as error:
        load_tuning(file)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="bench tune"):
        load_tuning(tmp_path / "nowhere.json")


def test_the_command_prints_what_was_tried_and_refuses_both_ways_at_once(tiny_folder, tmp_path):
    runner, suite = CliRunner(), str(tiny_folder / "tiny.toml")
    words = [
        "tune",
        "cfg_delay",
        "--grid",
        "transition=500,1000",
        "--suite",
        suite,
        "--out",
        str(tmp_path / "t.json"),
        "--work",
        str(tmp_path / "work"),
    ]
    done = runner.invoke(
        app, [*words, "--clean", "1", "--images", "1", "--device", "cpu"], catch_exceptions=False
    )
    assert done.exit_code == 0 and "transition=500" in done.output and "->" in done.output
    both = runner.invoke(
        app,
        [
            "run",
            "--method",
            "cfg_delay",
            "--suite",
            suite,
            "--tuned",
            str(tmp_path / "t.json"),
            "-p",
            "before=1",
        ],
    )
    assert isinstance(both.exception, UserError) and "exclude each other" in str(both.exception)


def test_a_setting_that_breaks_is_recorded_and_does_not_end_the_others(tiny_suite, tmp_path):
    grid = [
        {"lr": 1e30, "target": 1e-6, "iterations": 2},
        {"lr": 0.05, "target": 1e9, "iterations": 2},
    ]
    result = tune(tiny_suite, "wen", grid, tmp_path, CPU, TOLERANCE, clean=1, images=1)
    assert result.settings[0].error and not result.settings[0].scores and result.chosen == grid[1]
    with pytest.raises(UserError, match="no setting"):
        tune(tiny_suite, "wen", grid[:1], tmp_path, CPU, TOLERANCE, clean=1, images=1)


def test_parts_of_a_suite_stay_parts_and_an_overlap_with_held_out_prompts_is_refused(tiny_suite):
    def with_fit(**changes):
        prompts = tiny_suite.settings.prompts
        fit = prompts["memorized"].model_copy(update=changes)
        memorized = prompts["memorized"].model_copy(update={"part": (1, 2)})
        return Suite(
            tiny_suite.settings.model_copy(
                update={"prompts": prompts | {"fit": fit, "memorized": memorized}}
            ),
            tiny_suite.file,
        )

    halves = with_fit(part=(0, 2))
    scored = [
        prompt.text for one in tuning_suites(halves, 2, 1, 1) for prompt in one.prompts("memorized")
    ]
    assert sorted(scored) == sorted(prompt.text for prompt in halves.prompts("fit"))
    with pytest.raises(UserError, match="held out too"):
        tuning_suites(with_fit(), 1, 1, 1)


def test_an_attacker_cannot_generate_while_it_holds_the_weights(tiny_suite, tmp_path):
    run = Run(tiny_suite, "none", {}, tmp_path / "records", tmp_path / "store", CPU)

    class Greedy(Attack):
        threat: ClassVar = "weights"

    target = target_of(*run, Greedy(), {})
    with pytest.raises(UserError, match="while it held the weights"), target.weights():
        target.generate(tiny_suite.prompts("memorized"), 1)
    before = snapshot(run.engine.denoiser.pipe)
    with target.weights() as denoiser:
        denoiser.pipe.unet.conv_in.weight.data.mul_(2)
    assert first_difference(before, snapshot(run.engine.denoiser.pipe)) is None
    assert len(target.generate(tiny_suite.prompts("memorized"), 1)) == 4


def test_a_weights_attacker_meets_edited_weights_and_no_hooks():
    pipe = build_tiny_pipeline()
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0)
    method = Wanda(sparsity=0.2)
    state = method.fit(denoiser, FitData(fit_prompts=tuple(CAPTIONS[:2])))
    before = snapshot(pipe)
    with method.attach(pipe, state):
        attached = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with edited_weights(denoiser, method, state) as target:
        held = target.pipe.unet.state_dict()
        assert all(hold.equal(attached[name]) for name, hold in held.items())
        assert any(not hold.equal(before[f"weight unet.{name}"]) for name, hold in held.items())
    assert first_difference(before, snapshot(pipe)) is None
    with pytest.raises(RuntimeError), edited_weights(denoiser, CrossAttention(), {}):
        difference = first_difference(before, snapshot(pipe))
        assert difference is None, "hooks are no weights"
        raise RuntimeError
    assert first_difference(before, snapshot(pipe)) is None


def test_attacks_of_a_suite_run_through_the_store_and_stand_in_the_record(tiny_suite, tmp_path):
    file = tmp_path / "repeats.py"
    file.write_text(Path("attacks/_template.py").read_text())
    metrics = {"clip_score": tiny_suite.settings.metrics["clip_score"]}
    settings = tiny_suite.settings.model_copy(
        update={"metrics": metrics, "attacks": {str(file): {"images": 3, "distance": 1.0}}}
    )
    run = Run(
        Suite(settings, tiny_suite.file), "none", {}, tmp_path / "records", tmp_path / "store", CPU
    )
    record = run.execute()
    score = record.attacks["repeating_prompts"]
    assert (
        record.status == "complete"
        and score.value == 1.0
        and score.n == 4
        and record.per_prompt["repeating_prompts"]
    )
    assert len(run.store) == 4 * 3 + 2, (
        "three images of each memorized prompt and one of the two other clean ones; metrics and"
        " attack share the rest"
    )
