"""A LoRA in training: low-rank layers beside the linear layers of a network that stays as it is
(Hu et al. 2021, arXiv 2106.09685).

The layers are a module of their own, so that the loop of `bench.training.loop` trains them, and
its checkpoints hold them, without a weight of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

# Ends of the paths of a UNet's layers that learn: the four matrices of each attention layer, and
# the two of each feed-forward layer.
TARGETS = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj", ".ff.net.2")


class Lora(nn.Module):
    """The output of each chosen linear layer plus alpha / rank * up(down(its input)).

    Called with what the network takes, it gives what the network gives with the changes, but only
    inside `attached()`; outside, the network is what it was. `down` `[rank, in]` begins at random
    (Kaiming, from the seed) and `up` `[out, rank]` at zero, so that an untrained LoRA changes
    nothing. All layers are float32, on the device of the network.

    `targets` are the ends of the chosen layers' paths. Raises `ValueError` where none is a linear
    layer of the network.
    """

    def __init__(
        self, network: nn.Module, rank: int, alpha: int, seed: int, targets: Sequence[str] = TARGETS
    ) -> None:
        super().__init__()
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        chosen = {
            path: module
            for path, module in network.named_modules()
            if isinstance(module, nn.Linear) and path.endswith(tuple(targets))
        }
        if not chosen:
            raise ValueError(f"no linear layer's path ends with one of {', '.join(targets)}")
        self.paths = tuple(chosen)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in chosen.values():
                # Drawn on the CPU, so that the same seed begins the same on every device.
                self.down.append(nn.Linear(module.in_features, rank, bias=False))
                up = nn.Linear(rank, module.out_features, bias=False)
                nn.init.zeros_(up.weight)
                self.up.append(up)
        self.to(next(iter(chosen.values())).weight.device)
        self._apart = _Apart(network)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self._apart.network(*arguments, **named)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The network changed by the LoRA, and frozen: of it and the LoRA, only the LoRA's layers
        get gradients. Afterwards the network is as before.
        """
        network = self._apart.network
        asked = [(value, value.requires_grad) for value in network.parameters()]
        network.requires_grad_(False)
        handles = [
            network.get_submodule(path).register_forward_hook(self._adding(down, up))
            for path, down, up in self._layers()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for value, before in asked:
                value.requires_grad_(before)

    def _adding(self, down: nn.Linear, up: nn.Linear) -> Callable[..., Tensor]:
        def add(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
            added: Tensor = up(down(given[0]))
            return found + self.scale * added

        return add

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Down `[rank, in]` and up `[out, rank]` by the path of the layer that they change."""
        return {
            path: (down.weight.detach(), up.weight.detach()) for path, down, up in self._layers()
        }

    def _layers(self) -> Iterator[tuple[str, nn.Linear, nn.Linear]]:
        for path, down, up in zip(self.paths, self.down, self.up, strict=True):
            yield path, cast(nn.Linear, down), cast(nn.Linear, up)


class _Apart:
    """Holds the network where torch does not see it: it is no part of the LoRA's parameters and
    checkpoints, and an average of the LoRA shares it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __deepcopy__(self, memory: dict[int, Any]) -> _Apart:
        return self
