"""Alignment: cosine between a generation and its original prompt under an open_clip model.

Raw cosine in [-1, 1]; other scales in the literature are functions of it. The prompt is always the one that was asked
for, never one that a mitigation made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from bench.errors import UserError, one_line
from bench.metric import Evaluation, Metric, PerImage, PerSet
from bench.suite import Role, path_digest


class ClipScore(Metric):
    """Cosine of picture and original prompt under an open_clip model, on memorized and on clean prompts."""

    names: ClassVar[tuple[str, ...]] = ("clip_score", "clip_score_clean")
    roles: ClassVar[tuple[Role, ...]] = ("memorized", "clean")

    model: str = Field(description="an open_clip folder relative to the suite file, or the name of an architecture if `weights` is given")
    weights: str = Field("", description="checkpoint of the architecture, relative to the suite file")

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        folder = evaluation.path(self.model) if not self.weights else None
        clip = OpenClip(self.model, folder, evaluation.path(self.weights) if self.weights else None, evaluation.device)
        scores: dict[str, PerImage | PerSet] = {}
        for name, role in (("clip_score", "memorized"), ("clip_score_clean", "clean")):
            if not evaluation.suite.prompts(role):  # type: ignore[arg-type]
                continue
            samples = evaluation.samples(role)  # type: ignore[arg-type]
            images = samples.features(clip)
            texts, truncated = clip.texts([prompt.text for prompt in samples.prompts])
            cosine = np.einsum("pid,pd->pi", images, texts)
            details = {"model": Path(self.model).name, "weights_sha256": clip.digest, "truncated_prompts": truncated}
            scores[name] = PerImage(cosine, samples.prompts, "cosine", True, details=details)
        return scores


@dataclass(frozen=True)
class OpenClip:
    """An open_clip model from a folder (`local-dir:`) or from an architecture's name and a checkpoint."""

    name: str
    folder: Path | None
    weights: Path | None
    device: Any
    batch_size: int = 64

    @cached_property
    def digest(self) -> str:
        return path_digest(self.folder or self.weights or Path(self.name))

    @property
    def fingerprint(self) -> str:
        return f"clip-{self.digest[:12]}"

    @property
    def identifier(self) -> str:
        return f"local-dir:{self.folder}" if self.folder else self.name

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        import open_clip

        try:
            pretrained = str(self.weights) if self.weights else None
            model, _, preprocess = open_clip.create_model_and_transforms(self.identifier, pretrained=pretrained, device=self.device, weights_only=True)
        except Exception as error:  # open_clip and safetensors each raise their own
            raise UserError(f"open_clip cannot load {self.identifier} ({one_line(error)[:100]}); fetch or build it again") from error
        return model.eval(), preprocess

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Unit image embeddings, float32 `[n, d]`."""
        model, preprocess = self.loaded
        parts = []
        for start in range(0, len(pictures), self.batch_size):
            batch = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures[start : start + self.batch_size]])
            with torch.no_grad():
                parts.append(model.encode_image(batch.to(self.device), normalize=True).float().cpu().numpy())
        return np.concatenate(parts)

    def texts(self, prompts: list[str]) -> tuple[np.ndarray, int]:
        """Unit text embeddings `[n, d]`, each different text encoded once, and how many texts were cut to the model's length."""
        import open_clip

        model, _ = self.loaded
        tokenizer = open_clip.get_tokenizer(self.identifier)
        unique = list(dict.fromkeys(prompts))
        parts = []
        with torch.no_grad():
            for start in range(0, len(unique), self.batch_size):
                tokens = tokenizer(unique[start : start + self.batch_size]).to(self.device)
                parts.append(model.encode_text(tokens, normalize=True).float().cpu().numpy())
        embedded = np.concatenate(parts)
        return embedded[[unique.index(prompt) for prompt in prompts]], sum(_is_cut(tokenizer, prompt) for prompt in unique)


def _is_cut(tokenizer: Any, prompt: str) -> bool:
    if hasattr(tokenizer, "encode"):
        return len(tokenizer.encode(prompt)) + 2 > tokenizer.context_length
    return len(tokenizer.tokenizer(prompt).input_ids) > tokenizer.context_length
