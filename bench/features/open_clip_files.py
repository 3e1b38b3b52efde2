"""Which settings of open_clip a stranger's folder may make, before open_clip reads it.

open_clip hands parts of a folder's configuration to other libraries as they stand: a tokenizer's
`trust_remote_code` runs Python, and names of text models, of vision models or of a tokenizer can
reach a hub. The settings that shape a network are allowed here by name; every other one is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench.base import limits
from bench.base.errors import UserError, visible
from bench.base.foreign import read_table, refuse_code

CONFIG, WEIGHTS = "open_clip_config.json", (".safetensors", ".bin", ".pth")
_BLOCKS = (
    "width layers mlp_ratio ls_init_value final_ln_after_pool pool_type output_tokens act_kwargs"
    " norm_kwargs block_type qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn"
    " scale_fc"
)
_ALLOWED = {
    "": set(
        "embed_dim vision_cfg text_cfg quick_gelu cast_dtype init_logit_scale init_logit_bias"
        " nonscalar_logit_scale output_dict custom_text multimodal_cfg".split()
    ),
    "vision_cfg": set(
        f"{_BLOCKS} head_width patch_size image_size patch_dropout attentional_pool"
        " attn_pooler_queries attn_pooler_heads no_ln_pre pos_embed_type timm_model_name"
        " timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop"
        " timm_drop_path".split()
    ),
    "text_cfg": set(
        f"{_BLOCKS} context_length vocab_size hf_tokenizer_name tokenizer_mode tokenizer_kwargs"
        " heads embed_cls pad_id eos_id no_causal_mask proj_bias proj_type".split()
    ),
    "multimodal_cfg": set(
        f"{_BLOCKS} context_length vocab_size heads dim_head n_queries attn_pooler_heads".split()
    ),
    "tokenizer_kwargs": {"clean", "strip_sep_token"},
}
_TIMM_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")


def check_folder(folder: Path) -> None:
    """Raises `UserError` for a folder of open_clip that is not whole, or whose files name a
    setting that is not on the list.
    """
    config = read_table(folder / CONFIG)
    if not any(path.suffix in WEIGHTS for path in folder.glob("*")):
        # open_clip would go on with random weights.
        raise UserError(
            f"the open_clip folder {folder} holds no weights ({', '.join(WEIGHTS)}); fetch or build"
            " it again"
        )
    _check_model(config.get("model_cfg", {}), f"{folder / CONFIG}: model_cfg")
    refuse_code(folder)


def check_name(name: str) -> None:
    """Raises `UserError` for an architecture that open_clip does not hold itself, or that would
    ask a hub for its parts.
    """
    import open_clip

    config = None if ":" in name else open_clip.get_model_config(name)
    if config is None:
        raise UserError(
            f"open_clip has no architecture '{visible(name)[:60]}'; name one of its own and give"
            " its weights, or a folder"
        )
    text = config.get("text_cfg", {})
    asked = [key for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)]
    if asked:
        raise UserError(
            f"open_clip's architecture {name} asks a hub for its {asked[0]} when it is loaded;"
            " save the model as a folder (open_clip_config.json, weights, tokenizer) and name that"
        )


def _check_model(settings: Any, where: str) -> None:
    _only(settings, "", where)
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        if part in settings:
            _only(settings[part], part, f"{where}.{part}")
    text, vision = settings.get("text_cfg", {}), settings.get("vision_cfg", {})
    if text.get("tokenizer_kwargs") is not None:
        _only(text["tokenizer_kwargs"], "tokenizer_kwargs", f"{where}.text_cfg.tokenizer_kwargs")
    timm = vision.get("timm_model_name")
    if timm is not None and not (isinstance(timm, str) and _TIMM_NAME.fullmatch(timm)):
        raise UserError(f"{where}: timm_model_name '{visible(str(timm))[:60]}' is no name of timm")
    if vision.get("timm_model_pretrained"):
        raise UserError(f"{where}: timm_model_pretrained would ask a hub for other weights")


def _only(settings: Any, part: str, where: str) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{where} is no table")
    for key, value in settings.items():
        if isinstance(value, int | float) and not abs(value) <= limits.NETWORK_SETTING:
            raise UserError(f"{where}: {visible(str(key))[:60]} is larger than any network's")
        if key not in _ALLOWED[part]:
            raise UserError(
                f"{where} sets '{visible(str(key))[:60]}', which is not among the settings that a"
                " folder may make (docs/security.md)"
            )
