"""How a run is executed, as opposed to what it measures: batch size, memory layout, attention,
compilation, precision of products.

Nothing here may change a picture beyond rounding, so none of it is part of fingerprints, keys or
run ids; records have it in their environment. What does change pixels, such as tiles in the
decoder, is the suite's to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from bench.base.errors import UnknownName, UserError

ATTENTION = ("sdpa", "sliced")


@dataclass(frozen=True)
class Execution:
    """How the model is run.

    The defaults leave diffusers' own choices, but for TF32, which is off: products of float32 are
    exact to float32.
    """

    # None: the suite's; auto: the most that fits, found by trial
    batch_size: int | Literal["auto"] | None = None
    # ceiling for auto, of the GPU or the process; by default most of what is free
    memory_gib: float | None = None
    # convolutions read channel after channel of a pixel: faster on GPUs with 16 bits
    channels_last: bool = False
    # diffusers' default, fused; or some heads at a time, slower in less memory
    attention: Literal["sdpa", "sliced"] = "sdpa"
    vae_slicing: bool = False  # decode image by image
    compile: bool = False  # torch.compile of the UNet
    tf32: bool = False  # round the factors of float32 products to 10 bits on GPUs that can: faster

    def __post_init__(self) -> None:
        size = self.batch_size
        if size is not None and size != "auto" and (not isinstance(size, int) or size < 1):
            raise UserError(f"a batch size is a whole number above 0, or auto, not '{size}'")
        if self.attention not in ATTENTION:
            raise UnknownName("attention", self.attention, ATTENTION)
        if self.memory_gib is not None and (size != "auto" or not self.memory_gib > 0):
            raise UserError(
                "--memory is the ceiling, in GiB above 0, for --batch-size auto; give both or none"
            )

    @property
    def changed(self) -> dict[str, Any]:
        """What differs from the default; timings are kept apart by it."""
        return {
            key: value for key, value in asdict(self).items() if value != getattr(Execution(), key)
        }

    @property
    def of_pixels(self) -> dict[str, Any]:
        """What differs from the default and may change a pixel by rounding, but the batch size."""
        asked = {"batch_size", "memory_gib"}
        return {key: value for key, value in self.changed.items() if key not in asked}

    def described(self, batch_size: int | None, stored: dict[str, Any]) -> dict[str, Any]:
        """For a record: every choice, the batch size that it came to, and what the model's files
        hold.
        """
        return asdict(self) | {
            "batch_size": batch_size,
            "batch_size_asked": self.batch_size,
            "stored": stored,
        }


def parsed_batch_size(text: str | None) -> int | Literal["auto"] | None:
    """What `--batch-size` says. Raises `UserError` for anything but a whole number or `auto`."""
    if text is None or text == "auto":
        return "auto" if text else None
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--batch-size is a whole number above 0, or auto, not '{text}'") from None


def prepare(pipe: Any, execution: Execution) -> None:
    """Bring a loaded `StableDiffusionPipeline` into the chosen form."""
    if execution.channels_last:
        for part in (pipe.unet, pipe.vae):
            part.to(memory_format=torch.channels_last)
    if execution.attention == "sliced":
        pipe.unet.set_attention_slice("auto")
    if execution.vae_slicing:
        pipe.vae.enable_slicing()
    if execution.compile:
        compile_when_plain(pipe.unet)


def compile_when_plain(unet: torch.nn.Module, backend: str = "inductor") -> None:
    """Compile the UNet's forward, in place; calls during which something hangs on its modules run
    uncompiled.

    Weights are inputs of the compiled program, so edits of them take effect. A hook is not: the
    compiler may build it in, with what it knew at the time, or leave it out. So a method or an
    observer with hooks, a replaced forward or attention of its own is run as it was written.
    """
    eager = unet.forward
    compiled = torch.compile(eager, backend=backend)

    def forward(*arguments: Any, **named: Any) -> Any:
        return (compiled if is_plain(unet) else eager)(*arguments, **named)

    unet.forward = forward


def is_plain(unet: torch.nn.Module) -> bool:
    """Whether no module below carries a hook, a forward of its own or attention that is not
    diffusers'.
    """
    for module in unet.modules():
        if module is unet:  # its hooks run around its forward, compiled or not
            continue
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in vars(module)
        ):
            return False
        processor = getattr(module, "processor", None)
        if processor is not None and not type(processor).__module__.startswith("diffusers."):
            return False
    return True


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """With TF32 or without, in products and convolutions on the GPU; what was set before
    returns.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
