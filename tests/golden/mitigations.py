"""The published procedures of clip_pad, prss, sail and guard on the embedded model, written out for
one image at a time from their papers and released code; `make.py` keeps what they come to.

Where a method of ours differs from the released code on purpose, its docstring says so, and the
figures are of the procedure that it names.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.denoiser import Denoiser

# Of prss, in lengths of the embedded model; no paraphrase is short enough, so the least is taken.
L_SS, L_PR, FULL = 0.5, 2.0, 6.0
RATE, UPDATES, ALPHA = 0.05, 3, 0.05  # of sail's descent
REPULSION, SCALE, THRESHOLD = 2 / 7.5, 0.3, 0.1  # of guard; the first as a share of the guidance


def clip_pad(denoiser: Denoiser, prompts: list[str]) -> dict[str, Any]:
    """Lengths of all tokens' embeddings in each variant, and of the empty prompt filled up."""
    pipe, found = denoiser.pipe, dict[str, Any]()
    exclamation = pipe.tokenizer.convert_tokens_to_ids("!")
    most = pipe.tokenizer.model_max_length

    def ids_of(prompt: str) -> tuple[Tensor, int]:
        ids = pipe.tokenizer(
            prompt, padding="max_length", max_length=most, truncation=True, return_tensors="pt"
        ).input_ids
        end = ids[0].tolist().index(pipe.tokenizer.eos_token_id)
        return ids, end

    def encoded(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return pipe.text_encoder(ids)[0][0]

    def lengths(rows: Tensor) -> list[float]:
        return [round(float(rows[place].norm()), 5) for place in range(len(rows))]

    for prompt in ["", *prompts]:
        ids, end = ids_of(prompt)
        filled = ids.clone()
        filled[0, end + 1 :] = exclamation
        pad = encoded(filled)
        eot, ratio = pad.clone(), encoded(ids).clone()
        eot[end] = 0
        ratio[end + 1 : end + 1 + int((most - (end + 1)) * 0.7)] = 0
        found[prompt] = {"pad": lengths(pad), "eot": lengths(eot), "ratio": lengths(ratio)}
    return found


def prss(denoiser: Denoiser, prompt: str, seed: int, others: list[str]) -> dict[str, Any]:
    """Lengths of the pull of the prompt and of others at the first step, the chosen one, the steps
    in which guidance was turned, and the picture's latents.
    """
    scheduler, scale = denoiser.new_scheduler(), denoiser.guidance_scale
    x = denoiser.initial_latents([seed])

    def predicted(text: str, timestep: Tensor) -> Tensor:
        with torch.no_grad():
            return denoiser.epsilon(x, timestep, denoiser.encode([text]))

    first = scheduler.timesteps[0]
    lengths = [
        float((predicted(text, first) - predicted("", first)).norm()) for text in (prompt, *others)
    ]
    chosen = (prompt, *others)[lengths.index(min(lengths))]
    turned = []
    for step, timestep in enumerate(scheduler.timesteps):
        null, given, other = (predicted(text, timestep) for text in ("", prompt, chosen))
        magnitude = float((other - null).norm())
        if magnitude > L_PR:
            turned.append(step)
            s = min(1 + (scale - 1) * (magnitude - L_PR) / (FULL - L_PR), scale)
            guided = given + s * (other - given) + (scale - s) * (other - null)
        else:
            guided = null + scale * (other - null)
        x = scheduler.step(guided, timestep, x, return_dict=False)[0]
    return {
        "lengths": [round(length, 5) for length in lengths],
        "chosen": chosen,
        "turned": turned,
        **described(x),
    }


def sail(denoiser: Denoiser, prompt: str, seed: int) -> dict[str, Any]:
    """The value before every update of the noise, with the direction of the present noise."""
    timestep = denoiser.new_scheduler().timesteps[0]
    text, null = denoiser.encode([prompt]), denoiser.null_embeddings(1)

    def pull(place: Tensor) -> Tensor:
        return denoiser.epsilon(place, timestep, text) - denoiser.epsilon(place, timestep, null)

    x = denoiser.initial_latents([seed]).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=RATE)
    values = []
    for _ in range(UPDATES + 1):
        here = pull(x)
        value = pull(x + here / here.norm()).norm() + ALPHA * x.norm()
        values.append(round(value.item(), 5))
        x.grad = torch.autograd.grad(value, x)[0]
        optimizer.step()
    return {"values": values}


class Explicit:
    """Attention written out, one head after the other; where `attenuated`, the logits of tokens
    that stand out are made smaller.
    """

    def __init__(self, attenuates: bool) -> None:
        self.attenuates = attenuates
        self.active = False

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **named: Any
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        queries, keys, values = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        width = queries.shape[-1] // attn.heads
        rows = []
        for row in range(len(queries)):
            heads = []
            for head in range(attn.heads):
                part = slice(head * width, (head + 1) * width)
                logits = queries[row, :, part] @ keys[row, :, part].T / math.sqrt(width)
                if self.attenuates and self.active:
                    largest = logits.max(0).values
                    others = largest[1:]
                    z = (largest - others.mean()) / (others.std() + 1e-6)
                    for token in range(1, len(z)):
                        if z[token] > THRESHOLD:
                            logits[:, token] = logits[:, token] * SCALE
                heads.append(logits.softmax(-1) @ values[row, :, part])
            rows.append(torch.cat(heads, -1))
        return attn.to_out[1](attn.to_out[0](torch.stack(rows)))


def guard(denoiser: Denoiser, prompt: str, seed: int) -> dict[str, Any]:
    """Lengths at the first step of both pulls, in how many steps the part along was taken away, and
    the picture's latents, in all steps with the cosine's decay and the orthogonal part.
    """
    unet, scale = denoiser.pipe.unet, denoiser.guidance_scale
    before = dict(unet.attn_processors)
    ours = {
        name: Explicit(name.startswith(("down_blocks.", "mid_block.")) and ".attn2." in name)
        for name in before
    }
    unet.set_attn_processor(dict(ours))
    try:
        scheduler = denoiser.new_scheduler()
        x = denoiser.initial_latents([seed])
        text, null = denoiser.encode([prompt]), denoiser.null_embeddings(1)

        def predicted(timestep: Tensor, given: Tensor, attenuated: bool = False) -> Tensor:
            for one in ours.values():
                one.active = attenuated
            with torch.no_grad():
                return denoiser.epsilon(x, timestep, given)

        taken, lengths = 0, list[float]()
        for step, timestep in enumerate(scheduler.timesteps):
            e_u, e_c = predicted(timestep, null), predicted(timestep, text)
            towards, pull = predicted(timestep, text, True) - e_u, e_c - e_u
            if step == 0:
                lengths = [round(float(one.norm()), 5) for one in (pull, towards)]
            cosine = float((towards * pull).sum() / (towards.norm() * pull.norm()))
            if cosine > 0.9:
                taken += 1
                share = float((towards * pull).sum() / pull.square().sum())
                towards = towards - max(-2.0, min(2.0, share)) * pull
            repulsion = REPULSION * scale * math.cos(math.pi * step / (2 * denoiser.steps))
            guided = e_u + scale * towards - repulsion * pull
            x = scheduler.step(guided, timestep, x, return_dict=False)[0]
    finally:
        unet.set_attn_processor(before)
    return {"lengths": lengths, "orthogonalised": taken, **described(x)}


def described(latents: Tensor) -> dict[str, Any]:
    """A picture's latents in a few numbers."""
    flat = latents.detach().flatten()
    return {
        "norm": round(float(flat.norm()), 5),
        "latents": [round(float(value), 5) for value in flat[:: max(1, len(flat) // 8)][:8]],
    }
