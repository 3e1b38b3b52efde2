"""Attacks on known pictures, stage by stage and picture by picture: what is missing is found out
and kept, so that an interrupted run goes on and no search is made twice.

What a stage finds on the base model lies beside the images of `none`, where every other method's
run finds it again. So does what it finds on the weights of a method that leaves them alone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.base.digests import digest_of, path_digest
from bench.base.errors import UserError
from bench.base.pictures import small_png
from bench.base.progress import Report, silent
from bench.base.source import code_of
from bench.contracts.attack import Attack, edited_weights
from bench.contracts.held import Finding, Guide, Held, Holding, Known, Stage
from bench.contracts.method import Method, State
from bench.contracts.picture_attack import plain_stage
from bench.diffusion.denoiser import trajectory
from bench.diffusion.request import Request, classifier_free_guidance
from bench.features.networks import CopyDescriptor
from bench.records.parts import REFERENCE
from bench.registry import registry
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.images import Images
from bench.running.sampling import sample
from bench.running.weights_changed import weights_changed
from bench.store.findings import Findings
from bench.suite.prompts import Prompt

# Grows with every change of the way from a stage to its arrays.
FINDINGS = 1
KEPT = 2  # generations of the chosen mark that are kept as pictures
MAKER = "made_by"
PLAIN = plain_stage.__module__


def known(
    experiment: Experiment, prompts: Sequence[Prompt], images: int, memorized: bool, generation: int
) -> list[Known]:
    """Prompts as pictures that an attacker knows, with the seeds of one generation."""
    return [
        Known(
            prompt,
            prompt.references[0],
            memorized,
            tuple(key.seed for key in experiment.keys_of([prompt], images, generation)),
            experiment.suite.settings.seed,
        )
        for prompt in prompts
    ]


class NotThere(Exception):
    """The store does not hold what an attack found about some picture."""


@dataclass
class Searches:
    """The searches of one attack in one run; `name` is what the suite calls it."""

    experiment: Experiment
    engine: Engine
    images: Images
    state: State
    attack: Attack
    name: str
    report: Report = silent
    look: bool = False

    def find(
        self, stages: Sequence[Stage], targets: Sequence[Known], mitigated: bool
    ) -> list[Finding]:
        """What the last stage gives of each picture, from the store or found now.

        Raises `NotThere` where it has to be found and may not.
        """
        chain: list[tuple[Stage, Holding, Findings]] = []
        for number, stage in enumerate(stages):
            holding = self._holding(stage, mitigated)
            keys, last = [kept.key for *_, kept in chain], number == len(stages) - 1
            chain.append((stage, holding, self._kept(stage, holding, keys, last)))
        final, _, ends = chain[-1]
        there = [ends.read(_name(one, final.seeded)) for one in targets]
        lacking = [row for row, arrays in enumerate(there) if arrays is None]
        if lacking and self.look:
            raise NotThere(self.name)
        if lacking:
            waiting = [targets[row] for row in lacking]
            before: list[dict[str, np.ndarray]] = [{} for _ in waiting]
            for stage, holding, kept in chain:
                before = self._stage(stage, holding, waiting, before, kept)
            for row, arrays in zip(lacking, before, strict=True):
                there[row] = arrays
        return [_finding(one, arrays or {}) for one, arrays in zip(targets, there, strict=True)]

    def _holding(self, stage: Stage, mitigated: bool) -> Holding:
        """What the stage works on. A model behind no doors is the base model; weights that nothing
        changed are its weights.
        """
        if not mitigated or self.experiment.method_name == REFERENCE:
            return "base"
        if stage.holding == "edited" and not self._changed:
            return "base"
        return stage.holding

    @cached_property
    def _changed(self) -> bool:
        return weights_changed(self.experiment, self.engine, self.images, self.state)

    def _kept(self, stage: Stage, holding: Holding, before: list[str], last: bool) -> Findings:
        module = stage.work.__module__
        # of plain pictures, what is seen of them is the attack's
        code = module if module != PLAIN else type(self.attack).__module__
        identity = {
            "findings": FINDINGS,
            "stage": stage.name,
            "settings": dict(stage.settings),
            "holding": "base" if holding == "base" else stage.holding,
            "before": before,
        }
        if module != PLAIN or stage.seen is not None:  # the harness's own stage is in FINDINGS
            identity |= {
                "version": self.attack.version,
                "code": code_of(code) if code.startswith("attacks.") else None,
                "source": self.experiment.sources.get(f"attack {self.name}"),
            }
        if last:
            identity["descriptor"] = self._descriptor.fingerprint
        return Findings(self._base.files if holding == "base" else self._own, stage.name, identity)

    @property
    def _own(self) -> Any:
        return self.images.store.files

    @cached_property
    def _base(self) -> Any:
        """The store of `none` under the same suite."""
        if self.experiment.method_name == REFERENCE:
            return self.images.store
        plain = replace(self.experiment, method_name=REFERENCE, method=_none())
        return replace(self.images, experiment=plain).store

    @cached_property
    def _descriptor(self) -> CopyDescriptor:
        suite = self.experiment.suite
        given = suite.settings.metrics["sscd"]
        described = CopyDescriptor(
            suite.path(given["weights"]), given.get("profile", "nemo"), self.engine.device
        )
        return self.engine.kept(described)

    def _stage(
        self,
        stage: Stage,
        holding: Holding,
        targets: Sequence[Known],
        before: Sequence[dict[str, np.ndarray]],
        kept: Findings,
    ) -> list[dict[str, np.ndarray]]:
        names = [_name(one, stage.seeded) for one in targets]
        there = {name: kept.read(name) for name in names}
        found = {name: arrays for name, arrays in there.items() if arrays is not None}
        lacking = [row for row, name in enumerate(names) if name not in found]
        if not lacking:
            return [found[name] for name in names]
        kept.prepare()
        what = f"{self.name}: {stage.name}"
        done = len(names) - len(lacking)
        with self._held(holding) as held:
            # Where images of one batch influence each other, a picture has no company but its own.
            mixing = holding == "served" and self.experiment.method.mixes_images()
            at_once = 1 if mixing else stage.at_once
            for first in range(0, len(lacking), at_once):
                self.report(what, done, len(names))
                # another process may have been here meanwhile: what is there stays
                rows = [
                    row
                    for row in lacking[first : first + at_once]
                    if not self._taken(kept, names[row], found)
                ]
                done += len(lacking[first : first + at_once]) - len(rows)
                if not rows:
                    continue
                given = stage.work(
                    held, [targets[row] for row in rows], [before[row] for row in rows]
                )
                for row, arrays in zip(rows, given, strict=True):
                    if not self._taken(kept, names[row], found):
                        found[names[row]] = self._reduced(dict(arrays), stage) | self._maker
                        kept.write(names[row], found[names[row]])
                done += len(rows)
            self.report(what, done, len(names))
        return [found[name] for name in names]

    @staticmethod
    def _taken(kept: Findings, name: str, found: dict[str, dict[str, np.ndarray]]) -> bool:
        """Whether the store has this picture by now; then it is found."""
        arrays = kept.read(name)
        if arrays is not None:
            found[name] = arrays
        return arrays is not None

    @property
    def _maker(self) -> dict[str, np.ndarray]:
        content = json.dumps(self.engine.made_by, sort_keys=True).encode()
        return {MAKER: np.frombuffer(content, np.uint8)}

    def _reduced(self, arrays: dict[str, Any], stage: Stage) -> dict[str, np.ndarray]:
        """Pictures become the descriptors of what is judged of them, beside a few to look at."""
        pictures = arrays.pop("pictures", None)
        if pictures is None:
            return {name: np.asarray(value) for name, value in arrays.items()}
        marks, images = pictures.shape[:2]
        seen = list(pictures.reshape(marks * images, *pictures.shape[2:]))
        features = self._descriptor([stage.seen(one) for one in seen] if stage.seen else seen)
        chosen = int(arrays.pop("chosen", marks - 1))
        shown = [
            np.frombuffer(base64.b64decode(small_png(picture)), np.uint8)
            for picture in pictures[chosen][:KEPT]
        ]
        return {
            **{name: np.asarray(value) for name, value in arrays.items()},
            **{f"png{number}": content for number, content in enumerate(shown)},
            "features": features.reshape(marks, images, -1),
            "chosen": np.array(chosen),
        }

    @contextmanager
    def _held(self, holding: Holding) -> Iterator[Held]:
        denoiser, side = self.engine.denoiser, self.experiment.suite.settings.model.side
        method, state = self.experiment.method, self.state

        def plain(request: Request, guide: Guide | None, start: int) -> Tensor:
            with torch.no_grad():
                return trajectory(denoiser, request, guide or classifier_free_guidance, start=start)

        def served(request: Request, guide: Guide | None, start: int) -> Tensor:
            if guide is not None:
                raise UserError("a served model has its own guidance and takes no other")
            return sample(denoiser, request, method, state, start=start)

        if holding == "served":
            with method.attach(denoiser.pipe, state):
                yield Held(holding, denoiser, side, served)
        elif holding == "edited":
            with edited_weights(denoiser, method, state):
                yield Held(holding, denoiser, side, plain)
        else:
            yield Held(holding, denoiser, side, plain)


def _none() -> Method:
    given: Method = registry.find("method", REFERENCE).load()()
    return given


def _name(one: Known, seeded: bool) -> str:
    """The file of one picture: it follows from the picture, its caption and, where they count, the
    seeds.
    """
    seeds = list(one.seeds) if seeded else []
    return digest_of([one.prompt.id, one.prompt.text, path_digest(one.picture), seeds, one.root])[
        :24
    ]


def _finding(one: Known, arrays: dict[str, np.ndarray]) -> Finding:
    rest = dict(arrays)
    features, chosen = rest.pop("features", None), int(rest.pop("chosen", 0))
    if features is None:
        raise UserError("the last stage of an attack on known pictures must give `pictures`")
    maker = json.loads(rest.pop(MAKER).tobytes()) if MAKER in rest else {}
    shown = tuple(rest.pop(f"png{n}").tobytes() for n in range(KEPT) if f"png{n}" in rest)
    return Finding(one, features, chosen, shown, rest, maker)
