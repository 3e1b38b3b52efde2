"""`bench analyze locality` as a study: five populations of embeddings, five measures of each, and
the folder of tables and plots that it leaves.

    <folder>/members.csv        by member: where it comes from, its search, what it brings back
             spread.csv         by population: spread of embeddings and of what the model does
             activations.csv    by view, layer and population: how far activations differ
             agreement.csv      by method, population and layer: how far found weights agree
             pairs.csv          the same for each pair of members
             transfer.csv       share of copies with one trigger, pruned by another
             rounds.csv         pruned and searched again, where that was asked for
             *.png              the same as plots
             conclusions.txt    what follows, in words
             summary.json       all of it in short, and how it was made

Searches, found weights and generations are kept in the store, beside the images of the model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.base.files import write_atomically
from bench.base.progress import Report, silent
from bench.contracts.held import Guide, Held
from bench.diffusion.denoiser import Denoiser, trajectory
from bench.diffusion.request import Request, classifier_free_guidance
from bench.features.networks import OpenClip
from bench.running.experiment import metric_settings
from bench.studies.analysis_folder import claim
from bench.studies.locality import plots
from bench.studies.locality.distances import Spread, shift, spread_ratio, unrelated_ratio
from bench.studies.locality.functions import activation_spreads, functional_distance
from bench.studies.locality.kept import Kept
from bench.studies.locality.parts import Parts
from bench.studies.locality.populations import NAMES, SEARCHED, Member, Population
from bench.studies.locality.rounds import CLEAN, Places, rounds
from bench.studies.locality.searches import populations
from bench.studies.locality.transfer import compared, copied, own_and_others, transfer_matrix
from bench.studies.locality.weights import Finder, agreement, find_all
from bench.studies.locality.words import conclusions
from bench.studies.masks import Row
from bench.studies.tables import csv_table, finite
from bench.suite.suite import Suite


def study_locality(parts: Parts, folder: Path, report: Report = silent) -> dict[str, Any]:
    """Measure, write the folder, and return the facts of its `summary.json`.

    Raises `UserError` for a folder that cannot be written or is somebody's own, before the model
    runs.
    """
    claim(folder, "bench analyze locality")
    _write(folder / "conclusions.txt", b"not finished\n")
    began = time.perf_counter()
    engine = parts.run.engine
    with engine.precision():
        work = _Work(parts, _held(engine.denoiser, parts.suite), report)
        before = engine.denoiser.evaluations
        found = work.all()
    spent = {
        "seconds": round(time.perf_counter() - began, 1),
        "evaluations": engine.denoiser.evaluations - before,
    }
    facts = {
        "suite": parts.suite.name,
        "fingerprint": parts.suite.fingerprint,
        "ask": asdict(parts.ask),
        "attack": parts.of_searches | {"clean": len(parts.beginnings)},
        "methods": {finder.name: finder.identity for finder in parts.finders},
        "picture": parts.subjects.picture.prompt.id,
        "control": parts.subjects.control.prompt.id,
        **found.facts,
    }
    facts["conclusions"] = conclusions(facts)
    title = f"{parts.suite.name}, picture {facts['picture']}"
    content = {
        **{f"{name}.csv": csv_table(rows) for name, rows in found.tables.items() if rows},
        **plots.pictures(found.tables, facts, title),
        "conclusions.txt": "\n\n".join([*facts["conclusions"], ""]).encode(),
    }
    facts |= {"spent": spent, "device": engine.device.type}
    facts["files"] = [str(folder / name) for name in (*content, "summary.json")]
    facts = finite(facts)
    for name, given in content.items():
        _write(folder / name, given)
    _write(folder / "summary.json", f"{json.dumps(facts, indent=1, allow_nan=False)}\n".encode())
    return facts


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content)


def _held(denoiser: Denoiser, suite: Suite) -> Held:
    """The base model in the hands of somebody who searches."""

    def plain(request: Request, guide: Guide | None, start: int) -> Tensor:
        with torch.no_grad():
            return trajectory(denoiser, request, guide or classifier_free_guidance, start=start)

    return Held("base", denoiser, suite.settings.model.side, plain)


@dataclass(frozen=True)
class _Found:
    """Tables by the name of their file, and the facts that they come to."""

    tables: dict[str, list[Row]]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Work:
    parts: Parts
    held: Held
    report: Report

    @property
    def denoiser(self) -> Denoiser:
        return self.held.denoiser

    def all(self) -> _Found:
        ask, subjects = self.parts.ask, self.parts.subjects
        searched = self._kept("search", self.parts.of_searches)
        groups = populations(
            searched, self.parts.attack, self.held, subjects, ask.count, self.parts.beginnings
        )
        members, copies = self._members(groups)
        spread, spread_facts = self._spread(groups)
        activations = self._activations(groups)
        tables = {"members": members, "spread": spread, "activations": activations}
        facts: dict[str, Any] = {
            "members": {name: len(group.members) for name, group in groups.items()},
            "copied": copies,
            "spread": spread_facts,
            "activations": _by_view(activations),
        }
        finders = [
            finder.threshold_known(self._kept("calibration", finder.identity), self.denoiser)
            for finder in self.parts.finders
        ]
        tables["agreement"], tables["pairs"], facts["agreement"] = self._agreement(groups, finders)
        if ask.transfer:
            tables["transfer"], facts["transfer"] = self._transfer(groups, finders[0])
        if ask.rounds:
            tables["rounds"] = facts["rounds"] = self._rounds(searched, finders[0])
        return _Found(tables, facts)

    def _kept(self, kind: str, identity: Mapping[str, Any]) -> Kept:
        return Kept(self.parts.run.images.store.files, kind, identity, self.report)

    @property
    def _generations(self) -> Kept:
        """Similarities of generations, which hang on nothing but the descriptor."""
        identity = {"descriptor": self.parts.judge.descriptor.fingerprint}
        return self._kept("copies", identity)

    def _members(
        self, groups: Mapping[str, Population]
    ) -> tuple[list[Row], dict[str, float | None]]:
        """What every member is, and the share of copies that it brings back; the latter also as
        means.
        """
        subjects = self.parts.subjects
        pictures = {
            "same": [subjects.picture] * len(groups["same"].members),
            "different": list(subjects.others),
            "control": [subjects.control] * len(groups["control"].members),
        }
        jobs = [
            (known, member)
            for name in SEARCHED
            for known, member in zip(pictures[name], groups[name].members, strict=True)
        ]
        shares = copied(self._generations, self.parts.judge, self.held, jobs, self.parts.ask.images)
        of_member = {id(member): float(share) for (_, member), share in zip(jobs, shares)}
        rows = [
            _member_row(name, number, member, of_member.get(id(member)))
            for name, group in groups.items()
            for number, member in enumerate(group.members)
        ]
        means = {
            name: (
                float(np.mean([of_member[id(member)] for member in groups[name].members]))
                if name in SEARCHED
                else None
            )
            for name in groups
        }
        return rows, means

    def _spread(self, groups: Mapping[str, Population]) -> tuple[list[Row], dict[str, Row]]:
        """How far embeddings lie apart, and how far what the model makes of them, beside the same
        of where their searches began.
        """
        facts: dict[str, Row] = {}
        for name, group in groups.items():
            starts = group.starts if name in SEARCHED else None
            one = name == "noise"  # a single embedding
            ratio, error = spread_ratio(group.ends, starts) if starts is not None else (None, None)
            apart = None if one else functional_distance(self.held, group, group.ends, self.report)
            before = (
                None
                if starts is None
                else functional_distance(self.held, group, starts, self.report)
            )
            facts[name] = {
                "members": len(group.members),
                "ends": 0.0 if one else Spread.of(group.ends).distance,
                "starts": None if starts is None else Spread.of(starts).distance,
                "ratio": ratio,
                "ratio_error": error,
                "ratio_unrelated": None if starts is None else unrelated_ratio(group.ends, starts),
                "shift": None if starts is None else shift(group.ends, starts),
                "around": group.around.prompt.id,
                "function": 0.0 if apart is None else apart,
                "function_of_starts": before,
                "function_ratio": None if apart is None or not before else apart / before,
            }
        return [{"population": name} | row for name, row in facts.items()], facts

    def _activations(self, groups: Mapping[str, Population]) -> list[Row]:
        return [
            {
                "view": view,
                "layer": layer,
                "population": name,
                "distance": spread.distance,
                "relative": spread.distance / spread.size if spread.size else None,
            }
            for name, group in groups.items()
            for view, by_layer in activation_spreads(self.denoiser, group).items()
            for layer, spread in by_layer.items()
        ]

    def _agreement(
        self, groups: Mapping[str, Population], finders: Sequence[Finder]
    ) -> tuple[list[Row], list[Row], dict[str, Any]]:
        table: list[Row] = []
        pairs: list[Row] = []
        facts: dict[str, Any] = {}
        for finder in finders:
            kept = self._kept(f"weights-{finder.name}", finder.identity)
            facts[finder.name] = {}
            for name, group in groups.items():
                found = agreement(find_all(kept, finder, self.denoiser, group))
                where = {"method": finder.name, "population": name}
                pairs += [where | row for row in found.pairs]
                rows = [
                    where
                    | {"layer": layer, "weights": found.sizes[layer]}
                    | {key: row[key] for key in AGREED}
                    for layer, row in found.layers.items()
                ]
                table += rows
                facts[finder.name][name] = rows[-1] | {"empty": found.empty}
                del facts[finder.name][name]["layer"]
        return table, pairs, facts

    def _transfer(
        self, groups: Mapping[str, Population], finder: Finder
    ) -> tuple[list[Row], dict[str, Any]]:
        """Generations with the triggers of one picture, after pruning by each population."""
        ask, known = self.parts.ask, self.parts.subjects.picture
        triggers = groups["same"].members[: ask.transfer]
        kept = self._kept(f"weights-{finder.name}", finder.identity)
        identity = finder.identity | {"descriptor": self.parts.judge.descriptor.fingerprint}
        cells = self._kept("transfer", identity)
        judged = self.parts.judge, self.held, finder, known
        whole = copied(
            self._generations,
            self.parts.judge,
            self.held,
            [(known, trigger) for trigger in triggers],
            ask.images,
        )
        matrices: dict[str, np.ndarray] = {}
        for name in NAMES:
            members = groups[name].members[: ask.transfer]
            part = Population(name, members, groups[name].around)
            pruned = find_all(kept, finder, self.denoiser, part)
            what = f"transfer {name}"
            matrices[name] = transfer_matrix(cells, *judged, pruned, triggers, ask.images, what)
        rows = [
            {"pruned": "nothing", "pruned_member": None, "trigger": s, "copied": float(share)}
            for s, share in enumerate(whole)
        ] + [
            {"pruned": name, "pruned_member": r, "trigger": s, "copied": float(share)}
            for name, matrix in matrices.items()
            for (r, s), share in np.ndenumerate(matrix)
        ]
        own, others = own_and_others(matrices["same"])
        facts = {
            "method": finder.name,
            "triggers": len(triggers),
            "images": ask.images,
            "nothing": float(whole.mean()),
            "own": float(own.mean()),
            "same": float(others.mean()),
            # under one trigger's other noises: that trigger itself
            "noise": float(matrices["noise"][:, 0].mean()),
            **{name: float(matrices[name].mean()) for name in ("different", "clean", "control")},
            "others_less_own": asdict(compared(others, own)),
            **{
                f"{name}_less_same": asdict(compared(matrices[name].mean(0), others))
                for name in ("different", "clean", "control")
            },
        }
        return rows, facts

    def _rounds(self, searched: Kept, finder: Finder) -> list[Row]:
        parts, ask = self.parts, self.parts.ask
        clip = clip_of(parts.suite, parts.run.engine.device)
        own = finder.identity
        used = own | {"clip": clip.fingerprint if clip else None}
        places = Places(
            searched,
            self._kept("rounds", own | {"searches": parts.of_searches}),
            self._generations,
            self._kept("use", used),
        )
        return rounds(
            places,
            parts.attack,
            parts.judge,
            self.held,
            finder,
            parts.subjects,
            clip,
            list(parts.suite.prompts("clean")[:CLEAN]),
            count=ask.rounds,
            searches=ask.searches,
            images=ask.images,
            clean=parts.beginnings,
        )


AGREED = ("pairs", "undefined", "mean", "min", "max", "chance")


def clip_of(suite: Suite, device: torch.device) -> OpenClip | None:
    """The open_clip model of the suite's metric clip_score, where it has one."""
    given = metric_settings(suite, "clip_score")
    if given is None:
        return None
    model, weights = given["model"], given.get("weights", "")
    return OpenClip(
        model,
        None if weights else suite.path(model),
        suite.path(weights) if weights else None,
        device,
    )


def _member_row(name: str, number: int, member: Member, share: float | None) -> Row:
    began, ended = member.bank or (None, None)
    return {
        "population": name,
        "member": number,
        "prompt_id": member.of.id,
        "restart": member.restart,
        "noise": member.noise,
        "loss_before": began,
        "loss_after": ended,
        "copied": share,
    }


def _by_view(rows: Sequence[Row]) -> dict[str, Any]:
    """By view and population the mean over layers of the relative distance; and the number of
    layers in which triggers of one picture differ more than those of different pictures.
    """
    facts: dict[str, Any] = {}
    for view in dict.fromkeys(row["view"] for row in rows):
        own = [row for row in rows if row["view"] == view]
        table = {(row["layer"], row["population"]): row for row in own}
        layers = list(dict.fromkeys(row["layer"] for row in own))
        facts[view] = {
            "layers": len(layers),
            "same_above_different": sum(
                table[layer, "same"]["distance"] > table[layer, "different"]["distance"]
                for layer in layers
            ),
            "relative": {
                name: float(np.mean([table[layer, name]["relative"] or 0.0 for layer in layers]))
                for name in NAMES
            },
        }
    return facts
