"""Random token addition (RTA): vocabulary entries in the prompt's text (Somepalli et al., NeurIPS
2023, arXiv 2305.20086).
"""

from typing import Any, ClassVar

from pydantic import Field

from bench import Denoiser, Method, Request, State, Swept, Where
from methods._insertion import insert_words, with_prompts

# the reference draws below 49,400 of CLIP's 49,408 tokens: neither the start nor the end of a text
SPARED = 8


class RandomTokens(Method):
    """Insert random vocabulary entries into the prompt (RTA, Somepalli et al.)."""

    where: ClassVar[Where] = "prompt"
    paper: ClassVar[str] = "Somepalli et al. 2023, arXiv:2305.20086"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"count": 0}
    swept: ClassVar[Swept | None] = ("count", (1, 2, 4, 8))

    count: int = Field(4, ge=0, description="tokens inserted; the published scripts use 1, 2 or 4")
    seed: int = Field(0, ge=0, description="of the perturbation, together with the prompt")

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """The same tokens for every image of a prompt, as text: a part of a word may become several
        tokens when it is read again.
        """
        if not self.count:
            return request
        tokenizer = denoiser.pipe.tokenizer
        size = tokenizer.vocab_size - SPARED  # without words that were added
        prompts = [
            insert_words(
                p,
                self.count,
                self.seed,
                lambda generator: tokenizer.decode([generator.randrange(size)]),
            )
            for p in request.prompts
        ]
        return with_prompts(denoiser, request, prompts)
