"""What an analysis of locality is asked for, and everything that names in it stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bench.base.errors import UnknownName, UserError
from bench.base.parameters import configure
from bench.base.source import code_of
from bench.diffusion.families import family_of_suite, refuse_chunks, refuse_family
from bench.features.networks import CopyDescriptor
from bench.records.parts import REFERENCE
from bench.registry import registry
from bench.running.experiment import metric_settings
from bench.running.prepare import Prepared, prepare
from bench.store.folders import Root
from bench.studies.locality.populations import Subjects, pick_subjects
from bench.studies.locality.transfer import Judge
from bench.studies.locality.weights import Finder
from bench.suite.suite import Suite

ATTACK = "dori"


@dataclass(frozen=True)
class Ask:
    """What is asked for.

    count      members of each population
    steps      of every search, and `init`, where it begins
    picture    id of the memorized prompt; the one that is copied most often where it is empty
    images     generations of each embedding
    transfer   triggers in the transfer matrix; 0 for none
    rounds     of pruning and searching again, with `searches` in each
    finders    methods that find weights; the first one prunes
    values     other parameters, by the name of the attack or method
    """

    count: int = 16
    steps: int = 50
    init: str = "normal"
    picture: str = ""
    images: int = 4
    transfer: int = 8
    rounds: int = 0
    searches: int = 4
    finders: tuple[str, ...] = ("wanda", "nemo")
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """Everything that names stand for, before a model is loaded. `source` is the digest of an
    attack's code that is not a built-in.
    """

    suite: Suite
    run: Prepared
    attack: Any
    source: str | None
    finders: tuple[Finder, ...]
    judge: Judge
    subjects: Subjects
    ask: Ask

    @property
    def of_searches(self) -> dict[str, Any]:
        """What decides a search besides the model, the picture and the restart."""
        module = type(self.attack).__module__
        settings = self.attack.model_dump(mode="json", exclude={"targets", "images", "labels"})
        return {
            "settings": settings,
            "clean": self.beginnings,
            "version": self.attack.version,
            "code": code_of(module) if module.startswith("attacks.") else None,
            "source": self.source,
        }

    @property
    def beginnings(self) -> list[str]:
        """Captions that searches of `init=other` begin at."""
        other = self.attack.init == "other"
        return [prompt.text for prompt in self.suite.prompts("clean")] if other else []


def by_name(values: Mapping[str, Any], finders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`{"dori.lr": 0.1}` as `{"dori": {"lr": 0.1}}`.

    Raises `UserError` for a name that is none of the attack's and the methods'.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        owner, dot, name = key.rpartition(".")
        if not dot:
            raise UserError(f"parameter '{key}' does not say whose it is: write {ATTACK}.{key}")
        if owner not in (ATTACK, *finders):
            raise UnknownName("attack or method of a parameter", owner, [ATTACK, *finders])
        found.setdefault(owner, {})[name] = value
    return found


def attack_of(suite: Suite, ask: Ask) -> tuple[Any, str | None]:
    """The attack with the suite's settings for it, as the analysis asks for it, and its source.

    Where the suite does not attack, labels are those that its metric copies or its detectors have.
    """
    entry = registry.find("attack", ATTACK)
    settings = dict(suite.settings.attacks.get(ATTACK, {}))
    detection = suite.settings.detection
    labels = suite.settings.metrics.get("copies", {}).get("labels", "")
    settings.setdefault("labels", labels or (detection.labels if detection else ""))
    settings |= {"init": ask.init, "curve": [0, ask.steps], "restarts": 1, "targets": 10_000}
    settings |= dict(ask.values.get(ATTACK, {}))
    return configure("attack", entry.name, entry.load(), settings), entry.source


def resolve(suite: Suite, ask: Ask, store: Root, device: torch.device) -> Parts:
    """Raises `UserError` for everything that is unknown, missing or does not fit together."""
    check(ask)
    refuse_family(family_of_suite(suite), ("sd",), "bench analyze locality")
    refuse_chunks(suite, False, "bench analyze locality")
    attack, source = attack_of(suite, ask)
    attack.fits(suite)
    clean = [prompt.text for prompt in suite.prompts("calibration")]
    finders = finders_of(ask, clean)
    unjudged = suite.settings.model_copy(update={"metrics": {}, "attacks": {}})
    run = prepare(replace(suite, settings=unjudged), REFERENCE, {}, store, device)
    subjects = pick_subjects(suite, run.experiment, attack, ask.count, ask.picture, ask.images)
    given = metric_settings(suite, "sscd")
    if given is None:
        raise UserError(
            f"suite {suite.name} has no [metrics.sscd], by which the analysis tells what a copy is"
        )
    descriptor = CopyDescriptor(suite.path(given["weights"]), given.get("profile", "nemo"), device)
    judge = Judge(descriptor, float(given.get("threshold", 0.7)))
    return Parts(suite, run, attack, source, finders, judge, subjects, ask)


def check(ask: Ask) -> None:
    """Raises `UserError` for numbers that leave nothing to compare."""
    if ask.count < 2:
        raise UserError(f"--members must be at least 2, to have something to compare: {ask.count}")
    if ask.transfer == 1:
        raise UserError("--transfer must be 0, for none, or at least 2, to have another trigger")
    if not ask.finders:
        raise UserError("name at least one method that finds weights: --method wanda")


def finders_of(ask: Ask, clean: Sequence[str]) -> tuple[Finder, ...]:
    """The methods that find weights; `clean` are captions that they may compare with."""
    names = dict.fromkeys(ask.finders)
    return tuple(Finder.resolve(name, ask.values.get(name, {}), clean) for name in names)
