"""The header of a LoRA file that is made out of another one: what stays true of it, and what does
not.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.suite.lora_files import DECIDING, PEFT

# Digests of the tensors, which are others now.
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
# What readers need; everything else tells of the training, or may.
NEEDED = ("format",)
# Of peft's entry: what decides the scale, and the modules, without which diffusers refuses it.
NEEDED_OF_PEFT = (*DECIDING, "target_modules")
# Of a file whose factors were made anew: their ranks differ, and no alpha is stated.
OF_FACTORS = ("ss_network_module", "ss_network_args", PEFT)
RANK, ALPHA = "ss_network_dim", "ss_network_alpha"
DIFFERS = "Dynamic"  # what kohya's own tools write where each module has its own


def kept_header(header: Mapping[str, str], strip: bool = False) -> dict[str, str]:
    """The entries that a copy with other tensors keeps; with `strip` those alone that readers need,
    so that the file tells nothing of its training. Peft's entry is then left out as a whole:
    whoever keeps the scale of the tensors puts `NEEDED_OF_PEFT` of it back.
    """
    return {
        name: text
        for name, text in header.items()
        if (name in NEEDED if strip else name not in STALE)
    }


def header_of_new_factors(header: Mapping[str, str], strip: bool = False) -> dict[str, str]:
    """The same for a copy whose factors were made anew and have no alpha."""
    kept = {
        name: text for name, text in kept_header(header, strip).items() if name not in OF_FACTORS
    }
    return kept | {name: DIFFERS for name in (RANK, ALPHA) if name in kept}
