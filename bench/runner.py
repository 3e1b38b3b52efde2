"""One run: the steps from names to a record. Policy lives in the suite, the method and the metrics; here is only their order."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save

from bench import registry
from bench.attack import Attack
from bench.errors import UserError, one_line
from bench.evidence import holds_against, recorded_samples, thumbnails
from bench.generating import generate, make_batch
from bench.keeping import KeepImages, Keeping, attacked, keeping_of, missing
from bench.measuring import measure
from bench.method import FitData, Method, Need, State
from bench.metric import Extractor, Metric, SampleSet, Timing
from bench.model import load_denoiser
from bench.parameters import configure
from bench.progress import Report, silent
from bench.record import RunRecord, device_name, environment, load_record
from bench.sampler import Denoiser
from bench.store import SampleKey, SampleStore
from bench.store_files import Root
from bench.suite import Prompt, Role, Suite, digest_of, path_digest

GENERATION = 1_000_000  # image indices of a prompt that one generation may use
NEEDED_ROLE: dict[Need, Role] = {"fit_prompts": "fit", "training_images": "fit", "clean_prompts": "calibration"}


@dataclass
class Run:
    """One method under one suite. Nothing is loaded before it is needed, so a run whose images are stored opens no model."""

    suite: Suite
    method_name: str
    method: Method
    sources: dict[str, str]  # of the method and the metrics that are not built-ins ("method mine"): their hash, a plug-in's distribution and version
    metrics: dict[str, Metric]
    attacks: dict[str, Attack]
    records: Path
    store_root: Root
    device: torch.device
    report: Report = field(default=silent)
    tuning: dict[str, Any] | None = None  # how the parameters were chosen; decides nothing
    plugins: dict[str, str] = field(default_factory=dict)  # the distributions that gave the method and metrics, with their versions
    seeds: int = 1  # independent generations of everything that is sampled
    keep_images: KeepImages = "all"  # which pictures stay once they have their features; decides nothing else
    _loaded: dict[tuple[type, str], Extractor] = field(default_factory=dict)

    @classmethod
    def resolve(
        cls, suite: Suite, method: str, parameters: dict[str, Any], records: Path, store: Root, device: torch.device, report: Report = silent, seeds: int = 1
    ) -> Run:
        """Find and check everything that has a name; unknown names fail here, before any work."""
        if seeds < 1:
            raise UserError(f"--seeds must be at least 1, not {seeds}")
        entry = registry.find("method", method)
        configured = configure("method", entry.name, entry.load(), parameters)
        entries = {f"method {entry.name}": entry}
        judges: dict[str, dict[str, Any]] = {"metric": {}, "attack": {}}
        for kind, name, settings in suite.settings.judges():
            found = entries[f"{kind} {name}"] = registry.find(kind, str(suite.file.parent / name) if name.endswith(".py") else name)
            judge = judges[kind][name] = configure(kind, name, found.load(), settings)
            if isinstance(judge, Attack):
                judge.fits(suite)
            for file in (getattr(judge, key) for key in judge.files):
                if file:
                    suite.path(file)
        names = Counter(name for judge in (*judges["metric"].values(), *judges["attack"].values()) for name in judge.names)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"suite {suite.name}: two of its metrics and attacks give the score '{twice[0]}'; leave one out or rename its score")
        for role in suite.settings.prompts:
            suite.prompts(role)
        for need in configured.needed():
            role = NEEDED_ROLE[need]
            if not suite.prompts(role):
                raise UserError(f"method {entry.name} needs {need.replace('_', ' ')} and suite {suite.name} has no [prompts.{role}]")
            if need == "training_images" and not all(prompt.references for prompt in suite.prompts(role)):
                raise UserError(f"method {entry.name} needs training images and suite {suite.name} has fit prompts without a reference")
        sources = {name: entry.source for name, entry in entries.items() if entry.source}
        distributions = {found.plugin.distribution: found.plugin.version for found in entries.values() if found.plugin}
        return cls(
            suite, entry.name, configured, sources, judges["metric"], judges["attack"], records, store, device, report, plugins=distributions, seeds=seeds
        )

    @cached_property
    def id(self) -> str:
        metrics = {name: [metric.version, self.sources.get(f"metric {name}")] for name, metric in self.metrics.items()}
        attacks = {name: [attack.version, self.sources.get(f"attack {name}")] for name, attack in self.attacks.items()}
        content = self._method_identity | {"suite": self.suite.fingerprint, "metrics": metrics, "attacks": attacks}
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
        fit = self.suite.prompts("fit") if "fit_prompts" in needs or "training_images" in needs else ()
        return FitData(
            fit_prompts=tuple(prompt.text for prompt in fit),
            clean_prompts=tuple(prompt.text for prompt in self.suite.prompts("calibration")) if "clean_prompts" in needs else (),
            training_images={prompt.text: prompt.references for prompt in fit} if "training_images" in needs else {},
        )

    @cached_property
    def store(self) -> SampleStore:
        # What was fitted is a function of the protocol, the method and the fit data, so these stand for it; the key is known before fitting.
        pictures = {prompt: [path_digest(path) for path in paths] for prompt, paths in self.fit_data.training_images.items()}
        fitted_on = [self.fit_data.fit_prompts, self.fit_data.clean_prompts, pictures]
        identity = self._method_identity | {"generation": self.suite.generation, "fit": digest_of(fitted_on)}
        if self.method.mixes_images():
            identity["batch_size"] = self.suite.settings.model.batch_size
        return SampleStore(self.store_root, self.suite.name, self.method_name, identity)

    @cached_property
    def denoiser(self) -> Denoiser:
        return load_denoiser(self.suite, self.device)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that some metric reads and the suite has, in a fixed order."""
        read = {role for metric in self.metrics.values() for role in metric.roles}
        return cast(tuple[Role, ...], tuple(role for role in ("memorized", "clean", "quality") if role in read and self.suite.prompts(cast(Role, role))))

    def samples(self, role: Role, generation: int = 0) -> SampleSet:
        return self.sample_set(self.suite.prompts(role), self.suite.settings.prompts[role].images_per_prompt, generation)

    def sample_set(self, prompts: Sequence[Prompt], images: int, generation: int = 0) -> SampleSet:
        """The first `images` images of each prompt: the same ones for whoever asks, made or not; of another generation, others."""
        # A text that stands in the list twice gets further seeds the second time, or it would be the same image again.
        seen = Counter({prompt.text: generation * GENERATION for prompt in prompts})
        keys = []
        for prompt in prompts:
            keys += [SampleKey(prompt.text, self.suite.image_seed(prompt.text, seen[prompt.text] + index)) for index in range(images)]
            seen[prompt.text] += images
        return SampleSet(tuple(prompts), images, tuple(keys), self.store)

    def keys(self, role: Role) -> list[SampleKey]:
        """The images of a role in all generations."""
        return [key for generation in range(self.seeds) for key in self.samples(role, generation).keys]

    @cached_property
    def keeping(self) -> Keeping:
        """Which pictures are kept, and which features are made of each while it is in memory."""
        return keeping_of(self)

    def loaded(self, extractor: Extractor) -> Extractor:
        """The same extractor, with its network if it is loaded already."""
        return self._loaded.setdefault((type(extractor), extractor.fingerprint), extractor)

    def missing(self) -> list[SampleKey]:
        return missing(self, (key for role in self.roles for key in self.keys(role)))

    def plan(self) -> dict[str, Any]:
        """What the run would do: images, row evaluations, disk, and time where an earlier measurement on this store allows an estimate."""
        settings = self.suite.settings.model
        asked = {
            f"attack {name}": [self.sample_set(*part, generation).keys for part in attack.asks(self.suite) for generation in range(self.seeds)]
            for name, attack in self.attacks.items()
        }
        to_make = {*self.missing(), *missing(self, attacked(self), pictures=True)}
        to_keep = len(to_make if self.keep_images == "all" else to_make - self.keeping.droppable)
        timings = [name for name in self.store.files.names() if fnmatchcase(name, self._timing_file())]
        timing = _read_timing(self.store.files.read(timings[0])) if timings else None
        return {
            "suite": self.suite.name,
            "fingerprint": self.suite.fingerprint,
            "method": self.method_name,
            "parameters": self.method.model_dump(mode="json"),
            "seeds": self.seeds,
            "images": {role: len(self.keys(role)) for role in self.roles} | {name: sum(map(len, parts)) for name, parts in asked.items() if parts},
            "images_missing": len(to_make),
            "row_evaluations": len(to_make) * settings.steps * 2,
            "disk_mib": round(to_keep * settings.side**2 * 2.2 / 2**20, 1),
            "seconds_estimated": round(len(to_make) * statistics.median(timing.method_seconds) / (timing.images / len(timing.method_seconds)), 1)
            if timing
            else None,
            "record": str(self.records / self.suite.name / self.method_name / f"{self.id}.json"),
        }

    def finished(self) -> RunRecord | None:
        """The complete record of exactly this run on this kind of device, when there is one already."""
        path = self.records / self.suite.name / self.method_name / f"{self.id}.json"
        record = load_record(path) if path.is_file() else None
        if record is None or record.status != "complete" or record.environment.get("device") != self.device.type:
            return None
        if record.tuning != self.tuning:  # the same numbers, asked for in another way
            record.tuning = self.tuning
            record.save(self.records)
        return record

    def execute(self) -> RunRecord:
        """Fit, generate, measure; the record is on disk from the first moment and says how far it came."""
        record = self._new_record()
        record.save(self.records)
        try:
            self.store.prepare()
            state, fit_seconds, fit_rows = self.fitted()
            self.generate(state, self.missing())
            failure = measure(self, record, state, fit_seconds, fit_rows)
            record.images = {role: len(self.keys(role)) for role in self.roles}
            record.samples = recorded_samples(self)
            record.holds_against = holds_against(self, state)
            record.facts = {role: facts for role in self.roles if (facts := self._facts(role))}
            record.thumbnails = thumbnails(self) if "memorized" in self.roles else []
            if "memorized" in self.roles and not record.thumbnails:
                record.warnings.append(f"no thumbnails: pictures were dropped once they had their features (--keep-images {self.keep_images})")
            if failure:
                raise failure
            record.status = "complete"
        except BaseException as error:
            record.status = "failed" if isinstance(error, Exception) else "partial"
            record.errors.append(f"{type(error).__name__}: {one_line(error)}")
            record.save(self.records)
            raise
        record.save(self.records)
        return record

    def fitted(self) -> tuple[State, float, int]:
        """What the method learned, with the seconds and row evaluations it took; from the store when it was learned before."""
        files, tensors, facts = self.store.files, "fit.safetensors", "fit.json"
        if files.exists(facts):
            known = json.loads(files.read(facts))
            try:
                return (self._read_state(tensors) if known["tensors"] else {}), known["seconds"], known["rows"]
            except (OSError, SafetensorError) as error:
                raise UserError(f"fitted state {files}/{tensors} is damaged: {one_line(error)}; delete {files}/{facts} and repeat the command") from error
        if type(self.method).fit is Method.fit:
            return {}, 0.0, 0
        self.report(f"fit {self.method_name}", 0, 1)
        before, start = self.denoiser.evaluations, time.perf_counter()
        state = self.method.fit(self.denoiser, self.fit_data)
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise UserError(f"method {self.method_name}: fit must return a dict of tensors by name, not {type(state).__name__}")
        self._wait()
        seconds, rows = time.perf_counter() - start, self.denoiser.evaluations - before
        if state:
            files.write(tensors, save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))
        files.write(facts, json.dumps({"seconds": seconds, "rows": rows, "tensors": len(state)}).encode())
        self.report(f"fit {self.method_name}", 1, 1)
        return state, seconds, rows

    def _read_state(self, name: str) -> State:
        path = self.store.files.local(name)
        if path:
            return load_file(path, device=str(self.device))
        return {tensor: value.to(self.device) for tensor, value in load(self.store.files.read(name)).items()}

    def generate(self, state: State, keys: Sequence[SampleKey], pictures: bool = False) -> None:
        """Make those images that the store does not hold. `pictures`: all of them will be read, so none may have been dropped."""
        generate(self, state, keys, pictures)

    def time(self, state: State, rounds: int, images: int) -> Timing:
        """Sample batches with the method and without any, in turn, after one round that does not count; kept in the store.

        What a method costs may depend on the prompt, so batches hold all images of prompts that are evenly spread over the list.
        """
        samples = self.samples("memorized")
        count = max(1, images // samples.images)
        rows = [i * len(samples.prompts) // (rounds * count) for i in range(rounds * count)]
        batches = [[key for row in rows[r::rounds] for key in samples.keys[row * samples.images :][: samples.images]] for r in range(rounds)]
        file = self._timing_file(batches)
        if self.store.files.exists(file):
            return _read_timing(self.store.files.read(file))
        taken: dict[bool, list[float]] = {True: [], False: []}
        spent = {True: 0, False: 0}
        for number, batch in enumerate([batches[0][:2], *batches]):
            for mitigated in (False, True) if number % 2 else (True, False):
                seconds, used = self._timed(batch, state, mitigated)
                if number:
                    taken[mitigated].append(seconds)
                    spent[mitigated] += used
            self.report("time against none", number, rounds)
        timing = Timing(tuple(taken[True]), tuple(taken[False]), sum(map(len, batches)), spent[True], spent[False])
        self.store.files.write(file, json.dumps(asdict(timing)).encode())
        return timing

    def _timed(self, batch: list[SampleKey], state: State, mitigated: bool) -> tuple[float, int]:
        method = self.method if mitigated else Method()
        with method.attach(self.denoiser.pipe, state):  # a run attaches once, so attaching is no part of an image's time
            self._wait()
            before, start = self.denoiser.evaluations, time.perf_counter()
            make_batch(self, batch, method, state)
            self._wait()
            return time.perf_counter() - start, self.denoiser.evaluations - before

    def _wait(self) -> None:
        """Let a GPU finish before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _timing_file(self, batches: list[list[SampleKey]] | None = None) -> str:
        """The file of the store that keeps the timing of these batches on this machine; without batches, a pattern for all that were timed here."""
        machine = digest_of([device_name(self.device), torch.get_num_threads(), torch.__version__])[:12]
        timed = "*" if batches is None else digest_of([[[key.prompt, key.seed] for key in batch] for batch in batches])[:12]
        return f"timing-{machine}-{timed}.json"

    def _facts(self, role: Role) -> dict[str, float]:
        """Means over a role's images of what the method reported of each: of truth values, the share."""
        reported = self.store.facts(self.keys(role))
        names = dict.fromkeys(name for facts in reported for name in facts)
        return {name: round(statistics.fmean(facts[name] for facts in reported if name in facts), 6) for name in names}

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
            sources=self.sources,
            environment=environment(self.device) | {"plugins": self.plugins, "keep_images": self.keep_images},
        )


def _read_timing(content: bytes) -> Timing:
    known = json.loads(content)
    return Timing(tuple(known["method_seconds"]), tuple(known["none_seconds"]), known["images"], known["method_rows"], known["none_rows"])
