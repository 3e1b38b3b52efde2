"""From the tensors of one module to the change of its weight, float32, for every kind of adapter
that can be written as one.

Formulas: kohya-ss/sd-scripts (LoRA, LoCon), LyCORIS (LoHa, LoKr, Tucker forms, full, DoRA), peft
(LoRA, DoRA). `s` is alpha / rank; without an alpha, or with alpha 0, it is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.base.errors import UserError, one_line

# What a tensor's name ends with, and what it is.
SUFFIXES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".down.weight": "down",  # of older files of diffusers: processor.to_q_lora.down.weight
    ".up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_magnitude_vector": "dora_rows",
    ".lora_magnitude_vector.weight": "dora_rows",
    ".lora_magnitude_vector.default.weight": "dora_rows",
    ".dora_scale": "dora",
    ".alpha": "alpha",
    **{f".hada_{name}": name for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{name}": f"k_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".diff": "diff",
    ".diff_b": "bias",
    ".w_norm": "diff",
    ".b_norm": "bias",
}
# Of kinds that are no sum with the weight, or of which no trainer's form is known here.
REFUSED = {
    ".oft_blocks": "OFT",
    ".oft_diag": "BOFT",
    ".boft_R": "BOFT",
    ".oft_R.weight": "OFT",
    ".a1.weight": "GLoRA",
    ".on_input": "(IA)3",
    ".ia3_l": "(IA)3",
    ".b1.weight": "GLoRA",
    ".lora_embedding_A": "a LoRA of embeddings",
}
TOGETHER = ({"down", "up"}, {"w1_a", "w1_b", "w2_a", "w2_b"})


@dataclass
class Adapter:
    """The tensors of one module by what they are; `name` is its file and module. `settled` is the
    scale where the file's header says it; else it follows from alpha and rank.
    """

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    settled: float | None = None

    def change(self, weight: Tensor) -> Tensor:
        """What is to be added to a weight of the module's shape, float32, at strength 1.

        Raises `UserError` where the tensors are incomplete or do not fit the weight.
        """
        given, weight = self._numbers(), weight.float()
        added = _added(self.name, given, self._scale(given), weight)
        if "dora_rows" in given:
            lengths = given["dora_rows"].flatten()  # peft has [1, out, 1, 1] for convolutions
        elif "dora" in given:
            lengths = given["dora"]
        else:
            return added
        return _renormed(self.name, weight + added, lengths) - weight

    def bias_change(self) -> Tensor | None:
        """What is to be added to the module's bias, float32; None for nothing."""
        bias = self.tensors.get("bias")
        return None if bias is None else bias.float()

    def _numbers(self) -> dict[str, Tensor]:
        for names in TOGETHER:
            if (there := names & self.tensors.keys()) and there != names:
                lacking = sorted(names - there)[0]
                raise UserError(f"{self.name} has {sorted(there)[0]} and no {lacking}")
        return {name: tensor.float() for name, tensor in self.tensors.items()}

    def _scale(self, given: Mapping[str, Tensor]) -> float:
        if self.settled is not None:
            return self.settled
        rank = rank_of(given)
        return float(given["alpha"]) / rank if rank and has_alpha(given) else 1.0


def has_alpha(given: Mapping[str, Tensor]) -> bool:
    """Whether the scale of factors follows from an alpha: one is there, is not 0, and the factors
    have a rank.
    """
    alpha = given.get("alpha")
    return alpha is not None and float(alpha) != 0 and rank_of(given) is not None


def rank_of(given: Mapping[str, Tensor]) -> int | None:
    """The rank of the factors; None for what has no factors."""
    for name in ("down", "w1_b", "k_w1_b", "k_w2_b"):
        if name in given:
            return int(given[name].shape[0])
    return None


def _added(name: str, given: Mapping[str, Tensor], scale: float, weight: Tensor) -> Tensor:
    """`[out, in, ...]` of the weight's shape."""
    try:
        if "down" in given:
            found = scale * _lora(given)
        elif "w1_a" in given:
            found = scale * _hadamard(given)
        elif any(part.startswith("k_") for part in given):
            found = scale * _kronecker(name, given)
        elif "diff" in given:
            found = given["diff"]
        elif "bias" in given:
            return torch.zeros_like(weight)
        else:
            known = ", ".join(sorted(given))
            raise UserError(f"{name} has {known} and nothing that changes a weight")
    except (RuntimeError, IndexError) as error:  # of tensors that do not fit each other
        raise UserError(
            f"the factors of {name} do not fit each other: {one_line(error)[:100]}"
        ) from error
    if found.numel() != weight.numel() or found.shape[0] != weight.shape[0]:
        raise UserError(
            f"{name} is for a weight of {_shape(found)}, and the model's has {_shape(weight)}"
        )
    return found.reshape(weight.shape)


def _lora(given: Mapping[str, Tensor]) -> Tensor:
    up, down = given["up"], given["down"]
    if "mid" in given:
        mid = given["mid"]
        return torch.einsum("im,mnkl,nj->ijkl", up.flatten(1), mid, down.flatten(1))
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _hadamard(given: Mapping[str, Tensor]) -> Tensor:
    one = _factor(given["w1_a"], given["w1_b"], given.get("t1"))
    return one * _factor(given["w2_a"], given["w2_b"], given.get("t2"))


def _factor(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a b, or with a core `[r, r, kh, kw]` its product with a `[r, out]` and b `[r, in]`."""
    return a @ b if core is None else torch.einsum("mnkl,mi,nj->ijkl", core, a, b)


def _kronecker(name: str, given: Mapping[str, Tensor]) -> Tensor:
    factors = []
    for number in ("k_w1", "k_w2"):
        if number in given:
            factors.append(given[number])
        elif f"{number}_a" in given and f"{number}_b" in given:
            a, b = given[f"{number}_a"], given[f"{number}_b"]
            core = given.get("k_t2") if number == "k_w2" else None
            factors.append(_factor(a, b, core))
        else:
            raise UserError(f"{name} lacks the factor {number.removeprefix('k_')} of its product")
    one, two = factors
    return torch.kron(one.reshape(*one.shape, *[1] * (two.ndim - one.ndim)), two.contiguous())


def _renormed(name: str, changed: Tensor, lengths: Tensor) -> Tensor:
    """The changed weight with columns or rows of these lengths (DoRA): `[1, in, ...]` says columns,
    `[out, 1, ...]` or `[out]` rows.
    """
    by_column = lengths.ndim > 1 and lengths.shape[0] == 1
    count = changed.shape[1] if by_column else changed.shape[0]
    if lengths.numel() != count:
        raise UserError(f"{name} has {lengths.numel()} lengths for {count} of its weight")
    axes = [axis for axis in range(changed.ndim) if axis != (1 if by_column else 0)]
    norm = changed.pow(2).sum(axes, keepdim=True).sqrt()
    return changed * (lengths.reshape(norm.shape) / norm)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "no shape"
