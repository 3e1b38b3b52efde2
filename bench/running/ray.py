"""Making images with Ray: actors that hold the model, units that are handed out, workers that may
be lost.
"""

from __future__ import annotations

import importlib.util
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any

import torch

from bench.base.child import cores
from bench.base.errors import UserError, one_line
from bench.contracts.method import State
from bench.running.demand import Unit
from bench.running.executors import Item, Result
from bench.running.images import missing
from bench.running.ray_task import Refusal, apply, files_in_use
from bench.running.worker import Spec, Worker
from bench.store.store import SampleKey

if TYPE_CHECKING:
    from bench.running.run import Run


RETRIES = 3  # of a unit whose worker was lost


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
            raise UserError(
                "--executor ray needs Ray: pip install 'diffusion-memorization-bench[ray]'"
            )
        self.workers, self.address, self.gpus = workers, address, gpus
        self._mine = False

    def make(
        self, run: Run, state: State, units: Sequence[Unit], pictures: Set[SampleKey] = frozenset()
    ) -> None:
        """Raises `UserError` when a worker does, and for a unit that was lost with its worker again
        and again.
        """
        run.store.refresh()
        lacking = set(missing(run, (key for unit in units for key in unit), pictures))
        waiting = [unit for unit in units if not lacking.isdisjoint(unit)]
        if not waiting:
            return
        self._start()
        try:
            self._distribute(run, waiting, len(lacking), pictures)
        finally:
            run.store.refresh()
        if left := missing(run, (key for unit in waiting for key in unit), pictures):
            raise UserError(
                f"workers stored images and {len(left)} are not in {run.store.files} here: give a"
                " --store that all machines share"
            )

    def _distribute(
        self, run: Run, waiting: Sequence[Unit], total: int, pictures: Set[SampleKey]
    ) -> None:
        import ray

        count = min(self._count(run.device.type == "cuda"), len(waiting))
        options = {"num_cpus": 1, "num_gpus": self.gpus if run.device.type == "cuda" else 0}
        threads = 1 if self.address else max(1, min(cores() // count, torch.get_num_threads()))
        spec = Spec.of(run)
        pending: dict[Any, tuple[Any, Unit | None]] = {}
        queue, losses = deque(waiting), dict[Unit | None, int]()
        done, loaded, images = 0, 0, sum(map(len, waiting))
        run.report("load workers", 0, count)
        run.report("generate", 0, total)

        def hire() -> None:
            worker = ray.remote(Worker).options(**options).remote(spec, threads)
            pending[worker.load.remote()] = (worker, None)

        try:
            for _ in range(count):
                hire()
            while queue or any(unit for _, unit in pending.values()):
                reference = ray.wait(list(pending))[0][0]
                worker, unit = pending.pop(reference)
                try:
                    unwrapped(ray.get(reference))
                except ray.exceptions.RayActorError as lost:
                    losses[unit] = losses.get(unit, 0) + 1
                    if losses[unit] > RETRIES:
                        raise UserError(
                            f"{losses[unit]} workers were lost {_while(unit)}"
                            f" ({one_line(lost)[:200]}); most often memory runs out"
                        ) from lost
                    if unit:
                        queue.appendleft(unit)
                    ray.kill(worker)
                    hire()
                    continue
                except ray.exceptions.RayTaskError as error:
                    raise getattr(error, "cause", None) or error from error
                if unit:
                    done += len(unit)
                    run.report("generate", round(total * done / images), total)
                else:
                    # one hired for another that was lost is no further one
                    loaded = min(loaded + 1, count)
                    run.report("load workers", loaded, count)
                if queue:
                    unit = queue.popleft()
                    pending[worker.make.remote(unit, frozenset(pictures).intersection(unit))] = (
                        worker,
                        unit,
                    )
                else:
                    ray.kill(worker)
        finally:
            for worker, _ in pending.values():
                ray.kill(worker)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function is sent once; a task whose process is lost is tried again."""
        self._start()
        import ray
        from ray import cloudpickle

        sent = ray.put(cloudpickle.dumps(function))
        task = ray.remote(apply).options(num_cpus=1, max_retries=RETRIES)
        waiting = deque(task.remote(sent, files_in_use(), item) for item in items)
        try:
            while waiting:
                yield unwrapped(ray.get(waiting[0]))
                waiting.popleft()
        except ray.exceptions.RayTaskError as error:
            raise getattr(error, "cause", None) or error from error
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

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


def unwrapped(answer: Any) -> Any:
    """What a worker gave. Raises what it could not do because of something that a person must put
    right.
    """
    if isinstance(answer, Refusal):
        raise answer.error()
    return answer


def _while(unit: Unit | None) -> str:
    return (
        f"while they made the unit of prompt '{unit[0].prompt}' (seed {unit[0].seed})"
        if unit
        else "while they loaded the model"
    )
