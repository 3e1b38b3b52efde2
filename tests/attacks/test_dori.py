"""Embeddings searched for a known picture: the search itself, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from held import alone
from torch import nn

from attacks.dori import BANK, Dori, _Loss
from attacks.dori_inputs import DoriInputs
from bench.base.errors import Unmeasurable, UserError
from bench.contracts.held import Held, Known
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.request import HandedIn
from bench.features.networks import CopyDescriptor
from bench.running.judging import target_of
from bench.running.prepare import prepare
from bench.store.findings import Findings
from bench.suite.prompts import Prompt

CPU = torch.device("cpu")
SIZE, TOKENS, WIDTH = (2, 4, 4), 3, 4
DIMENSIONS = 32


class _Field(nn.Module):
    """Noise as any function of latents and whole embeddings, behind the real `Denoiser`."""

    def __init__(self, field):
        super().__init__()
        self.field = field
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.config = SimpleNamespace(sample_size=4, in_channels=2)

    def forward(self, sample, timestep, encoder_hidden_states, **_):
        return (self.field(sample, encoder_hidden_states),)


@dataclass(frozen=True)
class _Held(Held):
    """Held by an attacker who knows latents and needs no autoencoder."""

    known: torch.Tensor = None

    def latents(self, targets):
        return self.known[: len(targets)]


def a_model(field, known, prediction_type="epsilon"):
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)

    def encode_prompt(prompts, *_):
        return torch.zeros(len(prompts), TOKENS, WIDTH), None

    pipe = SimpleNamespace(
        unet=_Field(field), scheduler=scheduler, encode_prompt=encode_prompt, vae=None
    )
    return _Held("edited", Denoiser(pipe, 4, 3.0), 4, None, known)


def someone(name="a", root=0):
    return Known(Prompt(name, name, "", ()), None, True, (1, 2), root)


def test_on_a_linear_model_the_search_ends_at_least_squares():
    """The loss of e = A x + B y is quadratic in y: gradient 2 B'(A x + B y - e), on average."""
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(DIMENSIONS, TOKENS * WIDTH, generator=generator) / 4

    def field(sample, embeddings):
        return 0.1 * sample + (embeddings.flatten(1) @ b.T).reshape(sample.shape)

    held = a_model(field, torch.randn(1, *SIZE, generator=generator))
    attack = Dori(curve=(0, 400), lr=0.05, batch=64)
    (found,) = attack.search(held, [someone()])
    loss = _Loss(held, [someone()], False)
    start = torch.zeros(1, TOKENS, WIDTH, requires_grad=True)
    times, noises = loss.bank
    (gradient,) = torch.autograd.grad(loss(start, times, noises).sum(), start)
    alpha = loss.levels[times[0]].reshape(-1, 1, 1, 1)
    noised = alpha.sqrt() * held.known + (1 - alpha).sqrt() * noises[0]
    rest = (0.1 * noised - noises[0]).flatten(1)
    by_hand = 2 * (rest @ b).mean(0) / DIMENSIONS
    torch.testing.assert_close(gradient.flatten(), by_hand, atol=1e-6, rtol=1e-4)
    # over all noises the best y solves B'B y = -B' E[A x - e], and E e = 0
    mean = (loss.levels.sqrt().mean() * 0.1 * held.known).flatten()
    best = -torch.linalg.lstsq(b, mean[:, None]).solution[:, 0]
    end = torch.from_numpy(found["embeddings"][-1]).flatten()
    assert (b @ (end - best)).norm() < 0.25 * (b @ best).norm() + 0.1
    assert found["bank"][-1] < found["bank"][0]


def test_a_model_that_ignores_its_prompt_moves_nothing():
    held = a_model(lambda x, y: x + 0 * y.sum(), torch.ones(1, *SIZE))
    for init in ("prompt", "normal"):
        (found,) = Dori(curve=(0, 3), init=init).search(held, [someone()])
        np.testing.assert_array_equal(found["embeddings"][0], found["embeddings"][-1])
        assert found["bank"][0] == found["bank"][-1]


def test_targets_do_not_know_of_each_other():
    def field(sample, embeddings):
        return torch.tanh(sample) + embeddings.mean((1, 2)).reshape(-1, 1, 1, 1)

    known = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))
    people = [someone(name) for name in "abc"]
    attack = Dori(curve=(0, 2, 5), init="normal", restarts=2)
    together = attack.search(a_model(field, known), people)
    for row, one in enumerate(people):
        (alone,) = attack.search(a_model(field, known[row : row + 1]), [one])
        np.testing.assert_allclose(
            alone["embeddings"], together[row]["embeddings"], rtol=1e-5, atol=1e-6
        )
    other = attack.search(a_model(field, known[:1]), [someone("a", root=1)])
    assert not np.allclose(other[0]["embeddings"], together[0]["embeddings"])


def test_a_search_costs_two_evaluations_a_noise_and_the_bank():
    held = a_model(lambda x, y: x + y.mean((1, 2)).reshape(-1, 1, 1, 1), torch.ones(1, *SIZE))
    Dori(curve=(0, 5, 10), batch=4).search(held, [someone()])
    assert held.denoiser.evaluations == 2 * 10 * 4 + 3 * BANK


@pytest.mark.parametrize("loss", ["native", "epsilon"])
def test_the_loss_of_a_model_of_v_is_of_v_or_of_the_noise_in_it(loss):
    held = a_model(lambda x, y: 0.3 * x + 0 * y.sum(), torch.ones(1, *SIZE), "v_prediction")
    judge = _Loss(held, [someone()], loss == "epsilon")
    times, noises = judge.bank
    given = judge(torch.zeros(1, TOKENS, WIDTH), times, noises)
    whole = []
    for time, noise in zip(times[0], noises[0], strict=True):
        a = judge.levels[time]
        x = a.sqrt() * held.known[0] + (1 - a).sqrt() * noise
        v = 0.3 * x
        if loss == "epsilon":
            whole.append((noise - (a.sqrt() * v + (1 - a).sqrt() * x)).square().mean())
        else:
            whole.append((a.sqrt() * noise - (1 - a).sqrt() * held.known[0] - v).square().mean())
    torch.testing.assert_close(given[0], torch.stack(whole).mean(), rtol=1e-4, atol=1e-6)


def test_a_curve_begins_at_nothing_and_a_template_holds_one_word():
    for curve in ((1, 5), (0, 5, 5), (0, 9, 5)):
        with pytest.raises(ValueError, match="begin with 0"):
            Dori(curve=curve)
    with pytest.raises(ValueError, match="once"):
        Dori(template="no word")


def test_an_embedding_that_is_handed_in_is_equal_to_itself_alone(denoiser):
    given = torch.full((16, 32), 0.5)
    one, other = HandedIn("a fox", given), HandedIn("a fox", given)
    assert one == one and one != other and one != "a fox" and str(one) == "a fox"
    assert len({one, other, "a fox"}) == 3
    plain = denoiser.encode(["a fox"])[0]
    given = torch.full_like(plain, 0.5)
    one = HandedIn("a fox", given)
    rows = denoiser.encode([one, "a fox", one])
    assert torch.equal(rows[0], given) and torch.equal(rows[2], given)
    assert torch.equal(rows[1], plain)


def test_equal_embeddings_of_a_caption_are_handed_in_as_one(denoiser):
    """A method that searches something for every prompt searches once for all images of one."""
    held = Held("served", denoiser, 32, None)
    request = denoiser.request(["a fox"] * 3 + ["a key"], [0, 1, 2, 3])
    rows = request.embeddings.clone()
    rows[2] += 1
    rows[3] = rows[0]
    handed = held.handing_in(request, rows)
    one, two, three, four = handed.prompts
    assert one is two and one is not three and one is not four
    assert list(map(str, handed.prompts)) == ["a fox"] * 3 + ["a key"]
    assert torch.equal(denoiser.encode(handed.prompts), rows) and handed.handed_in


# ---- on the tiny model, through the harness

FAST = {"targets": 2, "images": 2, "curve": (0, 2)}


def a_run(suite, store, method="none", values=None):
    unjudged = suite.settings.model_copy(update={"attacks": {}})
    return prepare(replace(suite, settings=unjudged), method, values or {}, store, CPU)


def attacked(run, attack, state=None):
    return alone(attack.run(target_of(*run, attack, state or {})))


def scores_judge(suite):
    given = suite.settings.metrics["sscd"]
    return CopyDescriptor(suite.path(given["weights"]), given["profile"], CPU)


def values(scores):
    return {
        name: "–"
        if isinstance(score, Unmeasurable)
        else getattr(score, "table", None)
        if hasattr(score, "table")
        else score.value
        for name, score in scores.items()
    }


def test_without_a_step_the_attack_is_plain_generation_and_nothing_is_left_behind(
    tiny_suite, tmp_path
):
    run = a_run(tiny_suite, tmp_path)
    denoiser = run.engine.denoiser
    before = {name: value.clone() for name, value in denoiser.pipe.unet.state_dict().items()}
    flags = [p.requires_grad for p in denoiser.pipe.unet.parameters()]
    attack = Dori(**FAST)
    target = target_of(*run, attack, {})
    scores = attack.run(target)
    np.testing.assert_array_equal(
        scores["dori_zero"].table.max(1, keepdims=True), scores["dori_plain"].table
    )
    memorized, _ = attack.attacked(tiny_suite)
    known = target.known(memorized, 2, True)
    found = target.find(attack.stages(tiny_suite, known), known)
    plain = target.generate(memorized, 2).pictures()  # by the ordinary way
    features = run.engine.kept(scores_judge(tiny_suite))(plain).reshape(2, 2, -1)
    for row, one in enumerate(found):
        np.testing.assert_allclose(one.features[0], features[row], atol=1e-5)
    after = denoiser.pipe.unet.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert flags == [p.requires_grad for p in denoiser.pipe.unet.parameters()]
    assert all(p.grad is None for p in denoiser.pipe.unet.parameters())


def test_an_interrupted_attack_goes_on_and_ends_as_an_undisturbed_one(
    tiny_suite, tmp_path, monkeypatch
):
    whole = values(attacked(a_run(tiny_suite, tmp_path / "a"), Dori(**FAST)))
    made, original = [], Dori.one_search

    def once(self, held, targets, clean, restart):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return original(self, held, targets, clean, restart)

    attack = Dori(**FAST)
    monkeypatch.setattr(Dori, "one_search", once)
    with pytest.raises(KeyboardInterrupt):
        attacked(a_run(tiny_suite, tmp_path / "b"), attack)
    monkeypatch.setattr(Dori, "one_search", original)
    again = values(attacked(a_run(tiny_suite, tmp_path / "b"), attack))
    assert again.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, again[name])


def test_findings_say_what_made_them_and_a_second_process_takes_those_that_are_there(
    tiny_suite, tmp_path, monkeypatch
):
    run, attack = a_run(tiny_suite, tmp_path), Dori(**FAST)
    scores = attacked(run, attack)
    (maker,) = scores["dori_excess"].details["made_by"]
    assert maker["device"] == "cpu" and maker["dtype"] == "float32" and maker["packages"]["torch"]
    # a process that saw an empty store at first finds everything there when it comes to work
    read, calls = Findings.read, []

    def late(self, name):
        calls.append(place := (self.key, name))
        early = 2 if "search" in str(self.files) else 3  # the last stage is asked for once more
        return None if calls.count(place) < early else read(self, name)

    monkeypatch.setattr(Findings, "read", late)
    monkeypatch.setattr(Dori, "one_search", None)
    again = attacked(a_run(tiny_suite, tmp_path), attack)
    np.testing.assert_array_equal(scores["dori_sscd"].table, again["dori_sscd"].table)


def test_a_damaged_finding_is_made_again(tiny_suite, tmp_path):
    run = a_run(tiny_suite, tmp_path)
    first = values(attacked(run, Dori(**FAST)))
    files = sorted((run.images.store.folder / "attacks").rglob("*.npz"))
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    again = values(attacked(a_run(tiny_suite, tmp_path), Dori(**FAST)))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])


def test_what_is_found_on_weights_that_nothing_changed_is_found_once(
    tiny_suite, tmp_path, monkeypatch
):
    """Under `weights` a method of guidance is not there at all: the base model is attacked."""
    none = values(attacked(a_run(tiny_suite, tmp_path), Dori(**FAST)))
    monkeypatch.setattr(Dori, "one_search", None)  # nothing is searched any more
    for method, given in (("guidance", {"share": 0.3}), ("random_numbers", {})):
        run = a_run(tiny_suite, tmp_path, method, given)
        found = values(attacked(run, Dori(**FAST)))
        np.testing.assert_array_equal(none["dori_memorized"], found["dori_memorized"])
        # and behind the doors the same embeddings are handed in
        attacked(run, DoriInputs(**FAST))


def test_rewording_does_not_reach_an_embedding_that_is_handed_in(tiny_suite, tmp_path):
    plain = values(attacked(a_run(tiny_suite, tmp_path), DoriInputs(**FAST)))
    reworded = values(attacked(a_run(tiny_suite, tmp_path, "random_numbers"), DoriInputs(**FAST)))
    np.testing.assert_allclose(plain["dori_inputs_sscd"], reworded["dori_inputs_sscd"], atol=1e-5)
    weaker = a_run(tiny_suite, tmp_path, "guidance", {"share": 0.0})
    assert not np.allclose(
        plain["dori_inputs_sscd"], values(attacked(weaker, DoriInputs(**FAST)))["dori_inputs_sscd"]
    )


def test_one_new_word_changes_the_embedding_through_the_text_encoder(tiny_suite, tmp_path):
    run = a_run(tiny_suite, tmp_path)
    attack = Dori(**FAST, space="token", lr=0.01)
    target = target_of(*run, attack, {})
    memorized, _ = attack.attacked(tiny_suite)
    stages = attack.stages(tiny_suite, known := target.known(memorized, 2, True))
    found = target.find(stages, known)
    assert all(one.numbers["shift"][0] == 0 < one.numbers["shift"][1] for one in found)
    hooks = run.engine.denoiser.pipe.text_encoder.get_input_embeddings()._forward_hooks
    assert not hooks


def test_other_captions_are_the_suite_s_clean_ones(tiny_suite, tmp_path):
    scores = attacked(a_run(tiny_suite, tmp_path), Dori(**FAST, init="other"))
    assert np.isfinite(scores["dori_sscd"].table).all()
    without = tiny_suite.settings.model_copy(
        update={"prompts": {k: v for k, v in tiny_suite.settings.prompts.items() if k != "clean"}}
    )
    with pytest.raises(Unmeasurable, match="clean"):
        Dori(init="other").stages(replace(tiny_suite, settings=without), [])


def test_an_attack_without_controls_or_without_a_judge_is_refused(tiny_suite):
    settings = tiny_suite.settings
    for part, name in (("prompts", "control"), ("metrics", "sscd")):
        kept = {k: v for k, v in getattr(settings, part).items() if k != name}
        suite = replace(tiny_suite, settings=settings.model_copy(update={part: kept}))
        with pytest.raises(UserError, match=name):
            Dori().fits(suite)


def test_the_rate_is_that_of_the_space():
    assert Dori().rate == 0.1 and Dori(space="token").rate == 0.002
    assert Dori(space="token", lr=0.5).rate == 0.5


def test_the_best_restart_is_the_one_with_the_lowest_loss_at_any_mark(monkeypatch):
    banks = iter([[3.0, 1.0, 2.0], [3.0, 1.9, 1.8]])

    def one_search(self, held, targets, clean, restart):
        return [{"embeddings": np.full((3, 1, 1), restart), "bank": np.array(next(banks))}]

    monkeypatch.setattr(Dori, "one_search", one_search)
    (found,) = Dori(restarts=2, curve=(0, 1, 2)).search(None, [someone()])
    assert found["embeddings"].max() == 0  # the first reached 1.0, at the second mark
