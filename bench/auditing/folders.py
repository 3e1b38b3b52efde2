"""`bench audit --generations`: a folder of generations against a folder of training pictures, for
pictures that were made elsewhere, by another program or behind an API. No model is loaded.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from bench.auditing.asked import OTHERS, Asked
from bench.auditing.compare import Comparison, descriptor_of, refuse_held_out
from bench.auditing.found import SHOWN
from bench.auditing.pictures import groups, notes_on, read_both
from bench.auditing.result import Found, Near, PictureFound
from bench.auditing.suites import Files, Judges, judges_of
from bench.auditing.threshold import stated
from bench.auditing.verdicts import excess, hits, hits_among, share_of, upper_limit, verdicts
from bench.auditing.work import absolute, claim, keep_image, refuse_out
from bench.base.errors import UserError, is_whole, visible
from bench.base.pictures import has_picture_suffix, read_picture
from bench.base.progress import Report, silent
from bench.captioned.views import Training
from bench.records.environment import environment
from bench.statistics.intervals import clopper_pearson
from bench.suite.load import load_suite

BATCH = 64  # pictures described between two reports


def compare_folders(
    asked: Asked, generations: Path, device: torch.device, report: Report = silent
) -> Found:
    """Which training pictures the generations copy, and which held-out pictures they would pass
    for.

    Raises `UserError` for a folder without pictures, and for the first that cannot be read.
    """
    began = time.perf_counter()
    refuse_out(asked, generations)
    for folder in (asked.data, asked.holdout, asked.out):
        if folder and absolute(folder).is_relative_to(absolute(generations)):
            raise UserError(
                f"the folder of generations {generations} holds {folder}, whose pictures would"
                " count as generations: name a folder of generations alone"
            )
    # Pictures of anywhere are no business of the embedded model's small judge.
    like = load_suite(asked.like or OTHERS)
    judges: Judges = judges_of(like, asked)
    training = Training(like.settings.model.side, asked.flips, asked.random_crops)
    descriptor = descriptor_of(judges, like, device)
    pictures, holdout = read_both(asked, training, descriptor, report)
    comparison = Comparison(descriptor, None, pictures, holdout)  # likeness is not asked for
    refuse_held_out(comparison, training, judges.threshold, report)
    files = _generated(generations)
    described = []
    for start in range(0, len(files), BATCH):
        report("describe generations", start, len(files))
        batch = [read_picture(file) for file in files[start : start + BATCH]]
        described.append(comparison.descriptor(batch))
    report("describe generations", len(files), len(files))
    seen = comparison.seen(np.concatenate(described))
    hit = hits(seen.similarity, judges.threshold, seen.held_out)
    held = np.asarray(hits_among(seen.held_out, judges.threshold).any(0))
    said = verdicts(hit, None)
    threshold = stated(asked, judges.threshold, judges.profile, like.name, of_model=False)
    back = np.asarray(hit.any(0))
    of_group = groups(comparison.among_training(), judges.threshold)
    asked_files = Files(asked, like, judges, pictures, holdout, [], device.type != "cpu")
    claim(asked.out)
    asked_files.pictures("training", pictures)
    names = pictures.view_names
    found = []
    for number, entry in enumerate(pictures.entries):
        copies = int(hit[:, number].sum())
        rows = np.argsort(-seen.similarity[:, number], kind="stable")[:SHOWN].tolist()
        found.append(
            PictureFound(
                name=entry.name,
                caption=entry.caption,
                repeats=entry.repeats,
                views=None,
                group=int(of_group[number]),
                verdict=said[number],
                copies=copies,
                images=len(files),
                interval=clopper_pearson(copies, len(files)),
                limit=None if copies else upper_limit(len(files)),
                by_kind={},
                of_all=copies,
                best=float(seen.similarity[:, number].max()),
                best_base=None,
                similar=not copies and threshold.similar(float(seen.similarity[:, number].max())),
                nearest=tuple(
                    Near(
                        kind="file",
                        prompt=str(files[row].relative_to(generations)),
                        seed=None,
                        view=names[int(seen.view[row, number])],
                        similarity=float(seen.similarity[row, number]),
                        copy=bool(hit[row, number]),
                        file=keep_image(asked.out, read_picture(files[row])),
                    )
                    for row in rows
                ),
                file=asked_files.view_file(number),
            )
        )
    found.sort(key=lambda one: (one.verdict != "copied", -one.copies, -one.best))
    return Found(
        model=visible(f"the generations in {generations.name}"),
        what=visible(asked.data.name),
        threshold=judges.threshold,
        copy_threshold=threshold,
        profile=judges.profile,
        images=len(files),
        yours=share_of(back, of_group),
        base=None,
        held_out=share_of(held, np.arange(len(held))) if holdout else None,
        chance=None,
        already=0,
        by_caption=0,
        excess=excess(back, of_group, held) if holdout else None,
        p=None,
        correlation=None,
        pictures=tuple(found),
        kinds=(),
        rows=(),
        attack=None,
        header={"folders": {}, "tags": {}},
        notes=tuple(notes_on(pictures, holdout)),
        not_tried=(
            "anything but these generations: which prompts give a picture back, and how often, is"
            " not known",
        ),
        total=pictures.total,
        settings={"like": like.name, "layout": pictures.layout, "generations": len(files)},
        of_model=False,
        environment=environment(device),
        seconds=round(time.perf_counter() - began, 1),
    )


def _generated(folder: Path) -> list[Path]:
    """The picture files below a folder. Raises `UserError` where there is none."""
    if not folder.is_dir():
        raise UserError(f"folder of generations {folder} is not there")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if has_picture_suffix(path) and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise UserError(f"folder of generations {folder} holds no picture")
    for path in found:
        if not is_whole(str(path.relative_to(folder))):
            raise UserError(
                f"generation {visible(str(path))}: the name is not valid Unicode, which no page can"
                " hold; rename it"
            )
    return found
