"""One run: the order of steps from an experiment to its record, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.base.errors import UserError, one_line
from bench.base.progress import Report, silent
from bench.features.weights import trusted
from bench.records.environment import environment
from bench.records.record import RunRecord, load_record
from bench.running.engine import Engine
from bench.running.evidence import (
    failed_links,
    holds_against,
    makers,
    other_makers,
    recorded_design,
    recorded_references,
    recorded_samples,
    reported_facts,
    thumbnails,
)
from bench.running.executors import Executor, Local
from bench.running.experiment import Experiment
from bench.running.fitting import fitted
from bench.running.images import Images
from bench.running.judging import measure


def run(
    experiment: Experiment,
    engine: Engine,
    images: Images,
    records: Path,
    executor: Executor | None = None,
    report: Report = silent,
    tuning: dict[str, Any] | None = None,
) -> RunRecord:
    """Fit, generate, measure.

    The record is in the folder `records` from the first moment and says how far it came; the same
    call goes on where an interrupted one stopped. `executor` makes the images (this process by
    default). `tuning` says how the parameters were chosen; it is recorded and decides nothing.
    Raises what a metric or attack raised, after the others were measured; and before anything is
    written, the `UserError` of a network of a metric that cannot be used.
    """
    executor = executor or Local()
    if images.missing():
        images.keeping.try_networks(experiment.suite.settings.model.sides)
        _ = images.recorded  # what is wrong with the lists of its detectors is said now
        if experiment.needs_base:
            _ = engine.base  # and with the model that this one was fine-tuned from
    record = _new_record(experiment, engine, images, tuning)
    try:
        _keep(record, records)
        images.store.prepare()
        learned = fitted(experiment, engine, images.store, report)
        units = images.units.planned(experiment, executor.ahead)
        executor.make(experiment, engine, images, learned.state, units, frozenset(), report)
        with engine.precision():
            failure = measure(experiment, engine, images, record, learned, executor, report)
            record.holds_against = holds_against(experiment, engine, images, learned.state)
        _add_evidence(record, images)
        if failure:
            raise failure
        record.status = "complete"
    except BaseException as error:
        record.status = "partial" if isinstance(error, KeyboardInterrupt) else "failed"
        record.errors.append(f"{type(error).__name__}: {one_line(error)}")
        raise
    finally:
        record.environment |= engine.described()
        _keep(record, records)
    return record


def _keep(record: RunRecord, records: Path) -> None:
    """Write the record; only a complete one takes the place of a complete one."""
    if record.status == "complete" or not _is_complete(record.path(records)):
        record.save(records)


def _is_complete(path: Path) -> bool:
    try:
        return path.is_file() and load_record(path).status == "complete"
    except UserError:  # damaged: nothing is lost
        return False


def record_file(experiment: Experiment, records: Path) -> Path:
    """Where the record of exactly this experiment lies."""
    return records / experiment.suite.name / experiment.method_name / f"{experiment.id}.json"


def finished(
    experiment: Experiment, engine: Engine, records: Path, tuning: dict[str, Any] | None = None
) -> RunRecord | None:
    """The complete record of exactly this experiment on this kind of device, where there is one."""
    path = record_file(experiment, records)
    record = load_record(path) if path.is_file() else None
    if (
        record is None
        or record.status != "complete"
        or record.environment.get("device") != engine.device.type
    ):
        return None
    if record.tuning != tuning:  # the same numbers, asked for in another way
        record.tuning = tuning
        record.save(records)
    return record


def _new_record(
    experiment: Experiment, engine: Engine, images: Images, tuning: dict[str, Any] | None
) -> RunRecord:
    suite, method = experiment.suite, experiment.method
    made_with = {"plugins": dict(experiment.plugins), "keep_images": images.keep}
    if trusted():  # programs that ran beside this one
        made_with["trusted"] = trusted()
    return RunRecord(
        run=experiment.id,
        status="running",
        suite=suite.name,
        suite_version=suite.settings.version,
        suite_fingerprint=suite.fingerprint,
        limit=suite.limit,
        seeds=experiment.seeds,
        track=suite.settings.track,
        group_name=suite.settings.group_name,
        method=experiment.method_name,
        method_version=method.version,
        where=method.where,
        needs=list(method.needed()),
        paper=method.paper,
        parameters=method.model_dump(mode="json"),
        changed=method.model_dump(mode="json", exclude_defaults=True),
        tuning=tuning,
        references=recorded_references(suite),
        design=recorded_design(experiment),
        sources=dict(experiment.sources),
        environment=environment(engine.device) | made_with,
    )


def _add_evidence(record: RunRecord, images: Images) -> None:
    """What a reader can look at and check besides numbers."""
    experiment = images.experiment
    record.images = {role: len(experiment.keys(role)) for role in experiment.roles}
    record.samples = recorded_samples(images)
    record.made_by = makers(images)
    record.facts = reported_facts(images)
    if "memorized" in experiment.roles:
        record.thumbnails = thumbnails(images)
        if not record.thumbnails:
            record.warnings.append(
                "no thumbnails: pictures were dropped once they had their features"
                f" (--keep-images {images.keep})"
            )
    record.warnings += experiment.remarks
    record.warnings += other_makers(record.made_by, images.engine) + failed_links(experiment.suite)
