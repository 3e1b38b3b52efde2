"""The denoiser as a counter of its evaluations."""

import torch


def test_a_gradient_to_weights_counts_twice(denoiser):
    """Forward 1, backward to the embeddings 1, backward to the weights 1 more."""
    request = denoiser.request(["a fox", "a key"], [0, 1])
    weight = denoiser.pipe.unet.conv_in.weight
    spent = []
    for learns in (False, True):
        before = denoiser.evaluations
        leaf = request.embeddings.clone().requires_grad_()
        weight.requires_grad_(learns)
        try:
            loss = denoiser.epsilon(request.latents, 500, leaf).square().sum()
            torch.autograd.grad(loss, [leaf, *([weight] if learns else [])])
        finally:
            weight.requires_grad_(False)
        spent.append(denoiser.evaluations - before)
    assert spent == [2 * 2, 2 * 3]
