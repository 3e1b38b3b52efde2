"""Random number addition (RNA): numbers in the prompt's text (Somepalli et al., NeurIPS 2023, arXiv
2305.20086).
"""

from typing import Any, ClassVar

from pydantic import Field

from bench import Denoiser, Method, Request, State, Swept, Where
from methods._insertion import insert_words, with_prompts


class RandomNumbers(Method):
    """Insert random numbers into the prompt (RNA, Somepalli et al.)."""

    where: ClassVar[Where] = "prompt"
    paper: ClassVar[str] = "Somepalli et al. 2023, arXiv:2305.20086"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"count": 0}
    swept: ClassVar[Swept | None] = ("count", (1, 2, 4, 8))

    count: int = Field(4, ge=0, description="numbers inserted; the published scripts use 1, 2 or 4")
    seed: int = Field(0, ge=0, description="of the perturbation, together with the prompt")

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """The same numbers for every image of a prompt, each below 100,000."""
        if not self.count:
            return request
        prompts = [
            insert_words(
                prompt, self.count, self.seed, lambda generator: str(generator.randrange(100_000))
            )
            for prompt in request.prompts
        ]
        return with_prompts(denoiser, request, prompts)
