"""What the metric measures, on which images, and its source.

Copy this file to `mine.py`; name it in a suite as `[metrics.mine]`, or install it as a plug-in.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from bench import Evaluation, Metric, PerImage, PerSet, Shown


class Template(Metric):
    """Contrast of memorized prompts' images: one line that `bench list` shows."""

    names: ClassVar = ("contrast",)  # of the scores it gives
    roles: ClassVar = ("memorized",)  # of the prompts it reads: memorized, clean, quality
    # its column in tables
    shown: ClassVar = {
        "contrast": Shown(
            heading="contrast", decimals=3, meaning="standard deviation of grey values"
        )
    }
    version: ClassVar = 1  # raise it when numbers change

    scale: float = Field(255, gt=0, description="what a grey value of 1.0 is")

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        """A `PerImage` table `[prompts, images]` gets intervals and paired differences; a `PerSet`
        value stands alone.
        """
        samples = evaluation.samples("memorized")  # raises Unmeasurable where the suite has none
        values = [picture.astype(np.float64).std() / self.scale for picture in samples.pictures()]
        table = np.array(values).reshape(len(samples.prompts), samples.images)
        return {
            "contrast": PerImage(
                table, samples.prompts, unit="share of the range", higher_is_better=None
            )
        }
