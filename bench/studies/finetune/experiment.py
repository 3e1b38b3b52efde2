"""The experiment on a fine-tuned model: attack, pruning, attack again, each an ordinary run, and
the table of what they gave.

It is section 5.4 of Chavhan et al. (2024, arXiv 2406.18566) with two differences. Pruning learns
from a part of the repeated captions and is judged on the others, where the paper judges on those it
learned from. Cliques are cliques: public code of that lineage takes connected components for them.
Beside the training it leaves a suite of its own, so that any other method can be run on the same
model:

    <out>/suite.toml, prompts/, references/    the protocol, its captions, and copies of the
    repeated pictures
          suite.clique_extraction.json         the attack's threshold, measured on clean captions of
                                               the fine-tuned model
          records/, store/                     what the runs left
          result.json                          the table's numbers and all that they hold for
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.base.errors import UserError
from bench.base.files import write_atomically
from bench.base.foreign import read_table
from bench.base.parameters import configure
from bench.base.progress import Report, silent
from bench.base.prompt_lists import read_list
from bench.base.work_folder import refuse_read
from bench.records.environment import environment
from bench.records.record import RunRecord, Score
from bench.registry import registry
from bench.running.prepare import prepare
from bench.running.run import finished, run
from bench.studies.calibration import calibrate
from bench.studies.finetune.train import COMMAND, WRITTEN, Prepared, duplicated_pairs, pipeline_side
from bench.suite.load import load_suite
from bench.suite.schema import Scheduler
from bench.suite.suite import Suite

ATTACK = "clique_extraction"
TILES = 4  # a side
# Unnormalised distances are over all numbers of a tile: 50.0 is 50 / sqrt(3 * 128^2) = 0.2255 where
# pictures have 512 pixels a side, the paper's case.
PAPER_DISTANCE, PAPER_SIDE = 50.0, 512
SCORES = {
    "identified": "clique_identified",
    "memorized": "clique_extracted",
    "memorized_sscd": "clique_extracted_sscd",
    "clean_flagged": "clique_clean_flagged",
}
# Of the attack's details, those that `result.json` keeps.
DETAILS = ("threshold", "verification", "similarity", "calibration", "images_used", "unknown")
LOSSES = 20  # of the training, those that `result.json` keeps
SHOWN_IMAGES = 4  # images of a memorized prompt that metrics see, at most
# Table 1 of the paper: SD 1.5 fine-tuned on Imagenette, 15,000 steps of 4, 100 pictures 50 times,
# 50 generations a prompt, cliques of 3.
PUBLISHED = {
    "source": "Chavhan et al. 2024, arXiv:2406.18566, Table 1",
    "before": {"identified": 0.09, "memorized": 0.08},
    "after": {"identified": 0.0, "memorized": 0.0},
}


@dataclass(frozen=True)
class Protocol:
    """How the fine-tuned model is attacked and pruned.

    Defaults are the paper's where it names them.
    """

    fit: int = 10  # repeated captions that pruning learns from; the others are judged
    images: int = 50
    clique: int = 3
    threshold: float | None = None  # normalised; None: calibrated on clean captions
    calibration_prompts: int = 100
    rate: float = 0.01
    clean_prompts: int = 16  # clean captions that are attacked beside the repeated ones
    early_stop: bool = False
    # CSV of captions (column prompt or text); by default those of the pictures that are not
    # repeated
    clean: Path | None = None
    steps: int = 50
    guidance: float = 7.5
    scheduler: Scheduler = "DDIMScheduler"
    batch_size: int = 8
    sscd: Path | None = None  # weights of a copy descriptor
    profile: str = "nemo"
    similarity: float = 0.7
    seed: int = 0  # of the images and of both splits


def paper_threshold(distance: float = PAPER_DISTANCE, side: int = PAPER_SIDE) -> float:
    """The normalised distance that an unnormalised one between tiles is, with four decimals.

    `side` is that of the pictures, in pixels; the paper's case by default.
    """
    return round(distance / math.sqrt(3 * (side // TILES) ** 2), 4)


def write_suite(prepared: Prepared, protocol: Protocol) -> Path:
    """Write the derived suite with its prompt lists and references beside the training, and load
    it once.

    Returns its TOML file. Raises `UserError` when captions do not suffice.
    """
    repeated, others = duplicated_pairs(prepared)
    captions = list(dict.fromkeys(pair.caption for pair in repeated))
    _refuse_fit(protocol, len(captions))
    references: dict[str, list[str]] = {}
    for pair in repeated:
        copied = prepared.out / "references" / pair.name
        write_atomically(copied, pair.path.read_bytes())
        references.setdefault(pair.caption, []).append(f"../references/{pair.name}")
    fit = _drawn_for_fit(protocol, captions)
    group = str(prepared.training.times)
    rows = [
        [
            f"repeated-{n:04d}",
            caption,
            group,
            "fit" if caption in fit else "memorized",
            "|".join(references[caption]),
        ]
        for n, caption in enumerate(captions)
    ]
    _write_csv(
        prepared.out / "prompts/repeated.csv",
        [["id", "prompt", "group", "split", "reference"], *rows],
    )
    clean = _clean_captions(protocol, [pair.caption for pair in others], set(captions))
    rows = [
        [f"clean-{n:04d}", caption, "calibration" if n < protocol.calibration_prompts else "clean"]
        for n, caption in enumerate(clean)
    ]
    _write_csv(prepared.out / "prompts/clean.csv", [["id", "prompt", "split"], *rows])
    file = prepared.out / "suite.toml"
    write_atomically(file, _toml(prepared, protocol).encode())
    load_suite(str(file))
    return file


def _refuse_fit(protocol: Protocol, captions: int) -> None:
    """Raises `UserError` where `--fit` leaves no caption to learn from, or none to judge."""
    if not 0 < protocol.fit < captions:
        raise UserError(
            f"pruning cannot learn from {protocol.fit} of {captions} repeated captions and"
            " leave others to be judged; set --fit"
        )


def _drawn_for_fit(protocol: Protocol, captions: Sequence[str]) -> set[str]:
    """The repeated captions that pruning learns from."""
    generator = np.random.default_rng([protocol.seed, 2])
    return {
        captions[number] for number in generator.choice(len(captions), protocol.fit, replace=False)
    }


def _clean_captions(protocol: Protocol, others: list[str], repeated: set[str]) -> list[str]:
    """Captions that belong to no repeated picture, each once, in an order drawn from the seed:
    those for calibration, then those for the attack.

    Raises `UserError` when there are fewer than are asked for.
    """
    candidates = _read_captions(protocol.clean) if protocol.clean else others
    captions = [caption for caption in dict.fromkeys(candidates) if caption not in repeated]
    to_calibrate, to_attack = protocol.calibration_prompts, max(protocol.clean_prompts, 1)
    if len(captions) < to_calibrate + to_attack:
        raise UserError(
            f"there are {len(captions)} clean captions, and {to_calibrate} to calibrate and"
            f" {to_attack} to attack are asked for; give more with --clean, or lower"
            " --calibration-prompts (and raise --rate) or --clean-prompts"
        )
    order = np.random.default_rng([protocol.seed, 3]).permutation(len(captions))
    return [captions[number] for number in order[: to_calibrate + to_attack]]


def _read_captions(file: Path) -> list[str]:
    found = read_list(file)
    column = next((name for name in ("prompt", "text") if name in found.columns), None)
    if column is None:
        raise UserError(f"clean captions {file} have neither a column prompt nor text")
    return [caption for row in found.rows if (caption := row.text(column).strip())]


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_atomically(path, table.getvalue().encode())


def _toml(prepared: Prepared, protocol: Protocol) -> str:
    """The derived suite file."""
    memorized = {
        "file": "prompts/repeated.csv",
        "where": {"split": "memorized"},
        "images_per_prompt": min(SHOWN_IMAGES, protocol.images),
    }
    calibration = {"file": "prompts/clean.csv", "where": {"split": "calibration"}}
    sections: list[tuple[str, dict[str, Any]]] = [
        ("model", _model_table(prepared, protocol)),
        ("prompts.fit", {"file": "prompts/repeated.csv", "where": {"split": "fit"}}),
        ("prompts.memorized", memorized),
        *([("prompts.calibration", calibration)] if protocol.calibration_prompts else []),
        ("prompts.clean", {"file": "prompts/clean.csv", "where": {"split": "clean"}}),
        _metric_section(prepared, protocol),
        (f"attacks.{ATTACK}", _attack_table(prepared, protocol)),
    ]
    description = (
        f"{len(prepared.duplicated)} of {len(prepared.pairs)} pictures repeated"
        f" {prepared.training.times} times, {prepared.training.steps} steps"
    )
    head = {
        "name": "finetune",
        "description": description,
        "seed": protocol.seed,
        "group_name": "copies in training",
    }
    return _lines(head) + "".join(f"\n[{name}]\n{_lines(table)}" for name, table in sections)


def _model_table(prepared: Prepared, protocol: Protocol) -> dict[str, Any]:
    return {
        "path": "pipeline",
        "scheduler": protocol.scheduler,
        "steps": protocol.steps,
        "guidance_scale": float(protocol.guidance),
        "side": _side(prepared.pipeline),
        "batch_size": protocol.batch_size,
    }


def _metric_section(prepared: Prepared, protocol: Protocol) -> tuple[str, dict[str, Any]]:
    """SSCD where there is a descriptor; else the cost, as a suite has at least one metric."""
    if not protocol.sscd:
        return "metrics.walltime", {"rounds": 2, "images": 2}
    return "metrics.sscd", {
        "weights": os.path.relpath(protocol.sscd, prepared.out),
        "profile": protocol.profile,
        "threshold": protocol.similarity,
    }


def _attack_table(prepared: Prepared, protocol: Protocol) -> dict[str, Any]:
    table: dict[str, Any] = {
        "images": protocol.images,
        "clique": protocol.clique,
        "tiles": TILES,
        "clean_prompts": protocol.clean_prompts,
    }
    if protocol.threshold is None:
        table |= {
            "calibration": f"./suite.{ATTACK}.json",
            "calibration_prompts": protocol.calibration_prompts,
            "rate": protocol.rate,
        }
    else:
        table["threshold"] = protocol.threshold
    if protocol.early_stop:
        table["early_stop"] = True
    if protocol.sscd:
        table |= {
            "descriptor": os.path.relpath(protocol.sscd, prepared.out),
            "profile": protocol.profile,
            "similarity": protocol.similarity,
        }
    return table


def _lines(table: dict[str, Any]) -> str:
    """A table as lines of TOML; an inner table stands on one line."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in table.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{key} = {_toml_value(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}"
    return json.dumps(value, ensure_ascii=False)


def _side(pipeline: Path) -> int:
    unet, vae = (read_table(pipeline / part / "config.json") for part in ("unet", "vae"))
    return pipeline_side(unet, vae)


def check_early(
    prepared: Prepared, protocol: Protocol, method: str, settings: Sequence[dict[str, Any]]
) -> None:
    """Raises `UserError` for what can be known to fail before hours of training: unknown names and
    parameters, too few captions, a missing descriptor, one that would be written over.
    """
    named = [path for path in (protocol.clean, protocol.sscd) if path is not None]
    refuse_read(prepared.out, WRITTEN, named, COMMAND)
    entry = registry.find("method", method)
    for values in settings:
        configure("method", entry.name, entry.load(), values)
    if protocol.sscd and not protocol.sscd.is_file():
        raise UserError(f"copy descriptor {protocol.sscd} is not there")
    if protocol.threshold is None and protocol.calibration_prompts * protocol.rate < 1 - 1e-9:
        raise UserError(
            f"{protocol.calibration_prompts} calibration prompts cannot show a rate of"
            f" {protocol.rate}; raise --rate or --calibration-prompts"
        )
    repeated, others = duplicated_pairs(prepared)
    captions = {pair.caption for pair in repeated}
    _refuse_fit(protocol, len(captions))
    _clean_captions(protocol, [pair.caption for pair in others], captions)


def experiment(
    prepared: Prepared,
    protocol: Protocol,
    method: str,
    settings: Sequence[dict[str, Any]],
    device: torch.device,
    report: Report = silent,
) -> dict[str, Any]:
    """Attack, prune with every setting, attack again.

    Returns the content of `result.json`, which it writes. What is stored already is not made again.
    Raises `UserError` when the training is not finished.
    """
    facts = prepared.finished()
    if facts is None:
        raise UserError(
            f"{prepared.out} holds no model fine-tuned for {prepared.training.steps} steps; repeat"
            " the command without --no-train"
        )
    suite = load_suite(str(write_suite(prepared, protocol)))
    if protocol.threshold is None:
        calibrate(
            suite,
            ATTACK,
            {},
            prepared.out / "store",
            device,
            None,
            lambda what, done, of: report(f"calibrating: {what}", done, of),
        )
    rows = [
        _row(
            _record_of(prepared, suite, name, values, device, _labelled(report, number, name)),
            values,
        )
        for number, (name, values) in enumerate(
            [("none", {}), *((method, values) for values in settings)]
        )
    ]
    result = {
        "schema": 1,
        "paper": PUBLISHED["source"],
        "training": prepared.identity | facts | {"losses": _spread(facts["losses"])},
        "suite": {
            "fingerprint": suite.fingerprint,
            **suite.settings.model_dump(mode="json", include={"model", "attacks", "seed"}),
        },
        "prompts": {role: len(suite.prompts(role)) for role in suite.settings.prompts},
        "rows": rows,
        "environment": environment(device),
    }
    write_atomically(
        prepared.out / "result.json",
        (json.dumps(result, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(),
    )
    return result


def _record_of(
    prepared: Prepared,
    suite: Suite,
    method: str,
    values: dict[str, Any],
    device: torch.device,
    report: Report,
) -> RunRecord:
    """The record of one run under the derived suite, made now or before."""
    ready = prepare(suite, method, values, prepared.out / "store", device)
    records = prepared.out / "records"
    return finished(ready.experiment, ready.engine, records) or run(*ready, records, report=report)


def _spread(losses: list[list[float]], most: int = LOSSES) -> list[list[float]]:
    """At most `most` of the logged losses, evenly spread, the last one among them."""
    if len(losses) <= most:
        return losses
    return [losses[(i + 1) * len(losses) // most - 1] for i in range(most)]


def _labelled(report: Report, number: int, name: str) -> Report:
    """A report whose bars are those of one run."""
    return lambda what, done, of: report(f"{number}-{name}: {what}", done, of)


def _row(record: RunRecord, parameters: dict[str, Any]) -> dict[str, Any]:
    """The scores of one run and the details of its attack, as `result.json` keeps them."""
    scores = {
        key: _cell(record.attacks[name]) for key, name in SCORES.items() if name in record.attacks
    }
    if "sscd" in record.scores:
        scores["sscd"] = _cell(record.scores["sscd"])
    details = record.attacks[SCORES["identified"]].details
    return {
        "method": record.method,
        "parameters": parameters,
        "run": record.run,
        "scores": scores,
        "attack": {key: details[key] for key in DETAILS if key in details},
    }


def _cell(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "prompts": score.prompts,
        **({"reason": score.reason} if score.reason else {}),
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table; the published figures stand below the measured ones, marked
    as such.
    """
    lines = [
        (
            "| | identified | actually memorized | the same by copy descriptor | clean captions"
            " flagged | SSCD |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        parameters = ", ".join(f"{key}={value}" for key, value in row["parameters"].items())
        name = (
            "before pruning"
            if row["method"] == "none"
            else f"after {row['method']}" + (f" ({parameters})" if parameters else "")
        )
        scores = row["scores"]
        cells = [
            _share(scores.get(key))
            for key in ("identified", "memorized", "memorized_sscd", "clean_flagged")
        ]
        lines.append(f"| {name} | {' | '.join([*cells, _number(scores.get('sscd'))])} |")
    for when in ("before", "after"):
        published: Any = PUBLISHED[when]
        cells = [f"{published[key]:.0%}" for key in ("identified", "memorized")]
        lines.append(
            f"| *published, {when} pruning* | {' | '.join(f'*{cell}*' for cell in cells)} | – | –"
            " | – |"
        )
    return "\n".join(lines)


def _share(cell: dict[str, Any] | None) -> str:
    if not cell or cell["value"] is None:
        return "–"
    return (
        f"{round(cell['value'] * cell['prompts'])} of {cell['prompts']} ({cell['value']:.0%})"
        f"{_interval(cell, 2)}"
    )


def _number(cell: dict[str, Any] | None) -> str:
    if not cell or cell["value"] is None:
        return "–"
    return f"{cell['value']:.3f}{_interval(cell, 3)}"


def _interval(cell: dict[str, Any], decimals: int) -> str:
    """The interval of a score after a space; empty for one prompt, of which there is none."""
    if cell["low"] is None or cell["high"] is None:
        return ""
    return f" [{cell['low']:.{decimals}f}, {cell['high']:.{decimals}f}]"
