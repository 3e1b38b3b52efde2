"""The way in to all boards: `index.html`, with what each asks, and what is to be learned first.

Every sentence is a board's own: the cards of a board of methods, the best detector. Nothing is
compared between boards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.leaderboard.board import Board, Row
from bench.leaderboard.detectors import CLEAN, DetectorBoard, DetectorRow
from bench.leaderboard.experiments import ExperimentBoard
from bench.leaderboard.glance import ONE_MODEL, glance, only_none
from bench.leaderboard.known_pictures import COLUMNS, ENDING, KnownAttack, known_attacks
from bench.leaderboard.page import answer_shown
from bench.leaderboard.templating import template
from bench.records.parts import REFERENCE

# The attacks on known pictures that are worth a line here, and what their attacker does.
EMBEDDINGS = {
    "dori": "holds the weights and searches an embedding for a picture it knows",
    "dori_inputs": "hands such an embedding to the served model",
}
METHODS, DETECTORS, EXPERIMENTS = "Mitigations", "Detectors", "Experiments"
LEADS = {
    METHODS: (
        "Every method samples the same prompts with the same seeds from a model that has memorized"
        " some of its training pictures."
    ),
    DETECTORS: "Which scores tell, before a picture is delivered, whether it is a copy.",
    EXPERIMENTS: "Models trained to find something out; their numbers are no rows of a board.",
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


def entries(
    boards: Sequence[Board],
    detectors: Sequence[DetectorBoard],
    experiments: Sequence[ExperimentBoard],
    pictures: Sequence[str],
) -> list[Entry]:
    """What stands in the index, largest board first. `pictures` are the names of pages that have a
    picture of their board.
    """
    ordered = sorted(boards, key=lambda board: (-len(board.rows), board.suite))
    return [
        *(_of_methods(board, pictures) for board in ordered),
        *(_of_detectors(board) for board in detectors),
        *(_of_experiments(board) for board in experiments),
    ]


def _of_methods(board: Board, pictures: Sequence[str]) -> Entry:
    records = [row.record for row in board.rows]
    methods = len({record.method for record in records if record.method != REFERENCE})
    prompts = max((len(record.per_prompt.get("sscd", {})) for record in records), default=0)
    about = (
        f"{methods} method{'' if methods == 1 else 's'} beside none" if methods else "none alone"
    )
    about += f", {prompts} memorized prompts" if prompts else ""
    found = []
    for card in glance(board):
        for answer in card.answers[:1]:
            shown = answer_shown(answer)
            figure = f"{shown['name']} {shown['value']} {shown['interval']}".strip()
            figure += f" (none: {shown['none']})" if shown["none"] else ""
            figure += f"; {shown['beside']}" if card.name == "free" and shown["beside"] else ""
            said = "; ".join(filter(None, (shown["verdict"], shown["harm"])))
            said = ". ".join(filter(None, (said, *card.told[:1])))  # what speaks against it
            found.append(Finding(card.question, answer.row.label, figure, said))
        if not card.answers:
            said = " ".join(each for each in (*card.nothing, *card.told) if each != ONE_MODEL)
            found.append(Finding(card.question, "", "", said))
    if alone := only_none(board):
        found.append(Finding("What was found?", "", "", alone))
    found += [_of_attack(attack) for attack in known_attacks(board) if attack.item in EMBEDDINGS]
    picture = board.suite if board.suite in pictures else ""
    return Entry(METHODS, board.suite, board.suite, about, tuple(found), picture)


def _of_attack(attack: KnownAttack) -> Finding:
    """Of whom an attacker who knows the picture gets least."""
    excess = [name for name, *_ in COLUMNS].index("excess")
    none = [one for one in attack.rows if one[1].record.method == REFERENCE]
    others = [one for one in attack.rows if one[1].record.method != REFERENCE]
    least = min(others, key=lambda one: _value(one[1], attack.item), default=None)
    question = f"Who gives least to an attacker who {EMBEDDINGS[attack.item]}?"
    if least is None:
        return Finding(question, "", "", "No method was attacked so yet.")
    if none and _value(least[1], attack.item) >= _value(none[0][1], attack.item):
        return Finding(question, "", "", f"Nobody: all as much as none, {none[0][2][excess]}.")
    figure = f"copies beyond controls {least[2][excess]}"
    figure += f" (none: {none[0][2][excess]})" if none else ""
    return Finding(question, least[1].label, figure, "")


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
    about = f"{len(rows)} detectors beside {len(floors)} scores of the caption alone"
    return Entry(DETECTORS, board.page, board.suite, about, tuple(found))


def _of_experiments(board: ExperimentBoard) -> Entry:
    """What was asked, and each record's own answer where it has one."""
    first = board.records[0]
    found = [
        Finding(record.label, "", "", record.claim and f"The paper: {record.claim}")
        for record in board.records
    ]
    about = first.about[0] if first.about else ""
    return Entry(EXPERIMENTS, board.page, f"{board.title} ({board.data})", about, tuple(found))


def _area(row: DetectorRow, kind: str) -> float:
    area = row.area(kind)
    return area.value if area else 0.0


def html(found: Sequence[Entry], published: bool) -> str:
    """The page. `published`: whether a page of figures from papers is there."""
    content: str = template("index.html").render(
        kinds=[
            (kind, LEADS[kind], [entry for entry in found if entry.kind == kind])
            for kind in dict.fromkeys(entry.kind for entry in found)
        ],
        published=published,
    )
    return content + "\n"
