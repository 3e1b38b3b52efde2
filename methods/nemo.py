"""Deactivation of the cross-attention neurons that memorize a prompt (NeMo: Hintersdorf et al.,
arXiv 2406.02366).

A prompt is memorized where the noise change of the first steps looks alike from one seed to
another. Neurons of the value projections that are unusually active for it are deactivated, more and
more, until the whole model's noise change is no longer recognised; then every neuron that is not
needed for that comes back. Where paper and reference code disagree, the code is the default and a
parameter has the paper's way. Two things are neither's. The threshold of another model than Stable
Diffusion 1.4 is measured, by default on the statistic that prompts are judged by
(`calibration=best`): mean plus deviation over all pairs of seeds, which the paper states, would
call nearly every clean prompt of the testbed memorized, where the paper reports 12 %. And the code
lists a neuron twice when both of its criteria choose it, which can keep it from being given back;
here a selection is a set.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr

from bench import Denoiser, FitData, Method, Need, Request, State, Swept, UserError, Where, spread
from methods._nemo_layers import (
    Neuron,
    Neurons,
    RowMasks,
    mean_activations,
    scaled_rows,
    value_layers,
)
from methods._nemo_probe import Detection, Probe
from methods._nemo_search import Scores, Sweep, initial_selection, refined, selected
from methods._nemo_similarity import Kind


@dataclass(frozen=True)
class Localisation:
    """What the search found for one prompt.

    Without a kept seed the prompt is not memorized and nothing is deactivated.
    """

    kept: tuple[int, ...] = ()
    initial: tuple[Neuron, ...] = ()
    threshold: float = 0.0  # of the refinement
    neurons: Neurons = frozenset()


@dataclass
class Attached:
    """What lives while the method is attached: the hooks' masks, and what was found, by prompt."""

    masks: RowMasks
    found: dict[str, Localisation] = field(default_factory=dict)


class Nemo(Method):
    """Deactivate the cross-attention value neurons behind a memorized prompt (NeMo)."""

    where: ClassVar[Where] = "activations"
    needs: ClassVar[tuple[Need, ...]] = ("clean_prompts", "fit_prompts")
    paper: ClassVar[str] = "Hintersdorf et al. 2024, arXiv:2406.02366"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"scaling_factor": 1}
    swept: ClassVar[Swept | None] = ("scaling_factor", (0.8, 0.6, 0.4, 0.2, 0))

    mode: Literal["per_prompt", "permanent"] = Field(
        "per_prompt",
        description=(
            "search neurons of every prompt when it is sampled (as published), or edit the weights"
            " once for all fit prompts"
        ),
    )
    scaling_factor: float = Field(
        0.0,
        description=(
            "of the neurons found, when sampling; the search deactivates them, 1 changes nothing"
        ),
    )
    threshold: float | None = Field(
        None,
        description=(
            "similarity above which a prompt counts as memorized; by default mean + 1 standard"
            " deviation on clean prompts, measured on this model as prompts are. The published"
            " 0.428 is of Stable Diffusion 1.4 and of the reference's arithmetic, which takes the"
            " range of values from each batch (up to 0.01 apart; similarity=ms_ssim_batch)"
        ),
    )
    calibration: Literal["best", "pairs"] = Field(
        "best",
        description=(
            "what is averaged: each clean prompt's best pair of seeds, which is what a prompt is"
            " judged by, or all pairs (paper), whose threshold nearly every clean prompt exceeds"
            " when it is judged by its best"
        ),
    )
    calibration_prompts: int = Field(
        100, ge=2, description="clean prompts, evenly spread, that the threshold is measured on"
    )
    similarity: Kind = Field(
        "ms_ssim",
        description=(
            "three scales (code) or one (paper); fewer on latents below 44 pixels. ms_ssim_batch is"
            " the code's own arithmetic, in which a similarity depends on the images beside it"
        ),
    )
    normalization: Literal["channel", "sample"] = Field(
        "channel", description="noise changes fill [0, 1] by channel (code) or as a whole (paper)"
    )
    timestep: Literal["second", "first"] = Field(
        "second", description="where the model is evaluated, with the initial noise: code or paper"
    )
    seeds: int = Field(10, ge=2, description="initial noises that a prompt is judged by")
    seed: int = Field(1, ge=0, description="of these noises")
    theta: float = Field(
        5.0,
        gt=0,
        description="z-score of a neuron's activation from which the initial selection starts",
    )
    theta_min: float = Field(
        1.0, ge=0, description="the selection ends before this z-score is tried (code)"
    )
    theta_step: float = Field(0.25, gt=0, description="how much lower every try is")
    outliers: Literal["both", "above"] = Field(
        "both",
        description=(
            "neurons far from their mean on either side (code) or above only (paper's algorithm 2)"
        ),
    )
    refine_from: Literal["last", "first"] = Field(
        "last",
        description="layer that refinement begins with: the mid block (code) or the first (paper)",
    )

    _attached: Attached | None = PrivateAttr(None)

    def needed(self) -> tuple[Need, ...]:
        """The neurons of a permanent edit are those of the fit prompts; otherwise the prompt at
        hand is enough.
        """
        return self.needs if self.mode == "permanent" else ("clean_prompts",)

    def mixes_images(self) -> bool:
        return self.similarity == "ms_ssim_batch"

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """`threshold`; of clean prompts `mean.LAYER` and `std.LAYER` `[C]`; for a permanent edit
        `neurons.LAYER`, bool `[C]`.

        Costs `seeds * calibration_prompts` row evaluations, none with a threshold given, and the
        search for a permanent edit.
        """
        if len(data.clean_prompts) < 2:
            raise UserError(
                "method nemo: a standard deviation needs at least 2 clean prompts, not"
                f" {len(data.clean_prompts)}"
            )
        layers = value_layers(denoiser.pipe.unet)
        state = self._statistics(denoiser, layers, data.clean_prompts)
        masks = RowMasks(layers)
        with masks.hooked():
            threshold = (
                self._calibrated(denoiser, masks, data.clean_prompts)
                if self.threshold is None
                else self.threshold
            )
            state["threshold"] = torch.tensor(threshold, dtype=torch.float64)
            if self.mode == "permanent":
                found = [
                    self.localise(denoiser, masks, prompt, state).neurons
                    for prompt in dict.fromkeys(data.fit_prompts)
                ]
                state |= _by_layer(layers, frozenset().union(*found))
        return state

    def _statistics(
        self, denoiser: Denoiser, layers: dict[str, torch.nn.Linear], prompts: tuple[str, ...]
    ) -> State:
        size = 8 * denoiser.batch_size
        batches = [
            mean_activations(layers, denoiser.encode(prompts[start : start + size]))
            for start in range(0, len(prompts), size)
        ]
        columns = {
            name: torch.cat(parts)
            for name, parts in zip(layers, zip(*batches, strict=True), strict=True)
        }
        return {f"mean.{name}": values.mean(0) for name, values in columns.items()} | {
            f"std.{name}": values.std(0) for name, values in columns.items()
        }

    def _calibrated(self, denoiser: Denoiser, masks: RowMasks, prompts: tuple[str, ...]) -> float:
        chosen = spread(prompts, self.calibration_prompts)
        return Probe(denoiser, masks, self.detection).calibrated(
            [denoiser.texts([prompt]) for prompt in chosen], self.calibration
        )

    @property
    def detection(self) -> Detection:
        return Detection(self.similarity, self.normalization, self.timestep, self.seeds, self.seed)

    def localise(
        self, denoiser: Denoiser, masks: RowMasks, prompt: str, state: State
    ) -> Localisation:
        """The neurons of one prompt, from its text and the clean statistics; `masks` must be
        hooked.

        Prompts are searched one by one, so that what is found does not hang on the rounding of
        another prompt's company.
        """
        threshold = float(state["threshold"])
        embedding, added = denoiser.texts([prompt])
        probe = Probe(denoiser, masks, self.detection)
        whole = probe.whole(embedding, added)
        best = probe.pairs(whole).amax(1).tolist()
        kept = tuple(seed for seed, value in enumerate(best) if value > threshold)
        if not kept:
            return Localisation()

        def evaluate(jobs: Any) -> list[float]:
            seeds = [kept[seed] for _, seed in jobs]
            changes = probe.changes(embedding, seeds, [neurons for neurons, _ in jobs], added)
            return probe.alike(whole[seeds], changes).tolist()

        scores = Scores(evaluate, [best[seed] for seed in kept])
        initial, reached = initial_selection(
            scores, self._candidates(masks.layers, embedding, state), threshold
        )
        neurons = refined(scores, initial, reached, self.refine_from == "last")
        return Localisation(kept, tuple(initial), reached, neurons)

    def _candidates(
        self, layers: dict[str, torch.nn.Linear], embedding: torch.Tensor, state: State
    ) -> list[list[Neuron]]:
        """The selections of the initial search, each a superset of the one before."""
        activations = [active[0].cpu() for active in mean_activations(layers, embedding)]
        z = [
            (active - state[f"mean.{name}"].cpu()) / state[f"std.{name}"].cpu()
            for name, active in zip(layers, activations, strict=True)
        ]
        z = [scores.abs() for scores in z] if self.outliers == "both" else z
        sweep = Sweep(self.theta, self.theta_min, self.theta_step)
        return [
            selected(z, activations, theta, k)
            for theta, k in sweep.settings(max(len(active) for active in activations))
        ]

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Hooks for the neurons of every prompt, or the rows of a permanent edit scaled in the
        weights.
        """
        layers = value_layers(pipe.unet)
        if self.mode == "permanent":
            with scaled_rows(
                layers, [state[f"neurons.{name}"] for name in layers], self.scaling_factor
            ):
                yield
            return
        masks = RowMasks(layers)
        try:
            with masks.hooked():
                self._attached = Attached(masks)
                yield
        finally:
            self._attached = None

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """Find the neurons of the batch's prompts and mask them, row by row, until the next
        batch.
        """
        if self.mode == "permanent":
            count = sum(
                int(rows.sum()) for name, rows in state.items() if name.startswith("neurons.")
            )
            request.facts["neurons"] = [count] * len(request.prompts)
            return request
        if self._attached is None:
            raise UserError("method nemo: adjust was called while the method was not attached")
        masks, found = self._attached.masks, self._attached.found
        masks.clear()
        for prompt in dict.fromkeys(request.prompts):
            if prompt not in found:
                found[prompt] = self.localise(denoiser, masks, prompt, state)
        rows = [found[prompt] for prompt in request.prompts]
        masks.set([row.neurons for row in rows], self.scaling_factor)
        request.facts["neurons"] = [len(row.neurons) for row in rows]
        request.facts["memorized"] = [bool(row.kept) for row in rows]
        return request


def _by_layer(layers: dict[str, torch.nn.Linear], neurons: Neurons) -> State:
    """Bool `[C]` by layer, the form that is kept between runs."""
    rows = {
        name: torch.zeros(layer.out_features, dtype=torch.bool) for name, layer in layers.items()
    }
    names = list(layers)
    for layer, channel in neurons:
        rows[names[layer]][channel] = True
    return {f"neurons.{name}": mask for name, mask in rows.items()}
