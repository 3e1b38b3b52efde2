"""The neurons that NeMo may deactivate, what they say about a text, and hooks that deactivate them
row by row.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench import UserError

Neuron = tuple[int, int]  # layer, in execution order, and output channel
Neurons = frozenset[Neuron]


def value_layers(unet: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """`attn2.to_v` of all down blocks and the mid block by module name, in execution order (7 in
    Stable Diffusion 1.x).
    """
    # Modules come in the order of their registration: down, up, mid.
    blocks = [name for name, _ in unet.named_modules() if name.endswith(".attn2")]
    ordered = [
        name for part in ("down_blocks.", "mid_block.") for name in blocks if name.startswith(part)
    ]
    layers = {f"{name}.to_v": unet.get_submodule(name).to_v for name in ordered}
    fused = any(getattr(unet.get_submodule(name), "fused_projections", False) for name in ordered)
    if (
        not layers
        or fused
        or not all(isinstance(layer, torch.nn.Linear) for layer in layers.values())
    ):
        raise UserError(
            "method nemo: the model's down and mid blocks have no plain linear `attn2.to_v` (is a"
            " LoRA or a projection fused in?)"
        )
    return layers


@torch.no_grad()
def mean_activations(layers: dict[str, torch.nn.Linear], embeddings: Tensor) -> list[Tensor]:
    """Mean over all tokens of |to_v(y)| for embeddings `[P, T, D]`: fp32 `[P, C]` by layer.

    The value projections see nothing but the text, so this equals what hooks find in a UNet call at
    any latents and timestep, without the call that the reference code makes for it.
    """
    activations = []
    for layer in layers.values():
        bias = None if layer.bias is None else layer.bias.float()
        activations.append(
            torch.nn.functional.linear(embeddings.float(), layer.weight.float(), bias).abs().mean(1)
        )
    return activations


class RowMasks:
    """Hooks on the value layers that multiply every row's neurons by its own factors.

    A layer that no row changes is not touched at all, and a row without neurons is multiplied by 1,
    so both keep every bit of what they would be without hooks.
    """

    def __init__(self, layers: dict[str, torch.nn.Linear]) -> None:
        self.layers = layers
        self.factors: dict[str, Tensor] = {}  # [rows, 1, C] by layer

    def clear(self) -> None:
        self.factors = {}

    def set(self, rows: Sequence[Iterable[Neuron]], factor: float) -> None:
        """From now on, `factor` on the neurons of every row; also where a UNet call has these rows
        twice, once a branch of guidance.
        """
        indices: dict[int, tuple[list[int], list[int]]] = {}
        for row, neurons in enumerate(rows):
            for layer, channel in neurons:
                places = indices.setdefault(layer, ([], []))
                places[0].append(row)
                places[1].append(channel)
        self.clear()
        for number, (name, layer) in enumerate(self.layers.items()):
            if number in indices:
                mask = torch.ones(len(rows), 1, layer.out_features)
                at, channels = indices[number]
                mask[at, 0, channels] = factor
                self.factors[name] = mask.to(layer.weight.device, layer.weight.dtype)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks installed; on exit they are gone and nothing is masked, also after an exception."""
        handles = [
            layer.register_forward_hook(self._hook(name)) for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.clear()

    def _hook(self, name: str) -> Any:
        def multiply(
            module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor
        ) -> Tensor | None:
            if name not in self.factors:
                return None
            factors = self.factors[name]
            if len(output) not in (len(factors), 2 * len(factors)):
                raise UserError(
                    f"method nemo: the UNet was called with {len(output)} rows while neurons are"
                    f" set for a batch of {len(factors)}"
                )
            # Out of place: a hook that edits the output of another module's making would surprise
            # whoever kept it.
            return output * factors.repeat(len(output) // len(factors), 1, 1)

        return multiply


@contextmanager
def scaled_rows(
    layers: dict[str, torch.nn.Linear], neurons: Sequence[Tensor], factor: float
) -> Iterator[None]:
    """Multiply the weight rows of neurons (bool `[C]` by layer) by `factor`; the originals return
    bit for bit.
    """
    parameters = [
        (parameter, rows)
        for layer, rows in zip(layers.values(), neurons, strict=True)
        for parameter in layer.parameters(recurse=False)
    ]
    originals = [parameter.detach().clone() for parameter, _ in parameters]
    try:
        with torch.no_grad():
            for parameter, rows in parameters:
                parameter[rows.to(parameter.device)] *= factor
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), original in zip(parameters, originals, strict=True):
                parameter.copy_(original)
