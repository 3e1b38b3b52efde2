"""From pictures to populations: the searches of the attack `dori`, one for each picture and
restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch

from bench.base.digests import path_digest
from bench.contracts.held import Arrays, Held, Known
from bench.studies.locality.kept import Kept, name_of
from bench.studies.locality.populations import Member, Population, Subjects


class SearchAttack(Protocol):
    """What the attack offers: one search of each picture, with `embeddings` and the loss on a
    `bank` at every mark, and what such a search evaluates.
    """

    def one_search(
        self, held: Held, targets: list[Known], clean: list[str], restart: int
    ) -> list[Arrays]: ...

    def evaluations(self) -> int: ...


def search(
    kept: Kept,
    attack: SearchAttack,
    held: Held,
    jobs: Iterable[tuple[Known, int]],
    clean: list[str],
    what: str,
    pruned: str = "",
) -> list[Member]:
    """The end of one search for each picture and restart. `clean` holds captions that a search may
    begin at; `pruned` names what the model lacks meanwhile.
    """
    wanted = list(jobs)

    def make(place: int) -> Arrays:
        known, restart = wanted[place]
        found = attack.one_search(held, [known], clean, restart)[0]
        rows, bank = found["embeddings"], found["bank"]
        return {"embeddings": rows[[0, -1]], "bank": bank[[0, -1]]}

    names = [_name(known, restart, pruned) for known, restart in wanted]
    return [
        Member(
            known.prompt,
            arrays["embeddings"][1],
            arrays["embeddings"][0],
            restart=restart,
            bank=(float(arrays["bank"][0]), float(arrays["bank"][1])),
        )
        for (known, restart), arrays in zip(wanted, kept.found(what, names, make), strict=True)
    ]


def _name(known: Known, restart: int, pruned: str) -> str:
    prompt, picture = known.prompt, path_digest(known.picture)
    return name_of(prompt.id, prompt.text, picture, restart, known.root, pruned)


def populations(
    kept: Kept, attack: Any, held: Held, subjects: Subjects, count: int, clean: list[str]
) -> dict[str, Population]:
    """All five populations by name, with `count` members each (fewer where there are fewer
    pictures or captions).
    """

    def ends(name: str, jobs: list[tuple[Known, int]]) -> tuple[Member, ...]:
        return tuple(search(kept, attack, held, jobs, clean, f"search {name}"))

    one, control = subjects.picture, subjects.control
    same = ends("same", [(one, restart) for restart in range(count)])
    different = ends("different", [(other, 0) for other in subjects.others])
    never = ends("control", [(control, restart) for restart in range(count)])
    with torch.no_grad():
        encoded = held.denoiser.encode([prompt.text for prompt in subjects.clean])
    captions = encoded.float().cpu().numpy().astype(np.float32)
    noise = [
        Member(same[0].of, same[0].embedding, same[0].start, noise=number)
        for number in range(count)
    ]
    return {
        "same": Population("same", same, one),
        "different": Population("different", different, one),
        "clean": Population(
            "clean",
            tuple(
                Member(prompt, row) for prompt, row in zip(subjects.clean, captions, strict=True)
            ),
            one,
        ),
        "control": Population("control", never, control),
        "noise": Population("noise", tuple(noise), one),
    }
