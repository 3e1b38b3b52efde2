"""What a reader asks of a board first, answered from its numbers by rules that stand beside each
answer.

Pure functions of a board. No answer mixes scores into one number: each sorts by one column and says
which rows were asked. A question whose scores were not measured has no card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from bench.leaderboard.board import Board, Row, order_column
from bench.leaderboard.cells import cell, number
from bench.leaderboard.columns import BY_NAME, Column
from bench.leaderboard.family import LEVEL
from bench.leaderboard.known_pictures import excesses, heading_of, strongest
from bench.leaderboard.templating import plain
from bench.records.parts import REFERENCE
from bench.records.record import Score

# the change of clean CLIP up to which a method counts as keeping what clean prompts give
KEPT = 0.02
CLEAN, EXTRACTED, FIT, FIT_SECONDS = (
    BY_NAME[name] for name in ("clip_score_clean", "clique_extracted", "fit_nfe", "fit_seconds")
)
COPIES, ANY_COPY = BY_NAME["copies"], BY_NAME["any_copy"]
# of clean prompts, and of memorized ones
NFE, TIME = ((BY_NAME[f"{name}_clean"], BY_NAME[name]) for name in ("nfe_per_image", "time_ratio"))

SEARCH = "dori"  # the attack by which embeddings are searched
OTHER_WORDS, SAME_WORDS = "paraphrase_extracted", "paraphrase_plain"
# What the rows that answer a card cost, beside none: heading and the column of each.
COSTS = (
    ("time ×, clean", TIME[0]),
    ("time ×, memorized", TIME[1]),
    ("evaluations an image, clean", NFE[0]),
    ("evaluations an image, memorized", NFE[1]),
    ("evaluations to fit", FIT),
)
ONE_MODEL = "One model and one list of prompts: another model may order the methods otherwise."
COST = "What does it cost, and which costs nothing at inference?"
NAME = 60  # letters of a row's name in a sentence
NAMED = 4  # rows that a sentence names

CLEARLY_BETTER = "clearly better than none"
NOT_CLEARLY_BETTER = "not clearly better than none (the interval of Δ contains 0)"
NOT_IN_THE_FAMILY = (
    "not clearly different from none once all comparisons of this board are counted (Holm)"
)
CLEARLY_WORSE = "clearly worse than none"
NO_INTERVAL = "whether that is better than none is open: the difference has no interval"
NO_REFERENCE = "there is no row of none to compare with"


@dataclass(frozen=True)
class Answer:
    """One method that answers a card: the number that decides, and how sure it is that it differs
    from `none`.
    """

    lead: str  # which of the card's answers this is
    row: Row
    column: Column
    verdict: str
    beside: tuple[Column, ...] = ()  # what else to show of it
    others: tuple[Row, ...] = ()  # that come after it under the same rule


@dataclass(frozen=True)
class Card:
    """A question, its answers, the sentences for questions that no row answers, and the rule."""

    name: str
    question: str
    answers: tuple[Answer, ...]
    nothing: tuple[str, ...]
    rule: str
    told: tuple[str, ...] = ()  # sentences that belong to the answer
    costs: tuple[tuple[Row, tuple[str, ...]], ...] = ()  # cells under `COSTS`, a line a row


def glance(board: Board) -> list[Card]:
    """The cards of a board, in the order of the page; none for a board without rows."""
    rows = [row for row in board.rows if row.record.method != REFERENCE]
    reference = next((row for row in board.rows if row.record.method == REFERENCE), None)
    by = order_column(board)
    asked = [
        card
        for card in (
            _against_api(rows, by),
            _against_weights(rows, reference, by),
            _free(rows, reference, by),
            _keeps(rows, by),
        )
        if card
    ]
    cards = {
        card.name: replace(card, costs=_costs_of_the_named(asked, reference))
        if card.name == "free"
        else card
        for card in asked
    } | {card.name: card for card in _sure(board, rows, by)}
    return [cards[name] for name in ("api", "weights", "free", "sure", "keeps") if name in cards]


def only_none(board: Board) -> str:
    """What a board says on which no method stands beside `none`; empty for others."""
    if not board.rows or any(row.record.method != REFERENCE for row in board.rows):
        return ""
    by, row = order_column(board), board.rows[0]
    found = [
        f"{column.plain} {cell(score, column.decimals)}"
        for column in (by, EXTRACTED, CLEAN)
        if (score := row.score(column)) and score.value is not None
    ]
    said = f" This is what there is to mitigate: {'; '.join(found)}." if found else ""
    return f"No method has been measured on this suite yet.{said}"


def verdict(row: Row, column: Column) -> str:
    """Whether the paired difference to `none` has an interval on the better side of 0, and a
    p-value that holds in the whole board.
    """
    difference = row.difference(column)
    if difference is None:
        return NO_REFERENCE if row.reference is None else NO_INTERVAL
    _, low, high = difference
    if low is None or high is None:
        return NO_INTERVAL
    if low <= 0 <= high:
        return NOT_CLEARLY_BETTER
    if row.adjusted.get(column.name, 0.0) > LEVEL:
        return NOT_IN_THE_FAMILY
    return CLEARLY_BETTER if (low > 0) == bool(column.higher_is_better) else CLEARLY_WORSE


def copies_others(row: Row) -> bool:
    """Whether copies of the prompts' own pictures became clearly fewer and copies of any training
    picture did not: generations that copy another picture instead.
    """
    own, others = row.difference(COPIES), row.difference(ANY_COPY)
    if own is None or others is None or own[2] is None or others[2] is None:
        return False
    return own[2] < 0 <= others[2]


def no_fitting(row: Row) -> bool:
    """Whether a method needs no offline work: no evaluations and no seconds of fitting. False where
    its fitting was not measured.
    """
    return _value(row, FIT) == 0 and not _value(row, FIT_SECONDS)


def no_extra(row: Row, reference: Row | None) -> bool:
    """Whether an image of neither clean nor memorized prompts takes more model evaluations than
    under `none`. False where neither was measured.
    """
    measured = [
        (mine, theirs)
        for column in NFE
        if reference
        and (mine := _value(row, column)) is not None
        and (theirs := _value(reference, column)) is not None
    ]
    return bool(measured) and all(mine <= theirs for mine, theirs in measured)


def _first_measured(row: Row | None, columns: Sequence[Column]) -> Column | None:
    return next((c for c in columns if row and _value(row, c) is not None), None)


def _against_api(rows: Sequence[Row], by: Column) -> Card | None:
    """Whom the extraction attack gets least from, or plain sampling where that was not run."""
    attacked = [row for row in rows if _value(row, EXTRACTED) is not None]
    column = EXTRACTED if attacked else by
    known = attacked or [row for row in rows if _value(row, by) is not None]
    ordered = _lowest(known, column, by)
    if not ordered:
        return None
    keeping = [row for row in ordered if (change := _change(row)) is not None and change >= -KEPT]
    lead = "Fewest prompts extracted" if attacked else "Least by plain sampling"
    same = bool(keeping) and keeping[0] is ordered[0]
    answers = [
        Answer(
            f"{lead}, clean alignment kept" if same else lead,
            ordered[0],
            column,
            verdict(ordered[0], column),
            (CLEAN,),
            tuple(ordered[1:]),
        )
    ]
    nothing = []
    if keeping and not same:
        answers.append(
            Answer(
                "Fewest, clean alignment kept" if attacked else "Least, clean alignment kept",
                keeping[0],
                column,
                verdict(keeping[0], column),
                (CLEAN,),
                tuple(keeping[1:]),
            )
        )
    elif not keeping and any(_change(row) is not None for row in ordered):
        nothing.append(f"None of them keeps clean CLIP within {KEPT} of none.")
    return Card(
        "api",
        "Which is best against an attacker with the API?",
        tuple(answers),
        tuple(nothing),
        (
            "Rule: lowest “extracted” (share of memorized prompts that the clique attack extracts),"
            f" ties by {by.plain}."
            if attacked
            else f"Rule: lowest {by.plain}. The extraction attack was not run on this board, so"
            " this attacker only samples the prompts."
        )
        + " Clean alignment is kept when the paired difference of clean CLIP to none is at least"
        f" −{KEPT}.",
        tuple(sentence for answer in answers for sentence in _in_other_words(answer.row)),
    )


def _in_other_words(row: Row) -> tuple[str, ...]:
    """What the same attacker gets who words the prompts anew, where that was measured."""
    others, same = (row.record.attacks.get(name) for name in (OTHER_WORDS, SAME_WORDS))
    if others is None or same is None or others.value is None or same.value is None:
        return ()
    return (
        f"{plain(row.label, NAME)} asked in other words: {cell(others, 2)} of the prompts give a"
        f" copy; asked as often in the same words, {cell(same, 2)}.",
    )


def _free(rows: Sequence[Row], reference: Row | None, by: Column) -> Card | None:
    known = [
        row
        for row in rows
        if _first_measured(row, NFE) and None not in (_value(row, FIT), _value(row, by))
    ]
    nfe, time = (_first_measured(reference, columns) for columns in (NFE, TIME))
    if not known or nfe is None:
        return _cost_unknown() if rows else None
    costs = (CLEAN, nfe, time) if time else (CLEAN, nfe)
    free = [row for row in _lowest(known, by) if no_extra(row, reference)]
    without, fitted = (
        [row for row in free if no_fitting(row)],
        [row for row in free if not no_fitting(row)],
    )
    answers, nothing = [], []
    for lead, found, missing, beside in (
        (
            "Nothing at inference, without fitting",
            without,
            "None of them runs at the cost of none without fitting.",
            costs,
        ),
        (
            "Nothing at inference, after fitting once",
            fitted,
            "None of them moves its whole cost into fitting.",
            (*costs, FIT),
        ),
    ):
        if found:
            answers.append(
                Answer(lead, found[0], by, verdict(found[0], by), beside, tuple(found[1:]))
            )
        else:
            nothing.append(missing)
    return Card(
        "free",
        COST,
        tuple(answers),
        tuple(nothing),
        "Rule: no more model evaluations per image (NFE) than none; lowest"
        f" {by.plain} first. Those with evaluations for fitting (fit NFE above 0) apart.",
    )


def _cost_unknown() -> Card:
    return Card(
        "free",
        COST,
        (),
        ("Not measured on this board: it lacks evaluations or fitting.",),
        "Rule: no more model evaluations per image (NFE) than none.",
    )


def _against_weights(rows: Sequence[Row], reference: Row | None, by: Column) -> Card | None:
    known = _lowest([row for row in rows if _value(row, by) is not None], by)
    if not known:
        return None
    holding = [row for row in known if "weights" in (row.record.holds_against or ())]
    answers = (
        [
            Answer(
                _lead_of_edits(holding, by),
                holding[0],
                by,
                verdict(holding[0], by),
                (CLEAN,),
                tuple(holding[1:]),
            )
        ]
        if holding
        else []
    )
    kept = [row for row in holding if strongest(row) and not _comes_back(row)]
    if holding and _comes_back(holding[0]) and kept:
        answers.append(
            Answer(
                "Fewest with nothing clearly brought back here",
                kept[0],
                by,
                verdict(kept[0], by),
                (CLEAN,),
                tuple(kept[1:]),
            )
        )
    return Card(
        "weights",
        "Which edits the weights, and what is still in them?",
        tuple(answers),
        () if holding else ("None of them: whoever holds the weights goes without the method.",),
        "Rule: rows whose weights are edited (“holds against” has them, measured); lowest"
        f" {by.plain} first, measured by sampling. A row does not hold where some attack on known"
        " pictures gets clearly more of them than of controls, pictures that the model was never"
        " shown (the 95 % interval leaves out 0).",
        tuple(_still_there(answer.row, reference) for answer in answers),
    )


def _lead_of_edits(holding: Sequence[Row], by: Column) -> str:
    """How the first of the rows with edited weights is introduced: by what sampling says of it, and
    by whether copies came back clearly, from it or from all.
    """
    fewest = f"{'fewest' if by.name == COPIES.name else 'lowest'} {by.plain} by sampling"
    back = [_comes_back(row) for row in holding]
    if not back[0]:
        return fewest[:1].upper() + fewest[1:]
    return f"{'None holds' if all(back) else 'Does not hold'}; {fewest}"


def _comes_back(row: Row) -> bool:
    """Whether some attack on known pictures gets clearly more than of pictures never shown."""
    return any(score.low is not None and score.low > 0 for score in excesses(row).values())


def _still_there(row: Row, reference: Row | None) -> str:
    """What attackers who know a picture get out of the edited weights: whoever searches an
    embedding, and the strongest of all.
    """
    name = plain(row.label, NAME)
    if strongest(row) is None:
        return (
            f"That the weights are edited ({name}) does not say that nothing can be brought back:"
            " no attack on known pictures was run on this row."
        )
    found = excesses(row).get(SEARCH)
    if found is None or found.value is None:
        return f"{name} under attack. {strongest_in_words(row, reference)}"
    return (
        f"{name} under attack: an embedding searched for a known picture (Dori) gets copies"
        f" {_beside_none(SEARCH, found, reference)}."
        f" {strongest_in_words(row, reference, said=SEARCH)}"
    )


def strongest_in_words(
    row: Row, reference: Row | None, threat: str = "", said: str = "", here: str = "here"
) -> str:
    """The strongest attack on known pictures of a row in a sentence, beside what it gets of `none`.

    `threat`: of that threat model alone; `said`: the attack that was spoken of before; `here`: on
    which board. Empty where no such attack was run.
    """
    most = strongest(row, threat)
    if most is None:
        return ""
    item, score, attacks = most
    if item == said:
        return (
            f"None of the {attacks} such attacks {here} gets more."
            if attacks > 1
            else f"No other such attack was run {here}: what holds against one may not hold against"
            " another."
        )
    among = f"strongest of the {attacks} such attacks {here}" if attacks > 1 else "one such attack"
    name = plain(heading_of(item, score), NAME)
    return f"The {among}, {name}, gets {_beside_none(item, score, reference)}."


def _beside_none(item: str, score: Score, reference: Row | None) -> str:
    """What an attack gets beyond its controls, and what it gets of `none`."""
    base = excesses(reference).get(item) if reference else None
    beside = f" (none: {cell(base, 2)})" if base and base.value is not None else ""
    return f"{cell(score, 2)} more than of controls{beside}"


def _costs_of_the_named(
    cards: Sequence[Card], reference: Row | None
) -> tuple[tuple[Row, tuple[str, ...]], ...]:
    """What each row costs that answers one of the cards, and `none` after them; empty where nothing
    of that was measured.
    """
    named = {
        (answer.row.record.method, answer.row.record.run): answer.row
        for card in cards
        for answer in card.answers
    }
    rows = [*named.values(), *([reference] if reference else [])]
    found = [(row, [_value(row, column) for _, column in COSTS]) for row in rows]
    if all(value is None for _, values in found for value in values):
        return ()
    return tuple(
        (
            row,
            tuple(
                number(value, column.decimals)
                for value, (_, column) in zip(values, COSTS, strict=True)
            ),
        )
        for row, values in found
    )


def _sure(board: Board, rows: Sequence[Row], by: Column) -> list[Card]:
    """How much the answers rest on: which rows differ from `none`, who may be first, and how many
    prompts, images and generations decide.
    """
    known = [row for row in rows if _value(row, by) is not None]
    if not known:
        return []
    told = []
    verdicts = [verdict(row, by) for row in known]
    if NO_REFERENCE in verdicts:
        told.append("Nothing is compared with none: there is no row of it.")
    else:
        better = sum(found == CLEARLY_BETTER for found in verdicts)
        told.append(
            f"{better} of {len(known)} row{'' if len(known) == 1 else 's'} clearly better than none"
            f" in {by.plain} ({sum(found == CLEARLY_WORSE for found in verdicts)} clearly worse)."
        )
    first = [row for row in board.rows if row.ranks and row.ranks[0] == 1]
    if len(first) == 1 and len(known) > 1:
        told.append(f"First in {by.plain} with 95 % confidence: {plain(first[0].label, NAME)}.")
    elif len(first) > 1:
        names = "; ".join(plain(row.label, NAME) for row in first[:NAMED])
        more = f"; {len(first) - NAMED} more" if len(first) > NAMED else ""
        told.append(f"Who is first in {by.plain} is open between {names}{more}.")
    score = known[0].score(by)
    seeds = rows[0].record.seeds  # of all rows of a board
    if score and score.prompts:
        told.append(
            f"{score.prompts} prompts and {score.n} images a row decide on {by.plain}; every prompt"
            f" was asked {'once' if seeds == 1 else f'{seeds} times'} from seeds of its own."
        )
    if smallest := _shown_with_power(known, by):
        told.append(
            f"A difference to none of {number(smallest, 2)} in {by.plain} would be clear with 80 %"
            " probability (by the median interval of the rows)."
        )
    told.append(ONE_MODEL)
    rule = (
        "Rule: a difference is clear where the 95 % interval, paired by prompt, leaves out 0 and"
        f" Holm's correction over all comparisons of the board keeps it below {LEVEL:g}."
    )
    return [Card("sure", "How sure is this?", (), (), rule, tuple(told))]


def _shown_with_power(rows: Sequence[Row], by: Column) -> float:
    """The smallest difference to `none` whose interval leaves out 0 in four of five experiments, by
    the median of the rows' intervals; 0 where no row has one.
    """
    halves = [
        (found[2] - found[1]) / 2
        for row in rows
        if (found := row.difference(by)) and found[1] is not None and found[2] is not None
    ]
    return median(halves) * (1.960 + 0.842) / 1.960 if halves else 0.0


def _keeps(rows: Sequence[Row], by: Column) -> Card | None:
    known = [row for row in rows if _value(row, by) is not None and _change(row) is not None]
    if not known:
        return None
    keeping = _lowest([row for row in known if abs(_change(row) or 0.0) <= KEPT], by)
    answers = (
        [
            Answer(
                "Lowest replication",
                keeping[0],
                by,
                verdict(keeping[0], by),
                (CLEAN,),
                tuple(keeping[1:]),
            )
        ]
        if keeping
        else []
    )
    return Card(
        "keeps",
        "Which keeps the alignment of clean prompts?",
        tuple(answers),
        () if keeping else ("None of them.",),
        f"Rule: paired difference of clean CLIP to none between −{KEPT} and +{KEPT}; lowest"
        f" {by.plain} first.",
    )


def _lowest(rows: Sequence[Row], *columns: Column) -> list[Row]:
    """Rows sorted by the columns in turn, those without a value last; ties by name and run, so that
    the order does not depend on that of the records.
    """
    return sorted(
        rows,
        key=lambda row: (
            *(_or_last(_value(row, column)) for column in columns),
            row.label,
            row.record.run,
        ),
    )


def _or_last(value: float | None) -> tuple[bool, float]:
    return value is None, value or 0.0


def _value(row: Row, column: Column) -> float | None:
    score = row.score(column)
    return score.value if score else None


def _change(row: Row) -> float | None:
    difference = row.difference(CLEAN)
    return difference[0] if difference else None
