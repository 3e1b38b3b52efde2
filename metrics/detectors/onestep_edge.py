"""Whether pictures of one step share their edges (Webster 2023, arXiv 2305.08694)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from PIL import Image
from scipy import ndimage

from bench import Detector, Needs, Observation, Unmeasurable
from metrics.detectors._batches import in_batches
from metrics.detectors._one_step import one_step

SIDE = 256
STRONG = 1.5


class OnestepEdge(Detector):
    """Share of pixels that are edges in more than half of a prompt's one-step pictures (Webster,
    black box).

    After a single step a clean prompt's picture is a blur, and a memorized one's has the same
    edges for every seed. The source needs only an interface that samples in one step; here the
    pictures are made for it, since a run samples in more, and that is why it needs the model. The
    source has four seeds a prompt, so a pixel needs three of them.
    """

    needs: ClassVar[Needs] = "model"
    families: ClassVar = ("sd", "sdxl")
    paper: ClassVar[str] = "Webster 2023, arXiv:2305.08694"

    def rows(self, steps: int) -> tuple[float, float]:
        """Both branches once, at a noise level where no run evaluates the model."""
        return 2.0, 2.0

    def score(self, seen: Observation) -> np.ndarray:
        """In [0, 1], `[P, 1]`.

        Raises `Unmeasurable` for one seed a prompt.
        """
        if seen.images < 2:
            raise Unmeasurable("onestep_edge compares seeds of one prompt, and each has only one")
        scores = np.empty((len(seen.prompts), 1))
        votes = np.zeros((SIDE, SIDE), int)
        for places, request in in_batches(seen, "onestep_edge"):
            latents, _ = one_step(seen.denoiser, request)
            pictures = seen.denoiser.decode(latents.to(seen.denoiser.dtype))
            for (row, column), picture in zip(places, pictures):
                votes = edges(picture) + (votes if column else 0)
                if column == seen.images - 1:  # images come prompt by prompt
                    scores[row] = shared(votes, seen.images)
        return scores


def edges(picture: np.ndarray) -> np.ndarray:
    """Where a picture `[H, W, 3]`, uint8, has an edge: bool `[256, 256]`.

    As in the source, the picture is resized with Lanczos' kernel, and the filter of Sobel, which
    differentiates along one axis and smooths along all others, smooths along the axis of colours
    too; its border repeats, so a colour is mixed with its neighbours in red, green, blue. The
    magnitudes of the three colours, pixels being in [0, 1], are added up.
    """
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.float32) / 255
    strength = np.hypot(ndimage.sobel(pixels, axis=0), ndimage.sobel(pixels, axis=1))
    return strength.sum(2) > STRONG


def shared(votes: np.ndarray, images: int) -> float:
    """Share of pixels that more than half of the images have as an edge, by votes `[H, W]`."""
    return float((2 * votes > images).mean())
