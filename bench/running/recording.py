"""Recorders at work: what they see while a batch is sampled, and what they keep of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.base.errors import UserError
from bench.contracts.detector import Moment, Recorder
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.request import Request, Step

Watch = Callable[[Step, Tensor, Tensor], None]


class Recording:
    """One batch, watched by some recorders.

    Pass `watch` to the loop of sampling; `results` gives what they kept, by recorder, when it has
    ended.
    """

    def __init__(self, denoiser: Denoiser, request: Request, recorders: Sequence[Recorder]) -> None:
        if denoiser.pipe.tokenizer is not None:
            request = request.replace(lengths=denoiser.lengths(request.prompts))
        self._denoiser, self._request = denoiser, request
        self._memories: list[tuple[Recorder, dict[str, Any]]] = [(one, {}) for one in recorders]
        self._step = 0
        for recorder, memory in self._memories:
            recorder.begin(request, memory)

    def watch(self, step: Step, scaled: Tensor, guided: Tensor) -> None:
        """Show one step to every recorder.

        Raises `UserError` where the method did without the conditional prediction.
        """
        if not step.predicted_both:
            raise UserError(
                f"step {step.index} was taken without the prompt's own prediction, so nothing can"
                " be recorded of it; record the model without a method"
            )
        moment = Moment(
            step.index,
            step.count,
            step.timestep,
            float(self._denoiser.alphas[step.index]),
            scaled,
            step.unconditional,
            step.conditional,
            guided,
            self._request,
        )
        for recorder, memory in self._memories:
            recorder.saw(moment, memory)
        self._step = step.index + 1

    @contextmanager
    def attention(self) -> Iterator[None]:
        """A block in which recorders that ask for it see the cross-attention of every layer.

        It is computed beside the layer's own, from the same queries and keys, so that no picture
        changes.
        """
        readers = [found for found in self._memories if found[0].reads_attention]
        if not readers:
            yield
            return
        layers = [
            module
            for name, module in self._denoiser.pipe.unet.named_modules()
            if name.endswith("attn2")
        ]
        if not layers:
            raise UserError("the model has no cross-attention layers (attn2) to be recorded")
        both = 2 * len(self._request.prompts)

        def shown(number: int) -> Callable[..., None]:
            def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                hidden = args[0] if args else kwargs["hidden_states"]
                wanting = [
                    found for found in readers if found[0].wants(self._step, self._denoiser.steps)
                ]
                if not wanting or len(hidden) != both:  # or one branch alone
                    return
                probabilities = cross_attention(
                    module,
                    hidden[both // 2 :],
                    kwargs["encoder_hidden_states"][both // 2 :],
                    _half(kwargs.get("attention_mask")),
                )
                for recorder, memory in wanting:
                    recorder.attended(self._step, number, probabilities, memory)

            return hook

        with ExitStack() as stack:
            for number, layer in enumerate(layers):
                hook = layer.register_forward_pre_hook(shown(number), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def results(self) -> dict[Recorder, Tensor]:
        """What each recorder kept of the batch, float32 `[B, ...]` on the CPU.

        Raises `UserError` for something else, or for numbers that are not finite.
        """
        found, count = {}, len(self._request.prompts)
        for recorder, memory in self._memories:
            kept = recorder.result(memory)
            if not isinstance(kept, Tensor) or kept.ndim < 1 or len(kept) != count:
                raise UserError(
                    f"recorder {type(recorder).__name__}: result must be a tensor with a row for"
                    f" each of {count} images"
                )
            kept = kept.detach().float().cpu()
            if not bool(torch.isfinite(kept).all()):
                raise UserError(f"recorder {type(recorder).__name__} kept NaN or infinity")
            found[recorder] = kept
        return found


def cross_attention(module: Any, hidden: Tensor, texts: Tensor, mask: Tensor | None) -> Tensor:
    """The attention probabilities of a layer of diffusers, `[B, heads, pixels, tokens]` float32.

    `hidden` `[B, pixels, D]` is what queries come from, `texts` `[B, tokens, D']` what keys come
    from, `mask` what is added to the logits, `[B, 1, tokens]`.
    """
    with torch.no_grad():
        query = module.head_to_batch_dim(module.to_q(hidden))
        key = module.head_to_batch_dim(module.to_k(texts))
        logits = torch.bmm(query.float(), key.float().transpose(1, 2)) * module.scale
        shaped = logits.unflatten(0, (len(hidden), -1))
        if mask is not None:
            shaped = shaped + mask.float().reshape(len(hidden), 1, 1, -1)
        return shaped.softmax(-1)


def _half(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[len(mask) // 2 :]
