"""Whom the clique attack asks: the suite's memorized prompts, and clean ones among which a flag is
an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench import Prompt, Suite, UserError, evenly


def candidates(suite: Suite, clean: int) -> tuple[list[Prompt], list[Prompt]]:
    """Memorized prompts, and `clean` evenly spread ones of the role clean.

    No text stands in both, and none twice.

    Raises `UserError` when there are fewer clean ones, except in a run that is limited to some
    prompts.
    """
    memorized = once(suite.prompts("memorized"))
    texts = {prompt.text for prompt in memorized}
    others = [prompt for prompt in once(suite.prompts("clean")) if prompt.text not in texts]
    return memorized, spread(others, min(clean, len(others)) if suite.limit else clean, "clean")


def once(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each text once, with the training pictures of all prompts that have it: an attacker does not
    ask the same twice.
    """
    merged: dict[str, Prompt] = {}
    for prompt in prompts:
        first = merged.get(prompt.text, prompt)
        merged[prompt.text] = replace(
            first, references=tuple(dict.fromkeys((*first.references, *prompt.references)))
        )
    return list(merged.values())


def spread(prompts: Sequence[Prompt], count: int, role: str) -> list[Prompt]:
    """`count` of the prompts at even distances. Raises `UserError` when there are fewer."""
    if len(prompts) < count:
        raise UserError(
            f"attack clique_extraction: {count} prompts of the role {role} are asked for and the"
            f" suite has {len(prompts)}"
        )
    return [prompts[row] for row in evenly(len(prompts), count)]
