"""Guidance withheld for a while where the geometry of the guidance looks like memorization: ours,
after Brokman et al. (NeurReps 2025, and arXiv 2505.08246).

They publish a criterion in the middle of generation and say that it can steer a mitigation; neither
the paper nor its code has a policy. This one is ours, so there is no published row to compare with.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from bench import Denoiser, FitData, Method, Need, Request, State, Step, Swept, Where, trajectory


class GeometryPolicy(Method):
    """Withhold the prompt for some steps where its pull converges from all sides more than for
    clean prompts (ours, after Brokman et al.).

    At some steps the guided prediction's clean estimate x0 is noised again to the step's own level,
    `sqrt(a) x0 + sqrt(1 - a) sqrt(d) e` with e on the unit sphere, and the mean cosine between e
    and conditional minus unconditional prediction is taken. An image above the quantile of clean
    prompts at that step gets the unconditional prediction in the next steps. It is the only action:
    drawing new noise or optimising the embedding are not part of this method.
    """

    where: ClassVar[Where] = "guidance"
    needs: ClassVar[tuple[Need, ...]] = ("clean_prompts",)
    paper: ClassVar[str] = "ours, after Brokman et al. 2025, arXiv:2505.08246"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"quantile": 1.0}
    swept: ClassVar[Swept | None] = ("quantile", (0.999, 0.99, 0.95, 0.9))

    quantile: float = Field(
        0.99,
        ge=0,
        le=1,
        description=(
            "of the mean cosine on clean prompts, by step: an image above it is acted upon; 1 is"
            " never"
        ),
    )
    at: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (1, 3, 6),
        min_length=1,
        description="steps that test, ascending; the first is 0, one beyond the last does nothing",
    )
    delay: int = Field(4, ge=1, description="steps without the prompt after one that found it")
    directions: int = Field(
        8, ge=2, multiple_of=2, description="points around each estimate, in opposite pairs"
    )
    calibration_prompts: int = Field(
        64,
        ge=1,
        description="clean prompts that quantiles are taken over, the first of the suite's list",
    )
    seed: int = Field(0, ge=0, description="of the directions and of the noise for the quantiles")

    @field_validator("at")
    @classmethod
    def _ascending(cls, at: tuple[int, ...]) -> tuple[int, ...]:
        if any(after <= before for before, after in pairwise(at)):
            raise ValueError("must be ascending, without repetition")
        return at

    def needed(self) -> tuple[Need, ...]:
        return () if self.quantile == 1 else self.needs

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """The quantile at each step that tests, `[len(at)]` or fewer, of ordinary runs up to the
        last of them. Costs two row evaluations a prompt and step, and two a direction and test.
        """
        if self.quantile == 1:
            return {}
        tests = [step for step in self.at if step < len(denoiser.timesteps)]
        found: dict[int, list[Tensor]] = {step: [] for step in tests}
        prompts = data.clean_prompts[: self.calibration_prompts] if tests else ()
        for start in range(0, len(prompts), denoiser.batch_size):
            part = prompts[start : start + denoiser.batch_size]
            request = denoiser.request(part, [self.seed + start + i for i in range(len(part))])

            def guide(step: Step) -> Tensor:
                guided = step.guided(step.guidance_scale)
                if step.index in found:
                    every = list(range(len(step.latents)))
                    found[step.index].append(self._gap(denoiser, step, guided, every))
                return guided

            with torch.no_grad():
                trajectory(denoiser, request, guide, tests[-1] + 1)
        levels = [torch.quantile(torch.cat(found[step]), self.quantile) for step in tests]
        return {"thresholds": torch.stack(levels) if levels else torch.zeros(0)}

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """The same request; it carries the model, which the tests evaluate, to `guide`."""
        request.facts["triggered"] = [0] * len(request.prompts)
        if self.quantile == 1:
            return request
        parts = {part.name: getattr(request, part.name) for part in fields(Request)}
        return _Tested(**parts, denoiser=denoiser)

    def guide(self, step: Step, state: State) -> Tensor:
        """The guided prediction `[B, C, h, w]`, and the unconditional one for images in a delay.

        An image in a delay is not tested, because it does not go where the guided prediction
        leads; a later test may find it again. The fact `triggered` says whether one ever did. A
        test costs two row evaluations a direction and image; a step in which every image of the
        batch is in a delay costs one row an image instead of two.
        """
        request = step.request
        if not isinstance(request, _Tested):  # quantile 1
            return step.guided(step.guidance_scale)
        # By image, the first step that is guided again.
        free: list[int] = step.memory.setdefault("free", [0] * len(step.latents))
        waiting = [step.index < first for first in free]
        if all(waiting):
            return step.unconditional_only()
        guided = step.guided(step.guidance_scale)
        if step.index in self.at:
            asked = [row for row, waits in enumerate(waiting) if not waits]
            gaps = self._gap(request.denoiser, step, guided, asked).tolist()
            threshold = float(state["thresholds"][self.at.index(step.index)])
            triggered = list(request.facts["triggered"])
            for row, gap in zip(asked, gaps, strict=True):
                if gap > threshold:
                    free[row] = step.index + 1 + self.delay
                    triggered[row] = 1
            request.facts["triggered"] = triggered
        if not any(waiting):
            return guided
        mask = torch.tensor(waiting, device=guided.device).reshape(-1, 1, 1, 1)
        return torch.where(mask, step.unconditional, guided)

    def _gap(self, denoiser: Denoiser, step: Step, guided: Tensor, rows: list[int]) -> Tensor:
        """A_1 of conditional minus unconditional prediction around the clean estimates of some
        images of a batch, float32 `[len(rows)]`, in [-1, 1].

        The same as the detector `geometry_gap` at one step: a plug-in of one kind does not import
        another's, since a change there must not go unnoticed here.
        """
        index, request = step.index, step.request
        scheduler = denoiser.new_scheduler()
        timestep, signal = denoiser.timesteps[index], float(denoiser.alphas[index])
        scaled = scheduler.scale_model_input(step.latents, timestep).float()
        clean = (scaled - (1 - signal) ** 0.5 * guided.float()) / signal**0.5
        around = self._directions(clean.shape[1:]).to(clean.device)
        radius = ((1 - signal) * around[0].numel()) ** 0.5
        owners = torch.tensor(rows, device=clean.device).repeat_interleave(len(around))
        along = torch.arange(len(around), device=clean.device).repeat(len(rows))
        cosines = []
        for start in range(0, len(owners), denoiser.batch_size):
            part = slice(start, start + denoiser.batch_size)
            of, outward = owners[part], around[along[part]]
            points = (signal**0.5 * clean[of] + radius * outward).to(step.latents.dtype)
            unconditional, conditional = denoiser.branches(
                points, timestep, request.rows(of.tolist()), index
            )
            pull = conditional.float() - unconditional.float()
            length = pull.flatten(1).norm(dim=1).clamp_min(torch.finfo(pull.dtype).tiny)
            flux = (pull * outward).flatten(1).sum(1)
            cosines.append((flux / length).clamp(-1, 1))
        # Opposite directions are added first: a constant pull then gives exactly 0.
        return torch.cat(cosines).reshape(len(rows), 2, -1).sum(1).mean(1) / 2

    def _directions(self, shape: torch.Size) -> Tensor:
        """Directions of norm 1, float32 `[directions, C, h, w]`, the second half the opposites of
        the first; the same ones for every image and step. The seed goes through a hash, so that no
        direction is the initial noise of an image.
        """
        digest = hashlib.sha256(f"directions\0{self.seed}".encode()).digest()
        stream = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        drawn = torch.randn((self.directions // 2, *shape), generator=stream)
        unit = drawn / drawn.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        return torch.cat([unit, -unit])


@dataclass(frozen=True, kw_only=True)
class _Tested(Request):
    """A request that knows the model it is for: a step does not, and a method keeps nothing from
    one batch to the next.
    """

    denoiser: Denoiser
