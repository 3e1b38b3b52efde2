"""What a suite still needs before it can run, and the suite as plans and `bench doctor` see it
until then.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.assets.catalogue import PREFIX, Lacking
from bench.base.errors import UserError
from bench.base.files import is_regular_file, is_there
from bench.suite.schema import Role
from bench.suite.suite import Suite


def missing_assets(suite: Suite) -> list[Lacking]:
    """The suite's assets that are not here, then files and pictures of its own that are not."""
    found = [lack for name in suite.wanted() for lack in suite.assets.lacking(name)]
    named = {
        suite.settings.model.path,
        *([suite.settings.model.base] if suite.settings.model.base else []),
        *(prompts.file for prompts in suite.settings.prompts.values()),
    }
    absent = [
        text
        for text in sorted(named)
        if not text.startswith(PREFIX) and not is_there(suite.place(text))
    ]
    pictures = sorted(
        {
            path
            for role, prompts in suite.settings.prompts.items()
            if not prompts.references.startswith(PREFIX)
            for path in _absent(suite, role)
        }
    )
    return (
        found
        + [Lacking(text, str(suite.place(text)), None, True) for text in absent]
        + [Lacking(path.name, str(path), None, True) for path in pictures]
    )


def _absent(suite: Suite, role: Role) -> list[Path]:
    return [
        path
        for prompt in suite.prompts(role)
        for path in prompt.references
        if not is_regular_file(path)
    ]


def refuse_missing_assets(suite: Suite) -> None:
    """Raises one `UserError` that names every asset that is not here, and says how to get them."""
    if lacking := list(
        dict.fromkeys(lack.name for name in suite.wanted() for lack in suite.assets.lacking(name))
    ):
        what = (
            f"{len(lacking)} of its {len(suite.wanted())} assets are"
            if len(lacking) > 1
            else "an asset is"
        )
        raise UserError(
            f"suite {suite.name}: {what} missing ({', '.join(lacking)}); get them with: bench fetch"
            f" --suite {suite.called}"
        )


def lenient(suite: Suite) -> Suite:
    """The suite as a plan sees it: what is missing has placeholders, what is there is read as
    strictly as ever.
    """
    return replace(suite, lenient=True)


def readable_part(suite: Suite) -> tuple[Suite, dict[Role, str]]:
    """The suite as a plan sees it, without the prompts of roles whose lists cannot be read; and for
    each of those roles the reason.
    """
    planned, reasons = lenient(suite), dict[Role, str]()
    for role in suite.settings.prompts:
        try:
            planned.prompts(role)
        except UserError as error:
            reasons[role] = str(error)
    return replace(planned, unread=frozenset(reasons)), reasons
