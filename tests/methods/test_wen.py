import math

import pytest
import torch

from bench.contracts.method import FitData, Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.request import Request
from bench.running.sampling import sample
from conftest import CAPTIONS, build_tiny_pipeline
from methods.wen import Wen

PROMPTS, SEEDS = CAPTIONS[:4], [5, 6, 7, 8]


@pytest.fixture(scope="module")
def precise():
    """The tiny model in float64, where batching changes nothing that Adam could blow up; its text
    matters more than chance made it.
    """
    pipe = build_tiny_pipeline()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.double()
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn2.to_v", "attn2.to_k")):
            module.weight.data *= 6
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0, batch_size=4)
    yield denoiser
    denoiser.close()


def reference(denoiser, request, rows, target, iterations, lr, decay):
    """The algorithm by the book for images that share one embedding: both branches evaluated with a
    graph at every iteration.
    """
    scheduler = denoiser.new_scheduler()
    timestep = scheduler.timesteps[0]
    x = scheduler.scale_model_input(request.latents[rows] * scheduler.init_noise_sigma, timestep)
    y = request.embeddings[rows[:1]].clone().requires_grad_()
    start = y.detach().clone()
    optimizer = torch.optim.AdamW([y], lr=lr)
    for used in range(iterations + 1):
        both = torch.cat([request.null_embeddings[rows], y.expand(len(rows), -1, -1)])
        unconditional, conditional = denoiser.epsilon(torch.cat([x, x]), timestep, both).chunk(2)
        magnitude = torch.linalg.vector_norm(conditional - unconditional)
        if magnitude <= target or used == iterations:
            return y.detach()[0], used, bool(magnitude <= target)
        y.grad = torch.autograd.grad(magnitude, y)[0]
        y.grad[:, 0] = 0
        optimizer.step()
        if not decay:
            y.data[:, 0] = start[:, 0]


def magnitudes(denoiser, request):
    with torch.no_grad():
        unconditional, conditional = denoiser.branches(*denoiser.start(request.latents), request)
    return (conditional - unconditional).flatten(1).norm(dim=1)


def middle(denoiser):
    """A target that some images meet at once, some after updates and some not."""
    values = magnitudes(denoiser, denoiser.request(PROMPTS, SEEDS)).sort().values
    return float(values[:2].mean())


@pytest.mark.parametrize("graph_rows", [1, 3, 32])
def test_batched_optimisation_equals_one_by_one_and_the_book(precise, graph_rows):
    target, iterations = middle(precise), 4
    method = Wen(target=target, iterations=iterations, lr=0.02, graph_rows=graph_rows)
    request = precise.request(PROMPTS, SEEDS)
    adjusted = method.adjust(precise, request, {})
    outcomes = set()
    for row in range(4):
        expected, updates, converged = reference(
            precise, request, [row], target, iterations, 0.02, decay=False
        )
        torch.testing.assert_close(adjusted.embeddings[row], expected, atol=1e-9, rtol=1e-9)
        assert (request.facts["updates"][row], request.facts["converged"][row]) == (
            updates,
            converged,
        )
        alone = precise.request([PROMPTS[row]], [SEEDS[row]])
        torch.testing.assert_close(
            method.adjust(precise, alone, {}).embeddings[0],
            adjusted.embeddings[row],
            atol=1e-9,
            rtol=1e-9,
        )
        outcomes.add((updates == 0, converged))
    assert len(outcomes) >= 2, "the test must see images that need updates and images that do not"


def test_untouched_images_and_the_first_token_keep_their_bits(precise):
    request = precise.request(PROMPTS, SEEDS)
    adjusted = Wen(target=middle(precise), lr=0.02).adjust(precise, request, {})
    assert torch.equal(adjusted.embeddings[:, 0], request.embeddings[:, 0])
    untouched = [row for row, updates in enumerate(request.facts["updates"]) if updates == 0]
    assert untouched and torch.equal(adjusted.embeddings[untouched], request.embeddings[untouched])


def test_the_reference_preset_shares_norm_and_embedding_in_a_prompt_and_lets_the_first_token_decay(
    precise,
):
    prompts, seeds = [PROMPTS[0]] * 3 + [PROMPTS[1]] * 2, [1, 2, 3, 4, 5]
    request = precise.request(prompts, seeds)
    target = 0.9 * float(magnitudes(precise, request)[:3].norm())
    adjusted = Wen(target=target, target_rows=3, iterations=3, lr=0.02, preset="reference").adjust(
        precise, request, {}
    )
    for rows in ([0, 1, 2], [3, 4]):  # of two images the target of two, not of three
        bound = target * math.sqrt(len(rows) / 3)
        expected, updates, converged = reference(precise, request, rows, bound, 3, 0.02, decay=True)
        for row in rows:
            torch.testing.assert_close(adjusted.embeddings[row], expected, atol=1e-9, rtol=1e-9)
            assert (request.facts["updates"][row], request.facts["converged"][row]) == (
                updates,
                converged,
            )
            torch.testing.assert_close(
                adjusted.embeddings[row, 0],
                request.embeddings[row, 0] * (1 - 0.02 * 0.01) ** updates,
                atol=1e-12,
                rtol=1e-12,
            )
    assert request.facts["updates"][0] > 0


def test_identical_images_with_the_target_times_root_n_behave_as_one_image(precise):
    one, many = precise.request(PROMPTS[:1], [3]), precise.request(PROMPTS[:1] * 4, [3] * 4)
    target = 0.8 * float(magnitudes(precise, one)[0])
    method = Wen(target=target, target_rows=1, iterations=3, lr=0.02, preset="reference")
    single = method.adjust(precise, one, {}).embeddings[0]
    several = (
        Wen(target=target * math.sqrt(4), iterations=3, lr=0.02, preset="reference")
        .adjust(precise, many, {})
        .embeddings
    )
    for row in several:
        torch.testing.assert_close(row, single, atol=1e-5, rtol=1e-4)  # up to AdamW's epsilon


def test_the_first_update_follows_the_gradient_of_central_differences(precise, monkeypatch):
    seen = []
    update = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self: (seen.append(self.param_groups[0]["params"][0].grad.clone()), update(self))[1],
    )
    request = precise.request(PROMPTS[:1], [5])
    Wen(target=1e-9, iterations=1, lr=0.02).adjust(precise, request, {})
    gradient, h = seen[0], 1e-5
    generator = torch.Generator().manual_seed(0)
    for token, channel in zip(
        torch.randint(1, gradient.shape[0], (12,), generator=generator),
        torch.randint(0, gradient.shape[1], (12,), generator=generator),
    ):
        shift = torch.zeros_like(request.embeddings)
        shift[0, token, channel] = h
        up, down = (
            magnitudes(precise, request.replace(embeddings=request.embeddings + sign * shift))[0]
            for sign in (1, -1)
        )
        assert float(gradient[token, channel]) == pytest.approx(
            float((up - down) / (2 * h)), rel=1e-4, abs=1e-8
        )
    assert not gradient[0].any(), "the first token has no gradient"


def test_a_target_never_exceeded_is_bit_identical_to_none_at_no_cost(denoiser):
    expected = sample(denoiser, denoiser.request(PROMPTS, SEEDS), Method(), {})
    plain = denoiser.evaluations
    request = denoiser.request(PROMPTS, SEEDS)
    adjusted = Wen(target=1e9).adjust(denoiser, request, {})
    assert denoiser.evaluations - plain == 2 * 4, "before reuse: one evaluation of both branches"
    assert torch.equal(adjusted.embeddings, request.embeddings)
    before = denoiser.evaluations
    assert torch.equal(
        sample(denoiser, denoiser.request(PROMPTS, SEEDS), Wen(target=1e9), {}), expected
    )
    assert denoiser.evaluations - before == 4 * 4 * 2, "with reuse nothing beyond sampling"
    assert torch.equal(
        sample(denoiser, denoiser.request(PROMPTS, SEEDS), Wen(target=1e-9, iterations=0), {}),
        expected,
    )


def test_ten_iterations_cost_21_equivalents_beyond_sampling(denoiser):
    before = denoiser.evaluations
    request = denoiser.request(PROMPTS, SEEDS)
    sample(denoiser, request, Wen(target=1e-9, iterations=10), {})
    assert denoiser.evaluations - before == 4 * (4 * 2 + 21)
    assert request.facts["updates"] == [10] * 4 and request.facts["converged"] == [False] * 4


def test_the_reused_first_step_is_what_the_sampler_would_evaluate(precise):
    request = precise.request(PROMPTS, SEEDS)
    adjusted = Wen(target=middle(precise), iterations=3, lr=0.02).adjust(precise, request, {})
    with torch.no_grad():
        again = precise.branches(*precise.start(adjusted.latents), adjusted)
    for made, evaluated in zip(adjusted.first, again, strict=True):
        torch.testing.assert_close(made, evaluated, atol=1e-9, rtol=1e-9)


def test_converged_is_what_the_returned_embedding_gives(precise):
    target = middle(precise)
    request = precise.request(PROMPTS, SEEDS)
    adjusted = Wen(target=target, iterations=2, lr=0.02).adjust(precise, request, {})
    values = magnitudes(precise, adjusted)
    assert request.facts["converged"] == [bool(value <= target) for value in values]
    torch.testing.assert_close(
        torch.tensor(request.facts["magnitude_after"], dtype=torch.float64), values
    )


def test_the_target_is_the_quantile_of_clean_magnitudes_at_two_evaluations_a_prompt(denoiser):
    before = denoiser.evaluations
    state = Wen(quantile=0.5, clean_prompts=5, seed=9).fit(
        denoiser, FitData(clean_prompts=tuple(CAPTIONS))
    )
    assert denoiser.evaluations - before == 2 * 5
    expected = [
        float(magnitudes(denoiser, denoiser.request([prompt], [9 + i]))[0])
        for i, prompt in enumerate(CAPTIONS[:5])
    ]
    assert float(state["target"]) == pytest.approx(sorted(expected)[2], rel=1e-5)
    assert Wen(target=1.5).fit(denoiser, FitData()) == {} and Wen(target=1.5).needed() == ()


def test_parameters_of_the_model_get_no_gradient():
    pipe = build_tiny_pipeline()
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0)
    pipe.unet.requires_grad_(True)
    Wen(target=1e-9, iterations=2).adjust(denoiser, denoiser.request(PROMPTS[:1], [0]), {})
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_a_v_prediction_model_is_optimised_in_epsilon_units():
    pipe = build_tiny_pipeline(prediction_type="v_prediction")
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0)
    request: Request = denoiser.request(PROMPTS[:2], [0, 1])
    Wen(target=1e9).adjust(denoiser, request, {})
    scaled, timestep = denoiser.start(request.latents)
    both = torch.cat([request.null_embeddings, request.embeddings])
    with torch.no_grad():
        v_unconditional, v_conditional = pipe.unet(
            torch.cat([scaled] * 2), timestep, encoder_hidden_states=both
        ).sample.chunk(2)
    alpha = pipe.scheduler.alphas_cumprod[int(timestep)].sqrt()
    expected = (alpha * (v_conditional - v_unconditional)).flatten(1).norm(dim=1)
    torch.testing.assert_close(
        torch.tensor(request.facts["magnitude_before"]), expected, rtol=1e-4, atol=1e-5
    )
