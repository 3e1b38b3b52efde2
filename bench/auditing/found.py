"""What is said of each training picture and of each kind of prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.auditing.compare import Seen
from bench.auditing.prompts import MEANINGS, Size
from bench.auditing.ready import Audit
from bench.auditing.result import KindFound, Near, PictureFound
from bench.auditing.sampling import Generated
from bench.auditing.verdicts import Assigned, Verdict, ease, hits_among, upper_limit
from bench.auditing.work import keep_image
from bench.statistics.intervals import clopper_pearson

SHOWN = 3  # nearest images of a picture that are shown


def pictures_found(
    audit: Audit,
    made: Generated,
    seen: Seen,
    prompts: Assigned,
    hit: np.ndarray,
    before: Seen | None,
    said: Sequence[Verdict],
) -> tuple[PictureFound, ...]:
    """What is said of each picture, the nearest first."""
    names = audit.training.view_names
    kinds = np.array([one.kind for one in audit.askings])[prompts.prompt]
    epoch = audit.header.epoch or audit.header.epochs
    found = []
    for number, entry in enumerate(audit.training.entries):
        copies, images, interval = ease(hit, prompts, number)
        mine = np.array([number in one.own or not one.own for one in audit.askings])
        by_kind = {}
        for kind in dict.fromkeys(kinds.tolist()):
            rows = (kinds == kind) & mine[prompts.prompt]
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
                size=_sides(audit.askings[int(prompts.prompt[row])].size),
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
                of_all=int(hit[:, number].sum()),
                best=float(seen.similarity[:, number].max()),
                best_base=float(before.similarity[:, number].max()) if before else None,
                similar=said[number] == "not seen"
                and audit.threshold.similar(float(seen.similarity[:, number].max())),
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


def _sides(size: Size) -> str:
    return f"{size[1]} x {size[0]}" if size else ""


def _shown(audit: Audit, made: Generated, row: int) -> str:
    """Keep one generation beside the page; its place below the audit's folder."""
    return keep_image(audit.asked.out, made.pictures([row])[0])


def kinds_found(
    audit: Audit, prompts: Assigned, hit: np.ndarray, hit_base: np.ndarray | None, seen: Seen
) -> tuple[KindFound, ...]:
    """By kind of prompt, how many images copy some training picture."""
    kinds = np.array([one.kind for one in audit.askings])
    of_images = kinds[prompts.prompt]
    passing = hits_among(seen.held_out, audit.judges.threshold).any(1) if audit.holdout else None
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
