"""A metric of a third party, named by its class."""

from typing import ClassVar

import numpy as np

from bench import Metric, PerImage


class Brightness(Metric):
    """Mean brightness of the memorized prompts' pictures."""

    names: ClassVar[tuple[str, ...]] = ("brightness",)
    roles: ClassVar[tuple[str, ...]] = ("memorized",)

    def measure(self, evaluation):
        samples = evaluation.samples("memorized")
        means = np.array([picture.mean() / 255 for picture in samples.pictures()])
        return {
            "brightness": PerImage(
                means.reshape(len(samples.prompts), samples.images),
                samples.prompts,
                "of white",
                None,
            )
        }
