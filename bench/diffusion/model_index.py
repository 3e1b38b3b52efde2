"""Which classes a diffusers folder may name for its parts, before diffusers reads it.

`model_index.json` names a Python package and a class for every part, and diffusers imports what it
names. A folder that strangers made may name the parts of Stable Diffusion and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from bench.base.errors import UserError, visible
from bench.base.foreign import read_table, refuse_code
from bench.diffusion.families import CALLED, Family, family_of

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "feature_extractor": ("CLIPImageProcessor", "CLIPFeatureExtractor"),
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "safety_checker": ("StableDiffusionSafetyChecker",),
}
# Parts that only Stable Diffusion XL has.
CLASSES_OF_XL = {
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
PACKAGES = ("diffusers", "transformers", "stable_diffusion")


def check_model_index(folder: Path) -> Family:
    """The family of the model in a folder.

    Raises `UserError` for a folder that names other parts or classes than those of Stable
    Diffusion, or that brings code; and as `family_of` does for models that cannot be sampled.
    """
    family = family_of(folder)
    classes = CLASSES | CLASSES_OF_XL if family == "sdxl" else CLASSES
    path = folder / "model_index.json"
    for name, value in read_table(path).items():
        plain = name.startswith("_") or not isinstance(value, list | dict)
        if plain or value == [None, None]:
            continue  # a setting such as requires_safety_checker, or a part that is not there
        package, kind = value if isinstance(value, list) and len(value) == 2 else (None, None)
        known = kind in classes.get(name, ()) or (
            # any of diffusers: the suite names the scheduler that is used
            name == "scheduler" and package == "diffusers" and str(kind).endswith("Scheduler")
        )
        if not isinstance(kind, str) or package not in PACKAGES or not known:
            raise UserError(
                f"{path}: its {visible(name)[:40]} is {visible(str(value))[:80]}, which is no part"
                f" of {CALLED[family] if family == 'sdxl' else 'Stable Diffusion'}"
            )
    refuse_code(folder)
    return family
