"""PRSS: the search, the formula, stand-ins for paraphrases, thresholds, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from analytic import CHANNELS, SIDE, analytic, shaped
from pydantic import ValidationError

from bench.contracts.method import FitData, Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.request import HandedIn
from bench.running.sampling import sample
from conftest import CAPTIONS
from methods.prss import Paraphrases, Prss, _from_bytes, share, turned

DIRECTION = torch.linspace(-1, 1, CHANNELS * SIDE * SIDE).reshape(CHANNELS, SIDE, SIDE)
OTHER = DIRECTION.flip(0)
# How long the pull of a prompt is, and along which of two directions: 1000 more for the other one.
LENGTHS = {
    "": 0.0,
    "zork fox and owl": 6.0,
    "zork apple": 4.0,
    "zork bus": 1000 + 4.0,
    "a fox": 1002.5,
    "a fox and an owl": 1.5,
    "an owl": 0.5,
    "an apple": 3.5,
    "a large apple": 3.0,
    "a tent": 0.8,
    "a bus": 4.5,
}
CLEAN = ("a fox", "a fox and an owl", "an owl", "an apple", "a large apple", "a tent", "a bus")
PROMPTS = ["zork fox and owl", "a tent", "zork apple", "zork bus"]
STEPS, SCALE = 6, 4.0


def field(scaled, signal, numbers):
    """A pull of the prompt's own length at all steps, on top of what pictures of N(0, I) have."""
    plain = (1 - shaped(signal)).sqrt() * scaled
    other = shaped(numbers) >= 1000
    towards = torch.where(other, OTHER / OTHER.norm(), DIRECTION / DIRECTION.norm())
    return plain + (shaped(numbers) - 1000 * other) * towards


@pytest.fixture
def model():
    denoiser = analytic(field, STEPS, SCALE)

    def encode_prompt(prompts, *_):
        numbers = torch.tensor([LENGTHS[prompt] for prompt in prompts])
        return numbers.reshape(-1, 1, 1).expand(-1, 3, 4).clone(), None

    denoiser.pipe.encode_prompt = encode_prompt
    return denoiser


def drawn(denoiser, method, prompts, seeds=None, state=None):
    """Final latents, what was reported, and rows evaluated."""
    if state is None:
        state = method.fit(denoiser, FitData(clean_prompts=CLEAN))
    request = denoiser.request(prompts, seeds or list(range(len(prompts))))
    before = denoiser.evaluations
    latents = sample(denoiser, request, method, state)
    return latents, request.facts, denoiser.evaluations - before


def by_the_book(denoiser, prompt, seed, l_ss, l_pr, full, others):
    """The released code's arithmetic for one image; also the chosen prompt and the steps turned."""
    scheduler, g = denoiser.new_scheduler(), SCALE
    x = denoiser.initial_latents([seed])

    def predicted(text, timestep):
        return denoiser.epsilon(x, timestep, denoiser.encode([text]))

    found, chosen, triggered = [], prompt, False
    for text in [prompt, *others]:
        first = scheduler.timesteps[0]
        found.append(((predicted(text, first) - predicted("", first)).norm().item(), text))
        chosen = text
        if found[-1][0] <= l_ss:
            break
        triggered = True
    else:
        chosen = min(found)[1]
    turned_at = []
    for step, timestep in enumerate(scheduler.timesteps):
        e_u, e_o, e_m = (predicted(text, timestep) for text in ("", prompt, chosen))
        magnitude = (e_m - e_u).norm().item()
        if triggered and magnitude > l_pr:
            turned_at.append(step)
            scaler = (g * l_pr - full) / (g - 1)
            s = min((magnitude - scaler) / (full - scaler) * g, g)
            guided = e_o + s * (e_m - e_o) + (g - s) * (e_m - e_u)
        else:
            guided = e_u + g * (e_m - e_u)
        x = scheduler.step(guided, timestep, x, return_dict=False)[0]
    return x[0], triggered, len(found) - 1, turned_at


def test_it_is_the_published_procedure_image_by_image(model):
    method = Prss(l_ss=1.0, l_pr=2.0, full=4.0)
    latents, facts, cost = drawn(model, method, PROMPTS)
    clean, extra, seen = Paraphrases(CLEAN), 0, set()
    for row, prompt in enumerate(PROMPTS):
        others = clean.nearest(prompt, 25)
        with torch.no_grad():
            expected, triggered, tried, turned_at = by_the_book(
                model, prompt, row, 1.0, 2.0, 4.0, others
            )
        torch.testing.assert_close(latents[row], expected, rtol=1e-4, atol=1e-4)
        assert (facts["triggered"][row], facts["tried"][row]) == (triggered, tried)
        # The search has the predictions of the first step; turned steps need the given prompt's.
        extra += tried + len([step for step in turned_at if step])
        seen.add((triggered, bool(turned_at)))
    assert seen == {(False, False), (True, False), (True, True)}
    assert cost == len(PROMPTS) * 2 * STEPS + extra


def test_the_first_short_enough_prompt_is_taken_or_the_shortest(model):
    facts = drawn(model, Prss(l_ss=1.0, l_pr=2.0, full=4.0), PROMPTS)[1]
    assert facts["length_before"] == pytest.approx([6.0, 0.8, 4.0, 4.0], rel=1e-5)
    # "a fox and an owl" and "a fox" are too long, "an owl" is not; both apples are, the shorter
    # one is taken; the bus among clean prompts is longer than the given one.
    assert facts["length_after"] == pytest.approx([0.5, 0.8, 3.0, 4.0], rel=1e-5)
    assert facts["triggered"] == [True, False, True, True]
    assert [facts["tried"][row] for row in (1, 2, 3)] == [0, 2, 1]
    few = drawn(model, Prss(l_ss=1.0, l_pr=2.0, full=4.0, paraphrases=1), PROMPTS)[1]
    assert few["tried"] == [1, 0, 1, 1]


def test_an_image_does_not_depend_on_its_batch(model):
    method = Prss(l_ss=1.0, l_pr=2.0, full=4.0)
    together, facts, _ = drawn(model, method, PROMPTS, [3, 4, 5, 6])
    for row, prompt in enumerate(PROMPTS):
        alone, fact, _ = drawn(model, method, [prompt], [3 + row])
        torch.testing.assert_close(alone[0], together[row])
        assert {name: values[0] for name, values in fact.items()} == pytest.approx(
            {name: values[row] for name, values in facts.items()}
        )


def test_neutral_parameters_are_none_bit_for_bit_at_its_cost(denoiser):
    method = Prss(**Prss.neutral)
    assert method.needed() == () and method.fit(denoiser, FitData()) == {}
    found, facts, cost = drawn(denoiser, method, CAPTIONS[:3], state={})
    expected, _, least = drawn(denoiser, Method(), CAPTIONS[:3], state={})
    assert torch.equal(found, expected) and cost == least
    assert facts == {"triggered": [False] * 3, "tried": [0] * 3}


def test_a_length_never_exceeded_is_none_bit_for_bit_at_its_cost(denoiser):
    method = Prss(l_ss=1e9, l_pr=3, full=5)
    state = method.fit(denoiser, FitData(clean_prompts=tuple(CAPTIONS)))
    found, facts, cost = drawn(denoiser, method, CAPTIONS[:3], state=state)
    expected, _, least = drawn(denoiser, Method(), CAPTIONS[:3], state={})
    assert torch.equal(found, expected) and cost == least
    assert facts["triggered"] == [False] * 3


def test_guidance_is_continuous_and_ends_with_a_negative_prompt():
    drawn = torch.randn(3, 5, 2, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    given, chosen, without = drawn
    lengths = torch.tensor([2.0, 3.0, 4.0, 5.0, 90.0]).double()
    s = share(lengths, SCALE, 2.0, 5.0)
    torch.testing.assert_close(s, torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0]).double())
    guided = turned(given, chosen, without, s, SCALE)
    torch.testing.assert_close(guided[0], (without + SCALE * (chosen - without))[0])
    torch.testing.assert_close(guided[3:], (given + SCALE * (chosen - given))[3:])


def test_a_third_evaluation_only_where_it_is_made_use_of(model):
    prompts = ["zork fox and owl", "a tent", "zork apple"]
    # The chosen prompts have pulls of 0.5 and 3.0: the second one is turned, in all steps.
    _, facts, cost = drawn(model, Prss(l_ss=1.0, l_pr=2.0, full=4.0), prompts)
    assert cost == 3 * 2 * STEPS + sum(facts["tried"]) + (STEPS - 1)
    assert drawn(model, Prss(l_ss=1.0, l_pr=100.0, full=101.0), prompts)[2] == (
        3 * 2 * STEPS + sum(facts["tried"])
    )


def test_thresholds_are_quantiles_of_clean_prompts_and_fitting_is_counted(denoiser):
    clean, count = tuple(CAPTIONS), len(denoiser.timesteps)
    method = Prss(quantile=0.5, pr_quantile=0.25, full_quantile=0.75, calibration_prompts=5, seed=7)
    before = denoiser.evaluations
    state = method.fit(denoiser, FitData(clean_prompts=clean))
    assert denoiser.evaluations - before == 5 * 2 * count
    lengths = []

    class Watched(Method):
        def guide(self, step, state):
            pull = step.conditional - step.unconditional
            lengths[-1].append(pull.norm().item())
            return super().guide(step, state)

    for number, prompt in enumerate(clean[:5]):
        lengths.append([])
        sample(denoiser, denoiser.request([prompt], [7 + number]), Watched(), {})
    table = torch.tensor(lengths).double()
    expected = {
        "l_ss": table[:, 0].quantile(0.5),
        "l_pr": table.flatten().quantile(0.25),
        "full": table.flatten().quantile(0.75),
    }
    for name, value in expected.items():
        assert float(state[name]) == pytest.approx(float(value), rel=1e-5)


def test_given_thresholds_cost_nothing_and_the_first_step_alone_little(denoiser):
    data = FitData(clean_prompts=tuple(CAPTIONS))
    before = denoiser.evaluations
    state = Prss(l_ss=1, l_pr=3, full=5).fit(denoiser, data)
    assert denoiser.evaluations == before
    assert [float(state[name]) for name in ("l_ss", "l_pr", "full")] == [1, 3, 5]
    Prss(l_pr=3, full=5).fit(denoiser, data)
    assert denoiser.evaluations - before == 2 * len(CAPTIONS)


def test_full_is_above_l_pr(model):
    with pytest.raises(ValidationError, match="above l_pr"):
        Prss(l_pr=3, full=3)
    with pytest.raises(ValidationError, match="above pr_quantile"):
        Prss(pr_quantile=0.9, full_quantile=0.9)
    state = Prss(full=1e-3).fit(model, FitData(clean_prompts=CLEAN))
    assert float(state["full"]) > float(state["l_pr"])
    same = Prss(calibration_prompts=1).fit(model, FitData(clean_prompts=("a tent",)))
    assert float(same["full"]) > float(same["l_pr"])


def test_paraphrases_share_rare_words_first():
    prompts = ("a red fox", "a fox", "the owl", "a fox and an owl", "a fox", "a tent", "A FOX!")
    nearest = Paraphrases(prompts).nearest
    scores = by_hand(prompts, "zork fox with owl")
    assert nearest("zork fox with owl", 9) == [p for p, _ in scores]
    assert nearest("zork fox with owl", 2) == [p for p, _ in scores][:2]
    assert nearest("zork", 9) == [] and nearest("", 9) == []
    assert "a tent" not in nearest("a tent", 9)
    assert nearest("fox", 0) == []


def by_hand(prompts, prompt):
    """Shared weight as a part of all weight; equal ones in the list's order."""
    unique = list(dict.fromkeys(prompts))

    def words(text):
        return set(text.lower().replace("!", "").split())

    def weight(word):
        count = sum(word in words(text) for text in unique)
        return math.log(len(unique) / count) if count else 0.0

    scored = []
    for text in unique:
        shared = sum(map(weight, words(text) & words(prompt)))
        if shared:
            scored.append((text, shared / sum(map(weight, words(text) | words(prompt)))))
    return sorted(scored, key=lambda pair: -round(pair[1], 12))


def test_prompts_survive_as_tensors(model):
    clean = ("a fox", "naïve café, “quoted”\n", "", "x")
    state = Prss(l_ss=1, l_pr=3, full=5).fit(model, FitData(clean_prompts=clean))
    assert _from_bytes(state["prompts"]) == clean


def test_a_real_model_is_left_alone_and_acts(tiny_pipe):
    denoiser = Denoiser(tiny_pipe, steps=3, guidance_scale=4.0)
    method = Prss(quantile=0, pr_quantile=0, full_quantile=0.5)
    state = method.fit(denoiser, FitData(clean_prompts=tuple(CAPTIONS[2:])))
    found, facts, _ = drawn(denoiser, method, CAPTIONS[:2], state=state)
    expected, _, _ = drawn(denoiser, Method(), CAPTIONS[:2], state={})
    assert facts["triggered"] == [True, True]
    assert not torch.allclose(found, expected, atol=1e-4)
    for row in range(2):
        alone, _, _ = drawn(denoiser, method, [CAPTIONS[row]], [row], state=state)
        torch.testing.assert_close(alone[0], found[row], atol=2e-4, rtol=1e-4)
    denoiser.close()


def test_an_embedding_that_is_handed_in_is_not_exchanged_for_another_caption(denoiser):
    """What comes as an embedding has no words that another prompt could share."""
    method = Prss(l_ss=1e-6, l_pr=1e6, full=1e7)
    data = FitData(clean_prompts=("the fox in snow", "one key", "an owl"))
    with method.attach(denoiser.pipe, state := method.fit(denoiser, data)):
        plain = denoiser.request(["a fox with a hat"], [0])
        request = plain.replace(prompts=(HandedIn("a fox with a hat", plain.embeddings[0]),))
        adjusted = method.adjust(denoiser, request, state)
        assert request.facts["triggered"] == [True] and request.facts["tried"] == [0]
        reworded = denoiser.request(["a fox with a hat"], [0])
        method.adjust(denoiser, reworded, state)
        assert reworded.facts["tried"][0] > 0
    assert adjusted.embeddings.shape == plain.embeddings.shape
