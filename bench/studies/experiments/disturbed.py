"""Mitigations at training time: what is done to captions while a model learns (Somepalli et al.
2023, arXiv 2305.20086, section 5, but for dropout).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bench.training.denoising import Denoising

NONE = "fine-tuned"
TOKENS, NOISE, DROPOUT = "random-tokens", "embedding-noise", "caption-dropout"
MITIGATIONS = (NONE, TOKENS, NOISE, DROPOUT)
INSERTED = 4  # random tokens a caption
DEVIATION = 0.5  # of the noise, in deviations of the embedding
DROPPED = 0.5  # of the captions
SETTINGS = {TOKENS: INSERTED, NOISE: DEVIATION, DROPOUT: DROPPED}


class Disturbed(Denoising):
    """The loss with disturbed captions; `mitigation` says how, and `NONE` leaves them alone."""

    def __init__(self, mitigation: str, *given: Any) -> None:
        super().__init__(*given)
        self.mitigation = mitigation

    def embeddings(self, captions: list[str], random: torch.Generator) -> torch.Tensor:
        """What the UNet sees, `[B, T, D]`: new at every step."""
        if self.mitigation == TOKENS:
            return self._with_tokens(captions, random)
        if self.mitigation == DROPOUT:
            dropped = torch.rand(len(captions), generator=random) < DROPPED
            captions = [
                "" if drop else caption
                for caption, drop in zip(captions, dropped.tolist(), strict=True)
            ]
        plain = super().embeddings(captions, random)
        if self.mitigation == NOISE:
            noise = torch.randn(plain.shape, generator=random).to(plain)
            return plain + DEVIATION * plain.std() * noise
        return plain

    def _with_tokens(self, captions: Sequence[str], random: torch.Generator) -> torch.Tensor:
        """Captions with random tokens at random places behind their beginning."""
        tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        most = tokenizer.model_max_length
        special = set(tokenizer.all_special_ids)
        known = [number for number in range(len(tokenizer)) if number not in special]
        rows = []
        for caption in captions:
            ids = list(tokenizer(caption, truncation=True, max_length=most).input_ids)
            for _ in range(INSERTED):
                drawn = torch.rand(2, generator=random).tolist()
                place = 1 + int(drawn[0] * (len(ids) - 1))
                ids.insert(place, known[int(drawn[1] * len(known))])
            # Cut before the end, which stays.
            ids = ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]
            rows.append(tokenizer.pad({"input_ids": ids}, "max_length", most).input_ids)
        tokens = torch.from_numpy(np.array(rows)).to(self.device)
        return encoder(tokens)[0]
