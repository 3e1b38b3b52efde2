"""What a model was fine-tuned from: what a suite says of it, who gets it, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from bench.base.errors import UserError
from bench.diffusion.model import load_base, load_denoiser
from bench.running.experiment import Experiment
from bench.suite.load import load_suite
from bench.suite.schema import protocol
from bench.testbed.tiny import SUITE, build_tiny_pipeline
from conftest import bench
from one_run import Run

CPU = torch.device("cpu")
LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
ATTACK = "[attacks.model_guidance]\nimages = 2\ntargets = 3\n"
METRICS = "[metrics.clip_score]"


@pytest.fixture(autouse=True)
def _the_tiny_suite_may_be_read(monkeypatch, tiny_folder):
    monkeypatch.setenv("BENCH_ALLOW", str(tiny_folder))


def suite_of(folder, tiny_folder, text="", name="mine", model=""):
    """The tiny suite with only copies judged, and what a test adds."""
    whole = SUITE.replace('name = "tiny"', f'name = "{name}"').replace("[model]", f"[model]{model}")
    head, _, _ = whole.partition(METRICS)
    for file in tiny_folder.iterdir():
        if not (folder / file.name).exists() and file.name != "tiny.toml":
            (folder / file.name).symlink_to(file)
    (folder / f"{name}.toml").write_text(head + text)
    return load_suite(str(folder / f"{name}.toml"))


def lora(folder, name="1.safetensors"):
    drawn = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=drawn) for shape in ((16, 2), (2, 16)))
    save_file({f"{LINEAR}.lora_up.weight": up, f"{LINEAR}.lora_down.weight": down}, folder / name)
    return f'\n[[model.loras]]\nfile = "{name}"\n'


def refused(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what a suite says


def test_a_suite_without_a_base_is_who_it_was(tmp_path, tiny_folder, tiny_suite):
    assert tiny_suite.base is None and "base" not in protocol(tiny_suite.settings)["model"]
    named = suite_of(tmp_path, tiny_folder, model='\nbase = "base"')
    plain = suite_of(tmp_path, tiny_folder)
    assert named.fingerprint != plain.fingerprint
    # the same pictures: who made them was not fine-tuned otherwise
    assert named.generation == plain.generation
    assert (named.base.settings.model.path, named.base.base) == ("base", None)
    assert named.base.generation != plain.generation
    same = suite_of(tmp_path, tiny_folder, model='\nbase = "pipeline"')
    assert same.base.generation == plain.generation


def test_with_loras_the_base_is_the_model_without_them(tmp_path, tiny_folder):
    plain, files = suite_of(tmp_path, tiny_folder), lora(tmp_path)
    merged = suite_of(tmp_path, tiny_folder, files)
    assert merged.base.generation == plain.generation != merged.generation
    other = suite_of(tmp_path, tiny_folder, files, model='\nbase = "base"')
    assert other.base.settings.model.path == "base" and not other.base.settings.model.loras


def test_a_checkpoint_in_one_file_takes_the_models_configs(tmp_path, tiny_folder):
    (tmp_path / "one.safetensors").write_bytes(b"x")
    named = suite_of(tmp_path, tiny_folder, model='\nbase = "one.safetensors"')
    assert named.base.settings.model.config == "pipeline"
    turned = suite_of(tmp_path, tiny_folder, model='\nbase = "base"\nconfig = "pipeline"')
    assert turned.base.settings.model.config is None


def test_a_suite_of_another_folder_finds_base_and_loras_of_the_one_it_extends(
    tmp_path, tiny_folder
):
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir(), outer.mkdir()
    merged = suite_of(inner, tiny_folder, lora(inner), model='\nbase = "base"')
    (outer / "wide.toml").write_text(f'extends = "{inner / "mine.toml"}"\nname = "wide"\n')
    wide = load_suite(str(outer / "wide.toml"))
    assert wide.base.generation == merged.base.generation
    assert wide.generation == merged.generation


def test_the_doctor_and_a_plan_look_for_the_base(tmp_path, tiny_folder):
    suite_of(tmp_path, tiny_folder, model='\nbase = "nowhere"')
    planned = bench("run", "--suite", tmp_path / "mine.toml", "--method", "none", "--dry-run")
    assert "missing: nowhere" in planned.stdout
    from bench.doctor.suites import look

    assert any(
        "nowhere" in one.path and one.problem for one in look(str(tmp_path / "mine.toml")).files
    )


# --- who gets it


def test_who_needs_a_base_and_has_none_is_told_in_one_line(tmp_path, tiny_folder, tiny_suite):
    says = "needs what the model was fine-tuned from, and suite"

    def asked(suite, method):
        return refused(lambda: Experiment.resolve(suite, method, {}))

    assert says in asked(tiny_suite, "baf")
    suite = suite_of(tmp_path, tiny_folder, ATTACK)
    assert f"attack model_guidance {says}" in asked(suite, "none")
    ran = bench("run", "--suite", suite.file, "--method", "none", "--store", tmp_path / "store")
    assert ran.returncode == 2 and says in ran.stderr and not (tmp_path / "store").exists()


def test_a_method_is_another_on_another_base_and_others_are_not(tmp_path, tiny_folder):
    one, other = (
        suite_of(tmp_path, tiny_folder, name=name, model=f'\nbase = "{name}"')
        for name in ("base", "pipeline")
    )
    for method, alike in (("baf", False), ("none", True)):
        identities = [
            Experiment.resolve(suite, method, {}).store_identity for suite in (one, other)
        ]
        assert (identities[0] == identities[1]) is alike


@pytest.mark.parametrize("method, parameters", [("none", {}), ("baf", {"q": 0.5})])
def test_a_run_from_end_to_end(tmp_path, tiny_folder, method, parameters):
    suite = suite_of(tmp_path, tiny_folder, ATTACK, model='\nbase = "base"')
    run = Run(suite, method, parameters, tmp_path / "records", tmp_path / "store", CPU)
    planned = run.plan()["pictures_attacked"]["model_guidance"]
    assert planned == {"pictures": 3, "row_evaluations": 3 * 2 * 3 * 2 * 3}
    record = run.execute()
    assert record.status == "complete"
    excess = record.attacks["model_guidance_excess"]
    assert excess.threat == "weights" and excess.low <= excess.value <= excess.high
    assert excess.details["row_evaluations"] == {"model": 3 * 2 * 3 * 3, "base": 3 * 2 * 3}
    for name in ("extracted", "own", "plain"):
        assert 0 <= record.attacks[f"model_guidance_{name}"].value <= 1
        assert record.per_prompt[f"model_guidance_{name}"].keys() == {"p2", "p3", "p4"}
    assert len(record.exhibits) == 3
    if method == "baf":
        file = tmp_path / "filtered.safetensors"
        assert run.experiment.method.write(file, run.engine.denoiser, run.engine.base)
        assert record.needs == ["base"] and record.holds_against == ["api", "weights"]
    # what was found stays found
    again = Run(suite, method, parameters, tmp_path / "records", tmp_path / "store", CPU)
    repeated = again.execute()
    assert not again.engine.is_loaded
    assert repeated.attacks["model_guidance_sscd"] == record.attacks["model_guidance_sscd"]


def test_the_model_itself_as_its_base_gives_no_excess(tmp_path, tiny_folder):
    suite = suite_of(tmp_path, tiny_folder, ATTACK, model='\nbase = "pipeline"')
    record = Run(suite, "none", {}, tmp_path / "records", tmp_path / "store", CPU).execute()
    scores = record.attacks
    assert scores["model_guidance_excess"].value == 0
    own, by_base = (record.per_prompt[f"model_guidance_{name}"] for name in ("own_sscd", "sscd"))
    assert own == by_base


# --- what does not fit


def other_pipeline(folder, change):
    shutil.copytree(folder / "pipeline", folder / "other", dirs_exist_ok=True)
    file = folder / "other" / change[0]
    file.write_text(json.dumps(json.loads(file.read_text()) | change[1]))


def test_a_base_of_other_shapes_is_one_line_before_anything_is_generated(tmp_path, tiny_folder):
    from diffusers import UNet2DConditionModel

    suite = suite_of(tmp_path, tiny_folder, ATTACK, model='\nbase = "other"')
    pipe = build_tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        config = dict(pipe.unet.config) | {"block_out_channels": (16, 48)}
        pipe.unet = UNet2DConditionModel.from_config(config)
    pipe.save_pretrained(tmp_path / "other")
    ran = bench(
        *("run", "--suite", suite.file, "--method", "none", "--device", "cpu"),
        *("--store", tmp_path / "store", "--records", tmp_path / "records"),
    )
    assert ran.returncode == 2
    says = [line for line in ran.stderr.splitlines() if line.startswith("bench: ")]
    assert len(says) == 1 and "is no base of the suite's model: unet." in says[0]
    assert not (tmp_path / "store").exists()


def test_a_base_of_another_noise_schedule_is_one_line(tmp_path, tiny_folder):
    suite = suite_of(tmp_path, tiny_folder, model='\nbase = "other"')
    other_pipeline(tmp_path, ("scheduler/scheduler_config.json", {"beta_end": 0.02}))
    model = load_denoiser(suite, CPU)
    assert "its noise schedule is another one" in refused(lambda: load_base(suite.base, model))
