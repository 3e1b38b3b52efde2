"""The header of a LoRA file that is made out of another one: what stays true of it, and what does
not.
"""

from __future__ import annotations

from collections.abc import Mapping

PEFT = "lora_adapter_metadata"  # ranks and alphas, which decide what the tensors mean
# Digests of the tensors, which are others now.
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
# What readers need; everything else tells of the training.
NEEDED = ("format", PEFT)
# Of a file whose factors were made anew: their ranks differ, and no alpha is stated.
OF_FACTORS = ("ss_network_module", "ss_network_args", PEFT)
RANK, ALPHA = "ss_network_dim", "ss_network_alpha"
DIFFERS = "Dynamic"  # what kohya's own tools write where each module has its own


def kept_header(header: Mapping[str, str], strip: bool = False) -> dict[str, str]:
    """The entries that a copy with other tensors keeps; with `strip` those alone that readers need,
    so that the file tells nothing of its training.
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
