"""The methods that each prove one door: what their papers promise, against the obvious way to
compute it.
"""

import math

import pytest
import torch

from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.request import Request
from bench.running.sampling import sample
from conftest import CAPTIONS, build_tiny_pipeline
from methods._insertion import insert_words
from methods.cfg_delay import CfgDelay
from methods.cfg_dynamic import CfgDynamic
from methods.cross_attention import CrossAttention
from methods.guidance import Guidance
from methods.init_noise import InitNoise
from methods.random_numbers import RandomNumbers
from methods.random_tokens import RandomTokens

PROMPTS, SEEDS = CAPTIONS[:3], [5, 6, 7]

NEUTRAL = [
    RandomNumbers(count=0),
    RandomTokens(count=0),
    CfgDelay(transition=1000),
    Guidance(share=1),
    CfgDelay(transition=0, before=4.0),  # the denoiser's own guidance scale
    CfgDynamic(fallback=1000),
    CrossAttention(c1=1, mask="none"),
    InitNoise(rounds=0, transition=1000),
]


def draw(denoiser, method, prompts=PROMPTS, seeds=SEEDS):
    request = denoiser.request(prompts, seeds)
    with method.attach(denoiser.pipe, {}):
        return sample(denoiser, request, method, {}), request.facts


@pytest.mark.parametrize("method", NEUTRAL, ids=lambda m: f"{type(m).__name__}-{m.model_dump()}")
def test_neutral_settings_are_bit_identical_to_none(denoiser, method):
    assert torch.equal(draw(denoiser, method)[0], draw(denoiser, Method())[0])


@pytest.mark.parametrize(
    "method",
    [
        RandomNumbers(),
        RandomTokens(),
        CfgDelay(),
        Guidance(),
        CfgDynamic(),
        CrossAttention(),
        InitNoise(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_every_door_changes_the_picture_and_a_batch_equals_its_images_alone(denoiser, method):
    together = draw(denoiser, method)[0]
    assert not torch.allclose(together, draw(denoiser, Method())[0], atol=1e-3)
    for row in range(3):
        torch.testing.assert_close(
            draw(denoiser, method, [PROMPTS[row]], [SEEDS[row]])[0][0],
            together[row],
            atol=2e-4,
            rtol=1e-4,
        )


# Prompt text


@pytest.mark.parametrize("method", [RandomNumbers(count=3), RandomTokens(count=3)])
def test_perturbed_prompts_depend_on_seed_and_prompt_alone(denoiser, method):
    words = [
        method.adjust(denoiser, denoiser.request(order, range(len(order))), {}).prompts
        for order in (PROMPTS, PROMPTS[::-1])
    ]
    assert words[0] == words[1][::-1] and words[0] != tuple(PROMPTS)
    other = type(method)(count=3, seed=1)
    assert other.adjust(denoiser, denoiser.request(PROMPTS, SEEDS), {}).prompts != words[0]


def test_exactly_count_words_are_inserted_and_without_them_the_prompt_is_there_again():
    for count in (0, 1, 4, 10):
        words = insert_words(
            "a red apple", count, 0, lambda generator: f"<{generator.randrange(100_000)}>"
        ).split(" ")
        assert len(words) == 3 + count
        assert [word for word in words if not word.startswith("<")] == ["a", "red", "apple"]


def test_every_place_of_a_prompt_is_equally_likely():
    places = [
        insert_words("a b", 1, seed, lambda generator: "X").split(" ").index("X")
        for seed in range(3000)
    ]
    assert all(abs(places.count(place) - 1000) < 5 * math.sqrt(1000 * 2 / 3) for place in range(3))


def test_an_insertion_that_pushes_text_beyond_the_encoder_is_reported(denoiser):
    request = denoiser.request(
        ["apple", "a picture of a fox and a key and a bus and a tent and a rose"], [0, 1]
    )
    RandomNumbers(count=1).adjust(denoiser, request, {})
    assert request.facts["truncated"] == [False, True]


# Guidance


def test_before_the_transition_pictures_do_not_know_their_prompt(denoiser):
    method = CfgDelay(transition=0)
    one, other = (
        draw(denoiser, method, PROMPTS[:1], [1])[0],
        draw(denoiser, method, PROMPTS[1:2], [1])[0],
    )
    assert torch.equal(one, other)


def test_withholding_the_prompt_saves_the_conditional_evaluations(denoiser):
    before = denoiser.evaluations
    # four steps: 751 and 501 without, 251 and 1 with guidance
    draw(denoiser, CfgDelay(transition=500))
    assert denoiser.evaluations - before == 3 * (2 * 1 + 2 * 2)


def test_opposite_guidance_is_none_with_another_scale_until_the_transition(tiny_pipe):
    denoiser = Denoiser(tiny_pipe, steps=4, guidance_scale=-2.0)
    expected = draw(denoiser, Method())[0]
    denoiser.close()
    denoiser = Denoiser(tiny_pipe, steps=4, guidance_scale=4.0)
    assert torch.equal(draw(denoiser, CfgDelay(transition=0, before=-2.0))[0], expected)
    denoiser.close()


class Script:
    """A step whose conditional minus unconditional prediction has the norms that a test wants."""

    def __init__(self, request, memory, index, pulls, timestep=900):
        self.request, self.memory, self.index, self.timestep, self.guidance_scale = (
            request,
            memory,
            index,
            timestep,
            10.0,
        )
        self.unconditional = torch.zeros(len(pulls), 1, 1, 1)
        self.conditional = torch.tensor(pulls)[:, None, None, None]

    def guided(self, scale):
        return self.unconditional + scale * (self.conditional - self.unconditional)


def switches(method, sequences):
    """For each image, the index of the first guided step, or None."""
    empty = torch.zeros(len(sequences), 1, 1, 1)
    request, memory = (
        Request(("p",) * len(sequences), (0,) * len(sequences), empty, empty, empty, 10.0),
        {},
    )
    first = [None] * len(sequences)
    for index, pulls in enumerate(zip(*sequences, strict=True)):
        guided = method.guide(Script(request, memory, index, list(map(float, pulls))), {})
        for row, pull in enumerate(pulls):
            assert float(guided[row]) in (0.0, 10.0 * pull)
            if first[row] is None and float(guided[row]):
                first[row] = index
            assert first[row] is None or float(guided[row]), "an image that switched stays guided"
    return first


@pytest.mark.parametrize(
    ("pulls", "expected"),
    [
        ([5, 4, 3, 4, 2, 1], 3),
        ([1, 2, 3, 4, 5, 6], None),
        ([5, 4, 4, 5, 6, 7], None),
        ([5, 4, 5, 5, 4, 3], 2),
        ([5, 3, 3, 2, 1, 2], 5),
    ],
)
def test_the_switch_is_at_the_first_strict_minimum_and_stays(pulls, expected):
    assert switches(CfgDynamic(fallback=0), [pulls]) == [expected]


def test_each_image_of_a_batch_has_its_own_switch():
    sequences = [[5, 4, 3, 4, 2, 1], [1, 2, 3, 4, 5, 6], [5, 4, 5, 5, 4, 3]]
    assert switches(CfgDynamic(fallback=0), sequences) == [
        switches(CfgDynamic(fallback=0), [sequence])[0] for sequence in sequences
    ]


def test_without_a_minimum_the_fallback_switches_and_says_when(denoiser):
    _, facts = draw(denoiser, CfgDynamic(fallback=300))
    assert all(t in (251, 501) for t in facts["switch_timestep"])
    assert all(
        t in (0, 1, 251, 501) for t in draw(denoiser, CfgDynamic(fallback=0))[1]["switch_timestep"]
    )


# Cross-attention


def attention_maps(denoiser, method, prompts):
    """Attention of every attn2 layer by the book, `[rows, heads, L, T]`, from the layer's own
    queries and keys.
    """
    kept, handles = {}, []
    for name, module in denoiser.pipe.unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")):

            def keep(module, args, output, name=name):
                kept[name] = output

            handles.append((module, keep))
    with method.attach(denoiser.pipe, {}):
        # after the method's: sees what attention sees
        removers = [module.register_forward_hook(keep) for module, keep in handles]
        request = method.adjust(denoiser, denoiser.request(prompts, SEEDS[: len(prompts)]), {})
        with torch.no_grad():
            denoiser.branches(*denoiser.start(request.latents), request)
        for remover in removers:
            remover.remove()
    maps = {}
    for name, query in kept.items():
        if name.endswith("to_q"):
            layer = dict(denoiser.pipe.unet.named_modules())[name.removesuffix(".to_q")]
            q, k = (
                x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
                for x in (query, kept[name.removesuffix("q") + "k"])
            )
            maps[name] = q @ k.transpose(-1, -2) * layer.scale
    return request, maps


def test_scaling_the_first_key_scales_the_first_logit_of_conditional_rows_only(denoiser):
    for count in (1, 2, 3):
        _, plain = attention_maps(denoiser, CrossAttention(c1=1, mask="none"), PROMPTS[:count])
        _, scaled = attention_maps(denoiser, CrossAttention(c1=1.5, mask="none"), PROMPTS[:count])
        # down_blocks.0...: its queries are not yet changed by another layer's attention
        first = min(plain)
        expected = plain[first].clone()
        expected[count:, :, :, 0] *= 1.5
        torch.testing.assert_close(scaled[first], expected, atol=1e-6, rtol=1e-5)
        assert torch.equal(scaled[first][:count], plain[first][:count])


@pytest.mark.parametrize("mask", ["padding", "summary"])
def test_tokens_behind_the_mask_have_no_influence(denoiser, mask):
    method = CrossAttention(mask=mask)
    request = method.adjust(denoiser, denoiser.request(PROMPTS, SEEDS), {})
    lengths = [len(denoiser.pipe.tokenizer(p).input_ids) - (mask == "summary") for p in PROMPTS]
    assert request.attention_mask.sum(1).tolist() == lengths and len(set(lengths)) > 1
    garbled = (
        request.embeddings
        + 100
        * torch.randn(request.embeddings.shape, generator=torch.Generator().manual_seed(0))
        * ~request.attention_mask[..., None]
    )
    with torch.no_grad():
        start = denoiser.start(request.latents)
        for before, after in zip(
            denoiser.branches(*start, request),
            denoiser.branches(*start, request.replace(embeddings=garbled)),
            strict=True,
        ):
            assert torch.equal(before, after)


def test_a_mask_of_all_tokens_equals_no_mask(denoiser):
    request = denoiser.request(PROMPTS, SEEDS)
    start = denoiser.start(request.latents)
    everything = torch.ones(request.embeddings.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        for one, other in zip(
            denoiser.branches(*start, request),
            denoiser.branches(*start, request.replace(attention_mask=everything)),
            strict=True,
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_hooks_are_gone_also_after_an_exception():
    pipe = build_tiny_pipeline()
    with pytest.raises(RuntimeError), CrossAttention().attach(pipe, {}):
        assert any(module._forward_hooks for module in pipe.unet.modules())
        raise RuntimeError
    assert not any(module._forward_hooks for module in pipe.unet.modules())


# Initial noise


class Linear:
    """A denoiser whose pull is a linear map of the latents."""

    def __init__(self, matrix):
        self.matrix = matrix

    def start(self, latents):
        return latents, torch.tensor(999)

    def branches(self, scaled, timestep, request):
        return torch.zeros_like(scaled), (scaled.flatten(1) @ self.matrix.T).reshape(scaled.shape)

    def as_predicted(self, epsilon, scaled, index):
        return epsilon


def test_a_move_on_a_linear_model_is_the_closed_form():
    torch.manual_seed(0)
    matrix, x = torch.randn(8, 8, dtype=torch.float64), torch.randn(3, 2, 2, 2, dtype=torch.float64)
    request = Request(("p",) * 3, (0,) * 3, x, x, x, 7.5)
    moved = InitNoise(rounds=1, gamma=0.7, radius=2.0).adjust(Linear(matrix), request, {}).latents
    for row in range(3):
        pull = matrix @ x[row].flatten()
        expected = x[row].flatten() - 0.7 * matrix @ (2.0 * 8**0.5 * pull / pull.norm())
        torch.testing.assert_close(moved[row].flatten(), expected)


def test_a_move_of_a_v_prediction_model_is_of_its_own_outputs():
    """As the published factors are; differences of noise are 15 times smaller at the first step."""
    pipe = build_tiny_pipeline(prediction_type="v_prediction")
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0)
    request = denoiser.request(PROMPTS[:2], [0, 1])

    def pull(latents):
        scaled, timestep = denoiser.start(latents)
        both = torch.cat([request.null_embeddings, request.embeddings])
        with torch.no_grad():
            raw = pipe.unet(torch.cat([scaled] * 2), timestep, encoder_hidden_states=both).sample
        unconditional, conditional = raw.chunk(2)
        return conditional - unconditional

    x = request.latents
    first = pull(x)
    reach = 0.4 * x[0].numel() ** 0.5 / first.flatten(1).norm(dim=1)[:, None, None, None]
    expected = x - 0.7 * (pull(x + reach * first) - first)
    moved = InitNoise(rounds=1, gamma=0.7, radius=0.4).adjust(denoiser, request, {}).latents
    torch.testing.assert_close(moved - x, expected - x, rtol=1e-2, atol=1e-5)


def test_moving_costs_four_evaluations_a_round_and_late_guidance_gives_some_back(denoiser):
    before = denoiser.evaluations
    draw(denoiser, InitNoise(rounds=2, transition=700))  # of 751, 501, 251, 1 the first is unguided
    assert denoiser.evaluations - before == 3 * (2 * 4 + 1 + 3 * 2)
