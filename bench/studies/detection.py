"""`bench detect`: one detector on the prompts of a suite, without any mitigation.

The images are those of the ordinary run of `none`, and so is what recorders kept of their sampling;
only what is not there yet is sampled. Scores are computed kind by kind of prompt; what they are
worth is worked out from the file (`bench.leaderboard.detectors`), never here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.assets.asset import cache_folder
from bench.base.errors import Unmeasurable, UserError, one_line
from bench.base.foreign import read_table
from bench.base.parameters import configure
from bench.base.pictures import centred_square, read_image
from bench.base.progress import Report, silent
from bench.contracts.detector import Detector, Observation, Recorder
from bench.contracts.metric import Evaluation, Metric, PerImage
from bench.contracts.samples import SampleSet, Timing
from bench.diffusion.families import family_of_suite, refuse_chunks, refuse_family
from bench.records.detection import Detection, OverSteps
from bench.records.environment import environment
from bench.records.parts import REFERENCE
from bench.records.record import recorded_designs
from bench.registry import registry
from bench.registry.registry import Entry
from bench.running.generating import generate
from bench.running.prepare import Prepared, prepare
from bench.running.process_state import process_kept
from bench.running.recorded import Recorded, detection_keys, recorders_of
from bench.store.folders import Root
from bench.store.store import SampleKey
from bench.suite.detection import Judged
from bench.suite.prompts import Prompt
from bench.suite.schema import Role
from bench.suite.suite import Suite

DIGITS = 7  # of a score in the file
IMAGE_LABELS = "any_copy"  # the metric that says which image is a copy


def detect(
    suite: Suite,
    name: str,
    values: Mapping[str, Any],
    store: Root,
    device: torch.device,
    report: Report = silent,
) -> Detection:
    """Score every prompt that the suite judges detectors on.

    Raises `UserError` where the suite names none, the detector is unknown or gives something else
    than numbers, and `Unmeasurable` where it has none to give here.
    """
    entry, detector = _detector_for(suite, name, values)
    study = Study.of(suite, detector, entry.source, store, device)
    run, judged = study.run, study.judged
    kinds, settings = judged.kinds, judged.settings
    # Before any work: labels that are missing are noticed now.
    copied, protocol = _labels(suite, judged), judged.fingerprint
    if detector.needs != "text":
        study.make(report)
    began = time.perf_counter()
    with run.engine.precision(), process_kept(f"detector {entry.name}: score"):
        scores = {kind: scored(entry.name, detector, study.observe(kind, report)) for kind in kinds}
    seconds = time.perf_counter() - began
    steps: dict[str, OverSteps] = {}
    for kind in kinds:
        followed = detector.over_steps(study.observe(kind))
        if followed is not None:
            low, middle, high = np.quantile(followed, (0.1, 0.5, 0.9), axis=0)
            steps[kind] = OverSteps(low=_short(low), middle=_short(middle), high=_short(high))
    alone, on_top = detector.rows(suite.settings.model.steps)
    memorized = kinds["memorized"]
    return Detection(
        suite=suite.name,
        suite_version=suite.settings.version,
        protocol=protocol,
        detector=entry.name,
        detector_version=detector.version,
        source=entry.source,
        needs=detector.needs,
        paper=detector.paper,
        parameters=detector.model_dump(mode="json"),
        changed=detector.model_dump(mode="json", exclude_defaults=True),
        images=settings.images,
        copied=copied,
        copies=_copies(run, suite, judged) if detector.needs != "text" else {},
        groups={prompt.id: prompt.group for prompt in memorized},
        group_name=suite.settings.group_name,
        design=recorded_designs({kind: judged.design(kind) for kind in kinds}),
        scores={kind: _by_prompt(judged, kind, table) for kind, table in scores.items()},
        of_prompt={
            kind: _single(judged, kind, detector.of_prompt(table)) for kind, table in scores.items()
        },
        of_first=_of_first(judged, detector, scores),
        over_steps=steps,
        rows_alone=alone,
        rows_on_top=on_top,
        seconds=round(seconds / sum(len(found) for found in kinds.values()), 6),
        kept_bytes=study.kept_bytes(),
        environment=environment(device),
    )


def _detector_for(suite: Suite, name: str, values: Mapping[str, Any]) -> tuple[Entry, Detector]:
    """A detector by its name. Raises `UserError` where it is unknown, and where it does not work
    on the suite's model.
    """
    entry = registry.find("detector", name)
    detector: Detector = configure("detector", entry.name, entry.load(), dict(values))
    refuse_family(family_of_suite(suite), detector.works_on(), f"detector {entry.name}")
    refuse_chunks(suite, detector.in_chunks, f"detector {entry.name}")
    return entry, detector


@dataclass(frozen=True)
class Study:
    """A detector with the prompts and images of a suite that it is judged on.

    `keys` are these images by kind of prompt, prompt by prompt; `recorders` those of the detector
    by the name of their folder.
    """

    run: Prepared
    judged: Judged
    detector: Detector
    recorders: Mapping[str, Recorder]
    keys: Mapping[str, tuple[SampleKey, ...]]

    @classmethod
    def of(
        cls, suite: Suite, detector: Detector, source: str | None, store: Root, device: torch.device
    ) -> Study:
        """Nothing is loaded or sampled yet. Raises `UserError` where the suite names nothing."""
        judged = Judged(suite)
        unjudged = suite.settings.model_copy(update={"metrics": {}, "attacks": {}})
        run = prepare(replace(suite, settings=unjudged), REFERENCE, {}, store, device)
        keys = detection_keys(run.experiment, judged)
        return cls(run, judged, detector, recorders_of(detector, source), keys)

    def make(self, report: Report = silent) -> None:
        """Sample the images that are missing, and those whose sampling was not recorded.

        What the suite's other detectors record is recorded with it, so that each image is sampled
        once.
        """
        experiment, engine, images = self.run
        images.store.prepare()
        keys = [key for found in self.keys.values() for key in found]
        own = self._recorded(keys)
        lacking = {*images.store.missing(keys), *own.lacking(keys)}
        if not lacking:
            return
        others = images.recorded.recorders
        all_of_them = Recorded({**others, **self.recorders}, own.wanted, images.store.files)
        units = images.units.of(key for key in keys if key in lacking)
        generate(experiment, engine, images, {}, units, report=report, recorded=all_of_them)

    def observe(self, kind: str, report: Report = silent) -> Observation:
        """What the detector may read of one kind of prompts."""
        prompts, images = self.judged.kinds[kind], self.judged.settings.images
        own, store = self.keys[kind], self.run.images.store
        recorded = self._recorded(own)
        names = {recorder: name for name, recorder in self.recorders.items()}

        def trace(recorder: Recorder) -> np.ndarray:
            if recorder not in names:
                raise UserError(
                    f"a detector asked for what {type(recorder).__name__} kept without naming it in"
                    " recorders()"
                )
            values = recorded.traces(names[recorder]).read(own)
            return values.reshape(len(prompts), images, *values.shape[1:])

        def pictures(row: int) -> list[np.ndarray]:
            return store.pictures(own[row * images : (row + 1) * images])

        return Observation(
            prompts=prompts,
            images=images,
            seeds=np.array([key.seed for key in own], dtype=np.int64).reshape(len(prompts), images),
            calibration=tuple(prompt.text for prompt in self.judged.kinds["calibration"]),
            trace_=trace,
            pictures_=pictures,
            denoiser_=lambda: self.run.engine.denoiser,
            base_seed=self.run.experiment.suite.settings.seed,
            report=lambda what, done, of: report(f"{kind}: {what}", done, of),
        )

    def kept_bytes(self) -> int:
        """What is kept of one image's sampling: four bytes a number."""
        first = next(iter(self.keys.values()))[:1]
        recorded = self._recorded(first)
        return sum(4 * recorded.traces(name).read(first).size for name in self.recorders)

    def _recorded(self, keys: Iterable[SampleKey]) -> Recorded:
        return Recorded(self.recorders, frozenset(keys), self.run.images.store.files)


def scored(name: str, detector: Detector, seen: Observation) -> np.ndarray:
    """The scores of one kind of prompts, float64 `[P, n]` or `[P, 1]`.

    Raises `UserError`, which names the detector, for anything else than finite numbers.
    """
    try:
        given = detector.score(seen)
    except (Unmeasurable, UserError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise UserError(
            f"detector {name}: score raised {type(error).__name__}: {one_line(error)}"
        ) from error
    shapes = {(len(seen.prompts), seen.images), (len(seen.prompts), 1)}
    if not isinstance(given, np.ndarray) or given.shape not in shapes:
        raise UserError(
            f"detector {name}: score must return an array of shape"
            f" {(len(seen.prompts), seen.images)}, or with one column, not"
            f" {getattr(given, 'shape', type(given).__name__)}"
        )
    if given.dtype.kind not in "fiub" or not bool(np.isfinite(given).all()):
        raise UserError(f"detector {name}: a score is no finite number")
    return given.astype(np.float64)


def _of_first(
    judged: Judged, detector: Detector, scores: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """One score a prompt of its first image alone; none where the detector needs several."""
    of_all = any(table.shape[1] < judged.settings.images for table in scores.values())
    if of_all and detector.needs != "text":
        return {}
    return {
        kind: _single(judged, kind, detector.of_prompt(table[:, :1]))
        for kind, table in scores.items()
    }


def _by_prompt(judged: Judged, kind: str, table: np.ndarray) -> dict[str, list[float]]:
    return {prompt.id: _short(row) for prompt, row in zip(judged.kinds[kind], table, strict=True)}


def _single(judged: Judged, kind: str, values: np.ndarray) -> dict[str, float]:
    return {
        prompt.id: value for prompt, value in zip(judged.kinds[kind], _short(values), strict=True)
    }


def _short(values: np.ndarray) -> list[float]:
    """Numbers with seven digits: float32 has no more."""
    return [float(f"{value:.{DIGITS}g}") for value in np.asarray(values).tolist()]


def _labels(suite: Suite, judged: Judged) -> dict[str, float] | None:
    """Which share of the images of each memorized prompt is a copy, where the suite knows.

    Raises `UserError` for labels that lack a prompt.
    """
    file = judged.settings.labels
    if not file:
        return None
    suite.places.refuse_outside("labels of detection", suite.places.beside_suite(file), file)
    given = read_table(suite.path(file)).get("share_of_copies", {})
    try:
        return {prompt.id: float(given[prompt.id]) for prompt in judged.kinds["memorized"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} has no label for prompt {one_line(error)}") from error


def _copies(run: Prepared, suite: Suite, judged: Judged) -> dict[str, list[int]]:
    """Which images of the memorized prompts copy some training picture, by the suite's own metric
    any_copy; nothing where it has none.
    """
    given = suite.settings.metrics.get(IMAGE_LABELS)
    images = judged.settings.images

    def samples_of(role: Role) -> SampleSet:
        return run.images.sample_set(suite.prompts(role), images)

    if given is None:
        return {}
    entry = registry.find("metric", IMAGE_LABELS)
    metric: Metric = configure("metric", entry.name, entry.load(), given)
    evaluation = Evaluation(suite, run.engine.device, samples_of, _never_timed)
    found = metric.measure(evaluation)[IMAGE_LABELS]
    assert isinstance(found, PerImage)
    return {
        prompt.id: [int(value) for value in row]
        for prompt, row in zip(found.prompts, found.table, strict=True)
    }


def _never_timed(role: Role, rounds: int, images: int) -> Timing:
    raise UserError("detectors are not timed against `none`")


def plan(suite: Suite, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What `detect` would evaluate, without doing it; a lenient suite will do.

    Raises `UserError` as `detect` does.
    """
    entry, detector = _detector_for(suite, name, values)
    judged, steps = Judged(suite), suite.settings.model.steps
    counts = {kind: len(prompts) for kind, prompts in judged.kinds.items()}
    images = sum(counts.values()) * judged.settings.images
    alone, on_top = detector.rows(steps)
    return {
        "detector": entry.name,
        "needs": detector.needs,
        "suite": suite.name,
        "protocol": None if suite.lenient else judged.fingerprint,
        "prompts": counts,
        "images_per_prompt": judged.settings.images,
        "images": images if detector.needs != "text" else 0,
        "sampling_rows": 2 * steps * images if detector.needs != "text" else 0,
        "rows_alone_an_image": alone,
        "rows_on_top_an_image": on_top,
        "rows_on_top": round(on_top * images),
    }


def plan_in_words(found: Mapping[str, Any]) -> str:
    """The plan for people."""
    counted = ", ".join(f"{count:,} {kind}" for kind, count in found["prompts"].items())
    lines = [f"{found['detector']} on {found['suite']} (needs {found['needs']}): {counted} prompts"]
    if found["needs"] == "text":
        return "\n".join([*lines, "no image is generated and the model is not evaluated"])
    return "\n".join(
        [
            *lines,
            f"{found['images']:,} images, {found['images_per_prompt']} a prompt; those that the"
            f" store lacks are sampled, {found['sampling_rows']:,} row evaluations for all",
            f"the detector itself: {found['rows_on_top_an_image']:g} row evaluations an image on"
            f" top ({found['rows_on_top']:,}), {found['rows_alone_an_image']:g} if nothing else"
            " needs the image",
        ]
    )


def of_pictures(
    suite: Suite,
    name: str,
    values: Mapping[str, Any],
    files: Sequence[Path],
    device: torch.device,
    report: Report = silent,
) -> dict[str, float]:
    """Scores of pictures of any origin, by file: for detectors that ask for a finished picture and
    no caption.

    Each is cut to its centred square, resized to the model's size and encoded by its autoencoder.
    Raises `UserError` for a detector that needs more, and for a file that is no picture.
    """
    entry, detector = _detector_for(suite, name, values)
    if detector.needs != "picture" or len(detector.recorders()) != 1:
        raise UserError(
            f"detector {entry.name} needs {detector.needs}, so a picture alone cannot be scored;"
            " plaplace can"
        )
    side = suite.settings.model.side
    if suite.settings.model.size:
        raise UserError(
            f"suite {suite.name} has [model] size, and a picture is scored as a square of the"
            " model's side: leave it out"
        )
    squares = [centred_square(read_image(path), side) for path in files]
    unjudged = suite.settings.model_copy(update={"metrics": {}, "attacks": {}})
    engine = prepare(
        replace(suite, settings=unjudged), REFERENCE, {}, cache_folder(), device
    ).engine
    with engine.precision(), torch.no_grad():
        rows = []
        for number, square in enumerate(squares, 1):
            rows.append(engine.denoiser.encoded(square[None]).float().cpu().numpy())
            report("encode", number, len(squares))
        latents = np.stack(rows)
        prompts = tuple(Prompt(str(path), "", "", ()) for path in files)
        seen = Observation(
            prompts,
            1,
            np.zeros((len(files), 1), dtype=np.int64),
            (),
            lambda recorder: latents,
            lambda row: [squares[row]],
            lambda: engine.denoiser,
            suite.settings.seed,
            report,
        )
        scores = scored(entry.name, detector, seen)
    return {str(path): float(score) for path, score in zip(files, scores[:, 0], strict=True)}
