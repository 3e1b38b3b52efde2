"""Texts read at an earlier layer of the text encoders (`clip_skip`), as models are used that were
trained so.

The text encoders themselves are changed, by hooks, so that whoever asks one gets that layer's
states by the name that the last one's have otherwise. Counted as diffusers counts: 1 is the layer
before the one that is read ordinarily, which kohya-ss/sd-scripts and A1111 call 2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.base.errors import UserError
from bench.diffusion.families import family_of_pipeline


def skip_layers(pipe: Any, count: int) -> None:
    """Have a pipeline's text encoders give the states of `count` layers earlier: of Stable
    Diffusion 1 and 2 normalised like the last ones, of XL as they are. The pooled text of XL stays
    what all layers make of it.

    Raises `UserError` where no layer would be left.
    """
    if not count:
        return
    xl = family_of_pipeline(pipe) == "sdxl"
    for encoder in (pipe.text_encoder, pipe.text_encoder_2) if xl else (pipe.text_encoder,):
        layers = _layers(encoder)
        most = len(layers) - (2 if xl else 1)  # XL reads the last layer but one
        if count > most:
            raise UserError(
                f"[model] clip_skip is {count}, and the text encoder of the model has"
                f" {len(layers)} layers, which leaves {max(most, 0)} to skip"
            )
        if xl:
            encoder.register_forward_hook(partial(_earlier, count))
            continue
        for layer in layers[-count:]:
            layer.register_forward_hook(_unchanged, with_kwargs=True)


def _layers(encoder: Any) -> Any:
    # Where they lie moved between releases of transformers, and with a projection.
    return getattr(encoder, "text_model", encoder).encoder.layers


def _unchanged(module: Any, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """What goes into a layer, in place of what comes out of it."""
    states = args[0] if args else named["hidden_states"]
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _earlier(count: int, module: Any, args: Any, output: Any) -> Any:
    """States whose last layers are missing, so that the last but one is an earlier one."""
    if output.hidden_states is not None:
        output.hidden_states = output.hidden_states[:-count]
    return output
