"""What methods that train stand on: the UNet as it was, changed parameters alone, nothing lost."""

import pytest
import torch
from safetensors.torch import load_file

from bench.base.errors import UserError
from bench.contracts.fine_tuning import fine_tuned, made_once, swapped
from bench.contracts.method import FitData
from bench.diffusion.denoiser import Denoiser
from bench.training.loop import Course
from conftest import build_tiny_pipeline

COURSE = Course(steps=4, learning_rate=0.01, checkpoint_every=1)


def weights(unet):
    return {name: value.detach().clone() for name, value in unet.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def pulling(unet, batch, random):
    """Towards an answer that is nothing, from noise of the batch's own."""
    dtype = next(unet.parameters()).dtype
    noise = torch.randn((2, 4, 8, 8), generator=random)
    words = torch.randn((2, 5, 32), generator=random)
    found = unet(noise.to(dtype), torch.tensor([3, 500]), encoder_hidden_states=words.to(dtype))
    return found.sample.square().mean()


def strict(unet):
    return [name for name, _ in unet.named_parameters() if name.endswith("attn2.to_v.weight")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_as_before_and_what_changed_is_given(dtype):
    pipe = build_tiny_pipeline()
    pipe.unet.to(dtype)
    denoiser = Denoiser(pipe, steps=4, guidance_scale=4.0)
    before, attributes = weights(pipe.unet), set(vars(pipe.unet))
    state = fine_tuned(denoiser, FitData(), strict(pipe.unet), COURSE, pulling)
    assert same(weights(pipe.unet), before)
    assert set(vars(pipe.unet)) == attributes
    assert not any(value.requires_grad for value in pipe.unet.parameters())
    assert all(value.grad is None for value in pipe.unet.parameters())
    assert sorted(state) == sorted(strict(pipe.unet))
    assert all(value.dtype == dtype for value in state.values())
    # two rows, forward and backward to weights, at each of four steps
    assert denoiser.evaluations == 4 * 2 * 3
    denoiser.close()


def test_also_after_an_exception(denoiser):
    def broken(unet, batch, random):
        if batch == 2:
            raise RuntimeError("not this one")
        return pulling(unet, batch, random)

    unet = denoiser.pipe.unet
    before, attributes = weights(unet), set(vars(unet))
    with pytest.raises(RuntimeError, match="not this one"):
        fine_tuned(denoiser, FitData(), strict(unet), COURSE, broken)
    assert same(weights(unet), before)
    assert set(vars(unet)) == attributes
    assert not any(value.requires_grad for value in unet.parameters())


def test_no_steps_and_a_loss_without_slope_change_nothing(denoiser):
    names = strict(denoiser.pipe.unet)
    assert fine_tuned(denoiser, FitData(), names, Course(0, 0.1), pulling) == {}
    flat = Course(2, 0.1, weight_decay=0.0)
    loss = lambda unet, batch, random: pulling(unet, batch, random) * 0  # noqa: E731
    assert fine_tuned(denoiser, FitData(), names, flat, loss) == {}


def test_an_unknown_parameter_is_named(denoiser):
    with pytest.raises(UserError, match=r"no parameter nothing\.weight"):
        fine_tuned(denoiser, FitData(), ["nothing.weight"], COURSE, pulling)
    with (
        pytest.raises(UserError, match=r"names nothing\.weight"),
        swapped(denoiser.pipe.unet, {"nothing.weight": torch.zeros(1)}),
    ):
        pass


@pytest.mark.parametrize("killed", [1, 3])
def test_killed_and_continued_is_undisturbed_bit_for_bit(denoiser, tmp_path, killed):
    names = strict(denoiser.pipe.unet)
    undisturbed = fine_tuned(denoiser, FitData(), names, COURSE, pulling)

    def dying(unet, batch, random):
        if batch == killed:
            raise RuntimeError
        return pulling(unet, batch, random)

    credited = []
    data = FitData(folder=tmp_path, credit=lambda seconds, rows: credited.append(rows))
    with pytest.raises(RuntimeError):
        fine_tuned(denoiser, data, names, COURSE, dying)
    before = denoiser.evaluations
    continued = fine_tuned(denoiser, data, names, COURSE, pulling)
    assert same(continued, undisturbed)
    assert credited == [0, killed * 2 * 3]
    assert credited[-1] + denoiser.evaluations - before == COURSE.steps * 2 * 3


def test_swapped_weights_return_bit_for_bit_also_after_an_exception(denoiser):
    unet = denoiser.pipe.unet
    before = weights(unet)
    state = {name: torch.ones_like(before[name]) for name in strict(unet)}
    with pytest.raises(KeyError), swapped(unet, state):
        assert all((unet.get_parameter(name) == 1).all() for name in state)
        raise KeyError
    assert same(weights(unet), before)


def test_tensors_are_made_once_and_say_what_they_took(denoiser, tmp_path):
    calls, credited = [], []
    data = FitData(folder=tmp_path / "new", credit=lambda seconds, rows: credited.append(rows))

    def make():
        calls.append(1)
        denoiser.epsilon(torch.zeros(3, 4, 8, 8), 1, torch.zeros(3, 5, 32))
        return {"x": torch.arange(3.0)}

    with torch.no_grad():
        first = made_once(denoiser, data, "things", make)
        again = made_once(denoiser, data, "things", make)
    assert same(first, again)
    assert (len(calls), credited) == (1, [3])
    file = tmp_path / "new" / "things.safetensors"
    assert torch.equal(load_file(file)["x"], first["x"])
    file.write_bytes(file.read_bytes()[:20])  # cut short: made again
    with torch.no_grad():
        made_once(denoiser, data, "things", make)
        made_once(denoiser, FitData(), "things", make)  # nothing can be kept
    assert len(calls) == 3
