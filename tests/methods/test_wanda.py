import pytest
import torch

from bench.contracts.method import FitData
from bench.diffusion.denoiser import Denoiser, trajectory
from bench.diffusion.request import classifier_free_guidance
from conftest import CAPTIONS, build_tiny_pipeline
from methods.wanda import Wanda, feed_forward_outputs

CALLS = 3


def collected_inputs(denoiser, prompts, calls):
    """Every input of every layer, kept: one prompt at a time, `[call][layer] -> list of [rows,
    tokens, m]`.
    """
    kept = [{} for _ in range(calls)]
    for prompt in prompts:
        fired = {}

        def keep(name, fired=fired):
            def hook(module, args):
                kept[fired.setdefault(name, 0)].setdefault(name, []).append(args[0].clone())
                fired[name] += 1

            return hook

        layers = feed_forward_outputs(denoiser.pipe.unet)
        handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
        trajectory(denoiser, denoiser.request([prompt], [0]), classifier_free_guidance, calls)
        for handle in handles:
            handle.remove()
    return kept


def norms(inputs, branch, token_norm):
    """Column norms by the book: stack all rows, normalise each, root of the sum of squares."""
    rows = torch.cat([x[x.shape[0] // 2 :] if branch == "cond" else x for x in inputs]).flatten(
        0, 1
    )
    if token_norm == "l2":
        rows = torch.stack([row / row.norm() for row in rows])
    return torch.stack([column.square().sum().sqrt() for column in rows.T])


@pytest.mark.parametrize("branch", ["both", "cond"])
@pytest.mark.parametrize("token_norm", ["l2", "none"])
def test_masks_equal_a_literal_transcription(branch, token_norm):
    pipe = build_tiny_pipeline()
    for part in (pipe.unet, pipe.text_encoder):
        part.double()  # sums in another order must not swap two scores
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0, batch_size=4)
    method = Wanda(sparsity=0.1, prompts=3, calls=CALLS, branch=branch, token_norm=token_norm)
    state = method.fit(denoiser, FitData(fit_prompts=tuple(CAPTIONS[:3])))
    active = collected_inputs(denoiser, CAPTIONS[:3], CALLS)
    empty = collected_inputs(denoiser, ["", "", ""], CALLS)
    for name, layer in feed_forward_outputs(denoiser.pipe.unet).items():
        rows, columns = layer.weight.shape
        expected = torch.zeros(rows, columns, dtype=torch.bool)
        for call in range(CALLS):
            score = layer.weight.abs() * norms(active[call][name], branch, token_norm)
            baseline = layer.weight.abs() * norms(empty[call][name], branch, token_norm)
            for i in range(rows):
                order = sorted(range(columns), key=lambda j, i=i, score=score: -score[i, j].item())
                for j in order[: int(0.1 * columns)]:
                    expected[i, j] |= bool(score[i, j] > baseline[i, j])
        assert torch.equal(state[name], expected), name


def test_streamed_energies_equal_the_stacked_ones_and_count_rows(denoiser):
    method = Wanda(calls=CALLS)
    streamed = method.column_energies(denoiser, CAPTIONS[:3], CALLS)
    kept = collected_inputs(denoiser, CAPTIONS[:3], CALLS)
    for name, energy in streamed.items():
        for call in range(CALLS):
            torch.testing.assert_close(
                energy[call].sqrt(), norms(kept[call][name], "both", "l2"), atol=1e-4, rtol=1e-4
            )
            rows = sum(x.shape[0] * x.shape[1] for x in kept[call][name])
            assert energy[call].sum().item() == pytest.approx(rows, rel=1e-5)


def test_a_row_loses_at_most_its_share_at_one_call():
    torch.manual_seed(0)
    weight, energy = torch.randn(6, 40), torch.rand(1, 40)
    everything_active = Wanda(sparsity=0.1).mask(weight, energy, torch.zeros(1, 40))
    assert (everything_active.sum(1) == 4).all()
    half = torch.where(torch.arange(40) % 2 == 0, energy * 2, torch.zeros(40))
    assert (Wanda(sparsity=0.1).mask(weight, energy, half).sum(1) <= 4).all()
    assert not Wanda(sparsity=0.0).mask(weight, energy, torch.zeros(1, 40)).any()


def test_the_column_test_equals_comparing_both_score_matrices():
    torch.manual_seed(0)
    weight, active, empty = torch.randn(8, 32), torch.rand(2, 32), torch.rand(2, 32)
    literal = torch.zeros(8, 32, dtype=torch.bool)
    for a, e in zip(active, empty, strict=True):
        score, baseline = weight.abs() * a.sqrt(), weight.abs() * e.sqrt()
        chosen = torch.zeros(8, 32, dtype=torch.bool).scatter_(
            1, score.topk(6, dim=1).indices, True
        )
        literal |= chosen & (score > baseline)
    assert torch.equal(Wanda(sparsity=0.2).mask(weight, active, empty), literal)


def test_the_empty_prompt_alone_prunes_nothing(denoiser):
    state = Wanda(sparsity=0.5).fit(denoiser, FitData(fit_prompts=("",)))
    assert not any(mask.any() for mask in state.values())


def test_the_order_of_prompts_does_not_change_the_masks(denoiser):
    method = Wanda(sparsity=0.1, prompts=4)
    first = method.fit(denoiser, FitData(fit_prompts=tuple(CAPTIONS[:4])))
    second = method.fit(denoiser, FitData(fit_prompts=tuple(reversed(CAPTIONS[:4]))))
    # sums in another order
    assert sum((first[name] != second[name]).sum().item() for name in first) <= 2


def test_pruned_weights_are_zero_and_return_bit_exactly_also_after_an_exception():
    pipe = build_tiny_pipeline()
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    state = Wanda(sparsity=0.1).fit(denoiser, FitData(fit_prompts=tuple(CAPTIONS[:2])))
    assert any(mask.any() for mask in state.values())
    with pytest.raises(RuntimeError, match="inside"), Wanda().attach(pipe, state):
        for name, value in pipe.unet.state_dict().items():
            mask = (
                state.get(name.removesuffix(".weight")) if name.endswith("net.2.weight") else None
            )
            if mask is None:
                assert torch.equal(value, before[name])
            else:
                assert (value[mask] == 0).all() and torch.equal(value[~mask], before[name][~mask])
        raise RuntimeError("inside")
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in feed_forward_outputs(pipe.unet).values())


def test_fitting_on_ten_prompts_costs_at_most_220_row_evaluations(tiny_pipe):
    denoiser = Denoiser(tiny_pipe, steps=25, guidance_scale=5.0, batch_size=4)
    Wanda().fit(
        denoiser,
        FitData(fit_prompts=tuple(f"{caption} {i}" for i in range(3) for caption in CAPTIONS)),
    )
    assert denoiser.rows <= 220
    denoiser.close()
