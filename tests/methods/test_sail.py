"""SAIL: the descent against the book, closed forms on linear models, new noise, and the cost."""

from __future__ import annotations

import pytest
import torch
from analytic import DIMENSIONS, analytic, linear

from bench.contracts.method import FitData, Method
from bench.diffusion.denoiser import Denoiser
from bench.running.sampling import sample
from conftest import CAPTIONS, build_tiny_pipeline
from methods.sail import Sail

PROMPTS, SEEDS = CAPTIONS[:4], [5, 6, 7, 8]
NEVER = 1e-6  # a threshold that no noise reaches


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


def value_at(denoiser, request, row, x, method):
    """The published value at noise `[1, C, h, w]`, from evaluations of one row each."""
    timestep = denoiser.new_scheduler().timesteps[0]

    def difference(place):
        given = denoiser.epsilon(place, timestep, request.embeddings[row : row + 1])
        return given - denoiser.epsilon(place, timestep, request.null_embeddings[row : row + 1])

    here = difference(x)
    ahead = difference(x + here / here.norm())
    if method.form == "norm":
        return ahead.norm() + method.alpha * x.norm()
    return (ahead - here).square().sum() + method.alpha * x.square().sum()


def by_the_book(denoiser, request, row, threshold, method):
    """One image, its attempts one after the other: noise, updates, attempts and value."""
    stream = torch.Generator().manual_seed(request.seeds[row])
    best, updates, attempts = None, 0, 0
    for attempt in range(method.attempts):
        x = torch.randn(request.latents.shape[1:], generator=stream).double()[None]
        if attempt == 0:
            assert torch.equal(x[0], request.latents[row])
        x.requires_grad_()
        optimizer = torch.optim.Adam([x], lr=method.lr)
        for update in range(method.steps + 1):
            value = value_at(denoiser, request, row, x, method)
            if best is None or value.item() < best[1]:
                best = (x.detach().clone()[0], value.item())
            if value.item() <= threshold:
                return best[0], updates, attempts + bool(update or attempt), best[1]
            if update < method.steps:
                x.grad = torch.autograd.grad(value, x)[0]
                optimizer.step()
                updates += 1
        attempts += 1
    return best[0], updates, attempts, best[1]


def values(denoiser, request, method):
    with torch.no_grad():
        return [
            float(value_at(denoiser, request, row, request.latents[row : row + 1], method))
            for row in range(len(request.prompts))
        ]


@pytest.mark.parametrize("graph_rows", [4, 12, 32])
@pytest.mark.parametrize("form", ["norm", "squared"])
def test_batched_descent_equals_one_by_one_and_the_book(precise, graph_rows, form):
    request = precise.request(PROMPTS, SEEDS)
    settings = {"form": form, "steps": 2, "lr": 0.02, "attempts": 2, "graph_rows": graph_rows}
    found = sorted(values(precise, request, Sail(**settings)))
    threshold = 0.8 * found[0] + 0.2 * found[1]
    method = Sail(threshold=threshold, **settings)
    adjusted = method.adjust(precise, request, {})
    facts, seen = request.facts, set()
    for row in range(4):
        latents, updates, attempts, value = by_the_book(precise, request, row, threshold, method)
        torch.testing.assert_close(adjusted.latents[row], latents, atol=1e-7, rtol=1e-7)
        assert (facts["updates"][row], facts["attempts"][row]) == (updates, attempts)
        assert facts["value_after"][row] == pytest.approx(value, rel=1e-8)
        assert facts["converged"][row] == (value <= threshold)
        alone = precise.request([PROMPTS[row]], [SEEDS[row]])
        torch.testing.assert_close(
            method.adjust(precise, alone, {}).latents[0],
            adjusted.latents[row],
            atol=1e-7,
            rtol=1e-7,
        )
        assert alone.facts["updates"] == [updates]
        seen.add((facts["triggered"][row], facts["converged"][row]))
    assert (False, True) in seen and len(seen) > 1


def test_images_below_the_threshold_keep_their_bits(precise):
    request = precise.request(PROMPTS, SEEDS)
    found = sorted(values(precise, request, Sail()))
    adjusted = Sail(threshold=sum(found[1:3]) / 2, attempts=1, steps=2).adjust(precise, request, {})
    untouched = [row for row in range(4) if not request.facts["triggered"][row]]
    assert len(untouched) == 2
    assert torch.equal(adjusted.latents[untouched], request.latents[untouched])
    moved = [row for row in range(4) if row not in untouched]
    assert all(
        request.facts["value_after"][row] < request.facts["value_before"][row] for row in moved
    )


def test_the_value_and_its_gradient_on_a_linear_model_are_the_closed_form():
    """With D(x) = M x the value is |M (x + M x / |M x|)| + alpha |x|; the first update of Adam is
    the rate times the sign of the gradient.
    """
    drawn = torch.Generator().manual_seed(0)
    without, given = torch.randn(2, DIMENSIONS, DIMENSIONS, generator=drawn).double()
    denoiser = analytic(linear(without, given))
    denoiser.pipe.unet.double()
    request = denoiser.request(["1"], [3])
    m, x = given - without, request.latents[0].flatten()
    y = m @ x
    unit = y / y.norm()
    z = m @ (x + unit)
    # d|z| = z/|z| . M (dx + (M dx - unit (unit . M dx)) / |y|)
    back = m.T @ (z / z.norm())
    gradient = back + m.T @ (back - unit * (unit @ back)) / y.norm() + 0.05 * x / x.norm()
    value = z.norm() + 0.05 * x.norm()
    method = Sail(threshold=float(value) * 0.999999, steps=1, attempts=1, lr=1e-3)
    adjusted = method.adjust(denoiser, request, {})
    assert request.facts["value_before"][0] == pytest.approx(float(value), rel=1e-9)
    torch.testing.assert_close(
        adjusted.latents[0].flatten(),
        x - 1e-3 * gradient / (gradient.abs() + 1e-8),
        atol=1e-11,
        rtol=1e-9,
    )


def test_attempts_begin_at_different_noise_of_the_images_own_stream(precise, monkeypatch):
    begun = []
    descend = Sail._descend
    monkeypatch.setattr(
        Sail, "_descend", lambda *a: begun.append(a[3].clone()) or descend(*a), raising=True
    )
    request = precise.request([PROMPTS[0]] * 2, [5, 6])
    Sail(threshold=NEVER, steps=0, attempts=3).adjust(precise, request, {})
    assert len(begun) == 3
    flat = torch.cat(begun).flatten(1)
    assert torch.equal(begun[0], request.latents)
    assert float(torch.cdist(flat, flat).fill_diagonal_(1e9).min()) > 1
    for row, seed in enumerate((5, 6)):
        stream = torch.Generator().manual_seed(seed)
        for noise in begun:
            assert torch.equal(torch.randn(noise[row].shape, generator=stream), noise[row].float())
    # Without updates it is a choice among the three.
    assert request.facts["updates"] == [0, 0] and request.facts["attempts"] == [3, 3]


def test_what_is_returned_is_the_least_seen_and_its_predictions_are_the_models(precise):
    request = precise.request(PROMPTS, SEEDS)
    method = Sail(threshold=NEVER, steps=2, attempts=2)
    adjusted = method.adjust(precise, request, {})
    assert request.facts["converged"] == [False] * 4 and request.facts["updates"] == [4] * 4
    again = values(precise, adjusted, method)
    assert request.facts["value_after"] == pytest.approx(again, rel=1e-9)
    with torch.no_grad():
        evaluated = precise.branches(*precise.start(adjusted.latents), adjusted)
    for made, true in zip(adjusted.first, evaluated, strict=True):
        torch.testing.assert_close(made, true, atol=1e-9, rtol=1e-9)


def test_neutral_parameters_are_none_bit_for_bit_at_its_cost(denoiser):
    method = Sail(**Sail.neutral)
    assert method.needed() == () and method.fit(denoiser, FitData()) == {}
    expected = sample(denoiser, denoiser.request(PROMPTS, SEEDS), Method(), {})
    before = denoiser.evaluations
    request = denoiser.request(PROMPTS, SEEDS)
    assert torch.equal(sample(denoiser, request, method, {}), expected)
    assert denoiser.evaluations - before == 4 * 4 * 2
    assert request.facts == {"triggered": [False] * 4, "updates": [0] * 4}


def test_a_threshold_never_exceeded_is_none_bit_for_bit_at_two_evaluations(denoiser):
    expected = sample(denoiser, denoiser.request(PROMPTS, SEEDS), Method(), {})
    before = denoiser.evaluations
    request = denoiser.request(PROMPTS, SEEDS)
    assert torch.equal(sample(denoiser, request, Sail(threshold=1e9), {}), expected)
    assert denoiser.evaluations - before == 4 * (4 * 2 + 2)
    assert request.facts["triggered"] == [False] * 4


def test_an_attempt_with_k_updates_costs_8_k_and_4(denoiser):
    before = denoiser.evaluations
    request = denoiser.request(PROMPTS, SEEDS)
    Sail(threshold=NEVER, steps=3, attempts=2).adjust(denoiser, request, {})
    assert denoiser.evaluations - before == 4 * (4 + 2 * (8 * 3 + 4))
    assert denoiser.backward_rows >= 4 * 2 * 4 * 3


def test_the_threshold_is_the_quantile_of_clean_values_at_four_evaluations(precise):
    method = Sail(quantile=0.5, clean_prompts=5, seed=9)
    before = precise.evaluations
    state = method.fit(precise, FitData(clean_prompts=tuple(CAPTIONS)))
    assert precise.evaluations - before == 5 * 4
    request = precise.request(CAPTIONS[:5], [9 + i for i in range(5)])
    expected = sorted(values(precise, request, method))[2]
    assert float(state["threshold"]) == pytest.approx(expected, rel=1e-9)
    assert (
        Sail(threshold=8.2).fit(precise, FitData())
        == {}
        == Sail(quantile=1).fit(precise, FitData())
    )
    assert Sail(threshold=8.2).needed() == ()


def test_the_empty_prompt_has_no_pull_and_gives_numbers(denoiser):
    request = denoiser.request(["", PROMPTS[0]], SEEDS[:2])
    latents = sample(denoiser, request, Sail(threshold=NEVER, steps=2), {})
    assert torch.isfinite(latents).all()


def test_parameters_of_the_model_stay_and_get_no_gradient():
    pipe = build_tiny_pipeline()
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0)
    pipe.unet.requires_grad_(True)
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    Sail(threshold=NEVER, steps=2).adjust(denoiser, denoiser.request(PROMPTS[:1], [0]), {})
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())
    assert all(torch.equal(weights[n], value) for n, value in pipe.unet.state_dict().items())
