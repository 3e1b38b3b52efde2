"""What several commands share: options, groups of options, the folders that they stand for by
default, and what Ctrl-C says.

A command with many options takes them in groups. A group is a frozen dataclass whose fields are
options, `Annotated[type, typer.Option(...)]`, with their defaults; `grouped` shows typer every
field as an option of the command and hands the command one object for each group.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

import typer
from typer.models import ParameterInfo

RECORDS, STORE = Path("runs/records"), "runs/store"
COMMITTED = Path("leaderboards/records")

Records = Annotated[Path, typer.Option("--records", help="Folder of run records.")]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU by default where there is one.")
]
SuiteName = Annotated[
    str, typer.Option("--suite", help="A name from `bench list suites`, or a TOML file.")
]
# The suite of a record that a stranger made.
SuiteOfRecord = Annotated[
    str | None,
    typer.Option(
        "--suite", help="The suite's TOML file, where it is none from `bench list suites`."
    ),
]
StorePlace = Annotated[
    str,
    typer.Option(
        help="Where images and features are kept: a folder, or a URL such as s3://bucket/folder."
    ),
]


def _trust(files: list[Path] | None) -> list[Path] | None:
    if files:
        from bench.features.weights import trust

        trust(files)
    return files


# The option does its work when it is read: the commands need not look at it.
Trust = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust",
        callback=_trust,
        help=(
            "A TorchScript file that may run the code it brings (docs/security.md). Not needed for"
            " the official files, of which only the numbers are read. May be repeated."
        ),
    ),
]


@dataclass(frozen=True)
class PlaceOptions:
    """Where a run finds and leaves its files, and on which device it computes."""

    panel: ClassVar[str] = "Places and device"

    records: Records = RECORDS
    store: StorePlace = STORE
    device: Device = None
    trust: Trust = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters may be groups of options, in the form that typer reads.

    Every parameter of `command` whose annotation is a dataclass is replaced by one option for each
    field of that class, in the order of the fields; the other parameters stay. When the result is
    called with a value for each option, it builds the groups and calls `command` with them by
    keyword. A group may state in the class variable `panel` the title under which `--help` shows
    its options.

    Raises `TypeError` when two options have one name, or a field is annotated without a
    `typer.Option`.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, type[Any]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        found = [parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)]
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            found = _fields_as_parameters(hints[name])
        for each in found:
            if each.name in parameters:
                raise TypeError(f"{command.__qualname__} has two options named '{each.name}'")
            parameters[each.name] = each

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            # Taken out first: a group may have a field of the same name as its parameter.
            own = {field.name: values.pop(field.name) for field in fields(group)}
            values[name] = group(**own)
        command(**values)

    del expanded.__dict__["__wrapped__"]  # its signature is not that of the command any more
    expanded.__dict__["__signature__"] = inspect.Signature(list(parameters.values()))
    expanded.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    return expanded


def _fields_as_parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    found = []
    for field in fields(group):
        infos = [info for info in get_args(hints[field.name]) if isinstance(info, ParameterInfo)]
        if not infos:
            raise TypeError(f"{group.__qualname__}.{field.name} is not annotated as an option")
        option = copy.copy(infos[0])  # the same annotation may stand in several groups
        option.rich_help_panel = option.rich_help_panel or getattr(group, "panel", None)
        found.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=Annotated[get_args(hints[field.name])[0], option],
            )
        )
    return found


@contextmanager
def resumable() -> Iterator[None]:
    """Say after Ctrl-C that nothing finished is lost, and end with exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("bench: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(130) from None
