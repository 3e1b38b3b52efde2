"""Importance-sampled unlearning: the weights against the densities, the mixture, the mixing of
gradients.
"""

import pytest
import torch

from bench.base.errors import UserError
from bench.base.parameters import configure
from bench.registry import registry
from methods.siss import Siss, importance


@pytest.mark.parametrize("mixture", [0.2, 0.5, 0.9])
def test_weights_are_those_of_the_densities(mixture):
    """By the book: r from two normal densities of few dimensions, no logarithms."""
    random = torch.Generator().manual_seed(0)
    keep, delete = (torch.randn(6, 2, generator=random) for _ in range(2))
    densities = [torch.exp(-0.5 * noise.double().square().sum(1)) for noise in (keep, delete)]
    ratio = densities[1] / densities[0]
    expected = 1 / ((1 - mixture) + mixture * ratio), 1 / ((1 - mixture) / ratio + mixture)
    for given, slow in zip(importance(keep, delete, mixture), expected, strict=True):
        torch.testing.assert_close(given.double(), slow, rtol=1e-6, atol=1e-6)


def test_equal_pictures_weigh_one_each():
    noise = torch.randn(5, 4, 8, 8)
    for weight in importance(noise, noise, 0.5):
        torch.testing.assert_close(weight, torch.ones(5))


def test_far_pictures_weigh_nothing_or_all_and_nothing_overflows():
    near, far = torch.zeros(1, 16384), torch.full((1, 16384), 30.0)
    assert [float(weight) for weight in importance(near, far, 0.5)] == [2.0, 0.0]
    assert [float(weight) for weight in importance(far, near, 0.5)] == [0.0, 2.0]


def test_the_weighted_mixture_is_the_picture_to_keep_in_expectation():
    """E over the mixture of w_x f = E over q(m|x) of f, in one dimension, by a fine sum."""
    mixture, level, keep, delete = 0.5, 0.6, 1.2, -0.7
    grid = torch.linspace(-8, 8, 20001).double()
    sigma = (1 - level) ** 0.5

    def density(at):
        noise = (grid - level**0.5 * at) / sigma
        return torch.exp(-0.5 * noise.square()) / (sigma * (2 * torch.pi) ** 0.5)

    from_keep, from_delete = (
        ((grid - level**0.5 * at) / sigma)[:, None].float() for at in (keep, delete)
    )
    weights = importance(from_keep, from_delete, mixture)
    mixed = (1 - mixture) * density(keep) + mixture * density(delete)
    for weight, at in zip(weights, (keep, delete), strict=True):
        for f in (grid, grid.square(), grid.sin()):
            given = torch.trapezoid(mixed * weight.double() * f, grid)
            torch.testing.assert_close(
                given, torch.trapezoid(density(at) * f, grid), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    ("name", "asked"),
    [("siss", "pictures"), ("concept_ablation", "pictures"), ("adv_finetune", "surrogates")],
)
def test_fewer_tries_than_pictures_are_one_line_before_anything_is_generated(name, asked):
    cls = registry.find("method", name).load()
    with pytest.raises(UserError, match=rf"tries \(3\) must be at least {asked} \(4\)") as error:
        configure("method", name, cls, {asked: 4, "tries": 3})
    assert "\n" not in str(error.value)
    assert configure("method", name, cls, {asked: 4, "tries": 4}).tries == 4


def test_the_deleting_gradient_has_the_length_that_was_asked_for():
    keep, delete = [[torch.randn(3, 2), torch.randn(4)] for _ in range(2)]
    mixed = Siss(deletion=750).mix([keep, delete])
    taken = torch.cat([(k - m).flatten() for k, m in zip(keep, mixed, strict=True)])
    torch.testing.assert_close(taken.norm(), torch.tensor(750.0))
    whole = torch.cat([one.flatten() for one in delete])
    torch.testing.assert_close(taken / 750, whole / whole.norm())
    nothing = [torch.zeros_like(one) for one in delete]
    for kept, given in zip(keep, Siss().mix([keep, nothing]), strict=True):
        assert torch.equal(kept, given)
