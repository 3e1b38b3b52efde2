"""One run: the steps from names to a record. Policy lives in the suite, the method and the metrics; here is only their order."""

from __future__ import annotations

import base64
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bench import registry, stats
from bench.errors import Unmeasurable, UserError, one_line
from bench.method import FitData, Method, Need, State
from bench.metric import Evaluation, Metric, PerImage, PerSet, SampleSet, Timing
from bench.model import load_denoiser
from bench.parameters import configure
from bench.record import RunRecord, Score, Thumbnail, device_name, environment, load_record
from bench.sampler import Denoiser, sample
from bench.store import SampleKey, SampleStore, encode_png, read_picture, write_atomically
from bench.suite import Prompt, Role, Suite, digest_of, path_digest

IMAGES_PER_SHARD = 64
THUMBNAILS = 12
NEEDED_ROLE: dict[Need, Role] = {"fit_prompts": "fit", "training_images": "fit", "clean_prompts": "calibration"}
Progress = Callable[[str, int, int], None]  # (what, done, of)


def silent(what: str, done: int, total: int) -> None:
    """A progress report that goes nowhere."""


@dataclass
class Run:
    """One method under one suite. Nothing is loaded before it is needed, so a run whose images are stored opens no model."""

    suite: Suite
    method_name: str
    method: Method
    sources: dict[str, str]  # of the method and the metrics that are not built-ins ("method mine"): their hash, a plug-in's distribution and version
    metrics: dict[str, Metric]
    records: Path
    store_root: Path
    device: torch.device
    report: Progress = field(default=silent)
    plugins: dict[str, str] = field(default_factory=dict)  # the distributions that gave the method and metrics, with their versions

    @classmethod
    def resolve(cls, suite: Suite, method: str, parameters: dict[str, Any], records: Path, store: Path, device: torch.device, report: Progress = silent) -> Run:
        """Find and check everything that has a name; unknown names fail here, before any work."""
        entry = registry.find("method", method)
        configured = configure("method", entry.name, entry.load(), parameters)
        metrics, entries = {}, {f"method {entry.name}": entry}
        for name, settings in suite.settings.metrics.items():
            found = entries[f"metric {name}"] = registry.find("metric", name)
            metrics[name] = configure("metric", name, found.load(), settings)
            for file in (getattr(metrics[name], key) for key in metrics[name].files):
                if file:
                    suite.path(file)
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
        return cls(suite, entry.name, configured, sources, metrics, records, store, device, report, distributions)

    @cached_property
    def id(self) -> str:
        metrics = {name: [metric.version, self.sources.get(f"metric {name}")] for name, metric in self.metrics.items()}
        content = self._method_identity | {"suite": self.suite.fingerprint, "metrics": metrics}
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
        return SampleStore(self.store_root, self.suite.name, self.method_name, identity)

    @cached_property
    def denoiser(self) -> Denoiser:
        return load_denoiser(self.suite, self.device)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that some metric reads and the suite has, in a fixed order."""
        read = {role for metric in self.metrics.values() for role in metric.roles}
        return cast(tuple[Role, ...], tuple(role for role in ("memorized", "clean", "quality") if role in read and self.suite.prompts(cast(Role, role))))

    def samples(self, role: Role) -> SampleSet:
        images = self.suite.settings.prompts[role].images_per_prompt
        prompts = self.suite.prompts(role)
        # A text that stands in the list twice gets further seeds the second time, or it would be the same image again.
        seen: Counter[str] = Counter()
        keys = []
        for prompt in prompts:
            keys += [SampleKey(prompt.text, self.suite.image_seed(prompt.text, seen[prompt.text] + index)) for index in range(images)]
            seen[prompt.text] += images
        return SampleSet(prompts, images, tuple(keys), self.store)

    def missing(self) -> list[SampleKey]:
        return self.store.missing(key for role in self.roles for key in self.samples(role).keys)

    def plan(self) -> dict[str, Any]:
        """What the run would do: images, row evaluations, disk, and time where an earlier measurement on this store allows an estimate."""
        missing, settings = len(self.missing()), self.suite.settings.model
        timing = self._stored_timing()
        return {
            "suite": self.suite.name,
            "fingerprint": self.suite.fingerprint,
            "method": self.method_name,
            "parameters": self.method.model_dump(mode="json"),
            "images": {role: len(self.samples(role)) for role in self.roles},
            "images_missing": missing,
            "row_evaluations": missing * settings.steps * 2,
            "disk_mib": round(missing * settings.side**2 * 2.2 / 2**20, 1),
            "seconds_estimated": round(missing * statistics.median(timing.method_seconds) / (timing.images / len(timing.method_seconds)), 1)
            if timing
            else None,
            "record": str(self.records / self.suite.name / self.method_name / f"{self.id}.json"),
        }

    def finished(self) -> RunRecord | None:
        """The complete record of exactly this run on this kind of device, when there is one already."""
        path = self.records / self.suite.name / self.method_name / f"{self.id}.json"
        record = load_record(path) if path.is_file() else None
        same = record is not None and record.status == "complete" and record.environment.get("device") == self.device.type
        return record if same else None

    def execute(self) -> RunRecord:
        """Fit, generate, measure; the record is on disk from the first moment and says how far it came."""
        record = self._new_record()
        record.save(self.records)
        try:
            self.store.prepare()
            state, fit_seconds, fit_rows = self.fitted()
            self.generate(state)
            self._measure(record, state, fit_seconds, fit_rows)
        except BaseException as error:
            record.status = "failed" if isinstance(error, Exception) else "partial"
            record.errors.append(f"{type(error).__name__}: {one_line(error)}")
            record.save(self.records)
            raise
        record.save(self.records)
        return record

    def fitted(self) -> tuple[State, float, int]:
        """What the method learned, with the seconds and row evaluations it took; from the store when it was learned before."""
        tensors, facts = self.store.folder / "fit.safetensors", self.store.folder / "fit.json"
        if facts.exists():
            known = json.loads(facts.read_text())
            try:
                return (load_file(tensors, device=str(self.device)) if known["tensors"] else {}), known["seconds"], known["rows"]
            except (OSError, SafetensorError) as error:
                raise UserError(f"fitted state {tensors} is damaged: {one_line(error)}; delete {facts} and repeat the command") from error
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
            write_atomically(tensors, save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))
        write_atomically(facts, json.dumps({"seconds": seconds, "rows": rows, "tensors": len(state)}).encode())
        self.report(f"fit {self.method_name}", 1, 1)
        return state, seconds, rows

    def generate(self, state: State) -> None:
        """Make the images that the store does not hold, shard by shard."""
        missing = self.missing()
        if not missing:
            return
        batch = self.suite.settings.model.batch_size
        shard = max(IMAGES_PER_SHARD // batch, 1) * batch
        self.report("generate", 0, len(missing))
        with self.method.attach(self.denoiser.pipe, state):
            for start in range(0, len(missing), shard):
                keys = missing[start : start + shard]
                pictures: list[np.ndarray] = []
                facts: list[dict[str, float]] = []
                try:
                    for first in range(0, len(keys), batch):
                        made, reported = self._pictures(keys[first : first + batch], self.method, state)
                        pictures, facts = pictures + list(made), facts + reported
                        self.report("generate", start + len(pictures), len(missing))
                finally:  # also what was finished before a batch failed or Ctrl-C
                    if pictures:
                        self.store.append(keys[: len(pictures)], np.stack(pictures), facts)

    def _pictures(self, keys: list[SampleKey], method: Method, state: State) -> tuple[np.ndarray, list[dict[str, float]]]:
        request = self.denoiser.request([key.prompt for key in keys], [key.seed for key in keys])
        pictures = self.denoiser.decode(sample(self.denoiser, request, method, state))
        return pictures, [{name: values[row] for name, values in request.facts.items()} for row in range(len(keys))]

    def time(self, state: State, rounds: int, images: int) -> Timing:
        """Sample batches with the method and without any, in turn, after one round that does not count; kept in the store."""
        known = self._stored_timing()
        if known and len(known.method_seconds) == rounds and known.images == rounds * images:
            return known
        keys = list(self.samples("memorized").keys)
        batches = [[keys[(r * images + i) % len(keys)] for i in range(images)] for r in range(rounds)]
        taken: dict[bool, list[float]] = {True: [], False: []}
        rows = {True: 0, False: 0}
        for number, batch in enumerate([batches[0][:2], *batches]):
            for mitigated in (False, True) if number % 2 else (True, False):
                seconds, used = self._timed(batch, state, mitigated)
                if number:
                    taken[mitigated].append(seconds)
                    rows[mitigated] += used
            self.report("time against none", number, rounds)
        timing = Timing(tuple(taken[True]), tuple(taken[False]), rounds * images, rows[True], rows[False])
        write_atomically(self._timing_file, json.dumps(asdict(timing)).encode())
        return timing

    def _timed(self, batch: list[SampleKey], state: State, mitigated: bool) -> tuple[float, int]:
        method = self.method if mitigated else Method()
        with method.attach(self.denoiser.pipe, state):  # a run attaches once, so attaching is no part of an image's time
            self._wait()
            before, start = self.denoiser.evaluations, time.perf_counter()
            self._pictures(batch, method, state)
            self._wait()
            return time.perf_counter() - start, self.denoiser.evaluations - before

    def _wait(self) -> None:
        """Let a GPU finish before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def _timing_file(self) -> Path:
        machine = digest_of([device_name(self.device), torch.get_num_threads(), torch.__version__])[:12]
        return self.store.folder / f"timing-{machine}.json"

    def _stored_timing(self) -> Timing | None:
        if not self._timing_file.exists():
            return None
        known = json.loads(self._timing_file.read_text())
        return Timing(tuple(known["method_seconds"]), tuple(known["none_seconds"]), known["images"], known["method_rows"], known["none_rows"])

    def _measure(self, record: RunRecord, state: State, fit_seconds: float, fit_rows: int) -> None:
        failure: Exception | None = None
        for number, (name, metric) in enumerate(self.metrics.items()):
            self.report(f"measure {name}", number, len(self.metrics))
            into = record.cost if metric.cost else record.scores
            measured: dict[str, PerImage | PerSet] = {}
            reason = "the suite's prompts do not allow it"
            try:
                measured = metric.measure(self._evaluation(metric, state, fit_seconds, fit_rows))
            except Unmeasurable as why:
                reason = one_line(why)
                record.warnings.append(f"{name}: {reason}")
            except Exception as error:  # one broken metric must not cost the others their numbers
                reason = f"{type(error).__name__}: {one_line(error)}"
                failure = failure or error
            for score_name in metric.names:
                if score_name not in measured:
                    into[score_name] = Score(value=None, unit="", higher_is_better=None, metric=name, metric_version=metric.version, reason=reason)
            for score_name, score in measured.items():
                into[score_name] = _as_score(name, metric, score)
                if isinstance(score, PerImage) and score.percentile is None:
                    means = score.table.mean(1)
                    record.per_prompt[score_name] = {prompt.id: round(float(m), 6) for prompt, m in zip(score.prompts, means, strict=True)}
        self.report("measure", len(self.metrics), len(self.metrics))
        record.images = {role: len(self.samples(role)) for role in self.roles}
        record.facts = {role: facts for role in self.roles if (facts := self._facts(role))}
        record.thumbnails = self._thumbnails() if "memorized" in self.roles else []
        if failure:
            raise failure
        record.status = "complete"

    def _evaluation(self, metric: Metric, state: State, fit_seconds: float, fit_rows: int) -> Evaluation:
        def samples(role: Role) -> SampleSet:
            if role not in metric.roles:
                raise UserError(f"metric {type(metric).__name__} reads prompts of the role {role} without declaring it in `roles`")
            return self.samples(role)

        return Evaluation(self.suite, self.device, samples, lambda rounds, images: self.time(state, rounds, images), fit_seconds, fit_rows)

    def _facts(self, role: Role) -> dict[str, float]:
        """Means over a role's images of what the method reported of each: of truth values, the share."""
        reported = self.store.facts(self.samples(role).keys)
        names = dict.fromkeys(name for facts in reported for name in facts)
        return {name: round(statistics.fmean(facts[name] for facts in reported if name in facts), 6) for name in names}

    def _thumbnails(self) -> list[Thumbnail]:
        """The first image of some memorized prompts, evenly spread, so that a reader can look instead of believing."""
        samples = self.samples("memorized")
        count = min(THUMBNAILS, len(samples.prompts))
        rows = [i * len(samples.prompts) // count for i in range(count)]
        keys = [samples.keys[row * samples.images] for row in rows]
        pngs = self.store.png(keys)
        return [
            Thumbnail(
                prompt_id=prompt.id, prompt=prompt.text, group=prompt.group, seed=key.seed, png=base64.b64encode(png).decode(),
                reference=_reference(prompt) if self.suite.settings.share_references else None,
            )
            for prompt, key, png in zip((samples.prompts[row] for row in rows), keys, pngs, strict=True)
        ]  # fmt: skip

    def _new_record(self) -> RunRecord:
        return RunRecord(
            run=self.id,
            status="running",
            suite=self.suite.name,
            suite_version=self.suite.settings.version,
            suite_fingerprint=self.suite.fingerprint,
            limit=self.suite.limit,
            group_name=self.suite.settings.group_name,
            method=self.method_name,
            method_version=self.method.version,
            where=self.method.where,
            needs=list(self.method.needs),
            paper=self.method.paper,
            parameters=self.method.model_dump(mode="json"),
            changed=self.method.model_dump(mode="json", exclude_defaults=True),
            sources=self.sources,
            environment=environment(self.device) | {"plugins": self.plugins},
        )


def _reference(prompt: Prompt) -> str | None:

    return base64.b64encode(encode_png(read_picture(prompt.references[0]))).decode() if prompt.references else None


def _as_score(name: str, metric: Metric, score: PerImage | PerSet) -> Score:
    """Add to a metric's numbers what every score carries: interval, counts, groups, versions."""
    common: dict[str, Any] = {
        "unit": score.unit,
        "higher_is_better": score.higher_is_better,
        "metric": name,
        "metric_version": metric.version,
        "details": score.details,
    }
    if isinstance(score, PerSet):
        low, high = score.interval or (None, None)
        return Score(value=score.value, low=low, high=high, n=score.n, prompts=score.prompts, **common)
    statistic = stats.mean if score.percentile is None else lambda v: np.percentile(v, score.percentile, axis=-1)
    if len(score.table) < 2:
        low, high = None, None
    else:
        low, high = stats.proportion_interval(score.table) if score.proportion else stats.cluster_bootstrap(score.table, statistic)
    groups: dict[str, list[np.ndarray]] = {}
    for prompt, row in zip(score.prompts, score.table, strict=True):
        if prompt.group:
            groups.setdefault(prompt.group, []).append(row)
    return Score(
        value=float(statistic(score.table.reshape(-1))), low=low, high=high, n=score.table.size, prompts=len(score.table),
        groups={group: round(float(statistic(np.concatenate(rows))), 6) for group, rows in groups.items()}, **common,
    )  # fmt: skip
