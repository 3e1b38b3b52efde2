"""One run: the steps from names to a record.

Policy lives in the suite, the method and the metrics; here is only their order.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save

from bench.assets.asset import cache_folder
from bench.assets.catalogue import PicturesEntry
from bench.base.digests import digest_of, path_digest
from bench.base.errors import UserError, one_line
from bench.base.parameters import configure
from bench.base.progress import Report, silent
from bench.contracts.attack import Attack
from bench.contracts.method import FitData, Method, Need, State
from bench.contracts.metric import Metric
from bench.contracts.samples import SampleSet
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.execution import Execution, at_chosen_precision
from bench.diffusion.memory import peak_memory_mib
from bench.diffusion.model import load_denoiser, stored_as
from bench.features.extractor import Extractor
from bench.records.environment import environment
from bench.records.record import RecordedReferences, RunRecord, load_record
from bench.registry import registry
from bench.running.demand import Work, parts, planned
from bench.running.evidence import holds_against, recorded_samples, thumbnails
from bench.running.executors import Executor, Local
from bench.running.experiment import judge_problems
from bench.running.images import KeepImages, Keeping, keeping_of, missing
from bench.running.judging import measure
from bench.running.timing import wait_for
from bench.store.folders import Root, open_folder
from bench.store.store import SampleKey, SampleStore
from bench.suite.needs import refuse_missing_assets
from bench.suite.prompts import Prompt
from bench.suite.settings import Role
from bench.suite.suite import Suite

GENERATION = 1_000_000  # image indices of a prompt that one generation may use
NEEDED_ROLE: dict[Need, Role] = {
    "fit_prompts": "fit",
    "training_images": "fit",
    "clean_prompts": "calibration",
}


@dataclass
class Run:
    """One method under one suite.

    Nothing is loaded before it is needed, so a run whose images are stored opens no model.
    """

    suite: Suite
    method_name: str
    method: Method
    # of the method and the metrics that are not built-ins ("method mine"): their hash, a plug-in's
    # distribution and version
    sources: dict[str, str]
    metrics: dict[str, Metric]
    attacks: dict[str, Attack]
    records: Path
    store_root: Root
    device: torch.device
    report: Report = field(default=silent)
    tuning: dict[str, Any] | None = None  # how the parameters were chosen; decides nothing
    # the distributions that gave the method and metrics, with their versions
    plugins: dict[str, str] = field(default_factory=dict)
    seeds: int = 1  # independent generations of everything that is sampled
    problems: list[str] = field(default_factory=list)  # of a lenient suite: what stands in the way
    executor: Executor = field(default_factory=Local)  # who does the work; decides nothing
    # how, not what: no part of ids and keys
    execution: Execution = field(default_factory=Execution)
    # which pictures stay once they have their features; decides nothing else
    keep_images: KeepImages = "all"
    _loaded: dict[tuple[type, str], Extractor] = field(default_factory=dict)

    @classmethod
    def resolve(
        cls,
        suite: Suite,
        method: str,
        parameters: dict[str, Any],
        records: Path,
        store: Root,
        device: torch.device,
        report: Report = silent,
        seeds: int = 1,
        execution: Execution | None = None,
    ) -> Run:
        """Find and check everything that has a name; unknown names fail here, before any work."""
        if seeds < 1:
            raise UserError(f"--seeds must be at least 1, not {seeds}")
        entry = registry.find("method", method)
        configured = configure("method", entry.name, entry.load(), parameters)
        if not suite.lenient:
            refuse_missing_assets(suite)
        entries = {f"method {entry.name}": entry}
        execution = execution or Execution()
        execution.check(entry.name, configured, suite)
        judges: dict[str, dict[str, Any]] = {"metric": {}, "attack": {}}
        problems: list[str] = []
        for kind, name, settings in suite.settings.judges():
            found = entries[f"{kind} {name}"] = registry.find(
                kind, str(suite.file.parent / name) if name.endswith(".py") else name
            )
            judge = judges[kind][name] = configure(kind, name, found.load(), settings)
            if suite.lenient:
                problems += judge_problems(suite, f"{kind} {name}", judge)
                continue
            if isinstance(judge, Attack):
                judge.fits(suite)
            for file in (getattr(judge, key) for key in judge.files):
                if file:
                    suite.path(file)
        names = Counter(
            name
            for judge in (*judges["metric"].values(), *judges["attack"].values())
            for name in judge.names
        )
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(
                f"suite {suite.name}: two of its metrics and attacks give the score '{twice[0]}';"
                " leave one out or rename its score"
            )
        for role in suite.settings.prompts:
            suite.prompts(role)
        for need in configured.needed():
            role = NEEDED_ROLE[need]
            if not suite.prompts(role):
                raise UserError(
                    f"method {entry.name} needs {need.replace('_', ' ')} and suite {suite.name} has"
                    f" no [prompts.{role}]"
                )
            if (
                need == "training_images"
                and not suite.lenient
                and not all(prompt.references for prompt in suite.prompts(role))
            ):
                raise UserError(
                    f"method {entry.name} needs training images and suite {suite.name} has fit"
                    " prompts without a reference"
                )
        sources = {name: entry.source for name, entry in entries.items() if entry.source}
        distributions = {
            found.plugin.distribution: found.plugin.version
            for found in entries.values()
            if found.plugin
        }
        return cls(
            suite,
            entry.name,
            configured,
            sources,
            judges["metric"],
            judges["attack"],
            records,
            store,
            device,
            report,
            plugins=distributions,
            seeds=seeds,
            problems=problems,
            execution=execution,
        )

    @cached_property
    def id(self) -> str:
        metrics = {
            name: [metric.version, self.sources.get(f"metric {name}")]
            for name, metric in self.metrics.items()
        }
        attacks = {
            name: [attack.version, self.sources.get(f"attack {name}")]
            for name, attack in self.attacks.items()
        }
        content = self._method_identity | {
            "suite": self.suite.fingerprint,
            "metrics": metrics,
            "attacks": attacks,
        }
        if self.seeds > 1:
            content["seeds"] = self.seeds
        return digest_of(content)[:12]

    @property
    def _method_identity(self) -> dict[str, Any]:
        return {
            "method": self.method_name,
            "version": self.method.version,
            "parameters": self.method.model_dump(mode="json"),
            "source": self.sources.get(f"method {self.method_name}"),
        }

    @cached_property
    def fit_data(self) -> FitData:
        needs = self.method.needed()
        fit = (
            self.suite.prompts("fit")
            if "fit_prompts" in needs or "training_images" in needs
            else ()
        )
        return FitData(
            fit_prompts=tuple(prompt.text for prompt in fit),
            clean_prompts=(
                tuple(prompt.text for prompt in self.suite.prompts("calibration"))
                if "clean_prompts" in needs
                else ()
            ),
            training_images=(
                {prompt.text: prompt.references for prompt in fit}
                if "training_images" in needs
                else {}
            ),
        )

    @cached_property
    def store(self) -> SampleStore:
        # What was fitted is a function of the protocol, the method and the fit data, so these stand
        # for it; the key is known before fitting.
        pictures = {
            prompt: [path_digest(path) for path in paths]
            for prompt, paths in self.fit_data.training_images.items()
        }
        fitted_on = [self.fit_data.fit_prompts, self.fit_data.clean_prompts, pictures]
        identity = self._method_identity | {
            "generation": self.suite.generation,
            "fit": digest_of(fitted_on),
        }
        if self.method.mixes_images():
            identity["batch_size"] = self.suite.settings.model.batch_size
            # decides what shares a batch
            identity["order"] = digest_of(
                [[[key.prompt, key.seed] for key in part] for part in parts(self)]
            )
        return SampleStore(self.store_root, self.suite.store_name, self.method_name, identity)

    @property
    def cache(self) -> Path:
        """A folder of this machine for what is the same in every run, such as features of real
        pictures; no suite's name begins so.
        """
        local = open_folder(self.store_root).local("_real")
        return local or cache_folder() / "_real"

    @cached_property
    def work(self) -> Work:
        return Work(self.suite.settings.model.batch_size)

    @cached_property
    def denoiser(self) -> Denoiser:
        return load_denoiser(
            self.suite,
            self.device,
            self.execution,
            gradients=self.method.where in ("embedding", "noise"),
        )

    @property
    def batch_size(self) -> int:
        """Images sampled together. Found by trial where that was asked for, on the loaded model."""
        if self.execution.batch_size == "auto":
            return self.denoiser.batch_size
        return self.execution.batch_size or self.suite.settings.model.batch_size

    def halve_batch(self, error: torch.OutOfMemoryError) -> None:
        """After a batch did not fit: half as many images from now on, where the batch size is ours
        to choose; else `UserError`.
        """
        if self.execution.batch_size == "auto" and self.denoiser.batch_size > 1:
            self.denoiser.batch_size //= 2
            torch.cuda.empty_cache()
            return
        size = self.batch_size
        advice = (
            "--attention sliced or --vae-slicing"
            if size == 1 or self.method.mixes_images()
            else f"--batch-size {size // 2}, or auto"
        )
        raise UserError(
            f"{size} images at once do not fit the device's memory ({one_line(error)[:80]}); repeat"
            f" the command with {advice}"
        ) from error

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that some metric reads and the suite has, in a fixed order."""
        read = {role for metric in self.metrics.values() for role in metric.roles}
        return cast(
            tuple[Role, ...],
            tuple(
                role
                for role in ("memorized", "clean", "quality")
                if role in read and self.suite.prompts(cast(Role, role))
            ),
        )

    def samples(self, role: Role, generation: int = 0) -> SampleSet:
        return self.sample_set(
            self.suite.prompts(role),
            self.suite.settings.prompts[role].images_per_prompt,
            generation,
        )

    def sample_set(self, prompts: Sequence[Prompt], images: int, generation: int = 0) -> SampleSet:
        """The first `images` images of each prompt: the same ones for whoever asks, made or not; of
        another generation, others.
        """
        return SampleSet(
            tuple(prompts), images, self.keys_of(prompts, images, generation), self.store
        )

    def keys_of(
        self, prompts: Sequence[Prompt], images: int, generation: int = 0
    ) -> tuple[SampleKey, ...]:
        """The keys of the first `images` images of each prompt, prompt by prompt."""
        # A text that stands in the list twice gets further seeds the second time, or it would be
        # the same image again.
        seen = Counter({prompt.text: generation * GENERATION for prompt in prompts})
        keys = []
        for prompt in prompts:
            seeds = [
                self.suite.image_seed(prompt.text, seen[prompt.text] + index)
                for index in range(images)
            ]
            if prompt.seed is not None and generation == 0:
                seeds[0] = prompt.seed
            keys += [SampleKey(prompt.text, seed) for seed in seeds]
            seen[prompt.text] += images
        return tuple(keys)

    def keys(self, role: Role) -> list[SampleKey]:
        """The images of a role in all generations."""
        prompts, images = (
            self.suite.prompts(role),
            self.suite.settings.prompts[role].images_per_prompt,
        )
        return [
            key
            for generation in range(self.seeds)
            for key in self.keys_of(prompts, images, generation)
        ]

    @cached_property
    def keeping(self) -> Keeping:
        """Which pictures are kept, and which features are made of each while it is in memory."""
        return keeping_of(self)

    def loaded(self, extractor: Extractor) -> Extractor:
        """The same extractor, with its network if it is loaded already."""
        return self._loaded.setdefault((type(extractor), extractor.fingerprint), extractor)

    def missing(self) -> list[SampleKey]:
        return self.lacking(key for role in self.roles for key in self.keys(role))

    def lacking(self, keys: Iterable[SampleKey], pictures: bool = False) -> list[SampleKey]:
        """Those images that must be made: not stored, or without what is needed of them; with
        `pictures`, also those whose picture was dropped.
        """
        keys = list(keys)
        return missing(self, keys, frozenset(keys) if pictures else frozenset())

    def finished(self) -> RunRecord | None:
        """The complete record of exactly this run on this kind of device, when there is one
        already.
        """
        path = self.records / self.suite.name / self.method_name / f"{self.id}.json"
        record = load_record(path) if path.is_file() else None
        if (
            record is None
            or record.status != "complete"
            or record.environment.get("device") != self.device.type
        ):
            return None
        if record.tuning != self.tuning:  # the same numbers, asked for in another way
            record.tuning = self.tuning
            record.save(self.records)
        return record

    @at_chosen_precision
    def execute(self) -> RunRecord:
        """Fit, generate, measure; the record is on disk from the first moment and says how far it
        came.
        """
        record = self._new_record()
        record.save(self.records)
        try:
            self.store.prepare()
            state, fit_seconds, fit_rows = self.fitted()
            self.executor.make(self, state, planned(self, self.executor.ahead))
            failure = measure(self, record, state, fit_seconds, fit_rows)
            record.images = {role: len(self.keys(role)) for role in self.roles}
            record.samples = recorded_samples(self)
            record.holds_against = holds_against(self, state)
            record.facts = {role: facts for role in self.roles if (facts := self._facts(role))}
            record.thumbnails = thumbnails(self) if "memorized" in self.roles else []
            if "memorized" in self.roles and not record.thumbnails:
                record.warnings.append(
                    "no thumbnails: pictures were dropped once they had their features"
                    f" (--keep-images {self.keep_images})"
                )
            record.warnings += self._failed_links()
            if failure:
                raise failure
            record.status = "complete"
        except BaseException as error:
            record.status = "failed" if isinstance(error, Exception) else "partial"
            record.errors.append(f"{type(error).__name__}: {one_line(error)}")
            record.environment |= self._executed()
            record.save(self.records)
            raise
        record.environment |= self._executed()
        record.save(self.records)
        return record

    def is_fitted(self) -> bool:
        """Whether the store has what the method learned, or it learns nothing."""
        return type(self.method).fit is Method.fit or self.store.files.exists("fit.json")

    def _executed(self) -> dict[str, Any]:
        """How the model was run and the memory that it took, for the record's environment."""
        loaded = "denoiser" in vars(self)  # nothing is loaded only to be described
        size = self.batch_size if loaded or self.execution.batch_size != "auto" else None
        return {
            "execution": self.execution.described(size, stored_as(self.suite)),
            "peak_memory_mib": peak_memory_mib(self.device),
        }

    @at_chosen_precision
    def fitted(self) -> tuple[State, float, int]:
        """What the method learned, with the seconds and row evaluations it took; from the store
        when it was learned before.
        """
        files, tensors, facts = self.store.files, "fit.safetensors", "fit.json"
        if files.exists(facts):
            known = json.loads(files.read(facts))
            try:
                return (
                    (self._read_state(tensors) if known["tensors"] else {}),
                    known["seconds"],
                    known["rows"],
                )
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"fitted state {files}/{tensors} is damaged: {one_line(error)}; delete"
                    f" {files}/{facts} and repeat the command"
                ) from error
        if type(self.method).fit is Method.fit:
            return {}, 0.0, 0
        self.report(f"fit {self.method_name}", 0, 1)
        before, start = self.denoiser.evaluations, time.perf_counter()
        state = self.method.fit(self.denoiser, self.fit_data)
        if not isinstance(state, dict) or not all(
            isinstance(value, torch.Tensor) for value in state.values()
        ):
            raise UserError(
                f"method {self.method_name}: fit must return a dict of tensors by name, not"
                f" {type(state).__name__}"
            )
        wait_for(self.device)
        seconds, rows = time.perf_counter() - start, self.denoiser.evaluations - before
        # another process was faster: what all of them sample with is what the store has
        if files.exists(facts):
            return self.fitted()
        if state:
            files.write(
                tensors,
                save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}),
            )
        files.write(
            facts, json.dumps({"seconds": seconds, "rows": rows, "tensors": len(state)}).encode()
        )
        self.report(f"fit {self.method_name}", 1, 1)
        return state, seconds, rows

    def _read_state(self, name: str) -> State:
        path = self.store.files.local(name)
        if path:
            return load_file(path, device=str(self.device))
        return {
            tensor: value.to(self.device)
            for tensor, value in load(self.store.files.read(name)).items()
        }

    def generate(self, state: State, keys: Sequence[SampleKey], pictures: bool = False) -> None:
        """Make those images that the store does not hold.

        `pictures`: all of them will be read, so none may have been dropped.
        """
        self.executor.make(
            self, state, self.work.units(keys), frozenset(keys) if pictures else frozenset()
        )

    def _facts(self, role: Role) -> dict[str, float]:
        """Means over a role's images of what the method reported of each: of truth values, the
        share.
        """
        reported = self.store.facts(self.keys(role))
        names = dict.fromkeys(name for facts in reported for name in facts)
        return {
            name: round(statistics.fmean(facts[name] for facts in reported if name in facts), 6)
            for name in names
        }

    def _references(self) -> dict[str, RecordedReferences]:
        counted = {role: self.suite.references(role) for role in self.suite.settings.prompts}
        return {
            role: RecordedReferences(expected=expected, found=found)
            for role, (expected, found) in counted.items()
            if expected
        }

    def _failed_links(self) -> list[str]:
        failed = {
            name: self.suite.assets.failed_links(name)
            for name in self.suite.wanted()
            if isinstance(self.suite.assets.entry(name), PicturesEntry)
        }
        return [
            f"{count} links of {name} failed for now and were not dead when they were asked"
            for name, count in failed.items()
            if count
        ]

    def _new_record(self) -> RunRecord:
        return RunRecord(
            run=self.id,
            status="running",
            suite=self.suite.name,
            suite_version=self.suite.settings.version,
            suite_fingerprint=self.suite.fingerprint,
            limit=self.suite.limit,
            seeds=self.seeds,
            group_name=self.suite.settings.group_name,
            method=self.method_name,
            method_version=self.method.version,
            where=self.method.where,
            needs=list(self.method.needed()),
            paper=self.method.paper,
            parameters=self.method.model_dump(mode="json"),
            changed=self.method.model_dump(mode="json", exclude_defaults=True),
            tuning=self.tuning,
            references=self._references(),
            sources=self.sources,
            environment=environment(self.device)
            | {"plugins": self.plugins, "keep_images": self.keep_images},
        )
