"""NeMo's search for the neurons of one prompt, as decisions about sets, without a model: the fewest
evaluations that leave no doubt.

A set of deactivated neurons scores the highest similarity, over the kept seeds, of its noise change
to that of the whole model. Every decision of the search is whether a score stays below a threshold.
So a single seed that reaches it decides against a set, and the seed that was most similar lately is
asked first; only a set that passes needs all seeds. Decisions equal those of the published
sequential search once neurons that it lists twice are counted once; what is evaluated, and in what
batches, differs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from methods._nemo_layers import Neuron, Neurons

# (set, kept seed) to similarity, a row of the UNet each
Evaluate = Callable[[Sequence[tuple[Neurons, int]]], list[float]]
Test = Callable[[float], bool]  # whether a similarity is low enough


class Scores:
    """Similarities by set and seed, each evaluated at most once and only when a decision hangs on
    it.
    """

    def __init__(self, evaluate: Evaluate, prior: Sequence[float]) -> None:
        """`prior` ranks the kept seeds before anything is known: the highest is asked first."""
        self.evaluate = evaluate
        self.latest = list(prior)
        # whether the telling seeds spoke for the others when they were last asked
        self.trusted = True
        self.known: dict[Neurons, dict[int, float]] = {
            frozenset(): dict.fromkeys(range(len(prior)), 1.0)
        }

    def score(self, neurons: Neurons) -> float:
        """Maximum over all kept seeds."""
        self._learn([(neurons, seed) for seed in self._open(neurons)])
        return max(self.known[neurons].values())

    def decide(self, sets: Sequence[Neurons], low: Test, until: bool) -> list[bool]:
        """Whether all seeds of a set pass `low`, for sets in order up to the first whose answer is
        `until`.

        What comes after that first one was a guess at the future and is worth nothing, so at first
        every set is asked for one seed only, and for the others only while its answer is needed.
        """
        while True:
            answers = [self._answer(neurons, low) for neurons in sets]
            if until in answers:
                sets, answers = (
                    sets[: answers.index(until) + 1],
                    answers[: answers.index(until) + 1],
                )
            undecided = [
                neurons
                for neurons, answer in dict(zip(sets, answers, strict=True)).items()
                if answer is None
            ]
            if not undecided:
                return [bool(answer) for answer in answers]
            if untouched := [neurons for neurons in undecided if not self.known.get(neurons)]:
                self._learn([(neurons, self._open(neurons)[0]) for neurons in untouched])
                continue
            # The telling seed has passed. If passing ends the list, what stands behind the first
            # set is most likely not needed.
            passing = undecided[:1] if until else undecided
            self._learn(
                [
                    (neurons, seed)
                    for neurons in passing
                    for seed in self._open(neurons)[: None if self.trusted else 1]
                ]
            )
            self.trusted = all(self._answer(neurons, low) is not False for neurons in passing)

    def _answer(self, neurons: Neurons, low: Test) -> bool | None:
        values = self.known.get(neurons, {})
        if not all(low(value) for value in values.values()):
            return False
        return True if len(values) == len(self.latest) else None

    def _open(self, neurons: Neurons) -> list[int]:
        """Seeds not evaluated yet, the most telling first."""
        values = self.known.setdefault(neurons, {})
        return sorted(
            (seed for seed in range(len(self.latest)) if seed not in values),
            key=lambda seed: -self.latest[seed],
        )

    def _learn(self, jobs: list[tuple[Neurons, int]]) -> None:
        for (neurons, seed), value in zip(jobs, self.evaluate(jobs) if jobs else [], strict=True):
            self.known[neurons][seed] = self.latest[seed] = value


class Lookahead:
    """How far to guess: as if every decision came out like the last, a quarter as far as that has
    been true.
    """

    def __init__(self, expected: bool) -> None:
        self.expected = expected
        self.run = 0

    @property
    def width(self) -> int:
        # On the testbed this wastes about one row in a hundred.
        return 1 + self.run // 4

    def saw(self, answers: Sequence[bool]) -> None:
        for answer in answers:
            self.run = self.run + 1 if answer == self.expected else 0
            self.expected = answer


@dataclass(frozen=True)
class Sweep:
    """The initial selection's range: z-scores above theta, from `start` down to `stop`, and k more
    of the largest activations.
    """

    start: float
    stop: float
    step: float

    def settings(self, widest: int) -> list[tuple[float, int]]:
        """(theta, k) in the order of the search.

        It ends, after the reference code, before a theta of `stop` would be tried, or before k
        reaches `widest`.
        """
        count = max(1, min(widest, math.ceil((self.start - self.stop) / self.step - 1e-9)))
        return [(self.start - i * self.step, i) for i in range(count)]


def selected(
    z: Sequence[Tensor], activations: Sequence[Tensor], theta: float, k: int
) -> list[Neuron]:
    """Neurons with z > theta and, of every layer, the k most active; each once, by layer, in the
    order of the published lists.
    """
    neurons: dict[Neuron, None] = {}
    for layer, (scores, active) in enumerate(zip(z, activations, strict=True)):
        chosen = (scores > theta).nonzero().flatten().tolist() + active.topk(
            min(k, len(active))
        ).indices.tolist()
        neurons |= dict.fromkeys((layer, channel) for channel in chosen)
    return list(neurons)


def initial_selection(
    scores: Scores, candidates: Sequence[Sequence[Neuron]], threshold: float
) -> tuple[list[Neuron], float]:
    """The first candidate with a score of at most `threshold`, and the threshold of its refinement.

    Where no candidate gets there, it is the last, and its own score becomes the threshold.
    """
    sets, done, ahead = [frozenset(neurons) for neurons in candidates], 0, Lookahead(expected=False)
    while done < len(sets):
        answers = scores.decide(
            sets[done : done + ahead.width], lambda value: value <= threshold, until=True
        )
        ahead.saw(answers)
        done += len(answers)
        if answers[-1]:
            return list(candidates[done - 1]), threshold
    return list(candidates[-1]), scores.score(sets[-1])


def refined(
    scores: Scores, neurons: Sequence[Neuron], threshold: float, last_layer_first: bool
) -> Neurons:
    """What is needed of a selection: whole layers, then single neurons, go wherever the score stays
    below `threshold` without them.
    """
    layers = sorted({layer for layer, _ in neurons}, reverse=last_layer_first)
    by_layer = [[neuron for neuron in neurons if neuron[0] == layer] for layer in layers]
    kept = without(
        scores, frozenset(neurons), [frozenset(members) for members in by_layer], threshold
    )
    singles = [frozenset([neuron]) for members in by_layer for neuron in members if neuron in kept]
    return without(scores, kept, singles, threshold)


def without(
    scores: Scores, kept: Neurons, removals: Sequence[Neurons], threshold: float
) -> Neurons:
    """Try removals in order, each from what the earlier ones left; one is made where the score
    stays below `threshold`.
    """
    done, ahead = 0, Lookahead(expected=False)
    while done < len(removals):
        upcoming = removals[done : done + ahead.width]
        # Expecting success, every guess builds on the one before; expecting failure, all are tried
        # from here.
        sets = [
            kept.difference(*(upcoming[: i + 1] if ahead.expected else upcoming[i : i + 1]))
            for i in range(len(upcoming))
        ]
        answers = scores.decide(sets, lambda value: value < threshold, until=not ahead.expected)
        ahead.saw(answers)
        done += len(answers)
        for answer, neurons in zip(answers, sets, strict=False):
            kept = neurons if answer else kept
    return kept
