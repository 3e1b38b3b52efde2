"""Closed-form editing of what cross-attention reads of a caption (Unified Concept Editing:
Gandikota et al., WACV 2024, arXiv 2308.14761).

The weights by which cross-attention turns embeddings into keys and values are changed so that a
named caption reads like its anchor, a clean caption of the same objects, while clean captions and
the weights themselves stay near what they were. The least-squares problem has a closed form, whose
right factor is the same for every layer:

    W' = W (l I + e S c_to c^T + p S q q^T) (l I + e S c c^T + p S q q^T)^-1

c and c_to are token embeddings of a named caption and of its anchor, q of clean captions. The
default takes the last word's embedding, as the public code does (rohitgandikota/unified-concept-
editing, commit 28c81ed5), and `tokens=all` its other variant: from the last word to the end of the
row, both captions aligned at their last word. Concepts of one word are what that was made for; a
memorized caption is read from all of its tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench import Denoiser, FitData, Method, Need, State, Swept, Where, evenly, swapped
from methods._erasure import parameters_of


class Uce(Method):
    """Make named captions read like clean ones in cross-attention, in closed form (Unified Concept
    Editing).
    """

    where: ClassVar[Where] = "weights"
    needs: ClassVar[tuple[Need, ...]] = ("fit_prompts", "anchors", "clean_prompts")
    paper: ClassVar[str] = "Gandikota et al. 2024, arXiv:2308.14761"
    in_chunks: ClassVar[bool] = False
    neutral: ClassVar[dict[str, Any] | None] = {"erase": 0}
    swept: ClassVar[Swept | None] = ("erase", (0.03, 0.1, 0.3, 1.0))

    erase: float = Field(
        1.0, ge=0, description="weight e of the named captions (code: 1); 0 changes nothing"
    )
    preserve: float = Field(1.0, ge=0, description="weight p of the clean captions (code: 1)")
    ridge: float = Field(
        0.5, gt=0, description="weight l of staying near the weights as they are (code: 0.5)"
    )
    tokens: Literal["last", "all"] = Field(
        "last",
        description=(
            "the last word's embedding (code's default), or all from there to the end of the row"
        ),
    )
    clean: int = Field(
        0,
        ge=0,
        description="clean prompts that are preserved, evenly spread (code's default: none)",
    )

    def needed(self) -> tuple[Need, ...]:
        return self.needs if self.clean else ("fit_prompts", "anchors")

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The edited weights by parameter, without any evaluation of the model."""
        if not self.erase or not data.fit_prompts:
            return {}
        pairs = [
            self.pair(denoiser, prompt, data.anchors.get(prompt, "")) for prompt in data.fit_prompts
        ]
        named = torch.cat([own for own, _ in pairs])
        towards = torch.cat([to for _, to in pairs])
        chosen = [data.clean_prompts[i] for i in evenly(len(data.clean_prompts), self.clean)]
        kept = [self.pair(denoiser, prompt, prompt)[0] for prompt in chosen]
        clean = torch.cat(kept) if kept else named[:0]
        factor = self.factor(named, towards, clean)
        weights = dict(denoiser.pipe.unet.named_parameters())
        return {
            name: (weights[name].detach().double() @ factor).to(weights[name].dtype)
            for name in parameters_of(denoiser.pipe.unet, "strict")
        }

    def pair(self, denoiser: Denoiser, prompt: str, towards: str) -> tuple[Tensor, Tensor]:
        """Token embeddings of a caption and of what it shall read like, float64 `[n, D]` both."""
        rows = denoiser.encode([prompt, towards]).double()
        last = [max(int(length) - 2, 0) for length in denoiser.lengths([prompt, towards])]
        count = 1 if self.tokens == "last" else rows.shape[1] - max(last)
        own, to = (row[place : place + count] for row, place in zip(rows, last, strict=True))
        return own, to

    def factor(self, named: Tensor, towards: Tensor, clean: Tensor) -> Tensor:
        """What every weight is multiplied with from the right, float64 `[D, D]`, from rows of
        embeddings.
        """
        same = self.ridge * torch.eye(named.shape[1], dtype=named.dtype, device=named.device)
        same = same + self.preserve * clean.T @ clean
        system = same + self.erase * named.T @ named
        wanted = same + self.erase * towards.T @ named
        root = torch.linalg.cholesky(system)
        # X system = wanted, and the system is symmetric
        return torch.cholesky_solve(wanted.T, root).T

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Put the edited weights in; the originals return bit for bit."""
        with swapped(pipe.unet, state):
            yield
