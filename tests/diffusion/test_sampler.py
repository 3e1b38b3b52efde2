import numpy as np
import pytest
import torch

from bench.base.errors import UserError
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.running.sampling import sample
from conftest import CAPTIONS, build_tiny_pipeline

SEEDS = [11, 12, 13]
PROMPTS = CAPTIONS[:3]


@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"],
)
def test_default_doors_reproduce_the_diffusers_pipeline(scheduler):
    import diffusers

    pipe = build_tiny_pipeline()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    denoiser = Denoiser(pipe, steps=6, guidance_scale=5.0)
    request = denoiser.request(PROMPTS, SEEDS)
    ours = denoiser.decode(sample(denoiser, request, Method(), {}))
    theirs = pipe(
        PROMPTS,
        num_inference_steps=6,
        guidance_scale=5.0,
        latents=request.latents.clone(),
        output_type="np",
    ).images
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 1
    unguided = denoiser.decode(sample(denoiser, request.replace(guidance_scale=1.0), Method(), {}))
    # the bound above is not vacuous
    assert np.abs(ours.astype(int) - unguided.astype(int)).max() > 1


def test_a_v_prediction_model_gives_the_pictures_of_its_own_pipeline():
    pipe = build_tiny_pipeline(prediction_type="v_prediction")
    denoiser = Denoiser(pipe, steps=6, guidance_scale=5.0)
    request = denoiser.request(PROMPTS, SEEDS)
    ours = denoiser.decode(sample(denoiser, request, Method(), {}))
    theirs = pipe(
        PROMPTS,
        num_inference_steps=6,
        guidance_scale=5.0,
        latents=request.latents.clone(),
        output_type="np",
    ).images
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 1


def test_half_precision_v_predictions_are_converted_and_kept_in_float32():
    """Their differences are small beside the latents that they are mixed with."""
    pipe = build_tiny_pipeline(prediction_type="v_prediction")
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.to(torch.bfloat16)
    denoiser = Denoiser(pipe, steps=4, guidance_scale=5.0)
    request = denoiser.request(PROMPTS, SEEDS)
    scaled, timestep = denoiser.start(request.latents)
    both = torch.cat([request.null_embeddings, request.embeddings])
    with torch.no_grad():
        unconditional, conditional = denoiser.branches(scaled, timestep, request, 0)
        raw = pipe.unet(torch.cat([scaled] * 2), timestep, encoder_hidden_states=both).sample
    assert raw.dtype == torch.bfloat16 and conditional.dtype == torch.float32
    v_unconditional, v_conditional = raw.double().chunk(2)
    exact = denoiser.alphas[0].double().sqrt() * (v_conditional - v_unconditional)
    lost = (conditional.double() - unconditional.double() - exact).norm() / exact.norm()
    assert lost < 1e-3
    narrow = (conditional.bfloat16() - unconditional.bfloat16()).double()
    assert (narrow - exact).norm() / exact.norm() > 0.1  # what was lost before
    pictures = denoiser.decode(sample(denoiser, request, Method(), {}))
    assert pictures.dtype == np.uint8 and len(pictures) == 3


def test_an_image_does_not_depend_on_the_images_beside_it(denoiser):
    together = sample(denoiser, denoiser.request(PROMPTS, SEEDS), Method(), {})
    alone = torch.cat(
        [
            sample(denoiser, denoiser.request([p], [s]), Method(), {})
            for p, s in zip(PROMPTS, SEEDS, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_sampling_leaves_the_global_random_state_alone(denoiser):
    before = torch.get_rng_state()
    sample(denoiser, denoiser.request(PROMPTS, SEEDS), Method(), {})
    assert torch.equal(before, torch.get_rng_state())


def test_every_row_evaluation_is_counted(denoiser):
    before = denoiser.rows
    sample(denoiser, denoiser.request(PROMPTS, SEEDS), Method(), {})
    assert denoiser.rows - before == len(PROMPTS) * 2 * denoiser.steps
    denoiser.pipe.unet(
        torch.zeros(5, 4, 8, 8), 1, encoder_hidden_states=denoiser.null_embeddings(5)
    )
    assert denoiser.rows - before == len(PROMPTS) * 2 * denoiser.steps + 5


class OtherWords(Method):
    def adjust(self, denoiser, request, state):
        return request.replace(prompts=tuple(PROMPTS[1:] + PROMPTS[:1]))


def test_a_method_that_changes_prompts_changes_what_is_sampled(denoiser):
    changed = sample(denoiser, denoiser.request(PROMPTS, SEEDS), OtherWords(), {})
    expected = sample(denoiser, denoiser.request(PROMPTS[1:] + PROMPTS[:1], SEEDS), Method(), {})
    assert torch.equal(changed, expected)


def test_a_decoder_that_overflows_is_an_error_and_no_black_picture(denoiser):
    with pytest.raises(UserError, match="decoding gave NaN"):
        denoiser.decode(torch.full((1, 4, 8, 8), float("nan")))


class WrongShape(Method):
    def guide(self, step, state):
        return step.conditional[:1]


class WrongType(Method):
    def guide(self, step, state):
        return step.conditional.double()


class NotANumber(Method):
    def guide(self, step, state):
        result = step.conditional.clone()
        result[1] = float("nan")
        return result


class Forgetful(Method):
    def adjust(self, denoiser, request, state):
        return None


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (WrongShape(), "guide must return"),
        (WrongType(), "guide must return"),
        (NotANumber(), PROMPTS[1]),
        (Forgetful(), "adjust must return a Request"),
    ],
)
def test_a_door_that_returns_nonsense_is_named_in_one_line(denoiser, method, says):
    with pytest.raises(UserError, match=says) as error:
        sample(denoiser, denoiser.request(PROMPTS, SEEDS), method, {})
    assert "\n" not in str(error.value)


class Widened(Method):
    """Gives embeddings another number of tokens than the empty prompt's, or parts that are not what
    they should be.
    """

    what: str = "tokens"

    def adjust(self, denoiser, request, state):
        changes = {
            "tokens": {"embeddings": request.embeddings[:, :5]},
            "channels": {"latents": request.latents[:, :3]},
            "nan": {"embeddings": request.embeddings * float("nan")},
            "mask": {"attention_mask": [True]},
            "blind": {
                "attention_mask": torch.zeros(request.embeddings.shape[:2], dtype=torch.bool)
            },
            "first": {"first": (request.latents, request.latents[:1])},
        }
        return request.replace(**changes[self.what])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("tokens", "null_embeddings"),
        ("channels", "changed latents"),
        ("nan", "NaN or infinity into embeddings"),
        ("mask", "attention_mask must be"),
        ("blind", "a token in every row"),
        ("first", "first must be"),
    ],
)
def test_every_part_of_a_request_is_checked(denoiser, what, says):
    with pytest.raises(UserError, match=says) as error:
        sample(denoiser, denoiser.request(PROMPTS, SEEDS), Widened(what=what), {})
    assert "\n" not in str(error.value)


def test_both_embeddings_may_change_their_number_of_tokens(denoiser):
    class Shorter(Method):
        def adjust(self, denoiser, request, state):
            return request.replace(
                embeddings=request.embeddings[:, :9], null_embeddings=request.null_embeddings[:, :9]
            )

    assert torch.isfinite(sample(denoiser, denoiser.request(PROMPTS, SEEDS), Shorter(), {})).all()


def test_a_method_leaves_the_noise_alone_where_sampling_begins_in_the_middle(denoiser):
    """What a method does to first noise has no meaning for latents of a later step."""

    class Moves(Method):
        """Moves the initial noise."""

        def adjust(self, denoiser, request, state):
            both = (request.latents, request.latents)
            return request.replace(latents=request.latents + 1, first=both)

    request = denoiser.request(["a fox"], [0])
    plain = sample(denoiser, request, Method(), {}, start=1)
    assert torch.equal(sample(denoiser, request, Moves(), {}, start=1), plain)
    assert not torch.equal(
        sample(denoiser, request, Moves(), {}), sample(denoiser, request, Method(), {})
    )
