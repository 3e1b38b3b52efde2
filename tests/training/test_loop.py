"""The loop that trains: against plain torch, interrupted and not, with and without a folder."""

import pytest
import torch

from bench.base.errors import UserError
from bench.training.loop import Course, Learner

CPU = torch.device("cpu")


def module(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def loss(model, batch, random):
    data = torch.randn(5, 3, generator=random)
    return (model(data) - batch).square().mean()


def learned(course, folder=None, model=None, loss=loss, watch=lambda step, loss: None):
    learner = Learner(model or module(), course, loss, CPU, folder)
    learner.learn(watch)
    return learner.result.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_adamw_with_shortened_gradients_and_a_warm_up():
    course = Course(steps=6, learning_rate=0.1, warmup=4, accumulate=2, largest_gradient=0.5)
    slow = module()
    optimizer = torch.optim.AdamW(slow.parameters(), lr=0.1, weight_decay=0.01)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 4)
        optimizer.zero_grad()
        for part in (2 * step, 2 * step + 1):
            (loss(slow, part, torch.Generator().manual_seed(part)) / 2).backward()
        torch.nn.utils.clip_grad_norm_(slow.parameters(), 0.5)
        optimizer.step()
    for name, value in learned(course).items():
        torch.testing.assert_close(value, slow.state_dict()[name])


def test_gradients_are_left_alone_where_no_length_is_given():
    free = learned(Course(steps=3, learning_rate=0.1, largest_gradient=0))
    assert same(free, learned(Course(steps=3, learning_rate=0.1, largest_gradient=1e9)))
    assert not same(free, learned(Course(steps=3, learning_rate=0.1, largest_gradient=0.1)))


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_interrupted_and_repeated_is_undisturbed_bit_for_bit(tmp_path, ema, stop):
    course = Course(steps=7, learning_rate=0.05, ema=ema, accumulate=2, checkpoint_every=2)

    def killed(step, _):
        if step == stop:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        learned(course, tmp_path, watch=killed)
    begun = list[int]()
    found = learned(course, tmp_path, watch=lambda step, _: begun.append(step))
    assert begun[0] == (stop - 1) // 2 * 2 + 1
    assert same(found, learned(course))


def test_frozen_parameters_stay_as_they_are():
    model = module()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    after = learned(Course(steps=3, learning_rate=0.1), model=model)
    assert torch.equal(after["0.weight"], before)
    assert not torch.equal(after["2.weight"], module()[2].weight)


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    model = module()
    torch.manual_seed(5)
    learned(Course(steps=2, learning_rate=0.1), model=model)
    assert torch.equal(torch.rand(1), expected)


def test_a_loss_that_is_not_finite_gives_the_advice():
    with pytest.raises(UserError, match="the loss is nan at step 1; there is no checkpoint yet; X"):
        Learner(
            module(),
            Course(steps=1, learning_rate=0.1),
            lambda model, batch, random: loss(model, batch, random) * float("nan"),
            CPU,
            advice="X",
        ).learn(lambda step, loss: None)


def two_losses(model, batch, random):
    data = torch.randn(5, 3, generator=random)
    return (model(data) - batch).square().mean(), model(data).square().mean()


def test_gradients_of_several_losses_are_mixed_over_the_batches_of_a_step():
    """Against plain torch: both gradients summed over the step's batches, then combined."""
    course = Course(steps=3, learning_rate=0.1, accumulate=2, largest_gradient=0.5)

    def mix(gradients):
        first, second = gradients
        length = torch.sqrt(sum(one.square().sum() for one in second))
        return [one - 3 * other / length for one, other in zip(first, second, strict=True)]

    model = module()
    Learner(model, course, two_losses, CPU, mix=mix).learn(lambda step, loss: None)
    slow = module()
    optimizer = torch.optim.AdamW(slow.parameters(), lr=0.1, weight_decay=0.01)
    for step in range(3):
        sums = []
        for place in range(2):
            slow.zero_grad()
            for part in (2 * step, 2 * step + 1):
                both = two_losses(slow, part, torch.Generator().manual_seed(part))
                (both[place] / 2).backward()
            sums.append([value.grad.clone() for value in slow.parameters()])
        for value, gradient in zip(slow.parameters(), mix(sums), strict=True):
            value.grad = gradient
        torch.nn.utils.clip_grad_norm_(slow.parameters(), 0.5)
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, slow.state_dict()[name])


def test_several_losses_without_a_mix_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="needs a `mix`"):
        learned(Course(steps=1, learning_rate=0.1), loss=two_losses)
    with pytest.raises(ValueError, match="full precision"):
        Learner(module(), Course(1, 0.1, precision="bf16"), two_losses, CPU, mix=lambda g: g[0])


def test_what_steps_took_is_counted_across_an_interruption(tmp_path):
    course = Course(steps=7, learning_rate=0.05, checkpoint_every=2)
    spent = [0]

    def counting(model, batch, random):
        spent[0] += 3
        return loss(model, batch, random)

    def learner():
        return Learner(module(), course, counting, CPU, tmp_path, count=lambda: spent[0])

    def killed(step, _):
        if step == 5:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        learner().learn(killed)
    again = learner()
    assert again.counted == 4 * 3  # up to the checkpoint; the step after it is made again
    again.learn(lambda step, loss: None)
    assert again.counted == 7 * 3
