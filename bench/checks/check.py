"""The contracts of methods, metrics, attacks and detectors, tried on a tiny model: `bench check
NAME|FILE`.

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
from bench.checks.contract import Broken, Contract, NotApplicable, Result, Subject
from bench.checks.guards import network_refused
from bench.registry.registry import Entry

LONGEST_REASON = 300  # characters of an exception that are shown


def check(entry: Entry, values: dict[str, Any], folder: Path | None = None) -> list[Result]:
    """Try every contract of the entry's kind, and return one result for each.

    `values` are the parameters of the class, over those of `trial` that a class may state for this
    purpose. `folder` may hold the tiny suite already, as `build_tiny_suite` makes it. Raises
    `UserError` when the class cannot be imported or configured at all.
    """
    from bench.base.parameters import configure
    from bench.checks.detector_contracts import DETECTOR_CONTRACTS
    from bench.checks.judge_contracts import ATTACK_CONTRACTS, METRIC_CONTRACTS
    from bench.checks.method_contracts import METHOD_CONTRACTS
    from bench.diffusion.model import quiet_libraries
    from bench.suite.load import load_suite
    from bench.testbed.tiny import build_tiny_suite

    quiet_libraries()
    contracts_of = {
        "method": METHOD_CONTRACTS,
        "metric": METRIC_CONTRACTS,
        "attack": ATTACK_CONTRACTS,
        "detector": DETECTOR_CONTRACTS,
    }
    contracts = COMMON_CONTRACTS | contracts_of[entry.kind]
    with tempfile.TemporaryDirectory() as temporary, network_refused() as attempts:
        cls = entry.load()
        suite = (
            load_suite(str(folder / "tiny.toml")) if folder else build_tiny_suite(Path(temporary))
        )
        of_suite = suite.settings.metrics if entry.kind == "metric" else {}
        values = {**of_suite.get(entry.name, getattr(cls, "trial", {})), **values}
        configured = configure(entry.kind, entry.name, cls, values)
        subject = Subject(entry, cls, configured, values, suite.file.parent)
        results = [_result(name, contract, subject) for name, contract in contracts.items()]
    return [*results, _network_result(attempts)]


NETWORK = "needs no network"


def _network_result(attempts: Sequence[str]) -> Result:
    if not attempts:
        return Result(NETWORK, "kept")
    reached = "; ".join(dict.fromkeys(attempts))
    return Result(
        NETWORK, "broken", f"it tried to reach {reached}; take what it needs as a file of the suite"
    )


def _result(name: str, contract: Contract, subject: Subject) -> Result:
    try:
        contract(subject)
    except (NotApplicable, Unmeasurable) as reason:
        return Result(name, "skipped", one_line(reason))
    except Broken as difference:
        return Result(name, "broken", one_line(difference))
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raised = (
            one_line(error)
            if isinstance(error, UserError)
            else f"{type(error).__name__}: {one_line(error)}"
        )
        return Result(
            name,
            "broken",
            f"it raised {raised[:LONGEST_REASON]}; it must get through this without an error",
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
