"""The search of `dori`, handed to the served model.

Under the threat model `weights` a mitigation that lives in hooks, guidance, noise or the prompt is
not there at all, and what is attacked is the bare model. Here the attacker searches on the weights
as before, and then feeds the served model with the embedding: all doors of the method stay. What a
method does to the words of a prompt does not reach an embedding; what it does to embeddings,
latents, attention or guidance does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from attacks.dori import FURTHER, Dori
from bench import Shown, Threat, scores_of, shown_as


class DoriInputs(Dori):
    """Hand the embedding that `dori` finds to the served model, behind all doors of the method."""

    threat: ClassVar[Threat] = "inputs"
    item: ClassVar[str] = "dori_inputs"
    names: ClassVar[tuple[str, ...]] = (
        *scores_of("dori_inputs"),
        *(f"dori_inputs_{ending}" for ending in FURTHER),
    )
    of_sets: ClassVar[tuple[str, ...]] = ("dori_inputs_steps",)
    one_a_prompt: ClassVar[tuple[str, ...]] = ("dori_inputs_bank", "dori_inputs_shift")
    nullable: ClassVar[tuple[str, ...]] = ("dori_inputs_steps",)
    shown: ClassVar[Mapping[str, Shown]] = shown_as(
        "dori_inputs",
        "Dori served",
        "an embedding is searched on the edited weights and handed to the served model",
    )
