import torch

from bench.base.progress import silent
from bench.diffusion.given_embeddings import GivenEmbeddings
from conftest import CAPTIONS
from methods.wanda import Wanda


def test_masks_of_embeddings_are_those_of_the_prompts_that_they_encode(denoiser):
    method, prompts = Wanda(sparsity=0.3, calls=2), CAPTIONS[:3]
    given = GivenEmbeddings(denoiser, denoiser.encode(prompts))
    before = denoiser.rows
    of_embeddings = method.mask_functions(given, given.names, silent)
    spent = denoiser.rows - before
    of_prompts = method.mask_functions(denoiser, prompts, silent)
    assert denoiser.rows - before == 2 * spent > 0  # the original counts both
    for layer, masks_of in of_prompts.items():
        for chosen in [(0,), (1, 2)]:
            assert torch.equal(masks_of(chosen)[1], of_embeddings[layer](chosen)[1])


def test_other_prompts_are_encoded_as_ever(denoiser):
    given = GivenEmbeddings(denoiser, denoiser.encode(CAPTIONS[:2]).flip(0))
    encoded = given.encode(["", given.names[0], CAPTIONS[0]])
    expected = denoiser.encode(["", CAPTIONS[1], CAPTIONS[0]])
    torch.testing.assert_close(encoded, expected)
    request = given.request([given.names[1]], [7])
    torch.testing.assert_close(request.embeddings, denoiser.encode([CAPTIONS[0]]))
    torch.testing.assert_close(request.null_embeddings, denoiser.encode([""]))
