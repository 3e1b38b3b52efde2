"""`bench analyze ...`: what can be learned about a method besides its row on the board.

Thin, and torch-free until a command runs.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.base.errors import UserError
from bench.cli.app import app

if TYPE_CHECKING:
    import torch

    from bench.contracts.method import Method
    from bench.studies.masks import MaskAnalysis
    from bench.suite.suite import Suite

analyze = typer.Typer(
    help="Look inside a method: what its masks hold and how far they agree.", no_args_is_help=True
)
app.add_typer(analyze, name="analyze")


@analyze.callback()
def _commands() -> None:
    """Keeps `masks` a command of its own while it is the only one."""


@analyze.command(
    epilog=(
        "Examples:  bench analyze masks --suite testbed   |   bench analyze masks --suite testbed"
        " -p sparsity=0.05 --subsets 5 --size 4 --out runs/masks"
    )
)
def masks(
    suite: Annotated[
        str, typer.Option("--suite", help="A name from `bench list suites`, or a TOML file.")
    ] = "testbed",
    method: Annotated[
        str,
        typer.Option("--method", help="A method that offers masks, by name or as a Python file."),
    ] = "wanda",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="name=value, as in `bench run`. May be repeated."),
    ] = None,
    subsets: Annotated[
        int, typer.Option(help="Random subsets of the fit prompts whose masks are compared.")
    ] = 10,
    size: Annotated[
        int | None, typer.Option(help="Fit prompts in every subset; half of them by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of drawing the subsets.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU by default where there is one.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the tables and plots; runs/analysis/masks/<suite> by default."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Masks of a pruning method: their density, how far subsets of prompts agree (IoU), how they
    change over UNet calls.
    """
    from bench.base.parameters import parse_assignments
    from bench.diffusion.model import pick_device
    from bench.studies.masks import draw_subsets
    from bench.suite.load import load_suite

    chosen = load_suite(suite)
    masked = _masked_method(method, parse_assignments(parameter or []))
    prompts = chosen.prompts("fit")
    if not prompts:
        raise UserError(f"suite {chosen.name} has no fit prompts to make masks from")
    drawn = draw_subsets(
        len(prompts), subsets, max(1, len(prompts) // 2) if size is None else size, seed
    )
    folder = out or Path("runs/analysis/masks") / chosen.name
    place = pick_device(device)
    # Written first, so that a folder that cannot be written is noticed before the model runs.
    rows = [
        {"subset": number, "prompt_id": prompts[i].id, "prompt": prompts[i].text}
        for number, subset in enumerate(drawn)
        for i in subset
    ]
    files = [_write(folder / "subsets.csv", _csv(rows))]
    found, seconds = _analysis(chosen, masked, place, drawn)
    label = " ".join([method, *(parameter or [])])
    files += [
        _write(folder / name, content)
        for name, content in _contents(found, f"{label} on {chosen.name}").items()
    ]
    facts: dict[str, Any] = {
        "suite": chosen.name,
        "fingerprint": chosen.fingerprint,
        "method": method,
        "version": masked.version,
    }
    facts |= (
        {"parameters": masked.model_dump(mode="json")}
        | found.summary
        | {"seconds": round(seconds, 2), "device": place.type}
    )
    facts["subsets"]["seed"] = seed
    facts["files"] = [*map(str, files), str(folder / "summary.json")]
    text = json.dumps(facts, indent=1, allow_nan=False)
    _write(folder / "summary.json", f"{text}\n".encode())
    print(text if as_json else _text(facts, label))


def _masked_method(name: str, values: dict[str, Any]) -> Method:
    """The configured method, if it offers what `bench.studies.masks.MaskedMethod` says."""
    from bench.base.parameters import configure
    from bench.contracts.masked import MaskedMethod
    from bench.registry import registry

    entry = registry.find("method", name)
    found = entry.load()
    offers_masks = issubclass(found, MaskedMethod)
    if not offers_masks:
        raise UserError(f"method {entry.name} has no masks to analyze")
    return configure("method", entry.name, found, values)


def _analysis(
    suite: Suite, method: Any, device: torch.device, subsets: Sequence[Sequence[int]]
) -> tuple[MaskAnalysis, float]:
    """The analysis on the suite's fit prompts, and the seconds that it took with the model
    loaded.
    """
    from bench.base.progress import reporter
    from bench.diffusion.model import load_denoiser
    from bench.studies.masks import analyze_masks

    denoiser = load_denoiser(suite, device)
    with reporter() as report:
        start = time.perf_counter()
        found = analyze_masks(
            denoiser, method, [prompt.text for prompt in suite.prompts("fit")], subsets, report
        )
        return found, time.perf_counter() - start


def _contents(found: MaskAnalysis, title: str) -> dict[str, bytes]:
    """Tables and plots by file name."""
    from bench.studies import mask_plots as plots
    from bench.studies.masks import ALL

    facts = found.summary
    subsets, calls = facts["iou_between_subsets"], facts["iou_between_consecutive_calls"]
    drawn = (
        f"{facts['subsets']['count']} subsets of {facts['subsets']['size']} of"
        f" {facts['fit_prompts']} fit prompts"
    )
    fitted = f"fitted on {facts['fitted_on']} of {facts['fit_prompts']} fit prompts"
    shared = f"two share {facts['subsets']['mean_shared_prompts']:.1f} prompts on average"
    mean = (
        f"mean IoU {_number(subsets[ALL]['mean'])}, of random masks"
        f" {_number(subsets[ALL]['chance'])}; {shared}"
    )
    files = {
        "density.csv": _csv(found.density),
        "iou_subsets.csv": _csv(found.subsets),
        "density.png": plots.density_picture(
            found.density, f"Where weights are masked\n{title}, {fitted}"
        ),
        "iou_subsets.png": plots.subsets_picture(
            found.subsets,
            facts["subsets"]["count"],
            f"Do other prompts give the same mask?\n{title}, {drawn}\n{mean}",
        ),
        "iou_layers.png": plots.layers_picture(
            subsets, calls, f"How far masks agree, by layer\n{title}, {drawn}"
        ),
    }
    if found.calls:
        files["iou_calls.csv"] = _csv(found.calls)
        files["iou_calls.png"] = plots.calls_picture(
            found.calls, f"How masks change from call to call\n{title}, {fitted}"
        )
    return files


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """A table with its header; what is None is an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: round(value, 8) if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    )
    return stream.getvalue().encode()


def _write(path: Path, content: bytes) -> Path:
    from bench.base.files import write_atomically

    write_atomically(path, content)
    return path


def _text(facts: dict[str, Any], label: str) -> str:
    """The summary for people: one line a layer, then the cost and the files."""
    drawn, subsets, calls = (
        facts["subsets"],
        facts["iou_between_subsets"],
        facts["iou_between_consecutive_calls"],
    )
    width = max(map(len, facts["density"]))
    lines = [
        (
            f"{label} on {facts['suite']}: {facts['calls']} UNet calls, fitted on"
            f" {facts['fitted_on']} of {facts['fit_prompts']} fit prompts; {drawn['count']} subsets"
            f" of {drawn['size']} prompts (seed {drawn['seed']}), two share"
            f" {drawn['mean_shared_prompts']:.1f} on average"
        ),
        (
            f"{'layer':<{width}}  density  IoU of subsets (least to largest, random)    IoU of"
            " consecutive calls"
        ),
    ]
    for layer, density in facts["density"].items():
        pairs = subsets[layer]
        spread = (
            ""
            if pairs["mean"] is None
            else (
                f" ({_number(pairs['min'])} to {_number(pairs['max'])}, {_number(pairs['chance'])})"
            )
        )
        lines.append(
            f"{layer:<{width}}  {density:7.3%}  {_number(pairs['mean']) + spread:<43} "
            f" {_number(calls[layer]['mean'])}"
        )
    reasons = [row["reason"] for row in (*subsets.values(), *calls.values()) if "reason" in row]
    lines += [f"null: {reason}" for reason in dict.fromkeys(reasons)]
    lines.append(
        f"{facts['row_evaluations']:,} row evaluations, {facts['seconds']:.1f} s on"
        f" {facts['device']}"
    )
    return "\n".join([*lines, *facts["files"]])


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"
