"""The sizes of the testbed in one place: what `bench testbed build` trains, for how long, and how
often each canary is shown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TestbedPlan:
    """Everything that decides what is built; the bundle's manifest repeats it."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    seed: int = 0
    side: int = 32
    vocabulary: int = 896
    levels: tuple[int, ...] = (1, 8, 30, 110, 360, 1560)
    autoencoder_steps: int = 4000
    decoder_steps: int = 1500
    # The learning rate and the views of canaries are laid out for `denoiser_schedule` steps;
    # training stops after
    # `denoiser_steps` of them, with weights averaged, and views are counted to there.
    denoiser_schedule: int = 3900
    denoiser_steps: int = 3200
    denoiser_batch: int = 64
    descriptor_steps: int = 700
    clip_steps: int = 900
    features_steps: int = 400
    reference_pictures: int = 5000
    clean_prompts: int = 64
    quality_prompts: int = 500

    def facts(self) -> dict[str, Any]:
        return asdict(self)


# 64x64 pixels and 4,000 views of the highest level where a GPU is at hand; 32x32 trains on two CPU
# cores in about two hours.
CPU_PLAN = TestbedPlan()
GPU_PLAN = TestbedPlan(
    side=64,
    levels=(1, 10, 50, 200, 900, 4000),
    autoencoder_steps=30000,
    decoder_steps=10000,
    denoiser_schedule=20000,
    denoiser_steps=20000,
    descriptor_steps=10000,
    clip_steps=10000,
    features_steps=5000,
)
# Minutes on a CPU, for tests of the whole path: the model memorizes nothing.
TINY_PLAN = TestbedPlan(
    levels=(1, 2),
    autoencoder_steps=2,
    decoder_steps=2,
    denoiser_schedule=10,
    denoiser_steps=10,
    denoiser_batch=48,
    descriptor_steps=2,
    clip_steps=2,
    features_steps=2,
    reference_pictures=40,
    clean_prompts=4,
    quality_prompts=8,
)
PLANS = {"cpu": CPU_PLAN, "gpu": GPU_PLAN, "tiny": TINY_PLAN}
