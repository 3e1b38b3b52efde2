"""`bench audit`: the order of steps, from a folder of pictures to what is said of each.

Everything that can be wrong with the inputs is said before anything is generated. Images lie in the
ordinary store, so that an interrupted audit goes on where it stopped and one with another weight
makes only that weight's images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.assets.catalogue import PREFIX
from bench.auditing.attack import attack_found
from bench.auditing.compare import Seen
from bench.auditing.found import kinds_found, pictures_found
from bench.auditing.header import TrainingHeader
from bench.auditing.prompts import MEANINGS, Asking
from bench.auditing.ready import Audit, try_model
from bench.auditing.result import Found
from bench.auditing.rows import remedy_columns, rows_of
from bench.auditing.sampling import Generated
from bench.auditing.suites import NAME
from bench.auditing.threshold import HIGHEST, PAIRS, calibrated, measured, nearest_unasked
from bench.auditing.verdicts import (
    Assigned,
    best_of_own,
    chance,
    excess,
    hits,
    hits_among,
    permutation_p,
    rank_correlation,
    share_of,
    verdicts,
)
from bench.base.errors import UserError, visible
from bench.records.environment import environment


def run_audit(audit: Audit) -> Found:
    """Generate, compare, and say what was found."""
    began = time.perf_counter()
    if not audit.tried:
        try_model(audit)
    studio, comparison = audit.studio, audit.comparison
    everything = [*audit.askings, *audit.held_out_askings]
    yours = studio.made(audit.yours, everything)
    base = studio.made(audit.base, audit.base_askings) if audit.base else None
    rows = int((yours.prompt < len(audit.askings)).sum())
    seen = comparison.seen_of(yours)
    before = None
    if base:
        before = comparison.seen_of(base)
        _settle_threshold(audit, before, base)
        before = _first(before, rows)
    prompts = Assigned(yours.prompt[:rows], _own(audit.askings, len(audit.training)))
    natural = _first(seen, rows)
    hit = hits(natural.similarity, audit.judges.threshold, natural.held_out)
    hit_base = hits(before.similarity, audit.judges.threshold, before.held_out) if before else None
    attack, extracted = attack_found(audit)
    # The verdict gives the base the benefit of the doubt: as similar as a copy is enough there.
    near_base = hits(before.similarity, audit.judges.threshold) if before else None
    said = verdicts(hit, near_base, extracted)
    back = np.array([one in ("copied", "already in the base") for one in said])
    held = _held_out_hits(audit, seen, yours)
    if audit.threshold.origin == "calibrated" and held.any():
        audit.note(
            f"At the threshold that was set, {held.sum()} of {len(held)} held-out pictures would be"
            " called copied: images of your model are nearer to all pictures of this kind than"
            " those of the base, and copies among yours are no surer than these."
        )
    captions = np.array([one.kind == "caption" for one in audit.askings])
    of_captions = (hit & prompts.own_images).any(0)
    best = best_of_own(natural.similarity, prompts)
    best_held = _best_held_out(audit, seen, yours)
    return Found(
        model=_called(audit),
        what=_what(audit),
        threshold=audit.judges.threshold,
        copy_threshold=audit.threshold,
        profile=audit.judges.profile,
        images=len(yours.keys),
        yours=share_of(back, audit.groups),
        base=share_of(np.asarray(hit_base.any(0)), audit.groups) if hit_base is not None else None,
        held_out=share_of(held, np.arange(len(held))) if audit.holdout else None,
        chance=chance(hit, *_by_text(audit.askings, prompts, captions), audit.groups),
        already=sum(one == "already in the base" for one in said),
        by_caption=int(of_captions.sum()),
        excess=excess(back, audit.groups, held) if audit.holdout else None,
        p=(
            permutation_p(best, best_held, audit.asked.seed)
            if audit.asked.holdout_random and audit.holdout
            else None
        ),
        correlation=rank_correlation([one.repeats for one in audit.training.entries], best),
        pictures=pictures_found(audit, yours, natural, prompts, hit, before, said),
        kinds=kinds_found(audit, prompts, hit, hit_base, natural),
        rows=rows_of(audit, studio),
        attack=attack,
        header=_told(audit.header),
        notes=tuple(audit.notes),
        not_tried=_not_tried(audit),
        settings=_settings(audit),
        images_each=audit.asked.images_each,
        total=audit.training.total,
        whole=audit.asked.base is not None,
        environment=environment(audit.device),
        seconds=round(time.perf_counter() - began, 1),
    )


def _settle_threshold(audit: Audit, before: Seen, made: Generated) -> None:
    """Set the threshold on images of the base where that was asked for, and measure in any case how
    often these reach it.
    """
    stated = audit.threshold
    nearest, prompt = nearest_unasked(before.similarity, made.prompt, audit.unasked)
    if not audit.sets_threshold:
        audit.take_threshold(measured(stated, nearest, prompt))
        return
    found = calibrated(stated, audit.judges.profile, nearest, prompt)
    # The base is not narrowed to the pictures' theme as the audited model is, so its images may set
    # too low a threshold: by itself, an audit only becomes stricter.
    keeps = not audit.asked.calibrate and found.value <= stated.value
    if found.value > stated.value:
        free = np.where(audit.unasked[made.prompt], before.similarity, -np.inf)
        number = int(free.max(0).argmax())
        alike = (
            f"an image of the base is {free.max():.2f} similar to"
            f" {visible(audit.training.entries[number].name)}, which it was not asked for"
        )
        if found.value >= HIGHEST and audit.asked.calibrate:
            raise UserError(f"--calibrate finds no threshold: {alike}; give --threshold")
        others = audit.unasked & (audit.groups != audit.groups[number])
        without, by = nearest_unasked(before.similarity, made.prompt, others)
        # One picture that the base knows may not hide copies of all others.
        keeps = not audit.asked.calibrate and (
            len(without) < PAIRS
            or calibrated(stated, audit.judges.profile, without, by).value <= stated.value
        )
        audit.note(
            f"The threshold stays that of suite {stated.suite}, {stated.value:g}, though {alike}:"
            " the base knows that picture."
            if keeps
            else f"The threshold that was set, {found.value:g}, lies above the {stated.value:g} of"
            f" suite {stated.suite}: {alike}. If the base knows that picture, give --threshold."
        )
    audit.take_threshold(measured(stated, nearest, prompt) if keeps else found)


def _first(seen: Seen, rows: int) -> Seen:
    """What was seen of the first images."""
    return Seen(seen.similarity[:rows], seen.view[:rows], seen.held_out[:rows])


def _own(asking: Sequence[Asking], pictures: int) -> np.ndarray:
    own = np.zeros((len(asking), pictures), dtype=bool)
    for number, one in enumerate(asking):
        if one.kind == "caption":
            own[number, list(one.own)] = True
    return own


def _by_text(
    askings: Sequence[Asking], prompts: Assigned, captions: np.ndarray
) -> tuple[Assigned, np.ndarray]:
    """Captions that are asked for in several sizes as one each, for exchanges of captions."""
    first: dict[tuple[str, str], int] = {}
    numbers = [first.setdefault((one.kind, one.text), number) for number, one in enumerate(askings)]
    own, kept = prompts.own.copy(), captions.copy()
    for number, one in enumerate(numbers):
        if number != one:
            own[one] |= own[number]
            kept[number] = False
    return Assigned(np.array(numbers)[prompts.prompt], own), kept


def _held_out_hits(audit: Audit, seen: Seen, made: Generated) -> np.ndarray:
    """Which held-out pictures would be called copied by the rule that training pictures meet, each
    held against the other held-out ones, bool `[H]`. Like a training picture, each has the images
    of all training prompts and those of its own caption.
    """
    if not audit.holdout:
        return np.zeros(0, dtype=bool)
    rows, prompts = _of_held_out(audit, made)
    counted = np.repeat(~rows[:, None], len(audit.holdout), axis=1)
    counted[rows] = prompts.own_images
    found = hits_among(seen.held_out, audit.judges.threshold) & counted
    return np.asarray(found.any(0))


def _best_held_out(audit: Audit, seen: Seen, made: Generated) -> np.ndarray:
    """The largest similarity of each held-out picture's own images to it, `[H]`."""
    if not audit.holdout:
        return np.zeros(0)
    rows, prompts = _of_held_out(audit, made)
    return best_of_own(seen.held_out[rows], prompts)


def _of_held_out(audit: Audit, made: Generated) -> tuple[np.ndarray, Assigned]:
    """Which images were made with held-out captions, bool `[M]`, and whose captions these are."""
    assert audit.holdout is not None
    rows = made.prompt >= len(audit.askings)
    own = _own(audit.held_out_askings, len(audit.holdout))
    return rows, Assigned(made.prompt[rows] - len(audit.askings), own)


def _not_tried(audit: Audit) -> tuple[str, ...]:
    found = []
    if not any(one.size for one in audit.askings):
        found.append("pictures that are not square: everything was generated as a square")
    tried = {one.kind for one in audit.askings}
    if missing := [kind for kind in MEANINGS if kind not in tried]:
        found.append(f"prompts of the kinds {', '.join(missing)}")
    if not remedy_columns(audit):
        found.append("remedies")
    elif any(one.size for one in audit.askings):
        found.append("how long an image takes with a remedy: only squares are timed")
    if audit.attack is None:
        found.append("attackers")
    if audit.asked.quick and (audit.asked.loras or audit.asked.base):
        found.append("more than a few weights (--quick)")
    if audit.asked.embeddings and not (audit.asked.loras or audit.asked.base):
        found.append("weights between base and model: embeddings have none here")
    elif audit.asked.base:
        found.append("earlier saves of the model: an audit of each says what it gives back")
    elif not audit.asked.epochs:
        found.append("earlier epochs (--epochs FILE)")
    return tuple(found)


def _called(audit: Audit) -> str:
    path = audit.suite.settings.model.path
    shown = path if path.startswith(PREFIX) else Path(path).name
    if audit.asked.model is None:
        shown = f"the model of suite {audit.like.name}"
    files = [f"{one.file.name} at {one.strength.unet:g}" for one in audit.asked.loras]
    files += [f"embedding {file.name}" for file in audit.asked.embeddings]
    return visible(f"{shown} with {', '.join(files)}" if files else shown)


def _what(audit: Audit) -> str:
    return visible(audit.asked.data.name or str(audit.asked.data))


def _told(header: TrainingHeader) -> dict[str, Any]:
    return {
        "base": header.base,
        "base_version": header.base_version,
        "base_hash": header.base_hash or header.base_old_hash,
        "rank": header.rank,
        "epoch": header.epoch,
        "epochs": header.epochs,
        "pictures": header.pictures,
        "folders": {name: list(counts) for name, counts in header.folders.items()},
        "tags": dict(sorted(header.tags.items(), key=lambda item: (-item[1], item[0]))),
        "others": list(header.others),
        "read": header.read,
    }


def _settings(audit: Audit) -> dict[str, Any]:
    model = audit.suite.settings.model
    return {
        "like": audit.like.name,
        "steps": model.steps,
        "guidance_scale": model.guidance_scale,
        "scheduler": model.scheduler,
        "side": model.side,
        "dtype": model.dtype,
        "clip_skip": model.clip_skip,
        "chunks": model.chunks,
        "images_of_a_caption": audit.asked.images_each,
        "trigger": audit.trigger,
        "layout": audit.training.layout,
        "seed": audit.asked.seed,
        "suite": f"{NAME}.toml",
        "suite_fingerprint": audit.suite.fingerprint,
        "buckets": any(one.size for one in audit.askings),
        "quick": audit.asked.quick,
    } | ({"embeddings": audit.suite.embedding_digests} if model.embeddings else {})
