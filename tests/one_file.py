"""The tiny models as checkpoints in one file: under the names of Stability's own code."""

import re

import torch


def ldm_unet_name(key: str, levels: int) -> str:
    """The original layout's name of a UNet weight, for one residual layer at every level."""
    key = re.sub(
        r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * (int(m[1]) - 1)}", key
    )
    key = re.sub(r"^conv_in", "input_blocks.0.0", key)
    key = re.sub(r"^conv_norm_out", "out.0", key)
    key = re.sub(r"^conv_out", "out.2", key)
    key = re.sub(
        r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0", key
    )
    key = re.sub(
        r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1", key
    )
    key = re.sub(
        r"^down_blocks\.(\d)\.downsamplers\.0\.conv",
        lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op",
        key,
    )
    key = re.sub(r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", key)
    key = re.sub(r"^mid_block\.attentions\.0", "middle_block.1", key)
    key = re.sub(
        r"^up_blocks\.(\d)\.resnets\.(\d)",
        lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0",
        key,
    )
    key = re.sub(
        r"^up_blocks\.(\d)\.attentions\.(\d)",
        lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1",
        key,
    )
    key = re.sub(
        r"^up_blocks\.(\d)\.upsamplers\.0\.conv",
        lambda m: f"output_blocks.{2 * int(m[1]) + 1}.2.conv",
        key,
    )
    if not key.startswith(("time_embed", "out.")):
        for new, old in (
            ("norm1", "in_layers.0"),
            ("conv1", "in_layers.2"),
            ("time_emb_proj", "emb_layers.1"),
            ("norm2", "out_layers.0"),
            ("conv2", "out_layers.3"),
        ):
            key = key if "transformer_blocks" in key else re.sub(rf"\.{new}\.", f".{old}.", key)
        key = key.replace("conv_shortcut", "skip_connection")
    return f"model.diffusion_model.{key}"


def ldm_vae_name(key: str, levels: int) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", key)
    key = re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key
    )
    return f"first_stage_model.{key}"


def ldm_state(pipe) -> dict[str, torch.Tensor]:
    """The whole model under the names of the original layout, as one table."""
    state = {ldm_unet_name(key, 2): tensor for key, tensor in pipe.unet.state_dict().items()}
    state |= {ldm_vae_name(key, 3): tensor for key, tensor in pipe.vae.state_dict().items()}
    text = {
        key.removeprefix("text_model."): tensor
        for key, tensor in pipe.text_encoder.state_dict().items()
    }
    state |= {
        f"cond_stage_model.transformer.text_model.{key}": tensor for key, tensor in text.items()
    }
    # What the original files hold besides.
    state |= {"alphas_cumprod": torch.zeros(1000), "model_ema.num_updates": torch.tensor(3)}
    return {key: tensor.contiguous().clone() for key, tensor in state.items()}


def open_clip_state(text_encoder, layers=24) -> dict[str, torch.Tensor]:
    """A CLIP text model under OpenCLIP's names, as Stable Diffusion 2.x files hold it: with the
    24th layer that is not used.
    """
    state, own = (
        {},
        {
            key.removeprefix("text_model."): tensor
            for key, tensor in text_encoder.state_dict().items()
        },
    )
    prefix = "cond_stage_model.model."
    state[f"{prefix}token_embedding.weight"] = own["embeddings.token_embedding.weight"]
    state[f"{prefix}positional_embedding"] = own["embeddings.position_embedding.weight"]
    for kind in ("weight", "bias"):
        state[f"{prefix}ln_final.{kind}"] = own[f"final_layer_norm.{kind}"]
        for layer in range(layers):
            of, to = f"encoder.layers.{min(layer, 22)}", f"{prefix}transformer.resblocks.{layer}"
            state[f"{to}.attn.in_proj_{kind}"] = torch.cat(
                [own[f"{of}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            )
            for new, old in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                state[f"{to}.{old}.{kind}"] = own[f"{of}.{new}.{kind}"]
    width = own["final_layer_norm.weight"].shape[0]
    projection = own.get("text_projection.weight", torch.eye(width))
    state[f"{prefix}text_projection"] = projection.T
    return state


def xl_state(pipe) -> dict[str, torch.Tensor]:
    """A model of Stable Diffusion XL as one table, whose second text encoder is OpenCLIP's."""
    layers = pipe.text_encoder_2.config.num_hidden_layers
    state = {}
    for key, tensor in ldm_state(pipe).items():
        key = key.replace("add_embedding.linear_1", "label_emb.0.0")
        key = key.replace("add_embedding.linear_2", "label_emb.0.2")
        state[key.replace("cond_stage_model.", "conditioner.embedders.0.")] = tensor
    for key, tensor in open_clip_state(pipe.text_encoder_2, layers).items():
        state[key.replace("cond_stage_model.", "conditioner.embedders.1.")] = tensor
    return {key: tensor.contiguous().clone() for key, tensor in state.items()}
