"""Making images with Ray: actors that hold the model, units that are handed out, workers that may
be lost.
"""

from __future__ import annotations

import importlib.util
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import islice
from typing import Any

import torch

from bench.base.child import cores
from bench.base.distribution import command_for
from bench.base.errors import UserError, one_line
from bench.base.progress import Report
from bench.contracts.method import State
from bench.running.engine import Engine
from bench.running.executors import Item, Result
from bench.running.experiment import Experiment
from bench.running.images import Images
from bench.running.pieces import Piece
from bench.running.ray_task import Refusal, apply, files_in_use
from bench.running.searching import lacking as lacking_pieces
from bench.running.units import Unit
from bench.running.worker import Spec, Worker
from bench.store.store import SampleKey

RETRIES = 3  # of a unit whose worker was lost
AHEAD = 2  # tasks under way for each core
Job = Unit | Piece


class Ray:
    """Workers of Ray on this machine, or of the cluster at `address`; each takes one core, and
    `gpus` of a GPU where the run is on one.

    What was fitted is read from the store, which all workers must reach under the same name, as
    they must the suite's files.
    """

    ahead = True

    def __init__(
        self, workers: int | None = None, address: str | None = None, gpus: float = 1.0
    ) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"--workers must be at least 1, not {workers}")
        if not (0 < gpus <= 1 or (gpus > 0 and gpus == int(gpus))):
            raise UserError(
                f"--gpus must be a share of a GPU (0.5) or a whole number of them, not {gpus:g}"
            )
        if importlib.util.find_spec("ray") is None:
            raise UserError(f"--executor ray needs Ray: {command_for('ray')}")
        self.workers, self.address, self.gpus = workers, address, gpus
        self._mine = False

    def make(
        self,
        experiment: Experiment,
        engine: Engine,
        images: Images,
        state: State,
        units: Sequence[Unit],
        read: Set[SampleKey],
        report: Report,
    ) -> None:
        """Raises `UserError` when a worker does, and for a unit that was lost with its worker again
        and again.
        """
        images.store.refresh()
        lacking = set(images.lacking((key for unit in units for key in unit), read))
        waiting = [unit for unit in units if not lacking.isdisjoint(unit)]
        if not waiting:
            return
        crew, count = self._crew(experiment, engine, images, len(waiting))
        try:
            crew.make(waiting, count, read, len(lacking), report)
        finally:
            images.store.refresh()
        if left := images.lacking((key for unit in waiting for key in unit), read):
            raise UserError(
                f"workers stored images and {len(left)} are not in {images.store.files} here: give"
                " a --store that all machines share"
            )

    def search(
        self,
        experiment: Experiment,
        engine: Engine,
        images: Images,
        state: State,
        pieces: Sequence[Piece],
        report: Report,
    ) -> None:
        """Raises `UserError` as `make` does."""
        waiting = lacking_pieces(experiment, engine, images, state, pieces)
        if waiting:
            crew, count = self._crew(experiment, engine, images, len(waiting))
            crew.make(waiting, count, frozenset(), len(waiting), report)

    def _crew(
        self, experiment: Experiment, engine: Engine, images: Images, jobs: int
    ) -> tuple[Crew, int]:
        """Workers for so many jobs, and how many of them."""
        self._start()
        on_gpu = engine.device.type == "cuda"
        count = min(self._count(on_gpu), jobs)
        threads = 1 if self.address else max(1, min(cores() // count, torch.get_num_threads()))
        options = {"num_cpus": 1, "num_gpus": self.gpus if on_gpu else 0}
        return Crew(Spec.of(experiment, engine, images), threads, options), count

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function is sent once; a task whose process is lost is tried again.

        A few tasks more than there are workers are under way at a time. Whoever stops early leaves
        these to end by themselves: cancelling tasks by force can end this process, because Ray's
        core fails a check of its own (task_manager.cc, seen with Ray 2.60).
        """
        self._start()
        import ray
        from ray import cloudpickle

        sent = ray.put(cloudpickle.dumps(function))
        task = ray.remote(apply).options(num_cpus=1, max_retries=RETRIES)
        ahead, rest = AHEAD * self._count(False), iter(items)
        under_way = deque(task.remote(sent, files_in_use(), item) for item in islice(rest, ahead))
        try:
            while under_way:
                yield unwrapped(ray.get(under_way.popleft()))
                under_way += [task.remote(sent, files_in_use(), item) for item in islice(rest, 1)]
        except ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", None) or error from error

    def _count(self, on_gpu: bool) -> int:
        import ray

        resources = ray.cluster_resources()
        free = resources.get("GPU", 0) / self.gpus if on_gpu else resources.get("CPU", 0)
        return self.workers or max(1, int(free))

    def _start(self) -> None:
        """Start Ray here or connect to the cluster, once; somebody who uses this from Python may
        have done so already.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark calls nobody
        import ray

        if ray.is_initialized():
            return
        size = (
            {}
            if self.address
            else {"num_cpus": self.workers or cores(), "include_dashboard": False}
        )
        try:
            ray.init(
                address=self.address or "local", log_to_driver=False, logging_level="ERROR", **size
            )
        # ConnectionError, or RuntimeError and ValueError for an address that is none
        except Exception as error:
            where = (
                f"no Ray cluster answers at {self.address}"
                if self.address
                else "Ray cannot be started here"
            )
            raise UserError(f"{where}: {type(error).__name__}: {one_line(error)[:300]}") from error
        self._mine = True

    def close(self) -> None:
        """End what was started here, and leave the cluster that was connected to."""
        if self._mine:
            import ray

            ray.shutdown()
            self._mine = False


class Crew:
    """Actors that hold the model, and the units that are handed out to them.

    A worker that is lost is replaced, and its unit is given to the next free one. Ray's own pool of
    actors (`ray.util.ActorPool`) has no answer to a lost actor, so the book-keeping is ours.
    """

    def __init__(self, spec: Spec, threads: int, options: dict[str, Any]) -> None:
        self._spec, self._threads, self._options = spec, threads, options
        self._losses: dict[Job | None, int] = {}
        # By what Ray will answer: the worker, and the job that it does (None while it loads).
        self._busy: dict[Any, tuple[Any, Job | None]] = {}

    def make(
        self, jobs: Sequence[Job], workers: int, read: Set[SampleKey], lacking: int, report: Report
    ) -> None:
        """Do all jobs with that many workers, and end these.

        `lacking` counts the images, or pieces, that are not stored yet, for the progress bar.
        """
        import ray

        waiting, total = deque(jobs), sum(map(_size, jobs))
        what = next((job.attack for job in jobs if isinstance(job, Piece)), "generate")
        done, loaded = 0, 0
        report("load workers", 0, workers)
        report(what, 0, lacking)
        try:
            for _ in range(workers):
                self._hire()
            while waiting or any(unit for _, unit in self._busy.values()):
                answer = ray.wait(list(self._busy))[0][0]
                worker, unit = self._busy.pop(answer)
                if not self._came_back(answer, unit):
                    ray.kill(worker)
                    if unit:
                        waiting.appendleft(unit)
                    self._hire()
                    continue
                if unit:
                    done += _size(unit)
                    report(what, round(lacking * done / total), lacking)
                else:
                    loaded = min(loaded + 1, workers)  # a replacement is no further worker
                    report("load workers", loaded, workers)
                if waiting:
                    self._give(worker, waiting.popleft(), read)
                else:
                    ray.kill(worker)
        finally:
            for worker, _ in self._busy.values():
                ray.kill(worker)

    def _hire(self) -> None:
        import ray

        worker = ray.remote(Worker).options(**self._options).remote(self._spec, self._threads)
        self._busy[worker.load.remote()] = (worker, None)

    def _give(self, worker: Any, job: Job, read: Set[SampleKey]) -> None:
        answer = (
            worker.search.remote(job)
            if isinstance(job, Piece)
            else worker.make.remote(job, frozenset(read).intersection(job))
        )
        self._busy[answer] = (worker, job)

    def _came_back(self, answer: Any, unit: Job | None) -> bool:
        """Whether a worker did its work; False when it was lost, `UserError` when that happened
        again and again. Raises what the worker raised.
        """
        import ray

        try:
            unwrapped(ray.get(answer))
        except ray.exceptions.RayActorError as lost:
            self._losses[unit] = self._losses.get(unit, 0) + 1
            if self._losses[unit] > RETRIES:
                raise UserError(
                    f"{self._losses[unit]} workers were lost {_while(unit)}"
                    f" ({one_line(lost)[:200]}); most often memory runs out"
                ) from lost
            return False
        except ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", None) or error from error
        return True


def unwrapped(answer: Any) -> Any:
    """What a worker gave. Raises what it could not do because of something that a person must put
    right.
    """
    if isinstance(answer, Refusal):
        raise answer.error()
    return answer


def _size(job: Job) -> int:
    return 1 if isinstance(job, Piece) else len(job)


def _while(job: Job | None) -> str:
    if isinstance(job, Piece):
        return f"while they worked on part {job.part + 1} of {job.of} of attack {job.attack}"
    return (
        f"while they made the unit of prompt '{job[0].prompt}' (seed {job[0].seed})"
        if job
        else "while they loaded the model"
    )
