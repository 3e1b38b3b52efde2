"""Stable Diffusion XL: our sampler against diffusers, texts of two encoders, folders, and what is
refused by name.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.base.errors import UserError
from bench.contracts.held import Held
from bench.contracts.method import Method
from bench.diffusion.batch_size import batch_size_by_trial
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.families import STEMS, family_of, parts_of
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.diffusion.lora.names import Place, module_names
from bench.diffusion.model import load_denoiser, load_pipeline, stored_as
from bench.diffusion.weight_files import part_variants
from bench.running.sampling import sample
from bench.suite.load import load_suite
from bench.testbed.tiny import build_tiny_xl_pipeline
from conftest import CAPTIONS, SUITE, build_tiny_pipeline
from methods._nemo_layers import value_layers
from methods.wanda import feed_forward_outputs

CPU = torch.device("cpu")
PROMPTS, SEEDS = CAPTIONS[:3], [11, 12, 13]
SIZES = (40, 48, 3, 5, 24, 32)  # original, crop and target: none of them what is the default
PUBLISHED = {  # of the UNet of Stable Diffusion XL's base model
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def listening(pipe):
    """The pipeline with a UNet that hears its texts well: random weights hardly do."""
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if "attn2.to_v" in name or "add_embedding" in name:
                weight.mul_(12)
    return pipe


def drawn(denoiser, request):
    return denoiser.decode(sample(denoiser, request, Method(), {})).astype(int)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("zero_null", [True, False])
@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DDIMScheduler"])
def test_default_doors_reproduce_the_diffusers_pipeline(scheduler, zero_null, guidance):
    import diffusers

    pipe = listening(build_tiny_xl_pipeline(zero_null=zero_null, statistics=guidance > 1))
    more = {"clip_sample": False, "set_alpha_to_one": False} if scheduler[0] == "D" else {}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **more)
    denoiser = Denoiser(pipe, 6, guidance, time_ids=SIZES)
    request = denoiser.request(PROMPTS, SEEDS)
    ours = drawn(denoiser, request)
    theirs = pipe(
        PROMPTS,
        num_inference_steps=6,
        guidance_scale=guidance,
        latents=request.latents.clone(),
        output_type="np",
        original_size=SIZES[:2],
        crops_coords_top_left=SIZES[2:4],
        target_size=SIZES[4:],
    ).images
    assert np.abs(ours - (theirs * 255).round().astype(int)).max() <= 1
    # The bound is not vacuous: another scale, and other sizes, give other pictures.
    others = request.replace(guidance_scale=guidance + 2)
    assert np.abs(ours - drawn(denoiser, others)).max() > 1
    resized = request.replace(time_ids=torch.full_like(request.time_ids, 32))
    assert np.abs(ours - drawn(denoiser, resized)).max() > 1


def test_exchanging_the_pooled_text_alone_changes_the_picture():
    denoiser = Denoiser(listening(build_tiny_xl_pipeline()), 4, 5.0)
    request = denoiser.request(PROMPTS, SEEDS)
    exchanged = request.replace(pooled=request.pooled.roll(1, 0))
    difference = np.abs(drawn(denoiser, request) - drawn(denoiser, exchanged))
    assert (difference.reshape(3, -1).max(1) > 1).all()


def test_texts_are_the_penultimate_states_of_both_encoders_and_the_projection_of_the_second():
    pipe = build_tiny_xl_pipeline()
    denoiser = Denoiser(pipe, 4, 5.0)
    embeddings, added = denoiser.texts(PROMPTS)
    assert pipe.tokenizer.pad_token != "!" and pipe.tokenizer_2.pad_token == "!"
    for row, prompt in enumerate(PROMPTS):
        halves, pooled = [], None
        for tokenizer, encoder in (
            (pipe.tokenizer, pipe.text_encoder),
            (pipe.tokenizer_2, pipe.text_encoder_2),
        ):
            ids = tokenizer(prompt).input_ids
            padding = tokenizer.convert_tokens_to_ids(tokenizer.pad_token)
            full = ids + [padding] * (tokenizer.model_max_length - len(ids))
            with torch.no_grad():
                found = encoder(torch.tensor([full]), output_hidden_states=True)
            halves.append(found.hidden_states[-2][0])
            pooled = found[0]
        torch.testing.assert_close(embeddings[row], torch.cat(halves, 1), rtol=0, atol=1e-6)
        torch.testing.assert_close(added.pooled[row], pooled[0], rtol=0, atol=1e-6)
    assert added.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]] * 3


@pytest.mark.parametrize("zero_null", [True, False])
def test_the_empty_prompt_is_zeros_or_what_the_encoders_make_of_it(zero_null):
    denoiser = Denoiser(build_tiny_xl_pipeline(zero_null=zero_null), 4, 5.0)
    request = denoiser.request(PROMPTS, SEEDS)
    embeddings, added = denoiser.texts([""])
    wanted = (0 * embeddings, 0 * added.pooled) if zero_null else (embeddings, added.pooled)
    assert torch.equal(request.null_embeddings, wanted[0].expand(3, -1, -1))
    assert torch.equal(request.null_pooled, wanted[1].expand(3, -1))
    assert embeddings.any() and added.pooled.any()


def test_rewording_a_prompt_changes_the_pooled_text_too():
    class Reworded(Method):
        def adjust(self, denoiser, request, state):
            return request.replace(prompts=tuple(reversed(request.prompts)))

    denoiser = Denoiser(listening(build_tiny_xl_pipeline()), 4, 5.0)
    asked = denoiser.request(PROMPTS, SEEDS)
    ours = sample(denoiser, asked, Reworded(), {})
    turned = denoiser.request(PROMPTS[::-1], SEEDS)
    assert torch.equal(ours, sample(denoiser, turned, Method(), {}))
    halfway = asked.replace(embeddings=turned.embeddings)
    assert not torch.equal(ours, sample(denoiser, halfway, Method(), {}))


def test_a_method_that_drops_the_pooled_text_is_told():
    class Dropping(Method):
        def adjust(self, denoiser, request, state):
            return request.replace(pooled=None)

    denoiser = Denoiser(build_tiny_xl_pipeline(), 4, 5.0)
    with pytest.raises(UserError, match="adjust changed pooled from"):
        sample(denoiser, denoiser.request(PROMPTS, SEEDS), Dropping(), {})
    with pytest.raises(UserError, match="pooled text"):
        denoiser.epsilon(
            denoiser.initial_latents(SEEDS), denoiser.timesteps[0], denoiser.encode(PROMPTS)
        )


def test_an_embedding_that_is_handed_in_keeps_the_pooled_text_of_its_caption():
    denoiser = Denoiser(build_tiny_xl_pipeline(), 4, 5.0)
    held = Held("base", denoiser, 32, lambda request, guide, start: request.latents)
    request = denoiser.request(PROMPTS, SEEDS)
    given = held.handing_in(request, 2 * request.embeddings)
    embeddings, added = denoiser.texts(given.prompts)
    assert torch.equal(embeddings, 2 * request.embeddings)
    assert torch.equal(added.pooled, request.pooled)


def test_rows_of_a_request_have_their_own_pooled_text_and_sizes():
    denoiser = Denoiser(build_tiny_xl_pipeline(), 4, 5.0, time_ids=SIZES)
    request = denoiser.request(PROMPTS, SEEDS)
    for rows in ([2, 0], slice(1, None)):
        part, numbers = request.rows(rows), np.arange(3)[rows]
        assert part.prompts == tuple(PROMPTS[number] for number in numbers)
        assert part.seeds == tuple(SEEDS[number] for number in numbers)
        for name in ("latents", "embeddings", "null_embeddings", "pooled", "null_pooled"):
            assert torch.equal(getattr(part, name), getattr(request, name)[rows])
        assert part.time_ids.tolist() == [list(SIZES)] * len(numbers)
    both = request.both_added
    assert torch.equal(both.pooled, torch.cat([request.null_pooled, request.pooled]))


def test_latents_are_scaled_by_the_autoencoders_own_statistics():
    pipe = build_tiny_xl_pipeline(statistics=True)
    denoiser = Denoiser(pipe, 4, 5.0)
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    ours = denoiser.encoded(picture)
    pixels = torch.tensor(picture / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)
    coded = pipe.vae.encode(pixels).latent_dist.mode()
    for channel in range(4):
        mean, deviation = (
            pipe.vae.config[name][channel] for name in ("latents_mean", "latents_std")
        )
        wanted = (coded[:, channel] - mean) / deviation * 0.13025
        torch.testing.assert_close(ours[:, channel], wanted, rtol=1e-5, atol=1e-6)
    plain = pipe.vae.decode(coded, return_dict=False)[0]
    shown = ((plain / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(denoiser.decode(ours).astype(int) - shown).max() <= 1


@pytest.fixture(scope="module")
def xl_model(tmp_path_factory):
    """The tiny model of Stable Diffusion XL as a diffusers folder."""
    folder = tmp_path_factory.mktemp("xl") / "model"
    listening(build_tiny_xl_pipeline()).save_pretrained(folder)
    return folder


@pytest.fixture
def xl_suite(xl_model, tiny_folder, tmp_path):
    """Makes the tiny suite on a copy of that model, with more lines of `[model]`."""
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tiny.toml").unlink()
    shutil.copytree(xl_model, tmp_path / "xl")

    def make(lines="", after=""):
        text = SUITE.replace(
            'path = "pipeline"', f'path = "xl"\nscheduler = "EulerDiscreteScheduler"\n{lines}'
        )
        # Metrics are not what these tests are about.
        text = text.partition("[metrics.clip_score]")[0]
        (tmp_path / "tiny.toml").write_text(f"{text}\n{after}")
        return load_suite(str(tmp_path / "tiny.toml"))

    make.folder = tmp_path
    return make


def test_a_folder_gives_the_pictures_of_its_pipeline(xl_suite):
    suite = xl_suite("size_conditioning = { original = [40, 48], crop = [3, 5] }")
    denoiser = load_denoiser(suite, CPU)
    assert denoiser.time_ids(1).tolist() == [[40, 48, 3, 5, 32, 32]]
    direct = Denoiser(listening(build_tiny_xl_pipeline()), 3, 4.0, time_ids=(40, 48, 3, 5, 32, 32))
    ours, theirs = (drawn(each, each.request(PROMPTS, SEEDS)) for each in (denoiser, direct))
    assert (ours == theirs).all()
    assert set(stored_as(suite)["types"]) == set(STEMS["sdxl"])


def test_sizes_are_part_of_the_fingerprint_and_only_where_they_are_said(xl_suite):
    plain, cropped = xl_suite(), xl_suite("size_conditioning = { crop = [3, 5] }")
    assert "size_conditioning" not in plain.generation
    assert plain.fingerprint != cropped.fingerprint and plain.generation != cropped.generation


def test_sizes_on_a_model_that_reads_none_are_refused(tiny_folder, xl_suite):
    suite = xl_suite("size_conditioning = { crop = [3, 5] }")
    shutil.rmtree(xl_suite.folder / "xl")
    shutil.copytree(tiny_folder / "pipeline", xl_suite.folder / "xl")
    with pytest.raises(UserError, match="size_conditioning. is for Stable Diffusion XL"):
        load_denoiser(suite, CPU)


@pytest.mark.parametrize("upcast", [True, False])
def test_half_precision_decodes_in_float32_where_the_autoencoder_asks_for_it(xl_suite, upcast):
    config = xl_suite.folder / "xl/vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": upcast}))
    denoiser = load_denoiser(xl_suite('dtype = "float16"'), CPU)
    assert denoiser.dtype == torch.float16
    assert denoiser.pipe.vae.dtype == (torch.float32 if upcast else torch.float16)
    latents = denoiser.initial_latents(SEEDS)
    pictures = denoiser.decode(latents)
    assert denoiser.encoded(pictures).dtype == torch.float16
    if upcast:
        vae = build_tiny_xl_pipeline().vae.half().float()
        with torch.no_grad():
            plain = vae.decode(latents.float() / 0.13025, return_dict=False)[0]
        shown = ((plain / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
        assert np.abs(pictures.astype(int) - shown).max() <= 1


def test_an_fp16_variant_is_found_in_every_part(xl_suite):
    folder = xl_suite.folder / "xl"
    for part, stem in STEMS["sdxl"].items():
        file = folder / part / f"{stem}.safetensors"
        halved = {name: value.half() for name, value in load_file(file).items()}
        save_file(halved, folder / part / f"{stem}.fp16.safetensors", {"format": "pt"})
        file.unlink()
    assert set(part_variants(folder).values()) == {"fp16"}
    pipe = load_pipeline(xl_suite(), CPU)
    for part, network in parts_of(pipe).items():
        wanted = dict(getattr(listening(build_tiny_xl_pipeline()), part).named_parameters())
        for name, value in network.named_parameters():
            assert torch.equal(value, wanted[name].half().float()), (part, name)


def edited(path, **changes):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


REFUSED = {
    "FLUX": (
        lambda m: edited(
            m / "model_index.json",
            _class_name="FluxPipeline",
            transformer=["diffusers", "FluxTransformer2DModel"],
        ),
        r"FluxPipeline is a flow-matching transformer, not supported yet \(Stable Diffusion 1, 2"
        r" and XL are\)",
    ),
    "SD 3": (
        lambda m: edited(m / "model_index.json", _class_name="StableDiffusion3Pipeline"),
        "StableDiffusion3Pipeline is a flow-matching transformer, not supported yet",
    ),
    "another transformer": (
        lambda m: edited(
            m / "model_index.json",
            _class_name="PixArtAlphaPipeline",
            transformer=["diffusers", "PixArtTransformer2DModel"],
        ),
        "PixArtAlphaPipeline has the part transformer, not supported yet",
    ),
    "refiner": (
        lambda m: edited(m / "model_index.json", text_encoder=[None, None], tokenizer=[None, None]),
        "refiner of Stable Diffusion XL",
    ),
    "guidance distilled": (
        lambda m: edited(m / "unet/config.json", time_cond_proj_dim=256),
        "distilled to a few steps .*time_cond_proj_dim",
    ),
    "turbo": (
        lambda m: edited(
            m / "scheduler/scheduler_config.json",
            _class_name="EulerAncestralDiscreteScheduler",
            timestep_spacing="trailing",
        ),
        "distilled to a few steps .*EulerAncestralDiscreteScheduler with the spacing trailing",
    ),
    "LCM": (
        lambda m: edited(m / "scheduler/scheduler_config.json", _class_name="LCMScheduler"),
        "distilled to a few steps .*LCMScheduler",
    ),
    "inpainting": (
        lambda m: edited(m / "unet/config.json", in_channels=9),
        "inpainting model .*reads 9 channels and predicts 4",
    ),
    "zero terminal SNR": (
        lambda m: edited(
            m / "scheduler/scheduler_config.json",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
        ),
        "zero terminal SNR",
    ),
    "no second encoder": (
        lambda m: edited(m / "model_index.json", text_encoder_2=[None, None]),
        "StableDiffusionXLPipeline has no text_encoder_2",
    ),
    "a class of somebody else": (
        lambda m: edited(m / "model_index.json", text_encoder_2=["transformers", "T5EncoderModel"]),
        "its text_encoder_2 is .*, which is no part of Stable Diffusion XL",
    ),
    "a tokenizer of somebody else": (
        lambda m: edited(m / "model_index.json", tokenizer_2=["os", "system"]),
        "its tokenizer_2 is .*, which is no part of Stable Diffusion XL",
    ),
    "code": (
        lambda m: (m / "text_encoder_2/model.py").write_text("raise SystemExit"),
        "brings code",
    ),
    "code behind a table": (
        lambda m: edited(m / "text_encoder_2/config.json", auto_map={"AutoModel": "x.Y"}),
        "names code of its own",
    ),
    "weights that are missing": (
        lambda m: (m / "text_encoder_2/model.safetensors").unlink(),
        "no text_encoder_2/model.safetensors",
    ),
    "a pickle": (
        lambda m: (m / "text_encoder_2/model.safetensors").rename(
            m / "text_encoder_2/pytorch_model.bin"
        ),
        "pickles only",
    ),
    "another second encoder": (
        lambda m: edited(m / "text_encoder_2/config.json", projection_dim=16),
        "text_encoder_2",
    ),
    "a UNet without sizes": (
        lambda m: edited(
            m / "unet/config.json",
            addition_embed_type=None,
            projection_class_embeddings_input_dim=None,
        ),
        "addition_embed_type None",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_sampled_is_refused_in_one_line(xl_suite, what):
    break_it, says = REFUSED[what]
    break_it(xl_suite.folder / "xl")
    with pytest.raises(UserError, match=says) as error:
        load_pipeline(xl_suite(), CPU)
    assert "\n" not in str(error.value)


def test_nan_in_the_second_text_encoder_is_found(xl_suite):
    file = xl_suite.folder / "xl/text_encoder_2/model.safetensors"
    tensors = load_file(file)
    tensors["text_projection.weight"][0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"NaN or infinity in text_encoder_2.text_projection"):
        load_pipeline(xl_suite(), CPU)


def test_a_folder_of_stable_diffusion_1_may_not_name_a_second_tokenizer(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "suite")
    assert family_of(folder / "pipeline") == "sd"
    edited(folder / "pipeline/model_index.json", tokenizer_2=["transformers", "CLIPTokenizer"])
    with pytest.raises(UserError, match="its tokenizer_2 is"):
        load_pipeline(load_suite(str(folder / "tiny.toml")), CPU)


def test_an_inpainting_model_of_stable_diffusion_1_is_refused_by_name(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "suite")
    edited(folder / "pipeline/unet/config.json", in_channels=9)
    with pytest.raises(UserError, match="inpainting model"):
        load_pipeline(load_suite(str(folder / "tiny.toml")), CPU)


TEXT = "encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"lora_te1_text_model_{TEXT.replace('.', '_')}.lora_{{}}.weight", "text_encoder"),
        (f"lora_te2_text_model_{TEXT.replace('.', '_')}.lora_{{}}.weight", "text_encoder_2"),
        (f"text_encoder_2.text_model.{TEXT}.lora_{{}}.weight", "text_encoder_2"),
        ("lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k.lora_{}.weight", "unet"),
    ],
)
def test_a_lora_changes_the_part_that_it_names(tmp_path, name, part):
    pipe = build_tiny_xl_pipeline()
    before = {
        (each, key): value.clone()
        for each, network in parts_of(pipe).items()
        for key, value in network.named_parameters()
    }
    width = 64 if part == "unet" else 32
    random = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=random) for shape in ((32, 2), (2, width)))
    save_file({name.format("up"): up, name.format("down"): down}, tmp_path / "one.safetensors")
    merge(pipe, [(read_lora(tmp_path / "one.safetensors"), Strength(0.5, 0.5))])
    changed = {
        (each, key)
        for each, network in parts_of(pipe).items()
        for key, value in network.named_parameters()
        if not torch.equal(value, before[each, key])
    }
    assert len(changed) == 1 and {each for each, _ in changed} == {part}
    (place,) = changed
    after = dict(parts_of(pipe)[part].named_parameters())[place[1]]
    torch.testing.assert_close(after, before[place] + 0.5 * up @ down, rtol=1e-5, atol=1e-6)


def test_a_lora_of_a_suite_reaches_the_second_text_encoder(xl_suite):
    name = f"lora_te2_text_model_{TEXT.replace('.', '_')}"
    tensors = {
        f"{name}.lora_up.weight": torch.ones(32, 2),
        f"{name}.lora_down.weight": torch.ones(2, 32),
    }
    save_file(tensors, xl_suite.folder / "one.safetensors")
    plain, changed = (
        load_denoiser(suite, CPU).added(PROMPTS).pooled
        for suite in (
            xl_suite(),
            xl_suite(after='[[model.loras]]\nfile = "one.safetensors"\ntext_weight = 0.1'),
        )
    )
    assert not torch.equal(plain, changed)


@pytest.fixture(scope="module")
def published_unet():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**PUBLISHED)


def test_methods_find_the_layers_of_the_published_unet(published_unet):
    """Seventy outputs of feed-forwards (4 + 20 down, 10 in the middle, 30 + 6 up), and 34 value
    projections on the way down and in the middle; the first block has no attention.
    """
    assert len(feed_forward_outputs(published_unet)) == 70
    layers = list(value_layers(published_unet))
    assert len(layers) == 34 and not any(name.startswith("down_blocks.0") for name in layers)


def test_lora_files_in_stabilitys_spelling_mean_the_modules_of_the_published_unet(published_unet):
    class Pipe:
        unet = published_unet

    names = module_names(Pipe)  # which refuses a spelling of two modules
    for theirs, ours in {
        "input_blocks_4_1_transformer_blocks_0_attn2_to_k": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
        ),
        "input_blocks_8_1_transformer_blocks_9_ff_net_2": (
            "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2"
        ),
        "middle_block_1_transformer_blocks_9_attn1_to_q": (
            "mid_block.attentions.0.transformer_blocks.9.attn1.to_q"
        ),
        "output_blocks_5_1_proj_in": "up_blocks.1.attentions.2.proj_in",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "label_emb_0_0": "add_embedding.linear_1",
    }.items():
        assert names[f"lora_unet_{theirs}"] == Place("unet", ours)


def test_a_batch_size_is_found_by_trial():
    denoiser = Denoiser(build_tiny_xl_pipeline(), 4, 5.0)
    assert batch_size_by_trial(denoiser, memory_gib=64, gradients=True, most=2) == 2
    assert denoiser.evaluations == 0


def test_a_model_of_stable_diffusion_1_has_no_pooled_text():
    denoiser = Denoiser(build_tiny_pipeline(), 4, 5.0)
    request = denoiser.request(PROMPTS, SEEDS)
    assert denoiser.family == "sd" and denoiser.added(PROMPTS) is None
    assert request.added is None and request.both_added is None and request.time_ids is None
