"""The experiment on a fine-tuned model: attack, pruning, attack again, through the ordinary runner,
and its table.

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

from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically
from bench.base.parameters import configure
from bench.base.progress import Report, silent
from bench.records.environment import environment
from bench.records.record import RunRecord, Score
from bench.registry import registry
from bench.running.run import Run
from bench.studies.calibration import calibrate
from bench.studies.finetune.train import Prepared, duplicated_pairs, pipeline_side
from bench.suite.load import load_suite
from bench.suite.settings import Scheduler

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

    Defaults are the paper's where it has them.
    """

    fit: int = 10  # repeated captions that pruning learns from; the others are judged
    images: int = 50
    clique: int = 3
    threshold: float | None = None  # normalised; None: calibrated on clean captions
    calibration_prompts: int = 100
    rate: float = 0.01
    clean_prompts: int = 16  # that join the candidates
    early_stop: bool = False
    # CSV of captions (column prompt or text); by default those of the pictures that are not
    # repeated
    clean: Path | None = None
    steps: int = 50
    guidance: float = 7.5
    scheduler: Scheduler = "DDIMScheduler"
    batch_size: int = 8
    sscd: Path | None = None  # TorchScript of a copy descriptor
    profile: str = "nemo"
    similarity: float = 0.7
    seed: int = 0  # of the images and of both splits


def paper_threshold(distance: float = PAPER_DISTANCE, side: int = PAPER_SIDE) -> float:
    """An unnormalised tile distance between pictures of `side` pixels as the normalised one, within
    four decimals.
    """
    return round(distance / math.sqrt(3 * (side // TILES) ** 2), 4)


def write_suite(prepared: Prepared, protocol: Protocol) -> Path:
    """Write the derived suite beside the training, and load it once.

    Raises `UserError` when captions do not suffice.
    """
    repeated, others = duplicated_pairs(prepared)
    captions = list(dict.fromkeys(pair.caption for pair in repeated))
    if not 0 < protocol.fit < len(captions):
        raise UserError(
            f"pruning cannot learn from {protocol.fit} of {len(captions)} repeated captions and"
            " leave others to be judged; set --fit"
        )
    fit = {
        captions[number]
        for number in np.random.default_rng([protocol.seed, 2]).choice(
            len(captions), protocol.fit, replace=False
        )
    }
    references: dict[str, list[str]] = {}
    for pair in repeated:
        copied = prepared.out / "references" / pair.name
        write_atomically(copied, pair.path.read_bytes())
        references.setdefault(pair.caption, []).append(f"../references/{pair.name}")
    group = str(prepared.training.times)
    rows = [
        [
            f"repeated-{n:04d}",
            text,
            group,
            "fit" if text in fit else "memorized",
            "|".join(references[text]),
        ]
        for n, text in enumerate(captions)
    ]
    _write_csv(
        prepared.out / "prompts/repeated.csv",
        [["id", "prompt", "group", "split", "reference"], *rows],
    )
    clean = _clean_captions(protocol, [pair.caption for pair in others], set(captions))
    rows = [
        [f"clean-{n:04d}", text, "calibration" if n < protocol.calibration_prompts else "clean"]
        for n, text in enumerate(clean)
    ]
    _write_csv(prepared.out / "prompts/clean.csv", [["id", "prompt", "split"], *rows])
    file = prepared.out / "suite.toml"
    write_atomically(file, _toml(prepared, protocol).encode())
    load_suite(str(file))
    return file


def _clean_captions(protocol: Protocol, others: list[str], repeated: set[str]) -> list[str]:
    """Captions that belong to no repeated picture, each once, in an order drawn from the seed:
    those for calibration, then those for the attack.
    """
    given = _read_captions(protocol.clean) if protocol.clean else others
    captions = [caption for caption in dict.fromkeys(given) if caption not in repeated]
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
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            column = next(
                (name for name in ("prompt", "text") if name in (reader.fieldnames or ())), None
            )
            found = [(row[column] or "").strip() for row in reader] if column else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"clean captions {file} cannot be read: {one_line(error)[:120]}") from error
    if column is None:
        raise UserError(f"clean captions {file} have neither a column prompt nor text")
    return [caption for caption in found if caption]


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_atomically(path, table.getvalue().encode())


def _toml(prepared: Prepared, protocol: Protocol) -> str:
    attack: dict[str, Any] = {
        "images": protocol.images,
        "clique": protocol.clique,
        "tiles": TILES,
        "clean_prompts": protocol.clean_prompts,
    }
    calibrated = protocol.threshold is None
    if calibrated:
        attack |= {
            "calibration": f"./suite.{ATTACK}.json",
            "calibration_prompts": protocol.calibration_prompts,
            "rate": protocol.rate,
        }
    else:
        attack["threshold"] = protocol.threshold
    if protocol.early_stop:
        attack["early_stop"] = True
    metric: dict[str, Any] = {"rounds": 2, "images": 2}
    if protocol.sscd:
        weights = os.path.relpath(protocol.sscd, prepared.out)
        metric = {"weights": weights, "profile": protocol.profile, "threshold": protocol.similarity}
        attack |= {
            "descriptor": weights,
            "profile": protocol.profile,
            "similarity": protocol.similarity,
        }
    model = {
        "path": "pipeline",
        "scheduler": protocol.scheduler,
        "steps": protocol.steps,
        "guidance_scale": float(protocol.guidance),
        "side": _side(prepared.pipeline),
        "batch_size": protocol.batch_size,
    }
    sections: list[tuple[str, dict[str, Any]]] = [
        ("model", model),
        ("prompts.fit", {"file": "prompts/repeated.csv", "where": {"split": "fit"}}),
        (
            "prompts.memorized",
            {
                "file": "prompts/repeated.csv",
                "where": {"split": "memorized"},
                "images_per_prompt": min(4, protocol.images),
            },
        ),
        *(
            [
                (
                    "prompts.calibration",
                    {"file": "prompts/clean.csv", "where": {"split": "calibration"}},
                )
            ]
            if protocol.calibration_prompts
            else []
        ),
        ("prompts.clean", {"file": "prompts/clean.csv", "where": {"split": "clean"}}),
        ("metrics.sscd" if protocol.sscd else "metrics.walltime", metric),
        (f"attacks.{ATTACK}", attack),
    ]
    about = (
        f"{len(prepared.duplicated)} of {len(prepared.pairs)} pictures repeated"
        f" {prepared.training.times} times, {prepared.training.steps} steps"
    )
    head = {
        "name": "finetune",
        "description": about,
        "seed": protocol.seed,
        "group_name": "copies in training",
    }
    return _lines(head) + "".join(f"\n[{name}]\n{_lines(content)}" for name, content in sections)


def _lines(content: dict[str, Any]) -> str:
    def value(of: Any) -> str:
        return (
            "{ " + ", ".join(f"{key} = {value(one)}" for key, one in of.items()) + " }"
            if isinstance(of, dict)
            else json.dumps(of, ensure_ascii=False)
        )

    return "".join(f"{key} = {value(of)}\n" for key, of in content.items())


def _side(pipeline: Path) -> int:
    unet, vae = (
        json.loads((pipeline / part / "config.json").read_text(encoding="utf-8"))
        for part in ("unet", "vae")
    )
    return pipeline_side(unet, vae)


def check_early(
    prepared: Prepared, protocol: Protocol, method: str, settings: Sequence[dict[str, Any]]
) -> None:
    """What can be known to fail before hours of training: unknown names and parameters, too few
    captions, a missing descriptor.
    """
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
    if not 0 < protocol.fit < len(captions):
        raise UserError(
            f"pruning cannot learn from {protocol.fit} of {len(captions)} repeated captions and"
            " leave others to be judged; set --fit"
        )
    _clean_captions(protocol, [pair.caption for pair in others], captions)


def experiment(
    prepared: Prepared,
    protocol: Protocol,
    method: str,
    settings: Sequence[dict[str, Any]],
    device: torch.device,
    report: Report = silent,
) -> dict[str, Any]:
    """Attack, prune with every setting, attack again; the content of `result.json`, which is
    written. What is stored already is not made again.
    """
    facts = prepared.finished()
    if facts is None:
        raise UserError(
            f"{prepared.out} holds no model fine-tuned for {prepared.training.steps} steps; repeat"
            " the command without --no-train"
        )
    file = write_suite(prepared, protocol)
    suite = load_suite(str(file))
    store, records = prepared.out / "store", prepared.out / "records"
    if protocol.threshold is None:
        calibrate(
            suite,
            ATTACK,
            {},
            store,
            device,
            None,
            lambda what, done, of: report(f"calibrating: {what}", done, of),
        )
    rows = []
    for number, (name, values) in enumerate(
        [("none", {}), *((method, values) for values in settings)]
    ):
        run = Run.resolve(
            suite, name, values, records, store, device, _labelled(report, number, name)
        )
        rows.append(_row(run.finished() or run.execute(), values))
    result = {
        "schema": 1,
        "paper": PUBLISHED["source"],
        "training": prepared.identity | facts | {"losses": _some(facts["losses"])},
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


def _some(losses: list[list[float]], most: int = 20) -> list[list[float]]:
    """At most that many of the logged losses, evenly spread, the last one among them."""
    return (
        [losses[(i + 1) * len(losses) // most - 1] for i in range(most)]
        if len(losses) > most
        else losses
    )


def _labelled(report: Report, number: int, name: str) -> Report:
    return lambda what, done, of: report(f"{number}-{name}: {what}", done, of)


def _row(record: RunRecord, given: dict[str, Any]) -> dict[str, Any]:
    found = {
        key: _cell(record.attacks[name]) for key, name in SCORES.items() if name in record.attacks
    }
    if "sscd" in record.scores:
        found["sscd"] = _cell(record.scores["sscd"])
    details = record.attacks[SCORES["identified"]].details
    kept = {
        key: details[key]
        for key in (
            "threshold",
            "verification",
            "similarity",
            "calibration",
            "images_used",
            "unknown",
        )
        if key in details
    }
    return {
        "method": record.method,
        "parameters": given,
        "run": record.run,
        "scores": found,
        "attack": kept,
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
    """The result as a Markdown table, the published figures under the measured ones and marked as
    such.
    """
    lines = [
        (
            "| | identified | actually memorized | the same by copy descriptor | clean captions"
            " flagged | SSCD |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        given = ", ".join(f"{key}={value}" for key, value in row["parameters"].items())
        name = (
            "before pruning"
            if row["method"] == "none"
            else f"after {row['method']}" + (f" ({given})" if given else "")
        )
        scores = row["scores"]
        cells = [
            _share(scores.get(key))
            for key in ("identified", "memorized", "memorized_sscd", "clean_flagged")
        ]
        lines.append(f"| {name} | {' | '.join([*cells, _number(scores.get('sscd'))])} |")
    for when in ("before", "after"):
        cells = [f"{PUBLISHED[when][key]:.0%}" for key in ("identified", "memorized")]  # type: ignore[index]
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
        f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    )


def _number(cell: dict[str, Any] | None) -> str:
    return (
        "–"
        if not cell or cell["value"] is None
        else f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
    )
