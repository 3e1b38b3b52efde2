"""What wanda and wen cost, against faithful loops of the published procedures on the same model,
prompts and noise (`nemo_rows.py` has nemo).

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/benchmarks/published_methods.py

`wanda`, learning: the published code makes a whole picture of every prompt, and one of the empty
prompt for each, one at a time, and keeps the activations of all calls; its masks are of the first
ten. `wen`, at generation: the published code takes four images of one prompt a call, evaluates both
branches in every iteration with a graph, and begins to sample anew afterwards.

Seconds are the processor's, on one thread; each is the best of the rounds. Both must come to the
same: the masks equal in every entry, the embeddings equal to rounding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.contracts.method import FitData
from bench.diffusion.denoiser import Denoiser, trajectory
from bench.diffusion.model import load_denoiser
from bench.diffusion.request import Request
from bench.running.sampling import sample
from bench.suite.load import load_suite
from methods.none import NoMitigation
from methods.wanda import Wanda, feed_forward_outputs
from methods.wen import Wen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=8, help="of wen, four images each")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    suite = load_suite("testbed")
    denoiser = load_denoiser(suite, torch.device("cpu"))
    fit = tuple(prompt.text for prompt in suite.prompts("fit"))
    clean = tuple(prompt.text for prompt in suite.prompts("calibration"))
    memorized = [prompt.text for prompt in suite.prompts("memorized")]
    every = len(memorized) // arguments.prompts
    compare_wanda(denoiser, fit, arguments.rounds)
    compare_wen(denoiser, clean, memorized[::every][: arguments.prompts], arguments.rounds)


def compare_wanda(denoiser: Denoiser, fit: tuple[str, ...], rounds: int) -> None:
    """Learning masks from ten prompts."""
    method = Wanda()
    data = FitData(fit_prompts=fit)
    chosen = [fit[place] for place in method.fitted_on(len(fit))]
    ours = measured(denoiser, lambda: method.fit(denoiser, data), rounds)
    theirs = measured(denoiser, lambda: published_wanda(denoiser, chosen, method), rounds)
    differing = sum(int((ours[2][name] != theirs[2][name]).sum()) for name in ours[2])
    report("wanda", ours, theirs, f"{differing} entries of the masks differ")


def published_wanda(denoiser: Denoiser, prompts: list[str], method: Wanda) -> dict[str, Tensor]:
    """Masks from norms that are added up prompt by prompt, of whole generations."""
    layers = feed_forward_outputs(denoiser.pipe.unet)
    norms = [energies(denoiser, layers, prompts), energies(denoiser, layers, [""] * len(prompts))]
    masks = {}
    for name, layer in layers.items():
        weight, mask = layer.weight.detach().abs(), torch.zeros_like(layer.weight, dtype=torch.bool)
        for call in range(method.calls):
            active, empty = (weight * found[name][call].sqrt() for found in norms)
            largest = int(method.sparsity * weight.shape[1])
            order = active.argsort(dim=1, descending=True)[:, :largest]
            candidates = torch.zeros_like(mask).scatter_(1, order, True)
            mask |= candidates & (active > empty)
        masks[name] = mask
    return masks


def energies(
    denoiser: Denoiser, layers: dict[str, torch.nn.Linear], prompts: list[str]
) -> dict[str, list[Tensor]]:
    """By layer and call, the squared norms of the columns of its inputs over all prompts."""
    total: dict[str, list[Tensor]] = {}
    for prompt in prompts:
        seen: dict[str, list[Tensor]] = {name: [] for name in layers}

        def keep(name: str, seen: dict[str, list[Tensor]] = seen) -> Any:
            return lambda module, args: seen[name].append(args[0].flatten(0, 1))

        handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
        denoiser.decode(sample(denoiser, denoiser.request([prompt], [0]), NoMitigation(), {}))
        for handle in handles:
            handle.remove()
        for name, calls in seen.items():
            found = [
                torch.nn.functional.normalize(inputs, dim=1).square().sum(0) for inputs in calls
            ]
            so_far = total.get(name, [torch.zeros(())] * len(found))
            total[name] = [one + other for one, other in zip(so_far, found, strict=True)]
    return total


def compare_wen(
    denoiser: Denoiser, clean: tuple[str, ...], prompts: list[str], rounds: int
) -> None:
    """Four images of each of some prompts, from optimisation to final latents."""
    method = Wen(preset="reference", quantile=0.05)
    # The published target is of four images together.
    single = float(method.fit(denoiser, FitData(clean_prompts=clean))["target"])
    method = Wen(preset="reference", target=2 * single)
    seeds = {prompt: range(4 * place, 4 * place + 4) for place, prompt in enumerate(prompts)}
    together = denoiser.batch_size // 4

    def ours() -> list[Request]:
        adjusted = []
        for start in range(0, len(prompts), together):
            part = prompts[start : start + together]
            request = denoiser.request(
                [prompt for prompt in part for _ in range(4)],
                [seed for prompt in part for seed in seeds[prompt]],
            )
            made = method.adjust(denoiser, request, {})
            adjusted.append(made)
            with torch.no_grad():
                trajectory(denoiser, made, lambda step: method.guide(step, {}))
        return adjusted

    def theirs() -> list[Tensor]:
        return [published_wen(denoiser, prompt, list(seeds[prompt]), method) for prompt in prompts]

    mine, other = measured(denoiser, ours, rounds), measured(denoiser, theirs, rounds)
    embeddings = torch.cat([request.embeddings for request in mine[2]])
    farthest = float((embeddings - torch.cat(other[2])).abs().max())
    report("wen", mine, other, f"embeddings differ by {farthest:.1e} at most")


def published_wen(denoiser: Denoiser, prompt: str, seeds: list[int], method: Wen) -> Tensor:
    """The optimised embeddings of four images, `[4, T, D]`, after sampling with them."""
    request = denoiser.request([prompt] * 4, seeds)
    scaled, timestep = denoiser.start(request.latents)
    leaf = request.embeddings[:1].clone().requires_grad_()
    optimizer = torch.optim.AdamW([leaf], lr=method.lr)
    assert method.target is not None
    for _ in range(method.iterations):
        with torch.enable_grad():
            told = request.replace(embeddings=leaf.expand(4, -1, -1))
            null, conditional = denoiser.branches(scaled, timestep, told)
            loss = (conditional - null).norm()
        if loss.item() <= method.target:
            break
        (gradient,) = torch.autograd.grad(loss, [leaf])
        gradient[:, 0] = 0
        leaf.grad = gradient
        optimizer.step()
    found = leaf.detach().expand(4, -1, -1)
    with torch.no_grad():
        trajectory(
            denoiser, request.replace(embeddings=found), lambda step: NoMitigation().guide(step, {})
        )
    return found


def measured(denoiser: Denoiser, make: Callable[[], Any], rounds: int) -> tuple[float, int, Any]:
    """Seconds of the processor at best, evaluations, and what was made."""
    seconds = []
    for _ in range(rounds):
        before, begun = denoiser.evaluations, time.process_time()
        made = make()
        seconds.append(time.process_time() - begun)
    return min(seconds), denoiser.evaluations - before, made


def report(
    name: str, ours: tuple[float, int, Any], theirs: tuple[float, int, Any], same: str
) -> None:
    print(
        f"{name}: published {theirs[0]:.2f} s, {theirs[1]} evaluations; ours {ours[0]:.2f} s,"
        f" {ours[1]} evaluations; {theirs[0] / ours[0]:.2f} times as fast,"
        f" {theirs[1] / ours[1]:.2f} times fewer evaluations; {same}",
        flush=True,
    )


if __name__ == "__main__":
    main()
