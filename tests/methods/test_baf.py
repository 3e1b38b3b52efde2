"""The filter of a fine-tuning update against dense decompositions, its controls, and its file."""

from __future__ import annotations

import copy

import pytest
import torch

from bench.base.errors import UserError
from bench.contracts.method import FitData
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.testbed.tiny import build_tiny_base, build_tiny_pipeline
from methods._channels import Channels, Layer, alignments, changed_layers, channels_of
from methods.baf import Baf

CONV = "down_blocks.0.resnets.0.conv1"
SHORT = "up_blocks.0.resnets.0.conv_shortcut"  # a 1x1 convolution


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def base():
    return Denoiser(build_tiny_base(), 4, 4.0)


@pytest.fixture(scope="module")
def model():
    """With a 1x1 convolution, a 3x3 one and a bias that were fine-tuned too."""
    pipe = build_tiny_pipeline()
    with torch.no_grad():
        pipe.unet.get_submodule(SHORT).weight.add_(0.05)
        pipe.unet.get_submodule(CONV).weight.mul_(1.1)
        pipe.unet.get_submodule(CONV).bias.add_(0.5)
    return Denoiser(pipe, 4, 4.0)


def layer_of(update, base, dtype=torch.float32):
    module = torch.nn.Linear(base.shape[1], base.shape[0], bias=False)
    module.weight.data = (base + update).to(dtype)
    return Layer("unet.some", module, base.to(dtype))


def weights(pipe):
    return {
        f"{part}.{name}": value.detach().clone()
        for part in ("unet", "text_encoder")
        for name, value in getattr(pipe, part).named_parameters()
    }


def fitted(method, model, base):
    return method.fit(model, FitData(base=base))


def slow(model, base, rho):
    """Every channel of the two pipelines: score, layer, its matrix; by dense decompositions of
    everything, one channel after another.
    """
    found = []
    before = weights(base.pipe)
    for name, weight in weights(model.pipe).items():
        old = before[name].double()
        if old.ndim < 2 or old.shape[2:] not in ((), (1, 1)):
            continue
        old = old.flatten(1)
        update = weight.double().flatten(1) - old
        if not bool(update.any()):
            continue
        u, s, v = torch.linalg.svd(update)
        left, energy, right = torch.linalg.svd(old)
        k = 0
        while float(energy[:k].square().sum()) < rho * float(energy.square().sum()):
            k += 1
        chance = (k / old.shape[0] + k / old.shape[1]) / 2
        for i in range(len(s)):
            if s[i] < 1e-5:  # rounding
                continue
            inside = sum(float(left[:, j] @ u[:, i]) ** 2 for j in range(k))
            inside += sum(float(right[j] @ v[i]) ** 2 for j in range(k))
            found.append((inside / 2 / chance, name, s[i] * torch.outer(u[:, i], v[i])))
    return found


@pytest.mark.parametrize("rho", [0.5, 0.9])
@pytest.mark.parametrize("control", ["none", "reverse"])
def test_the_filtered_weights_are_those_of_a_slow_count(model, base, rho, control):
    state = fitted(Baf(q=0.4, rho=rho, control=control), model, base)
    channels = sorted(slow(model, base, rho), key=lambda one: one[0])
    if control == "reverse":
        channels = channels[::-1]
    dropped = channels[: round(0.4 * len(channels))]
    expected = {name: value.double() for name, value in weights(model.pipe).items()}
    for _, name, matrix in dropped:
        expected[name] = expected[name] - matrix.reshape(expected[name].shape)
    assert state.keys() == {name for _, name, _ in dropped}
    for name, value in state.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=2e-6)


def test_nothing_dropped_is_no_state_and_everything_dropped_is_the_base(model, base):
    assert fitted(Baf(q=0), model, base) == {}
    before, state = weights(base.pipe), fitted(Baf(q=1), model, base)
    changed = {layer.name for layer in changed_layers(model.pipe, base.pipe)}
    assert state.keys() == {f"{name}.weight" for name in changed}
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert any(name.startswith("text_encoder.") for name in state)
    assert f"unet.{CONV}.weight" not in state and f"unet.{SHORT}.weight" in state


def test_a_channel_inside_both_subspaces_scores_one_and_one_outside_nothing():
    left, right = (torch.linalg.qr(drawn(8, 8, seed=seed)).Q for seed in (1, 2))
    energy = torch.tensor([3.0, 2.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    base = (left * energy) @ right.T
    both, neither, half = (
        (left[:, :3] @ drawn(3, 1), right[:, :3] @ drawn(3, 1, seed=3)),
        (left[:, 4:5], right[:, 6:7]),
        (left[:, :1], right[:, 5:6]),
    )
    channels = Channels(
        torch.cat([u / u.norm() for u, _ in (both, neither, half)], 1),
        torch.ones(3, dtype=torch.float64),
        torch.cat([(v / v.norm()).T for _, v in (both, neither, half)]),
    )
    inside, chance = alignments(base, channels, 0.99)
    torch.testing.assert_close(inside, torch.tensor([1, 0, 0.5], dtype=torch.float64))
    assert chance == 3 / 8
    inside, chance = alignments(torch.zeros(8, 8), channels, 0.9)
    assert not bool(inside.any()) and chance == 0


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7)])
def test_subspaces_are_those_of_a_dense_decomposition(shape):
    base = drawn(*shape)
    channels = channels_of(layer_of(drawn(*shape, seed=1), base))
    for share in (0.1, 0.5, 0.9, 0.999):
        inside, chance = alignments(base, channels, share)
        left, energy, right = torch.linalg.svd(base, full_matrices=False)
        total, k = energy.square().cumsum(0), 1
        while float(total[k - 1]) < share * float(total[-1]):
            k += 1
        one = (left[:, :k].T @ channels.left).square().sum(0)
        other = (channels.right @ right[:k].T).square().sum(1)
        torch.testing.assert_close(inside, (one + other) / 2)
        assert chance == pytest.approx((k / shape[0] + k / shape[1]) / 2)


@pytest.mark.parametrize("rank", [1, 20, 60, 200])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_channels_are_those_of_a_dense_decomposition_at_every_rank(rank, shape):
    """Also where the rank is found in a sketch of the update, and rounding is no channel."""
    left, right = drawn(shape[0], rank, seed=1), drawn(rank, shape[1], seed=2)
    update, base = left @ right / 100, drawn(*shape)
    found = channels_of(layer_of(update, base))
    dense = torch.linalg.svd(layer_of(update, base).update, full_matrices=False)
    assert len(found.strength) == rank
    torch.testing.assert_close(found.strength, dense.S[:rank], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.product(torch.ones(rank)), update, rtol=0, atol=1e-6)
    same = (found.left * dense.U[:, :rank]).sum(0) * (found.right * dense.Vh[:rank]).sum(1)
    torch.testing.assert_close(same, torch.ones(rank, dtype=torch.float64), rtol=0, atol=1e-4)


def test_in_half_precision_rounding_is_no_channel_either():
    base = drawn(100, 80)
    update = drawn(100, 3, seed=1) @ drawn(3, 80, seed=2) / 10
    assert len(channels_of(layer_of(update, base, torch.float16)).strength) == 3
    assert len(channels_of(layer_of(torch.zeros(100, 80), base)).strength) == 0


def dropped_of(method, model, base):
    return [
        (layer.name, number)
        for layer, channels, factors in method.filtered(model, base, lambda *_: None)
        for number in range(len(channels.strength))
        if factors[number] == 0
    ]


def test_the_random_control_drops_as_many_others(model, base):
    own, one, again, other = (
        dropped_of(Baf(q=0.3, control=control, seed=seed), model, base)
        for control, seed in (("none", 0), ("random", 0), ("random", 0), ("random", 1))
    )
    assert len(own) == len(one) == len(other) > 10
    assert one == again and len({tuple(own), tuple(one), tuple(other)}) == 3


def test_the_weakened_control_has_the_norm_that_the_filter_leaves(model, base):
    before = weights(base.pipe)

    def norm(state):
        now = weights(model.pipe) | state
        layers = [f"{layer.name}.weight" for layer in changed_layers(model.pipe, base.pipe)]
        return sum(float((now[n].double() - before[n].double()).square().sum()) for n in layers)

    filtered, weak = (
        fitted(Baf(q=0.4, control=control), model, base) for control in ("none", "weight")
    )
    assert norm(weak) == pytest.approx(norm(filtered), rel=1e-5) and norm(weak) < norm({})
    plain = weights(model.pipe)
    shares = [
        float((value - before[name]).norm() / (plain[name] - before[name]).norm())
        for name, value in weak.items()
    ]
    assert max(shares) - min(shares) < 1e-4


@pytest.mark.parametrize("control", ["none", "weight"])
@pytest.mark.parametrize("q", [0, 0.4, 1])
def test_the_file_on_the_base_is_the_filtered_model(model, base, tmp_path, q, control):
    method = Baf(q=q, control=control)
    digest = method.write(tmp_path / "filtered.safetensors", model, base)
    file = read_lora(tmp_path / "filtered.safetensors")
    assert file.digest == digest
    pipe = copy.deepcopy(base.pipe)
    merge(pipe, [(file, Strength())])
    expected = weights(model.pipe) | fitted(method, model, base)
    for name, value in weights(pipe).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-6)


def test_diffusers_reads_the_file_as_we_do(base, tmp_path):
    pytest.importorskip("peft")
    plain = Denoiser(build_tiny_pipeline(), 4, 4.0)  # linear layers alone
    Baf(q=0.4).write(tmp_path / "filtered.safetensors", plain, base)
    ours, theirs = copy.deepcopy(base.pipe), copy.deepcopy(base.pipe)
    merge(ours, [(read_lora(tmp_path / "filtered.safetensors"), Strength())])
    theirs.load_lora_weights(str(tmp_path / "filtered.safetensors"))
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    for name, value in weights(theirs).items():
        torch.testing.assert_close(value, weights(ours)[name], rtol=0, atol=1e-5)


def test_a_model_that_is_its_base_has_nothing_to_filter(model, base, tmp_path):
    same = Denoiser(build_tiny_base(), 4, 4.0)
    with pytest.raises(UserError, match="there is no update to filter") as error:
        fitted(Baf(), same, base)
    assert "\n" not in str(error.value)
    with torch.no_grad():
        same.pipe.unet.get_submodule(SHORT).weight.mul_(1.1).div_(1.1)
    with pytest.raises(UserError, match="by rounding alone"):
        fitted(Baf(), same, base)


def test_no_model_is_evaluated_or_changed(model, base):
    before = weights(model.pipe), weights(base.pipe)
    rows = model.evaluations, base.evaluations
    fitted(Baf(), model, base)
    assert (model.evaluations, base.evaluations) == rows
    for pipe, old in zip((model.pipe, base.pipe), before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in weights(pipe).items())
