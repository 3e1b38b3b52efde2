"""The contracts of methods, metrics and attacks, tried on a tiny model: `bench check NAME|FILE`.

A contract is a function that raises `Broken`, with what differs and what to change, or
`NotApplicable` with the reason. Each runs on a pipeline of its own, so that what one leaves behind
cannot hide or cause another's failure.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.base.errors import Unmeasurable, UserError, one_line
from bench.checks.contract import Broken, Contract, NotApplicable, Result, Subject, network_refused
from bench.registry.registry import Entry


def check(entry: Entry, values: dict[str, Any], folder: Path | None = None) -> list[Result]:
    """Try every contract of the entry's kind; `folder` may hold the tiny suite already, from
    `build_tiny_suite`.

    Raises `UserError` when the class cannot be imported or configured at all.
    """
    from bench.base.parameters import configure
    from bench.checks.of_judge import ATTACK_CONTRACTS, METRIC_CONTRACTS
    from bench.checks.of_method import METHOD_CONTRACTS
    from bench.diffusion.model import quiet_libraries
    from bench.suite.load import load_suite
    from bench.testbed.tiny import build_tiny_suite

    quiet_libraries()
    with tempfile.TemporaryDirectory() as place, network_refused() as attempts:
        cls = entry.load()
        suite = load_suite(str(folder / "tiny.toml")) if folder else build_tiny_suite(Path(place))
        own = suite.settings.metrics if entry.kind == "metric" else {}
        given = own.get(entry.name, getattr(cls, "trial", {}))
        values = {**given, **values}
        subject = Subject(
            entry, cls, configure(entry.kind, entry.name, cls, values), values, suite.file.parent
        )
        contracts = (
            COMMON_CONTRACTS
            | {"method": METHOD_CONTRACTS, "metric": METRIC_CONTRACTS, "attack": ATTACK_CONTRACTS}[
                entry.kind
            ]
        )
        results = [_result(name, contract, subject) for name, contract in contracts.items()]
    reached = "; ".join(dict.fromkeys(attempts))
    network = (
        Result(
            NETWORK,
            "broken",
            f"it tried to reach {reached}; take what it needs as a file of the suite",
        )
        if reached
        else Result(NETWORK, "kept")
    )
    return [*results, network]


NETWORK = "needs no network"


def _result(name: str, contract: Contract, subject: Subject) -> Result:
    try:
        contract(subject)
    except (NotApplicable, Unmeasurable) as reason:
        return Result(name, "skipped", one_line(reason))
    except Broken as difference:
        return Result(name, "broken", one_line(difference))
    except Exception as error:  # a stranger's code may raise anything
        told = (
            one_line(error)
            if isinstance(error, UserError)
            else f"{type(error).__name__}: {one_line(error)}"
        )
        return Result(
            name, "broken", f"it raised {told[:300]}; it must get through this without an error"
        )
    return Result(name, "kept")


def declares_itself(subject: Subject) -> None:
    cls = subject.cls
    if not (cls.__doc__ or "").strip() or cls.__doc__ == cls.__mro__[1].__doc__:
        raise Broken(
            "the class has no docstring",
            "say in its first line what it does: `bench list` shows it",
        )
    if not isinstance(cls.version, int) or cls.version < 1:
        raise Broken(
            f"version is {cls.version!r}",
            "make it a whole number from 1 on, and raise it when results change",
        )
    undescribed = [name for name, field in cls.model_fields.items() if not field.description]
    if undescribed:
        raise Broken(
            f"parameter '{undescribed[0]}' has no description",
            "give it Field(default, description=...): `bench show` prints it",
        )


def parameters_round_trip(subject: Subject) -> None:
    model: BaseModel = subject.configured
    text = json.dumps(model.model_dump(mode="json"), allow_nan=False)
    again = subject.cls(**json.loads(text))
    if again.model_dump(mode="json") != model.model_dump(mode="json"):
        raise Broken(
            f"the parameters {text} come back as {again.model_dump(mode='json')}",
            "use types that JSON keeps: numbers, text, truth values, lists",
        )


COMMON_CONTRACTS: dict[str, Contract] = {
    "declares itself: docstring, version, described parameters": declares_itself,
    "parameters survive a record": parameters_round_trip,
}


def text(results: Sequence[Result], title: str) -> str:
    """The outcome for people, one line a contract."""
    marks = {"kept": "ok    ", "broken": "BROKEN", "skipped": "-     "}
    lines = [
        f"  {marks[result.verdict]} {result.contract}{': ' + result.note if result.note else ''}"
        for result in results
    ]
    broken = sum(result.verdict == "broken" for result in results)
    verdict = (
        f"{broken} of {len(results)} contracts broken"
        if broken
        else f"{sum(r.verdict == 'kept' for r in results)} contracts kept"
    )
    return "\n".join([title, *lines, verdict])
