"""The way in to all boards: `index.html`, with what each asks, and what is to be learned first.

Every sentence is a board's own: the cards of a board of methods, the best detector. Nothing is
compared between boards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.leaderboard.board import Board, Row
from bench.leaderboard.cells import difference_cell
from bench.leaderboard.detectors import CLEAN, DetectorBoard, DetectorRow
from bench.leaderboard.experiments import ExperimentBoard
from bench.leaderboard.glance import CLEAN as CLIP_CLEAN
from bench.leaderboard.glance import (
    EXTRACTED,
    ONE_MODEL,
    Answer,
    Card,
    glance,
    only_none,
    strongest_in_words,
)
from bench.leaderboard.known_pictures import COLUMNS, ENDING, KnownAttack, excesses, known_attacks
from bench.leaderboard.measured import all_embedded, measured, model_of
from bench.leaderboard.page import answer_shown
from bench.leaderboard.templating import plain, template
from bench.records.parts import REFERENCE

# The attacks on known pictures that are worth a line here: what their attacker does, and the threat
# model of the attacks that they are held against, all for whoever holds the weights.
EMBEDDINGS = {
    "dori": ("holds the weights and searches an embedding for a picture it knows", ""),
    "dori_inputs": ("hands such an embedding to the served model", "inputs"),
}
METHODS, DETECTORS, EXPERIMENTS = "Mitigations", "Detectors", "Experiments"
LEADS = {
    METHODS: (
        "Every method samples the same prompts with the same seeds from a model that has memorized"
        f" some of its training pictures. {ONE_MODEL}"
    ),
    DETECTORS: "Which scores tell, before a picture is delivered, whether it is a copy.",
    EXPERIMENTS: "Models trained to find something out; their numbers are no rows of a board.",
}
# What words of the findings mean, said where one of them is used.
TERMS = {
    METHODS: (
        ("Δ", "the difference to none, paired by prompt"),
        ("CLIP clean", "how well pictures of clean prompts still show what is asked for"),
        ("NFE", "evaluations of the model for an image of clean prompts"),
        ("fit NFE", "evaluations of the model to fit the method, once"),
        ("time ×", "seconds for an image of clean prompts against none"),
        (
            "controls",
            "pictures that the model was never shown, attacked with the same effort: what comes of"
            " an attack where there is no memory",
        ),
    ),
    DETECTORS: (
        ("AUC", "the chance that a memorized prompt scores above one that is not; .5 is chance"),
        ("pristine", "captions of the same style as memorized ones that were never trained on"),
    ),
}
FORMATS = {
    METHODS: "Markdown, CSV, JSON and LaTeX",
    DETECTORS: "Markdown and CSV",
    EXPERIMENTS: "Markdown and CSV",
}


@dataclass(frozen=True)
class Finding:
    """One answer of a board: the question, who answers it, the figure, and how sure that is. Of a
    question that nobody answers, only the question and the sentence that says so.
    """

    question: str
    who: str
    figure: str
    sure: str


@dataclass(frozen=True)
class Entry:
    """A page of the index: its name without ending, what it is about, and what it finds."""

    kind: str
    page: str
    title: str
    about: str
    findings: tuple[Finding, ...]
    picture: str = ""
    description: str = ""  # what its suite says of itself


def entries(
    boards: Sequence[Board],
    detectors: Sequence[DetectorBoard],
    experiments: Sequence[ExperimentBoard],
    pictures: Sequence[str],
) -> list[Entry]:
    """What stands in the index, first the board whose rows have the most images. `pictures` are the
    names of pages that have a picture of their board.
    """
    ordered = sorted(boards, key=lambda board: (-_images_a_row(board), board.suite))
    return [
        *(_of_methods(board, boards, pictures) for board in ordered),
        *(_of_detectors(board) for board in detectors),
        *(_of_experiments(board) for board in experiments),
    ]


def _images_a_row(board: Board) -> int:
    return max((sum(row.record.images.values()) for row in board.rows), default=0)


def lead(boards: Sequence[Board], detectors: Sequence[DetectorBoard]) -> str:
    """Which model the boards are of, where all are of the embedded one or some are."""
    versions = {board.suite: board.rows[0].record.suite_version for board in boards if board.rows}
    versions |= {
        board.suite: board.rows[0].record.suite_version for board in detectors if board.rows
    }
    found = {suite: measured(suite, version) for suite, version in versions.items()}
    if side := all_embedded(found.values()):
        return f"All boards measure one model. {model_of(side)}"
    own = [name for name, each in found.items() if each and each.embedded]
    if not own:
        return ""
    side = all_embedded(found[name] for name in own)
    return f"{', '.join(own)} measure the embedded model. {model_of(side)}"


def _of_methods(board: Board, boards: Sequence[Board], pictures: Sequence[str]) -> Entry:
    found = [_of_card(card, board, boards) for card in glance(board)]
    if alone := only_none(board):
        found.append(Finding("What was found?", "", "", alone))
    found += [_of_attack(attack) for attack in known_attacks(board) if attack.item in EMBEDDINGS]
    picture = board.suite if board.suite in pictures else ""
    suite = measured(board.suite, board.rows[0].record.suite_version) if board.rows else None
    return Entry(
        METHODS,
        board.suite,
        board.suite,
        _counts(board),
        tuple(found),
        picture,
        suite.description if suite else "",
    )


def _counts(board: Board) -> str:
    """Settings and methods, prompts, and the attackers that were run: what tells one board from
    another.
    """
    records = [row.record for row in board.rows]
    settings = sum(record.method != REFERENCE for record in records)
    prompts = max((len(record.per_prompt.get("sscd", {})) for record in records), default=0)
    said = [_settings(settings, len({r.method for r in records} - {REFERENCE}), "method")]
    said = [f"{said[0]} beside none" if settings else "none alone"]
    said += [f"{prompts} memorized prompts"] if prompts else []
    attackers = [
        *(["extraction"] if any(row.score(EXTRACTED) for row in board.rows) else []),
        *(plain(attack.heading) for attack in known_attacks(board)),
    ]
    return ", ".join(said) + (f"; attackers: {', '.join(attackers)}" if attackers else "")


def _settings(settings: int, names: int, noun: str) -> str:
    """`10 settings of 9 methods`, or `10 methods` where each has one."""
    many = f"{names} {noun}{'' if names == 1 else 's'}"
    return many if settings == names else f"{settings} settings of {many}"


def _of_card(card: Card, board: Board, boards: Sequence[Board]) -> Finding:
    """A card's first answer; without one, the sentences that say so."""
    if not card.answers:
        said = " ".join(each for each in (*card.nothing, *card.told) if each != ONE_MODEL)
        return Finding(card.question, "", "", said)
    answer = card.answers[0]
    shown = answer_shown(answer)
    figure = f"{shown['name']} {shown['value']} {shown['interval']}".strip()
    figure += f" (none: {shown['none']})" if shown["none"] else ""
    figure += f"; {shown['beside']}" if shown["beside"] else ""
    said = "; ".join(filter(None, (shown["verdict"], shown["harm"]))) + "."
    told = [*card.told[:1]]  # what speaks against it
    if card.name == "weights":
        told += filter(None, [_attacked_elsewhere(answer, board, boards)])
    who = answer.row.label
    if shown["none_clearly"]:
        who, figure = "None clearly", f"first in order: {plain(who)}, {figure}"
    elif card.name == "weights":
        figure = f"{shown['lead']}: {figure}"
    return Finding(card.question, who, figure, " ".join((said, *told)))


def _attacked_elsewhere(answer: Answer, board: Board, boards: Sequence[Board]) -> str:
    """What the strongest attacker gets of the same row on the board where most attackers met it, if
    that is another one.
    """
    row = answer.row
    same = [
        (other, each)
        for other in boards
        for each in other.rows
        if (each.record.method, each.record.method_version, each.record.parameters)
        == (row.record.method, row.record.method_version, row.record.parameters)
    ]
    where, most = max(same, key=lambda one: (len(excesses(one[1])), one[0] is board))
    if where is board or len(excesses(most)) <= len(excesses(row)):
        return ""
    none = next((each for each in where.rows if each.record.method == REFERENCE), None)
    return f"More of them on {where.suite}. {strongest_in_words(most, none, here='there')}"


def _of_attack(attack: KnownAttack) -> Finding:
    """Of whom an attacker who knows the picture gets least, and what the strongest attacker gets of
    the same row.
    """
    excess = [name for name, *_ in COLUMNS].index("excess")
    none = [one for one in attack.rows if one[1].record.method == REFERENCE]
    others = [one for one in attack.rows if one[1].record.method != REFERENCE]
    least = min(others, key=lambda one: _value(one[1], attack.item), default=None)
    what, threat = EMBEDDINGS[attack.item]
    question = f"Who gives least to an attacker who {what}?"
    if least is None:
        return Finding(question, "", "", "No method was attacked so yet.")
    if none and _value(least[1], attack.item) >= _value(none[0][1], attack.item):
        return Finding(question, "", "", f"Nobody: all as much as none, {none[0][2][excess]}.")
    row, reference = least[1], none[0][1] if none else None
    figure = f"copies beyond controls {least[2][excess]}"
    figure += f" (none: {none[0][2][excess]})" if none else ""
    change = difference_cell(row.difference(CLIP_CLEAN), CLIP_CLEAN.decimals)
    figure += f"; {CLIP_CLEAN.plain} Δ {change}" if change else ""
    return Finding(
        question, row.label, figure, strongest_in_words(row, reference, threat, attack.item)
    )


def _value(row: Row, item: str) -> float:
    return row.record.attacks[item + ENDING].value or 0.0


def _of_detectors(board: DetectorBoard) -> Entry:
    rows = [row for row in board.rows if not row.is_floor]
    floors = [row for row in board.rows if row.is_floor]
    found = []
    for question, among in (
        (f"Which detector is best against {board.hardest} prompts?", rows),
        (f"What does a score of the caption alone reach against {CLEAN} prompts?", floors),
    ):
        kind = board.hardest if among is rows else CLEAN
        best = max(among, key=lambda row: _area(row, kind), default=None)
        area = best.area(kind) if best else None
        if best and area:
            found.append(Finding(question, best.label, f"AUC {area.text}", ""))
    names = len({row.record.detector for row in rows})
    about = (
        f"{_settings(len(rows), names, 'detector')} beside {len(floors)} scores of the caption"
        " alone"
    )
    return Entry(DETECTORS, board.page, board.suite, about, tuple(found))


def _of_experiments(board: ExperimentBoard) -> Entry:
    """What was asked, what the paper claims, and what each record found."""
    first = board.records[0]
    found = [
        Finding(
            record.label, "", " ".join(record.found), record.claim and f"The paper: {record.claim}"
        )
        for record in board.records
    ]
    about = first.about[0] if first.about else ""
    return Entry(EXPERIMENTS, board.page, f"{board.title} ({board.data})", about, tuple(found))


def _area(row: DetectorRow, kind: str) -> float:
    area = row.area(kind)
    return area.value if area else 0.0


def html(found: Sequence[Entry], published: bool, model: str = "", documents: str = "") -> str:
    """The page. `published`: whether a page of figures from papers is there; `model`: what all
    boards measure; `documents`: where the documents lie, empty where they do not lie beside it.
    """
    kinds = []
    for kind in dict.fromkeys(entry.kind for entry in found):
        of_kind = [entry for entry in found if entry.kind == kind]
        words = " ".join(
            f"{finding.question} {finding.figure} {finding.sure}"
            for entry in of_kind
            for finding in entry.findings
        )
        terms = [(term, means) for term, means in TERMS.get(kind, ()) if term in words]
        kinds.append((kind, LEADS[kind], FORMATS[kind], terms, of_kind))
    content: str = template("index.html").render(
        kinds=kinds, published=published, model=model, documents=documents
    )
    return content + "\n"
