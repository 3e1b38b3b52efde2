"""GUARD: the formula, the tokens that stand out, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from bench import UserError
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.running.sampling import sample
from conftest import CAPTIONS, build_tiny_pipeline
from methods.guard import Guard, without_agreement
from methods.guidance import Guidance

PROMPTS, SEEDS = CAPTIONS[:3], [5, 6, 7]


@pytest.fixture(scope="module")
def lively():
    """The tiny model in float64 with attention that is far from even, so that scaling it shows."""
    pipe = build_tiny_pipeline(coarse_attention=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.double()
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k", "attn2.to_v")):
            module.weight.data *= 6
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0, batch_size=4)
    yield denoiser
    denoiser.close()


def draw(denoiser, method, prompts=PROMPTS, seeds=SEEDS):
    request = denoiser.request(prompts, seeds)
    with method.attach(denoiser.pipe, {}):
        return sample(denoiser, request, method, {}), request.facts


class Slow:
    """Attention by the book, one image, one head and one token after the other."""

    def __init__(self, method):
        self.method = method
        self.found = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        rows, size = len(hidden_states), attn.to_k.out_features // attn.heads
        output = torch.zeros(rows, hidden_states.shape[1], attn.heads * size, dtype=torch.float64)
        for row in range(rows):
            query, key = attn.to_q(hidden_states[row]), attn.to_k(encoder_hidden_states[row])
            value = attn.to_v(encoder_hidden_states[row])
            for head in range(attn.heads):
                part = slice(head * size, (head + 1) * size)
                logits = query[:, part] @ key[:, part].T / math.sqrt(size)
                for token in self.spikes(logits):
                    logits[:, token] *= self.method.scale
                output[row, :, part] = logits.softmax(-1) @ value[:, part]
        return attn.to_out[0](output)

    def spikes(self, logits):
        if self.method.spikes == "logits":
            statistic = [float(logits[:, token].max()) for token in range(logits.shape[1])]
        else:
            shares = logits.softmax(-1)
            statistic = [float(shares[:, token].mean()) for token in range(logits.shape[1])]
        others = statistic[1:]
        mean = sum(others) / len(others)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in others) / (len(others) - 1))
        found = [
            token
            for token in range(1, len(statistic))
            if (statistic[token] - mean) / (deviation + 1e-6) > self.method.spike_threshold
        ]
        self.found.append(found)
        return found


def by_the_book(denoiser, method, request, step):
    """The guided prediction at a step, from evaluations of one row each."""
    scheduler = denoiser.new_scheduler()
    timestep = scheduler.timesteps[step]
    scaled = scheduler.scale_model_input(request.latents, timestep)
    layers = [
        module
        for name, module in denoiser.pipe.unet.named_modules()
        if name.endswith("attn2") and not name.startswith("up_blocks")
    ]
    slow, guided = Slow(method), []
    for row in range(len(request.latents)):
        x = scaled[row : row + 1]
        e_u = denoiser.epsilon(x, timestep, request.null_embeddings[row : row + 1])
        e_c = denoiser.epsilon(x, timestep, request.embeddings[row : row + 1])
        for layer in layers:
            layer.set_processor(slow)
        e_plus = denoiser.epsilon(x, timestep, request.embeddings[row : row + 1])
        for layer in layers:
            layer.set_processor(AttnProcessor2_0())
        pull, v = e_c - e_u, e_plus - e_u
        if method.orthogonal:
            a, b = v.flatten(), pull.flatten()
            if float(a @ b / a.norm() / b.norm()) > 0.9:
                v = v - max(-2.0, min(2.0, float(a @ b / (b @ b)))) * pull
        fading = math.cos(math.pi * step / (2 * 4)) if method.decay == "cosine" else 1
        guided.append(e_u + 4.0 * v - method.repulsion * 4.0 * fading * pull)
    sizes = {len(found) for found in slow.found}
    assert len(layers) == 3 and len(sizes) > 1, "heads differ in what stands out"
    return torch.cat(guided)


@pytest.mark.parametrize(
    "method",
    [
        Guard(),
        Guard(spikes="mass", orthogonal=False),
        Guard(decay="none", spike_threshold=1.0, repulsion=0.2),
    ],
    ids=lambda method: f"{method.spikes}-{method.decay}",
)
def test_a_step_is_the_formula_with_attention_by_the_book(lively, method):
    request = lively.request(PROMPTS, SEEDS)
    seen = []

    class Watched(type(method)):
        def guide(self, step, state):
            seen.append((step.latents, super().guide(step, state)))
            return seen[-1][1]

    watched = Watched(**method.model_dump())
    with watched.attach(lively.pipe, {}):
        sample(lively, request, watched, {})
    assert len(seen) == 4
    with torch.no_grad():
        for step in (0, 2):
            latents, guided = seen[step]
            expected = by_the_book(lively, method, request.replace(latents=latents), step)
            torch.testing.assert_close(guided, expected, rtol=1e-6, atol=1e-8)


def test_rows_of_the_other_two_predictions_are_not_attenuated(lively):
    request = lively.request(PROMPTS, SEEDS)
    start = lively.start(request.latents)
    with torch.no_grad():
        plain = lively.branches(*start, request)
        with Guard().attach(lively.pipe, {}):
            hooked = lively.branches(*start, request)
    for one, other in zip(plain, hooked, strict=True):
        assert torch.equal(one, other)


def test_neutral_parameters_are_none_bit_for_bit_at_its_cost(denoiser):
    method = Guard(**Guard.neutral)
    before = denoiser.evaluations
    found, facts = draw(denoiser, method)
    assert denoiser.evaluations - before == 3 * 4 * 2 and facts == {}
    assert torch.equal(found, draw(denoiser, Method())[0])


def test_without_attenuation_it_is_less_guidance_at_two_evaluations(denoiser):
    before = denoiser.evaluations
    found, _ = draw(denoiser, Guard(scale=1, orthogonal=False, decay="none", repulsion=1 / 4))
    assert denoiser.evaluations - before == 3 * 4 * 2
    torch.testing.assert_close(found, draw(denoiser, Guidance(share=3 / 4))[0])


def test_three_evaluations_a_step(denoiser):
    before = denoiser.evaluations
    draw(denoiser, Guard())
    assert denoiser.evaluations - before == 3 * 4 * 3


@pytest.mark.parametrize("method", [Guard(), Guard(spikes="mass", decay="none", orthogonal=False)])
def test_a_batch_equals_its_images_alone_and_differs_from_none(lively, method):
    together, facts = draw(lively, method)
    assert not torch.allclose(together, draw(lively, Method())[0], atol=1e-3)
    for row in range(3):
        alone, fact = draw(lively, method, [PROMPTS[row]], [SEEDS[row]])
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-6)
        assert fact.get("orthogonalised", [0])[0] == facts.get("orthogonalised", [0] * 3)[row]


def test_agreement_is_taken_away_image_by_image():
    pull = torch.zeros(5, 1, 1, 3, dtype=torch.float64)
    pull[..., 0] = 2.0
    targets = torch.tensor(
        [
            [3.0, 0.3, 0],  # nearly along: the whole part goes
            [7.0, 0, 0],  # at most twice the pull goes
            [1.0, 0.9, 0],  # too little agreement
            [-3.0, 0, 0],  # the opposite
            [0.0, 0, 0],
        ],
        dtype=torch.float64,
    ).reshape(5, 1, 1, 3)
    apart, agrees = without_agreement(targets, pull)
    expected = targets.clone()
    expected[0, ..., 0], expected[1, ..., 0] = 0, 3.0
    torch.testing.assert_close(apart, expected)
    assert agrees.tolist() == [True, True, False, False, False]


def test_the_first_token_never_stands_out_and_heads_do_not_know_of_each_other():
    logits = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    logits[..., 0] += 5
    for method in (Guard(), Guard(spikes="mass")):
        found = method._spikes(logits)
        assert not found[..., 0].any() and found.any()
        for row in range(2):
            for head in range(3):
                alone = method._spikes(logits[row : row + 1, head : head + 1])
                assert torch.equal(alone[0, 0], found[row, head])


def test_hooks_are_gone_also_after_an_exception():
    pipe, method = build_tiny_pipeline(coarse_attention=True), Guard()
    with pytest.raises(RuntimeError), method.attach(pipe, {}):
        hooked = [name for name, part in pipe.unet.named_modules() if part._forward_hooks]
        assert len(hooked) == 6 and not any(name.startswith("up_blocks") for name in hooked)
        raise RuntimeError
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_fused_projections_are_refused():
    pipe = build_tiny_pipeline(coarse_attention=True)
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2"):
            module.fused_projections = True
    with pytest.raises(UserError, match="fused"), Guard().attach(pipe, {}):
        pass
