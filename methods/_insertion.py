"""Words put into a prompt at random places, as the prompt perturbations of Somepalli et al.
(NeurIPS 2023, arXiv 2305.20086) do.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from bench import Denoiser, Request


def insert_words(prompt: str, count: int, seed: int, draw: Callable[[random.Random], str]) -> str:
    """`prompt` with `count` drawn words, each put at a uniform place of what the sentence is by
    then; decided by seed and prompt alone.
    """
    generator = random.Random(f"{seed}\0{prompt}")
    words = prompt.split(" ")
    for _ in range(count):
        word = draw(generator)
        words.insert(generator.randint(0, len(words)), word)
    return " ".join(words)


def with_prompts(denoiser: Denoiser, request: Request, prompts: list[str]) -> Request:
    """The request for other prompts, which the sampler encodes; reports for which images the text
    encoder cuts the end off.
    """
    tokenizer = denoiser.pipe.tokenizer
    ends = tokenizer.num_special_tokens_to_add()
    request.facts["truncated"] = [
        len(tokenizer.tokenize(prompt)) + ends > denoiser.most_tokens for prompt in prompts
    ]
    return request.replace(prompts=tuple(prompts))
