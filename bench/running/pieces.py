"""Attacks on known pictures in pieces, for other processes: a worker or a shard finds out what
comes of some pictures, and the run finds all of it in the store.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.contracts.picture_attack import PictureAttack
from bench.running.experiment import Experiment

PICTURES = 4  # memorized ones, and as many controls, of one piece


@dataclass(frozen=True)
class Piece:
    """Part `part` (from 0) of `of` of the pictures that one attack works on in one generation."""

    attack: str
    generation: int
    part: int
    of: int


def pieces_of(experiment: Experiment) -> list[Piece]:
    """The attacks of a run that know pictures, in pieces; a piece of one attack may use what the
    same piece of an attack before it found.
    """
    found = []
    for name, attack in experiment.attacks.items():
        if isinstance(attack, PictureAttack):
            memorized, _ = attack.attacked(experiment.suite)
            of = -(-len(memorized) // PICTURES)
            found += [
                Piece(name, generation, part, of)
                for generation in range(experiment.seeds)
                for part in range(of)
            ]
    return found
