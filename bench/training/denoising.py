"""The loss that a UNet was trained with, on captioned pictures, and the order in which they are
seen.

Both are pure functions of the seed and of numbers, so a training that goes on in the middle needs
no state for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class Order:
    """The endless training stream: epoch after epoch of `listed`, each in an order of its own drawn
    from the seed and its number.
    """

    def __init__(self, listed: np.ndarray, seed: int) -> None:
        self.listed, self.seed = listed, seed
        self._epoch, self._shuffled = -1, listed

    def __call__(self, first: int, count: int) -> list[int]:
        """Picture numbers at the positions `first` to `first + count - 1`."""
        return [self._at(position) for position in range(first, first + count)]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.listed))
        if epoch != self._epoch:
            self._epoch, self._shuffled = (
                epoch,
                np.random.default_rng([self.seed, 1, epoch]).permutation(self.listed),
            )
        return int(self._shuffled[place])


class Denoising:
    """Mean squared error of what a UNet predicts, noise or velocity as the pipeline's scheduler
    says.

    `latents` is float32 `[n, views, 2, C, h, w]`: mean and deviation of what the autoencoder makes
    of each view of each picture, scaled as the UNet sees them. `captions` holds the caption of each
    picture, and `listed` the picture numbers of one epoch.
    """

    memory_format = torch.channels_last  # of what the UNet is fed with

    def __init__(
        self,
        pipe: Any,
        latents: np.ndarray,
        captions: Sequence[str],
        listed: np.ndarray,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        from diffusers import DDPMScheduler

        self.pipe, self.latents, self.captions = pipe, latents, captions
        self.batch_size, self.device = batch_size, device
        self.noise = DDPMScheduler.from_config(pipe.scheduler.config)
        self.order = Order(listed, seed)

    def __call__(self, unet: torch.nn.Module, batch: int, random: torch.Generator) -> torch.Tensor:
        """The loss of batch number `batch`; views, latents, noise and timesteps are drawn from
        `random`, a generator on the CPU, so that a training sees the same on every device.
        """
        numbers = self.order(batch * self.batch_size, self.batch_size)
        views = torch.randint(self.latents.shape[1], (len(numbers),), generator=random).tolist()
        moments = torch.from_numpy(
            np.stack(
                [self.latents[number, view] for number, view in zip(numbers, views, strict=True)]
            )
        )
        mean, deviation = moments[:, 0], moments[:, 1]
        latents = mean + deviation * torch.randn(mean.shape, generator=random)
        noise = torch.randn(mean.shape, generator=random)
        timesteps = torch.randint(
            self.noise.config["num_train_timesteps"], (len(numbers),), generator=random
        )
        velocity = self.noise.config["prediction_type"] == "v_prediction"
        target = (self.noise.get_velocity(latents, noise, timesteps) if velocity else noise).to(
            self.device
        )
        noised = self.noise.add_noise(latents, noise, timesteps).to(
            self.device, memory_format=self.memory_format
        )
        with torch.no_grad():
            embeddings = self.embeddings([self.captions[number] for number in numbers], random)
        # of a text encoder in half precision too
        embeddings = embeddings.to(noised.dtype)
        predicted = unet(noised, timesteps.to(self.device), encoder_hidden_states=embeddings).sample
        return torch.nn.functional.mse_loss(predicted.float(), target.float())

    def embeddings(self, captions: list[str], random: torch.Generator) -> torch.Tensor:
        """What the UNet sees of the captions of a batch, `[B, T, D]`. Whoever disturbs them draws
        from `random` here, after all else of the batch is drawn.
        """
        return self.pipe.encode_prompt(captions, self.device, 1, False)[0]
