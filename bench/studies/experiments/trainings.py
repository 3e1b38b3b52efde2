"""One training of an experiment in a folder of its own: made once, taken from there ever after.

<folder>/training.json               what decides the result; its facts once it is finished
         checkpoints/                while it is under way, to go on from
         snapshot-00000500.safetensors   the weights that it gives after so many steps
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bench.base import limits
from bench.base.errors import UserError, one_line
from bench.base.files import is_there, read_regular_file, write_atomically
from bench.base.work_folder import refuse_own_files
from bench.training.denoising import Denoising
from bench.training.loop import Course, Learner

FACTS, CHECKPOINTS = "training.json", "checkpoints"


@dataclass(frozen=True)
class Kept:
    """A training's folder, and what decides its result besides the course: hashes, captions,
    which pictures are shown how often.
    """

    folder: Path
    identity: dict[str, Any]
    course: Course
    snapshots: tuple[int, ...]  # steps, ascending; the last one is the course's last

    def known(self) -> dict[str, Any] | None:
        """The facts of the finished training, None while it is not finished.

        Raises `UserError` for a folder that belongs to another training, and for one with
        checkpoints of none, which would be removed.
        """
        file = self.folder / FACTS
        try:
            there = is_there(file)
            content = json.loads(read_regular_file(file, limits.RECORD_BYTES)) if there else None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{file} cannot be read: {one_line(error)}; delete its folder to begin again"
            ) from error
        if content is None:
            refuse_own_files(self.folder, [CHECKPOINTS], "bench")
            return None
        if not isinstance(content, dict) or content.get("identity") != self._all():
            raise UserError(
                f"{self.folder} belongs to a training with other settings or data: give another"
                " folder with --out"
            )
        facts = content.get("facts")
        complete = facts and all(self.snapshot(step).is_file() for step in self.snapshots)
        return facts if complete else None

    def snapshot(self, step: int) -> Path:
        """The file of the weights after so many steps."""
        return self.folder / f"snapshot-{step:08d}.safetensors"

    def load(self, module: torch.nn.Module, step: int) -> None:
        """Give a module the weights after so many steps. Raises `UserError` for a damaged file."""
        file = self.snapshot(step)
        try:
            module.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"{file} is damaged: {one_line(error)[:160]}; delete its folder and repeat"
            ) from error

    def _all(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON gives it back."""
        course = {k: v for k, v in asdict(self.course).items() if k != "checkpoint_every"}
        whole = self.identity | {"course": course, "snapshots": self.snapshots}
        return dict(json.loads(json.dumps(whole)))

    def write(self, facts: dict[str, Any]) -> None:
        """Claim the folder, or say that its training is finished."""
        content = {"identity": self._all(), "facts": facts}
        write_atomically(self.folder / FACTS, (json.dumps(content, indent=1) + "\n").encode())


def train_once(
    kept: Kept,
    module: torch.nn.Module,
    loss: Denoising,
    device: torch.device,
    watch: Callable[[int], None],
) -> dict[str, Any]:
    """Train a module to the end, or go on from where its folder stands; its facts.

    `watch` gets the number of steps done. Raises `UserError` when a loss or a weight is not finite,
    and `KeyboardInterrupt` after Ctrl-C or SIGTERM, once the step under way is saved.
    """
    known = kept.known()
    if known is not None:
        return known
    kept.write({})
    learner = Learner(
        module.to(memory_format=loss.memory_format).train().requires_grad_(True),
        kept.course,
        loss,
        device,
        kept.folder / CHECKPOINTS,
        "lower --lr or raise --warmup, with another --out",
    )

    def stepped(step: int, _: float) -> None:
        # Before the checkpoint of this step, so that what goes on from there finds it.
        if step in kept.snapshots:
            weights = {
                name: value.detach().cpu().contiguous()
                for name, value in learner.result.state_dict().items()
            }
            write_atomically(kept.snapshot(step), save(weights))
        watch(step)

    facts = learner.learn(stepped)
    kept.write(facts)
    shutil.rmtree(kept.folder / CHECKPOINTS, ignore_errors=True)
    return facts


class Remembering(Denoising):
    """The loss with every caption encoded once, for captions that are few."""

    # Of narrow networks on a CPU a third faster than the other order.
    memory_format = torch.contiguous_format

    def embeddings(self, captions: list[str], random: torch.Generator) -> torch.Tensor:
        """As the loss without memory gives them, each caption encoded alone."""
        known: dict[str, torch.Tensor] = self.__dict__.setdefault("known", {})
        for caption in captions:
            if caption not in known:
                known[caption] = super().embeddings([caption], random)[0]
        return torch.stack([known[caption] for caption in captions])


def steps_for(views: int, batch_size: int) -> int:
    """Steps of a batch that show at least so many pictures."""
    return max(1, -(-views // batch_size))


def evenly_timed(steps: int, count: int) -> tuple[int, ...]:
    """The steps of `count` snapshots from the middle of a training to its end, ascending."""
    if count == 1:
        return (steps,)
    return tuple(
        sorted({max(1, round(steps * (0.5 + 0.5 * i / (count - 1)))) for i in range(count)})
    )


def pace(step: Callable[[], Any], rounds: int = 3) -> float:
    """Seconds of one call, the least of some."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return min(taken)
