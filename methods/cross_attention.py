"""Cross-attention without summary tokens and with a stronger first token (Ren et al., ECCV 2024,
arXiv 2403.11052).

Memorized prompts draw attention to a few tokens, above all to those that stand for the whole text.
The published command masks the padding and multiplies the first token's attention logit; the
paper's text masks the end token too (`mask=summary`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from bench import Denoiser, Method, Request, State, Swept, UserError, Where


class CrossAttention(Method):
    """Mask the tokens after the text and strengthen the first token in cross-attention (Ren et
    al.).
    """

    where: ClassVar[Where] = "attention"
    paper: ClassVar[str] = "Ren et al. 2024, arXiv:2403.11052"
    families: ClassVar = ("sd", "sdxl")
    in_chunks: ClassVar[bool] = False
    neutral: ClassVar[dict[str, Any] | None] = {"c1": 1, "mask": "none"}
    swept: ClassVar[Swept | None] = ("c1", (1.1, 1.25, 1.5, 2, 3))

    c1: float = Field(
        1.25,
        gt=0,
        description="factor on the first token's attention logit in conditional rows; 1 leaves it",
    )
    mask: Literal["padding", "summary", "none"] = Field(
        "padding", description="hide padding (code), padding and end token (paper), or nothing"
    )

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Scale the first token's key: logits are linear in keys, so attention stays the fused
        kernel.
        """
        layers = [module for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
        keys = [layer.to_k for layer in layers if not getattr(layer, "fused_projections", False)]
        if not keys or len(keys) < len(layers):
            raise UserError(
                "method cross_attention: the model has no attn2.to_k layers (are its projections"
                " fused?)"
            )

        def scale(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            # the second half of a guided batch is conditional
            output[len(output) // 2 :, 0] *= self.c1
            return output

        with ExitStack() as stack:
            for layer in keys if self.c1 != 1 else ():
                stack.callback(layer.register_forward_hook(scale).remove)
            yield

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """Both branches see only as many tokens as the prompt has, counted without padding, which
        not every tokenizer fills alike.
        """
        if self.mask == "none":
            return request
        tokens = denoiser.pipe.tokenizer(
            list(request.prompts), truncation=True, max_length=request.embeddings.shape[1]
        ).input_ids
        lengths = torch.tensor(
            [len(ids) - (self.mask == "summary") for ids in tokens],
            device=request.embeddings.device,
        )
        return request.replace(
            attention_mask=torch.arange(request.embeddings.shape[1], device=lengths.device)
            < lengths[:, None]
        )
