"""The work on one piece of an attack on known pictures, in whatever process has it to do."""

from __future__ import annotations

from collections.abc import Sequence

from bench.base.errors import Unmeasurable
from bench.base.progress import Report, silent
from bench.contracts.method import State
from bench.contracts.picture_attack import PictureAttack
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.findings import NotThere
from bench.running.images import Images
from bench.running.judging import target_of
from bench.running.pieces import Piece


def find(
    experiment: Experiment,
    engine: Engine,
    images: Images,
    state: State,
    piece: Piece,
    report: Report = silent,
    look: bool = False,
) -> None:
    """Find out what comes of the pictures of a piece, and store it. With `look`, nothing is found
    out: raises `NotThere` where something is not stored yet.
    """
    attack = experiment.attacks[piece.attack]
    if not isinstance(attack, PictureAttack):
        raise ValueError(f"{piece.attack} knows no pictures")
    target = target_of(
        experiment, engine, images, attack, state, piece.generation, report=report, look=look
    )
    with engine.precision():
        try:
            attack.find(target, piece.part, piece.of)
        except Unmeasurable:
            return  # the run says so


def lacking(
    experiment: Experiment, engine: Engine, images: Images, state: State, pieces: Sequence[Piece]
) -> list[Piece]:
    """Those pieces of which the store does not hold everything."""
    found = []
    for piece in pieces:
        try:
            find(experiment, engine, images, state, piece, look=True)
        except NotThere:
            found.append(piece)
    return found
