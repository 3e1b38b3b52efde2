"""`bench audit`: the order of steps, from a folder of pictures to what is said of each.

Everything that can be wrong with the inputs is said before anything is generated. Images lie in the
ordinary store, so that an interrupted audit goes on where it stopped and one with another weight
makes only that weight's images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.assets.catalogue import PREFIX
from bench.audit.asked import Asked, Lora, Remedy
from bench.audit.curve import Point, against_curve, use
from bench.audit.header import TrainingHeader, read_training_header
from bench.audit.pictures import (
    Pictures,
    groups,
    nearest_views,
    read_pictures,
    refuse_alike,
    refuse_shared,
)
from bench.audit.prompts import MEANINGS, Asking, askings, novel_scenes, trigger_of
from bench.audit.result import Found, KindFound, Near, PictureFound, Row
from bench.audit.sampling import Column, Generated, Studio, planned
from bench.audit.suites import (
    BASE,
    FEW,
    NAME,
    Files,
    Judges,
    in_unet_only,
    judges_of,
    model_side,
    refuse_out,
    weighted,
)
from bench.audit.verdicts import Asked as Prompts
from bench.audit.verdicts import (
    best_of_own,
    chance,
    ease,
    excess,
    hits,
    permutation_p,
    rank_correlation,
    share_of,
    upper_limit,
    verdicts,
)
from bench.base.digests import digest_of
from bench.base.errors import UserError, visible
from bench.base.files import write_atomically
from bench.base.pictures import encode_png
from bench.base.progress import Report, silent
from bench.base.prompt_lists import read_list
from bench.captioned.views import Training
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import resolve
from bench.diffusion.lora.names import module_names
from bench.features.networks import CopyDescriptor, OpenClip
from bench.records.environment import environment
from bench.registry import registry
from bench.statistics.intervals import clopper_pearson
from bench.suite.load import load_suite
from bench.suite.suite import Suite

SHOWN = 3  # nearest images of a picture that are shown
FEW_HELD_OUT = 8
# What is tried where nobody says what: methods with parameters that Stable Diffusion's papers name.
REMEDIES = (
    Remedy("guidance", {"share": 0.5}),
    Remedy("random_tokens", {"count": 4}),
    Remedy("wen", {}),
    Remedy("wanda", {}),
)
# On the embedded model these methods need other parameters (Makefile, `make records`).
OF_TESTBED = {"wanda": {"sparsity": 0.1, "branch": "cond", "token_norm": "none"}}
TRAVELS = {"weights": "as a checkpoint", "file": "yes", "served": "only where you serve the model"}


@dataclass
class Audit:
    """An audit made ready: inputs read, suites written, nothing generated."""

    asked: Asked
    like: Suite
    judges: Judges
    training: Pictures
    holdout: Pictures | None
    askings: list[Asking]
    held_out_askings: list[Asking]
    header: TrainingHeader
    trigger: str
    files: Files
    suite: Suite
    groups: np.ndarray
    described: np.ndarray
    described_held_out: np.ndarray
    notes: list[str]
    device: torch.device
    report: Report

    @property
    def studio(self) -> Studio:
        store = self.asked.store or str(self.asked.out / "store")
        return Studio(store, self.device, self.asked.out / "records", self.report)

    @property
    def yours(self) -> Column:
        return Column("yours", self.suite)

    @property
    def base(self) -> Column | None:
        """What the model was made from; None where that is not known."""
        if not (self.asked.loras or self.asked.base):
            return None
        return Column("base", load_suite(str(self.asked.out / f"{BASE}.toml")))

    def settings(self) -> list[tuple[Column, str, float | None]]:
        """Weights and epochs beside base and model: column, kind of row, weight."""
        if not self.asked.loras:
            return []
        found: list[tuple[Column, str, float | None]] = []
        for weight in self.asked.curve:
            suite = self.files.with_loras(self.suite, weighted(self.asked.loras, weight))
            found.append((Column(f"weight {weight:g}", suite), "weight", weight))
        if self._touches_text():
            suite = self.files.with_loras(self.suite, in_unet_only(self.asked.loras))
            found.append((Column("text encoder untouched", suite), "remedy", None))
        for file in self.asked.epochs:
            first = Lora(file, self.asked.loras[0].strength)
            suite = self.files.with_loras(self.suite, [first, *self.asked.loras[1:]])
            found.append((Column(file.stem, suite), "epoch", None))
        return found

    def remedies(self) -> tuple[Remedy, ...]:
        """Those that were asked for, or the ones that are tried by default."""
        if self.asked.remedies is not None:
            return self.asked.remedies
        if self.asked.quick:
            return ()
        if self.like.name.startswith("testbed"):
            return tuple(
                replace(one, parameters=OF_TESTBED.get(one.method, one.parameters))
                for one in REMEDIES
            )
        return REMEDIES

    def _touches_text(self) -> bool:
        return any(
            any(
                name.startswith(("lora_te", "text_encoder")) for name in read_lora(one.file).tensors
            )
            for one in self.asked.loras
        )


def ready(asked: Asked, device: torch.device, report: Report = silent) -> Audit:
    """Read and check every input, describe the pictures, write suites and lists.

    Raises `UserError`, one line, for whatever is wrong with an input.
    """
    refuse_out(asked.out, [asked.data, *([asked.holdout] if asked.holdout else [])])
    like = load_suite(asked.suite_like)
    judges = judges_of(like, asked)
    header = _header(asked)
    side = model_side(asked.model) if asked.model else like.settings.model.side
    training = Training(
        side,
        flips=asked.flips and header.flips is not False,
        random_crops=asked.random_crops or header.random_crops is True,
    )
    pictures = read_pictures(
        asked.data,
        training,
        caption_column=asked.caption_column,
        instance_prompt=asked.instance_prompt,
        limit=asked.limit,
        what="training pictures",
        report=report,
    )
    holdout = None
    if asked.holdout:
        holdout = read_pictures(
            asked.holdout,
            training,
            caption_column=asked.caption_column,
            limit=asked.limit,
            what="held-out pictures",
            report=report,
        )
        refuse_shared(pictures, holdout)
    notes = _notes(asked, pictures, holdout, header)
    trigger = trigger_of(asked.trigger, pictures.entries)
    if not trigger:
        notes.append("No trigger word was given or found, so none was tried alone.")
    scenes = novel_scenes(trigger, _lines(asked.novel), _clean(like))
    if not scenes:
        notes.append("No novel scenes were tried: give --novel FILE, one prompt a line.")
    asking = askings(
        pictures.entries,
        images=asked.images_each,
        trigger=trigger,
        tags=header.tags,
        novel=scenes,
        keep_tokens=header.keep_tokens,
        quick=asked.quick,
        seed=asked.seed,
    )
    described, similarity = _described(judges, like, pictures, device, asked)
    held_out = np.zeros((0, described.shape[1]), dtype=np.float32)
    if holdout:
        held_out = holdout.described(_descriptor(judges, like, device, asked))
        refuse_alike(
            pictures, holdout, _by_picture(held_out, described, holdout, pictures), judges.threshold
        )
    files = Files(asked, like, judges, pictures, holdout, asking, device.type != "cpu")
    suite = files.write()
    return Audit(
        asked,
        like,
        judges,
        pictures,
        holdout,
        asking,
        _own_captions(holdout, asked.images_each) if holdout else [],
        header,
        trigger,
        files,
        suite,
        groups(similarity, judges.threshold),
        described,
        held_out,
        notes,
        device,
        report,
    )


def try_model(audit: Audit) -> None:
    """Load the model with its LoRAs once, and hold every earlier epoch against it.

    Raises `UserError` for a file that does not belong to the model or changes nothing, before
    anything is generated.
    """
    prepared = audit.studio.prepared(audit.yours)
    prepared.engine.load()
    pipe = prepared.engine.denoiser.pipe
    names = module_names(pipe)
    for file in audit.asked.epochs:
        resolve(read_lora(file), names, pipe)
    _note_long_captions(audit, pipe)


def plan(audit: Audit) -> dict[str, Any]:
    """What would be made, in numbers, without making it."""
    studio = audit.studio
    steps = audit.suite.settings.model.steps
    side = audit.suite.settings.model.side
    columns: list[tuple[Column, Generated]] = []
    yours = planned(studio.prepared(audit.yours), [*audit.askings, *audit.held_out_askings])
    columns.append((audit.yours, yours))
    if audit.base:
        columns.append((audit.base, planned(studio.prepared(audit.base), audit.askings)))
    for column, _, _ in audit.settings():
        columns.append((column, planned(studio.prepared(column), compared(audit.askings), FEW)))
    for column in _remedy_columns(audit):
        columns.append((column, planned(studio.prepared(column), compared(audit.askings), FEW)))
    images = {column.name: len(set(generated.keys)) for column, generated in columns}
    missing = sum(len(made.prepared.images.lacking(made.keys)) for _, made in columns)
    return {
        "pictures": len(audit.training),
        "held_out": len(audit.holdout) if audit.holdout else 0,
        "prompts": len(audit.askings),
        "images": images,
        "images_missing": missing,
        "row_evaluations": 2 * steps * missing,
        "disk_mib": round(missing * side * side * 2.2 / 2**20, 1),
        "out": str(audit.asked.out),
    }


def run_audit(audit: Audit) -> Found:
    """Generate, compare, and say what was found."""
    began = time.perf_counter()
    try_model(audit)
    studio, judge = audit.studio, Compared(audit)
    everything = [*audit.askings, *audit.held_out_askings]
    yours = studio.made(audit.yours, everything)
    base = studio.made(audit.base, audit.askings) if audit.base else None
    rows = len(planned(yours.prepared, audit.askings).keys)
    seen = judge.seen(yours)
    before = judge.seen(base) if base else None
    prompts = Prompts(yours.prompt[:rows], _own(audit.askings, len(audit.training)))
    natural = Seen(seen.similarity[:rows], seen.view[:rows], seen.held_out[:rows])
    hit = hits(natural.similarity, audit.judges.threshold, natural.held_out)
    hit_base = hits(before.similarity, audit.judges.threshold) if before else None
    attack = None
    said = verdicts(hit, hit_base)
    back = np.array([one in ("copied", "already in the base") for one in said])
    held = _held_out_hits(audit, seen, yours)
    captions = np.array([one.kind == "caption" for one in audit.askings])
    best = best_of_own(natural.similarity, prompts)
    best_held = _best_held_out(audit, seen, yours)
    points = _points(audit, judge, yours, base, studio)
    return Found(
        model=_called(audit),
        what=_what(audit),
        threshold=audit.judges.threshold,
        profile=str(audit.judges.sscd["profile"]),
        images=len(yours.keys),
        yours=share_of(back, audit.groups),
        base=share_of(np.asarray(hit_base.any(0)), audit.groups) if hit_base is not None else None,
        held_out=share_of(held, np.arange(len(held))) if audit.holdout else None,
        chance=chance(hit, prompts, captions, audit.groups),
        already=sum(one == "already in the base" for one in said),
        excess=excess(back, held) if audit.holdout else None,
        p=(
            permutation_p(best, best_held, audit.asked.seed)
            if audit.asked.holdout_random and audit.holdout
            else None
        ),
        correlation=rank_correlation([one.repeats for one in audit.training.entries], best),
        pictures=_pictures(audit, yours, natural, prompts, hit, before, said),
        kinds=_kinds(audit, prompts, hit, hit_base, natural),
        rows=points,
        attack=attack,
        header=_told(audit.header),
        notes=tuple(audit.notes),
        not_tried=_not_tried(audit),
        settings=_settings(audit),
        environment=environment(audit.device),
        seconds=round(time.perf_counter() - began, 1),
    )


@dataclass
class Seen:
    """Similarities of images to the training pictures, `[M, N]`, the view that each is nearest to,
    and similarities to the held-out pictures, `[M, H]`.
    """

    similarity: np.ndarray
    view: np.ndarray
    held_out: np.ndarray


class Compared:
    """Compares images with the pictures of an audit; networks are loaded once."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.descriptor = _descriptor(audit.judges, audit.like, audit.device, audit.asked)
        self.clip = _clip(audit)
        self._liked: np.ndarray | None = None

    def seen(self, made: Generated) -> Seen:
        """Similarities of some images to all pictures."""
        generated, audit = made.features(self.descriptor), self.audit
        count = len(audit.training)
        near, view = nearest_views(generated, audit.described, audit.training.owners, count)
        held = np.zeros((len(generated), 0), dtype=np.float32)
        if audit.holdout:
            held, _ = nearest_views(
                generated, audit.described_held_out, audit.holdout.owners, len(audit.holdout)
            )
        return Seen(near, view, held)

    def novel(self, made: Generated) -> tuple[np.ndarray, np.ndarray] | None:
        """Of images of novel prompts: mean similarity (CLIP) to the training pictures and cosine to
        the prompt, both `[P, m]`; None where there are no such prompts or no CLIP.
        """
        places = [n for n, one in enumerate(made.askings) if one.kind == "novel"]
        if self.clip is None or not places:
            return None
        if self._liked is None:
            plain = [found[0].pixels for found in self.audit.training.views]
            self._liked = self.clip(plain)
        features = made.features(self.clip)
        texts, _ = self.clip.texts([made.askings[place].text for place in places])
        like, aligned = [], []
        for place, text in zip(places, texts, strict=True):
            images = features[made.prompt == place][:FEW]
            like.append((images @ self._liked.T).mean(1))
            aligned.append(images @ text)
        return np.stack(like), np.stack(aligned)


def compared(asking: Sequence[Asking]) -> list[Asking]:
    """The prompts that weights and remedies are compared on: captions and novel scenes."""
    return [one for one in asking if one.kind in ("caption", "novel")]


def _own(asking: Sequence[Asking], pictures: int) -> np.ndarray:
    own = np.zeros((len(asking), pictures), dtype=bool)
    for number, one in enumerate(asking):
        own[number, list(one.own)] = True
    return own


def _points(
    audit: Audit, judge: Compared, yours: Generated, base: Generated | None, studio: Studio
) -> tuple[Row, ...]:
    """Weights, epochs and remedies, each against the curve."""
    asking = compared(audit.askings)

    def point(column: Column, kind: str, weight: float | None, travels: str) -> Point:
        made = studio.made(column, asking, FEW)
        seen = judge.seen(made)
        hit = hits(seen.similarity, audit.judges.threshold, seen.held_out)
        novel = judge.novel(made)
        return Point(
            column.name,
            _copies(hit, made, len(audit.training)),
            novel[0] if novel else None,
            novel[1] if novel else None,
            weight,
            travels,
            facts={"kind": kind},
        )

    points = [point(audit.yours, "weight", 1.0, TRAVELS["file"])]
    if audit.base:
        points.insert(0, point(audit.base, "weight", 0.0, "it is the base"))
    points += [
        point(column, kind, weight, TRAVELS["file"]) for column, kind, weight in audit.settings()
    ]
    seconds: dict[str, float | None] = {}
    for column in _remedy_columns(audit):
        where = registry.find("method", column.method).load().where
        travels = TRAVELS["weights"] if where == "weights" else TRAVELS["served"]
        record = studio.record(column)
        seconds[column.name] = _seconds(record.cost)
        points.append(point(column, "remedy", None, travels))
    if seconds:
        seconds["yours"] = _seconds(studio.record(audit.yours).cost)
    return tuple(_row(one, points, seconds.get(one.name)) for one in _ordered(points))


def _ordered(points: Sequence[Point]) -> list[Point]:
    """Weights in their order, then epochs, then remedies."""
    weights = sorted((one for one in points if one.weight is not None), key=lambda p: p.weight or 0)
    others = [one for one in points if one.weight is None]
    return [
        *weights,
        *(one for one in others if one.facts["kind"] == "epoch"),
        *(one for one in others if one.facts["kind"] == "remedy"),
    ]


def _row(one: Point, points: Sequence[Point], seconds: float | None) -> Row:
    by_weight = {point.weight: point for point in points if point.weight is not None}
    base, yours = by_weight.get(0.0), by_weight[1.0]
    against = None
    if one.weight is None:
        against = against_curve(one, list(by_weight.values()))
    return Row(
        name={0.0: "base (weight 0)", 1.0: "yours (weight 1)"}.get(
            -1.0 if one.weight is None else one.weight, one.name
        ),
        kind=str(one.facts["kind"]),
        weight=one.weight,
        copies=one.share,
        interval=one.interval,
        use=use(one, base, yours) if base else None,
        alignment=None if one.alignment is None else float(one.alignment.mean()),
        seconds=seconds,
        travels=one.travels,
        against=against.words if against else "",
    )


def _seconds(cost: Any) -> float | None:
    """Seconds an image of a run's own timing, where it has one."""
    for name in ("seconds_per_image", "seconds_per_image_clean"):
        score = cost.get(name)
        value = getattr(score, "value", None)
        if value is not None:
            return float(value)
    return None


def _copies(hit: np.ndarray, made: Generated, pictures: int) -> np.ndarray:
    """By picture, whether each of the first images of its own caption copies it, float `[N, n]`."""
    table = np.full((pictures, FEW), np.nan)
    for number, one in enumerate(made.askings):
        if one.kind != "caption":
            continue
        rows = np.flatnonzero(made.prompt == number)
        for place, picture in enumerate(one.own):
            # Pictures that share a caption share its images: each gets its part of them.
            mine = rows[place * FEW : (place + 1) * FEW]
            found = np.asarray(hit[mine][:, np.array(one.own)].any(1))
            table[picture, : len(found)] = found
    return table[:, ~np.isnan(table).any(0)]


def _held_out_hits(audit: Audit, seen: Seen, made: Generated) -> np.ndarray:
    """Which held-out pictures would be called copied by the rule that training pictures meet, bool
    `[H]`.
    """
    if not audit.holdout:
        return np.zeros(0, dtype=bool)
    return np.asarray(hits(seen.held_out, audit.judges.threshold, seen.similarity).any(0))


def _best_held_out(audit: Audit, seen: Seen, made: Generated) -> np.ndarray:
    """The largest similarity of each held-out picture's own images to it, `[H]`."""
    if not audit.holdout:
        return np.zeros(0)
    own = _own(audit.held_out_askings, len(audit.holdout))
    rows = made.prompt >= len(audit.askings)
    prompts = Prompts(made.prompt[rows] - len(audit.askings), own)
    return best_of_own(seen.held_out[rows], prompts)


def _own_captions(pictures: Pictures, images: int) -> list[Asking]:
    found: dict[str, list[int]] = {}
    for number, caption in enumerate(pictures.captions):
        found.setdefault(caption, []).append(number)
    return [Asking("caption", text, images * len(own), tuple(own)) for text, own in found.items()]


def _pictures(
    audit: Audit,
    made: Generated,
    seen: Seen,
    prompts: Prompts,
    hit: np.ndarray,
    before: Seen | None,
    said: Sequence[Any],
) -> tuple[PictureFound, ...]:
    """What is said of each picture, the nearest first."""
    names = audit.training.view_names
    kinds = np.array([one.kind for one in audit.askings])[prompts.prompt]
    epoch = audit.header.epoch or audit.header.epochs
    found = []
    for number, entry in enumerate(audit.training.entries):
        copies, images, interval = ease(hit, prompts, number)
        own = prompts.own_images[:, number]
        by_kind = {}
        for kind in dict.fromkeys(kinds.tolist()):
            rows = (kinds == kind) & (own if kind in ("caption", "shuffled") else True)
            if rows.any():
                by_kind[kind] = (int(hit[rows, number].sum()), int(rows.sum()))
        nearest_rows = np.argsort(-seen.similarity[:, number], kind="stable")[:SHOWN].tolist()
        nearest = tuple(
            Near(
                kind=str(kinds[row]),
                prompt=audit.askings[int(prompts.prompt[row])].text,
                seed=made.keys[row].seed,
                view=names[int(seen.view[row, number])],
                similarity=float(seen.similarity[row, number]),
                copy=bool(hit[row, number]),
                file=_shown(audit, made, row),
            )
            for row in nearest_rows
        )
        found.append(
            PictureFound(
                name=entry.name,
                caption=entry.caption,
                repeats=entry.repeats,
                views=entry.repeats * epoch if epoch else None,
                group=int(audit.groups[number]),
                verdict=said[number],
                copies=copies,
                images=images,
                interval=interval,
                limit=upper_limit(images) if images and not copies else None,
                by_kind=by_kind,
                best=float(seen.similarity[:, number].max()),
                best_base=float(before.similarity[:, number].max()) if before else None,
                nearest=nearest,
                file=audit.files.view_file(number),
            )
        )
    order = ["copied", "already in the base", "extractable", "not seen"]
    found.sort(
        key=lambda one: (
            order.index(one.verdict),
            -(one.copies / one.images if one.images else 0.0),
            -one.best,
        )
    )
    return tuple(found)


def _shown(audit: Audit, made: Generated, row: int) -> str:
    """Keep one generation beside the page; its place below the audit's folder."""
    key = made.keys[row]
    name = f"images/{digest_of([key.prompt, key.seed])[:16]}.png"
    path = audit.asked.out / name
    if not path.is_file():
        write_atomically(path, encode_png(made.pictures([row])[0]))
    return name


def _kinds(
    audit: Audit, prompts: Prompts, hit: np.ndarray, hit_base: np.ndarray | None, seen: Seen
) -> tuple[KindFound, ...]:
    """By kind of prompt, how many images copy some training picture."""
    kinds = np.array([one.kind for one in audit.askings])
    of_images = kinds[prompts.prompt]
    passing = (
        hits(seen.held_out, audit.judges.threshold, seen.similarity).any(1)
        if audit.holdout
        else None
    )
    found = []
    for kind, means in MEANINGS.items():
        rows = of_images == kind
        if not rows.any():
            continue
        copies = int(hit[rows].any(1).sum())
        found.append(
            KindFound(
                kind=kind,
                means=means,
                prompts=int((kinds == kind).sum()),
                images=int(rows.sum()),
                copies=copies,
                interval=clopper_pearson(copies, int(rows.sum())),
                base=int(hit_base[rows].any(1).sum()) if hit_base is not None else None,
                held_out=None if passing is None else int(np.asarray(passing)[rows].sum()),
            )
        )
    return tuple(found)


def _remedy_columns(audit: Audit) -> list[Column]:
    """A column for each method to try. Those that need what the audit lacks are named in the notes
    and left out.
    """
    found = []
    for remedy in audit.remedies():
        given = ", ".join(f"{name} {value}" for name, value in remedy.parameters.items())
        name = f"{remedy.method} ({given})" if given else remedy.method
        column = Column(name, audit.suite, remedy.method, dict(remedy.parameters))
        try:
            audit.studio.prepared(column)
        except UserError as error:
            if audit.asked.remedies is not None:
                raise
            note = f"{remedy.method} was not tried: {error}"
            if note not in audit.notes:
                audit.notes.append(note)
            continue
        found.append(column)
    return found


def _descriptor(judges: Judges, like: Suite, device: torch.device, asked: Asked) -> CopyDescriptor:
    weights = like.path(judges.sscd["weights"])
    return CopyDescriptor(weights, str(judges.sscd["profile"]), device)


def _clip(audit: Audit) -> OpenClip | None:
    given = audit.judges.clip
    if given is None:
        return None
    weights = given.get("weights", "")
    try:
        return OpenClip(
            given["model"],
            None if weights else audit.like.path(given["model"]),
            audit.like.path(weights) if weights else None,
            audit.device,
        )
    except UserError as error:
        audit.notes.append(f"Use was not measured: {error}")
        return None


def _described(
    judges: Judges, like: Suite, pictures: Pictures, device: torch.device, asked: Asked
) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of all views, and the similarity of each picture to each other, `[N, N]`."""
    described = pictures.described(_descriptor(judges, like, device, asked))
    return described, _by_picture(described, described, pictures, pictures)


def _by_picture(
    one: np.ndarray, other: np.ndarray, first: Pictures, second: Pictures
) -> np.ndarray:
    """The largest similarity between views of pictures, `[first, second]`."""
    near, _ = nearest_views(one, other, second.owners, len(second))
    starts = np.searchsorted(first.owners, np.arange(len(first)))
    return np.asarray(np.maximum.reduceat(near, starts, axis=0))


def _header(asked: Asked) -> TrainingHeader:
    """That of the first LoRA. Every file is read, so that what is wrong with one is said now."""
    headers = [read_lora(one.file).header for one in asked.loras]
    for file in asked.epochs:
        read_lora(file)
    return read_training_header(headers[0] if headers else {})


def _lines(file: Path | None) -> list[str]:
    return [row["prompt"] for row in read_list(file, "lines").rows] if file else []


def _clean(like: Suite) -> list[str]:
    """Clean captions of the suite, where its list is here."""
    settings = like.settings.prompts.get("clean")
    if settings is None or not like.places.is_there(settings.file):
        return []
    return [prompt.text for prompt in like.prompts("clean")]


def _notes(
    asked: Asked, pictures: Pictures, holdout: Pictures | None, header: TrainingHeader
) -> list[str]:
    found = []
    if len(pictures) < pictures.total:
        found.append(
            f"{len(pictures)} of {pictures.total} training pictures were looked for, evenly spread"
            " (--limit)."
        )
    if empty := sum(not one.captions for one in pictures.entries):
        found.append(
            f"{empty} of {len(pictures)} training pictures have no caption: the empty prompt is"
            " their own."
        )
    if holdout is None:
        found.append(
            "No held-out pictures were given, so nothing says how often a picture that was never"
            " trained on would be called copied: give --holdout FOLDER."
        )
    elif len(holdout) < FEW_HELD_OUT:
        found.append(
            f"Only {len(holdout)} held-out pictures: false alarms below one in {len(holdout)} do"
            " not show."
        )
    shown = sum(one.repeats for one in pictures.entries)
    if header.pictures not in (None, shown) and len(pictures) == pictures.total:
        found.append(
            f"The file's header says that {header.pictures} pictures an epoch were trained on (with"
            f" repeats), and the folder gives {shown}: is it the whole training data?"
        )
    if not (asked.loras or asked.base):
        found.append(
            "No base model was given, so nothing can tell your training from the base model's: give"
            " --base FOLDER."
        )
    return found


def _note_long_captions(audit: Audit, pipe: Any) -> None:
    most = pipe.tokenizer.model_max_length
    long = sum(
        len(pipe.tokenizer(caption, truncation=False).input_ids) > most
        for caption in audit.training.captions
    )
    if long:
        audit.notes.append(
            f"{long} captions are longer than the {most} tokens that the model reads; the rest of"
            " them is cut off, as `bench` does not read captions in chunks."
        )


def _not_tried(audit: Audit) -> tuple[str, ...]:
    found = ["pictures that are not square: everything was generated as a square"]
    tried = {one.kind for one in audit.askings}
    if missing := [kind for kind in MEANINGS if kind not in tried]:
        found.append(f"prompts of the kinds {', '.join(missing)}")
    if audit.asked.quick:
        found.append("remedies, attackers, and more than a few weights (--quick)")
    elif not audit.remedies():
        found.append("remedies")
    if not audit.asked.epochs:
        found.append("earlier epochs (--epochs FILE)")
    return tuple(found)


def _called(audit: Audit) -> str:
    path = audit.suite.settings.model.path
    shown = path if path.startswith(PREFIX) else Path(path).name
    if audit.asked.model is None:
        shown = f"the model of suite {audit.like.name}"
    loras = ", ".join(f"{one.file.name} at {one.strength.unet:g}" for one in audit.asked.loras)
    return visible(f"{shown} with {loras}" if loras else shown)


def _what(audit: Audit) -> str:
    return visible(audit.asked.data.name or str(audit.asked.data))


def _told(header: TrainingHeader) -> dict[str, Any]:
    return {
        "base": header.base,
        "rank": header.rank,
        "epoch": header.epoch,
        "epochs": header.epochs,
        "pictures": header.pictures,
        "folders": {name: list(counts) for name, counts in header.folders.items()},
        "tags": dict(sorted(header.tags.items(), key=lambda item: (-item[1], item[0]))),
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
        "images_of_a_caption": audit.asked.images_each,
        "trigger": audit.trigger,
        "layout": audit.training.layout,
        "seed": audit.asked.seed,
        "suite": f"{NAME}.toml",
        "suite_fingerprint": audit.suite.fingerprint,
        "quick": audit.asked.quick,
    }
