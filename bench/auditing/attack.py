"""What the attacker finds who holds the published file and what it was made from."""

from __future__ import annotations

import numpy as np

from bench.auditing.ready import Audit
from bench.auditing.result import AttackFound
from bench.auditing.suites import ATTACK, row_id
from bench.records.record import RunRecord

EXTRACTED, OWN, PLAIN = (f"{ATTACK}_{kind}" for kind in ("extracted", "own", "plain"))
SCORES = (EXTRACTED, OWN, PLAIN, f"{ATTACK}_excess")


def attack_found(audit: Audit) -> tuple[AttackFound | None, np.ndarray | None]:
    """The attack's scores with a sentence, and which training pictures it names that as many
    ordinary images do not, bool `[1, N]`; None where it was not tried.
    """
    column = audit.attack
    if column is None:
        return None, None
    record = audit.studio.record(column)
    named, plain = (record.per_prompt.get(name, {}) for name in (EXTRACTED, PLAIN))
    # What as many ordinary images name as well was not got by the attack.
    table = np.array(
        [
            [
                named.get(row_id(name), 0.0) > 0 and not plain.get(row_id(name), 0.0)
                for name in _names(audit)
            ]
        ]
    )
    scores = {name: _value(record, name) for name in SCORES}
    return AttackFound(ATTACK, _words(scores, len(named)), scores), table


def _names(audit: Audit) -> list[str]:
    return [entry.name for entry in audit.training.entries]


def _value(record: RunRecord, name: str) -> float | None:
    score = record.attacks.get(name)
    return None if score is None else score.value


def _words(scores: dict[str, float | None], pictures: int) -> str:
    extracted, own, plain = (scores[name] for name in (EXTRACTED, OWN, PLAIN))
    if extracted is None or own is None or plain is None:
        return "The attack gave no number here."
    return (
        "Somebody who holds the file and what it was made from, and knows the captions, guides the"
        f" model away from its base and names a copy of {extracted * pictures:.0f} of {pictures}"
        f" pictures. With as many images at the same scale but without the base these are"
        f" {own * pictures:.0f}, and with as many ordinary images {plain * pictures:.0f}."
    )
