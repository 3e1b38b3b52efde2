"""The formats that a model comes in give the same pictures, and files that cannot be used are said
clearly.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.base.errors import UserError
from bench.base.safetensors_header import read_header
from bench.contracts.method import FitData, Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.model import load_denoiser, load_pipeline, stored_as
from bench.diffusion.weight_files import part_variants
from bench.running.sampling import sample
from bench.suite.load import load_suite
from bench.suite.schema import LATER
from bench.testbed.tiny import build_tiny_xl_pipeline, tiny_tokenizer
from conftest import CAPTIONS, SUITE, build_tiny_pipeline
from methods._nemo_layers import RowMasks, value_layers
from methods._nemo_probe import Detection, Probe
from methods.nemo import Nemo
from methods.wen import Wen
from one_file import ldm_state, open_clip_state, xl_state

CPU = torch.device("cpu")
PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def suite_on(tmp_path: Path, tiny_folder: Path, lines: str, side: int = 32):
    """The tiny suite on another model: `lines` replace the path."""
    for file in tiny_folder.iterdir():
        if not (tmp_path / file.name).exists():
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tiny.toml").unlink(missing_ok=True)
    (tmp_path / "tiny.toml").write_text(
        SUITE.replace('path = "pipeline"', lines).replace(
            "side = 32\nbatch", f"side = {side}\nbatch"
        )
    )
    return load_suite(str(tmp_path / "tiny.toml"))


def pictures(suite):
    denoiser = load_denoiser(suite, CPU)
    return denoiser.decode(sample(denoiser, denoiser.request(CAPTIONS[:2], [1, 2]), Method(), {}))


def half(pipe):
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.half()
    return pipe


# Formats


def test_a_folder_of_fp16_variant_files_is_found_by_looking_and_gives_what_its_weights_give(
    tmp_path, tiny_folder
):
    half(build_tiny_pipeline()).save_pretrained(tmp_path / "variant", variant="fp16")
    half(build_tiny_pipeline()).save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "variant/unet/diffusion_pytorch_model.safetensors").exists()
    variant, plain = (
        suite_on(tmp_path, tiny_folder, f'path = "{name}"') for name in ("variant", "plain")
    )
    assert next(load_pipeline(variant, CPU).unet.parameters()).dtype == torch.float32
    assert (pictures(variant) == pictures(plain)).all()
    assert stored_as(variant) == {
        "format": "fp16 variant",
        "types": {part: ["F16"] for part in PARTS},
    }
    assert stored_as(plain)["format"] == "folder"


def test_where_both_are_there_the_full_files_are_taken_part_by_part(tmp_path, tiny_folder):
    build_tiny_pipeline().save_pretrained(tmp_path / "mixed")
    half(build_tiny_pipeline(seed=7)).save_pretrained(tmp_path / "mixed", variant="fp16")
    suite = suite_on(tmp_path, tiny_folder, 'path = "mixed"')
    assert part_variants(tmp_path / "mixed") == dict.fromkeys(PARTS)
    assert (pictures(suite) == pictures(load_suite(str(tiny_folder / "tiny.toml")))).all()
    (tmp_path / "mixed/vae/diffusion_pytorch_model.safetensors").unlink()
    assert part_variants(tmp_path / "mixed") == {"unet": None, "vae": "fp16", "text_encoder": None}
    pipe = load_pipeline(suite_on(tmp_path, tiny_folder, 'path = "mixed"'), CPU)
    other = half(build_tiny_pipeline(seed=7))
    assert torch.equal(pipe.vae.decoder.conv_in.weight, other.vae.decoder.conv_in.weight.float())
    assert torch.equal(pipe.unet.conv_in.weight, build_tiny_pipeline().unet.conv_in.weight)


def test_weights_in_shards_load_too(tmp_path, tiny_folder):
    pipe = build_tiny_pipeline()
    pipe.save_pretrained(tmp_path / "shards")
    (tmp_path / "shards/unet/diffusion_pytorch_model.safetensors").unlink()
    pipe.unet.save_pretrained(tmp_path / "shards/unet", max_shard_size="200KB")
    assert len(list((tmp_path / "shards/unet").glob("*.safetensors"))) > 1
    suite = suite_on(tmp_path, tiny_folder, 'path = "shards"')
    assert (pictures(suite) == pictures(load_suite(str(tiny_folder / "tiny.toml")))).all()


@pytest.fixture
def single(tmp_path):
    """`model.safetensors` in the original layout and `config`, a folder without weights."""
    pipe = build_tiny_pipeline()
    pipe.save_pretrained(tmp_path / "config")
    for part, stem in PARTS.items():
        (tmp_path / "config" / part / f"{stem}.safetensors").unlink()
    save_file(ldm_state(pipe), tmp_path / "model.safetensors")
    return tmp_path


def test_a_checkpoint_in_one_file_gives_the_pictures_of_its_folder(single, tiny_folder):
    suite = suite_on(single, tiny_folder, 'path = "model.safetensors"\nconfig = "config"')
    assert (pictures(suite) == pictures(load_suite(str(tiny_folder / "tiny.toml")))).all()
    assert stored_as(suite)["format"] == "single file"


def test_a_single_file_keeps_the_prediction_type_of_its_config(single, tiny_folder):
    scheduler = single / "config/scheduler/scheduler_config.json"
    scheduler.write_text(
        json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"})
    )
    pipe = load_pipeline(
        suite_on(single, tiny_folder, 'path = "model.safetensors"\nconfig = "config"'), CPU
    )
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_a_single_file_without_config_or_with_a_folder_that_has_none_says_what_to_give(
    single, tiny_folder
):
    with pytest.raises(UserError, match=r"give \[model\] config = a diffusers folder"):
        load_pipeline(suite_on(single, tiny_folder, 'path = "model.safetensors"'), CPU)
    (single / "empty").mkdir()
    with pytest.raises(UserError, match=r"no model_index\.json"):
        load_pipeline(
            suite_on(single, tiny_folder, 'path = "model.safetensors"\nconfig = "empty"'), CPU
        )
    with pytest.raises(UserError, match="is a folder, which has its own"):
        load_pipeline(suite_on(single, tiny_folder, 'path = "config"\nconfig = "config"'), CPU)


def version_2_pipeline(side: int = 32):
    """The tiny pipeline with the text encoder's shape of Stable Diffusion 2.x: 23 layers, gelu;
    v-prediction.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    pipe, tokenizer = build_tiny_pipeline(prediction_type="v_prediction"), tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                projection_dim=16,
                num_hidden_layers=23,
                num_attention_heads=2,
                hidden_act="gelu",
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=len(tokenizer) - 2,
                eos_token_id=len(tokenizer) - 1,
            )
        )
    pipe.register_modules(text_encoder=text.eval().requires_grad_(False))
    pipe.unet.register_to_config(sample_size=side // 4)
    return pipe


def test_the_text_encoder_of_stable_diffusion_2_loads_from_both_layouts(tmp_path, tiny_folder):
    pipe = version_2_pipeline()
    pipe.save_pretrained(tmp_path / "folder")
    unchanged = {
        key: tensor
        for key, tensor in ldm_state(pipe).items()
        if not key.startswith("cond_stage_model")
    }
    save_file(
        unchanged
        | {
            key: tensor.contiguous().clone()
            for key, tensor in open_clip_state(pipe.text_encoder).items()
        },
        tmp_path / "v2.safetensors",
    )
    folder = suite_on(tmp_path, tiny_folder, 'path = "folder"')
    from_folder, layers = (
        pictures(folder),
        len(load_pipeline(folder, CPU).text_encoder.state_dict()),
    )
    single = suite_on(tmp_path, tiny_folder, 'path = "v2.safetensors"\nconfig = "folder"')
    assert (pictures(single) == from_folder).all()
    assert layers == len(pipe.text_encoder.state_dict())


def test_a_checkpoint_of_stable_diffusion_xl_in_one_file_gives_the_pictures_of_its_folder(
    tmp_path, tiny_folder
):
    pipe = build_tiny_xl_pipeline(second_width=48)  # diffusers tells the encoders apart by width
    with torch.no_grad():  # so that what a text encoder says shows in the picture
        for name, weight in pipe.unet.named_parameters():
            weight.mul_(12 if "attn2.to_v" in name or "add_embedding" in name else 1)
    pipe.save_pretrained(tmp_path / "folder")
    save_file(xl_state(pipe), tmp_path / "xl.safetensors")
    scheduler = 'scheduler = "EulerDiscreteScheduler"'
    from_folder = pictures(suite_on(tmp_path, tiny_folder, f'path = "folder"\n{scheduler}'))
    lines = f'path = "xl.safetensors"\nconfig = "folder"\n{scheduler}'
    assert (pictures(suite_on(tmp_path, tiny_folder, lines)) == from_folder).all()


@pytest.mark.parametrize(
    "scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_a_v_prediction_model_of_another_size_keeps_its_prediction_type_under_every_scheduler(
    tmp_path, tiny_folder, scheduler
):
    version_2_pipeline(side=48).save_pretrained(tmp_path / "v")
    suite = suite_on(tmp_path, tiny_folder, f'path = "v"\nscheduler = "{scheduler}"', side=48)
    pipe = load_pipeline(suite, CPU)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pictures(suite).shape == (2, 48, 48, 3)


# What cannot be used


def test_pickles_are_refused_and_the_line_says_how_to_convert(tmp_path, tiny_folder):
    for name in ("model.ckpt", "model.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"\x80\x04anything")
        with pytest.raises(
            UserError, match=r"is a pickle.*from_single_file\(OLD\)\.save_pretrained"
        ):
            load_pipeline(suite_on(tmp_path, tiny_folder, f'path = "{name}"\nconfig = "."'), CPU)
    build_tiny_pipeline().save_pretrained(tmp_path / "old", safe_serialization=False)
    with pytest.raises(UserError, match=r"pickles only.*from_pretrained\(OLD\)\.save_pretrained"):
        load_pipeline(suite_on(tmp_path, tiny_folder, 'path = "old"'), CPU)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_one(file: Path) -> None:
    state = load_file(file)
    del state[max(state)]
    save_file(state, file, metadata={"format": "pt"})


def with_nan(file: Path) -> None:
    state = load_file(file)
    state[max(key for key in state if key.endswith("weight"))].view(-1)[0] = float("nan")
    save_file(state, file, metadata={"format": "pt"})


def other_shape(file: Path) -> None:
    state = load_file(file)
    state[max(state)] = torch.zeros(3, 5)
    save_file(state, file, metadata={"format": "pt"})


DAMAGES = {
    truncated: "missing or damaged",
    Path.unlink: "missing or damaged",
    without_one: "lacks 1 of the weights",
    with_nan: "NaN or infinity",
    other_shape: "damaged",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_part_is_one_clear_line(tmp_path, tiny_folder, part, damage):
    shutil.copytree(tiny_folder / "pipeline", tmp_path / "pipeline")
    damage(tmp_path / "pipeline" / part / f"{PARTS[part]}.safetensors")
    with pytest.raises(UserError, match=DAMAGES[damage]) as caught:
        load_pipeline(suite_on(tmp_path, tiny_folder, 'path = "pipeline"'), CPU)
    assert "\n" not in str(caught.value) and part in str(caught.value)


def without_unet_output(file: Path) -> None:
    state = load_file(file)
    del state["model.diffusion_model.out.2.weight"]
    save_file(state, file)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (truncated, "cannot be loaded"),
        (without_unet_output, "lacks weights of its unet|cannot be loaded"),
        (with_nan, "NaN or infinity"),
    ],
)
def test_a_damaged_single_file_is_one_clear_line(single, tiny_folder, damage, line):
    damage(single / "model.safetensors")
    with pytest.raises(UserError, match=line) as caught:
        load_pipeline(
            suite_on(single, tiny_folder, 'path = "model.safetensors"\nconfig = "config"'), CPU
        )
    assert "\n" not in str(caught.value)


def test_a_header_that_is_none_is_said_and_costs_no_memory(tmp_path):
    for content in (b"", b"abc", b"\xff" * 16, (5).to_bytes(8, "little") + b"[1,2]"):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="header"):
            read_header(tmp_path / "x.safetensors")


# A model that predicts v is the same model


def predict_v(unet, alphas):
    """From now on the UNet gives v of its weights: `v = (eps - sqrt(1 - a) x) / sqrt(a)`."""
    epsilon = unet.forward

    def forward(sample, timestep, **named):
        alpha = alphas[int(timestep)]
        return (
            (epsilon(sample, timestep, **named)[0] - (1 - alpha).sqrt() * sample) / alpha.sqrt(),
        )

    unet.forward = forward


@pytest.fixture
def both():
    """Denoisers in float64 of an epsilon pipeline and of the v pipeline of the same weights."""
    denoisers = []
    for kind in ("epsilon", "v_prediction"):
        pipe = build_tiny_pipeline(prediction_type=kind).to(torch.float64)
        if kind == "v_prediction":
            predict_v(pipe.unet, pipe.scheduler.alphas_cumprod)
        denoisers.append(Denoiser(pipe, steps=4, guidance_scale=4.0, batch_size=4))
    yield denoisers
    for denoiser in denoisers:
        denoiser.close()


def latents_of(denoiser, method, state):
    request = denoiser.request(CAPTIONS[:2], [1, 2])
    with method.attach(denoiser.pipe, state):
        return sample(denoiser, request, method, state), request.facts


def test_epsilon_of_a_v_model_is_that_of_its_epsilon_model(both):
    epsilon, v = (
        [
            denoiser.epsilon(
                *denoiser.start(denoiser.initial_latents([1, 2]), index),
                denoiser.encode(CAPTIONS[:2]),
            )
            for index in range(4)
        ]
        for denoiser in both
    )
    torch.testing.assert_close(v, epsilon, rtol=0, atol=1e-9)


def test_sampling_and_wen_see_epsilon(both):
    (one, _), (other, _) = (latents_of(denoiser, Method(), {}) for denoiser in both)
    # The scheduler keeps its tables in float32, and reads v by them.
    torch.testing.assert_close(other, one, rtol=0, atol=5e-6)
    wen, data = Wen(quantile=0, iterations=4), FitData(clean_prompts=tuple(CAPTIONS[2:]))
    states = [wen.fit(denoiser, data) for denoiser in both]
    torch.testing.assert_close(states[1]["target"], states[0]["target"], rtol=1e-9, atol=0)
    (one, facts), (other, of_v) = (
        latents_of(denoiser, wen, state) for denoiser, state in zip(both, states, strict=True)
    )
    torch.testing.assert_close(other, one, rtol=0, atol=5e-6)
    assert sum(facts["updates"]) > 0 and of_v["updates"] == facts["updates"]
    assert of_v["magnitude_after"] == pytest.approx(facts["magnitude_after"], rel=1e-8)
    optimised = [
        wen.adjust(denoiser, denoiser.request(CAPTIONS[:2], [1, 2]), state).embeddings
        for denoiser, state in zip(both, states, strict=True)
    ]
    torch.testing.assert_close(optimised[1], optimised[0], rtol=0, atol=1e-6)


def test_nemo_sees_epsilon(both):
    changes, found = [], []
    nemo = Nemo(threshold=-1, seeds=2, similarity="ssim", theta=1.0, theta_min=0.5)
    for denoiser in both:
        masks = RowMasks(value_layers(denoiser.pipe.unet))
        with masks.hooked():
            changes.append(
                Probe(denoiser, masks, Detection("ssim", "channel", "second", 3, 1)).whole(
                    denoiser.encode(CAPTIONS[:1])
                )
            )
        found.append(
            latents_of(denoiser, nemo, nemo.fit(denoiser, FitData(clean_prompts=tuple(CAPTIONS))))
        )
    torch.testing.assert_close(changes[1], changes[0], rtol=0, atol=1e-6)
    assert found[1][1] == found[0][1]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-6)


# Schedulers


FILES = {
    "as it is": {},
    "a class without the keys": {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "clip_sample": None,
        "set_alpha_to_one": None,
        "steps_offset": None,
    },
    "an old file": {
        "_class_name": "PNDMScheduler",
        "clip_sample": None,
        "set_alpha_to_one": None,
        "steps_offset": None,
        "skip_prk_steps": None,
    },
    "a file that clips": {"_class_name": "DDPMScheduler", "clip_sample": True},
}


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("what", FILES)
def test_pictures_do_not_depend_on_the_scheduler_that_a_folder_was_saved_with(
    tmp_path, tiny_folder, what, scheduler
):
    changed = tmp_path / "changed"
    shutil.copytree(tiny_folder / "pipeline", changed)
    file, index = changed / "scheduler/scheduler_config.json", changed / "model_index.json"
    config = json.loads(file.read_text()) | FILES[what]
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    parts = json.loads(index.read_text())
    parts["scheduler"] = ["diffusers", config["_class_name"]]
    index.write_text(json.dumps(parts))
    drawn = []
    for path in ("pipeline", "changed"):
        lines = f'path = "{path}"\nscheduler = "{scheduler}"'
        denoiser = load_denoiser(suite_on(tmp_path, tiny_folder, lines), CPU)
        assert not denoiser.pipe.scheduler.config.get("clip_sample")
        request = denoiser.request(["a red apple"], [3])
        drawn.append(sample(denoiser, request, Method(), {}))
        denoiser.close()
    assert torch.equal(*drawn)


# Fingerprints and keys


@pytest.mark.parametrize(
    "record",
    sorted(Path(__file__).parents[2].glob("leaderboards/records/*/none/*.json")),
    ids=lambda path: path.stem,
)
def test_the_suites_of_committed_records_have_the_fingerprint_they_had(record):
    content = json.loads(record.read_text())
    assert load_suite(content["suite"]).fingerprint == content["suite_fingerprint"]


def test_later_settings_stand_in_fingerprint_and_key_only_where_they_say_something(
    tmp_path, tiny_folder, tiny_suite
):
    assert {name.rpartition(".")[2] for name in LATER}.isdisjoint(tiny_suite.generation)
    said = suite_on(tmp_path, tiny_folder, 'path = "pipeline"\nvae_tiling = false')
    tiled = suite_on(tmp_path, tiny_folder, 'path = "pipeline"\nvae_tiling = true')
    assert said.generation == tiny_suite.generation and said.fingerprint == tiny_suite.fingerprint
    assert tiled.generation != tiny_suite.generation and tiled.fingerprint != tiny_suite.fingerprint
    assert load_pipeline(tiled, CPU).vae.use_tiling and not load_pipeline(said, CPU).vae.use_tiling


def test_the_contents_of_a_config_folder_are_part_of_fingerprint_and_key(single, tiny_folder):
    lines = 'path = "model.safetensors"\nconfig = "config"'
    before = suite_on(single, tiny_folder, lines)
    was = before.fingerprint, before.generation
    (single / "config/note.txt").write_text("other")
    after = suite_on(single, tiny_folder, lines)
    assert after.fingerprint != was[0] and after.generation != was[1]
