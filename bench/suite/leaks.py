"""What a method may learn from must not be judged: the same text, or the same training picture, in
two roles that a suite has to keep apart.

In the track `removal` the named prompts are learned from and judged; what is judged beside them is
kept apart from them instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.base.digests import path_digest
from bench.base.errors import UserError, visible
from bench.base.files import is_regular_file
from bench.suite.prompts import Prompt
from bench.suite.schema import Role
from bench.suite.suite import Suite

# Roles that methods learn from, each with the roles that may share no prompt with it.
APART: tuple[tuple[Role, tuple[Role, ...]], ...] = (
    ("fit", ("memorized",)),
    ("calibration", ("clean", "quality")),
)
APART_OF_REMOVAL: tuple[tuple[Role, tuple[Role, ...]], ...] = (
    ("fit", ("unnamed", "neighbours")),
    ("calibration", ("clean", "quality", "neighbours")),
)


def refuse_leaks(suite: Suite, learned_from: Sequence[Role] = ("fit", "calibration")) -> None:
    """Raises `UserError` where a prompt, or a training picture, of a role that is learned from is
    judged too, or where a control of attacks is a picture that the model was trained on.
    """
    trained_on = [*suite.prompts("fit"), *suite.prompts("memorized"), *suite.prompts("unnamed")]
    if shared := _shared(trained_on, suite.prompts("control")):
        one, what = shared
        raise UserError(
            f"suite {suite.name}: the prompt '{visible(one.id)}' of the role control has the same"
            f" {what} as one of the roles fit and memorized; controls are what the model was never"
            " trained on"
        )
    if suite.removes:
        _refuse_judged_anchors(suite)
    for learned, judged_roles in APART_OF_REMOVAL if suite.removes else APART:
        for judged in judged_roles if learned in learned_from else ():
            if shared := _shared(suite.prompts(learned), suite.prompts(judged)):
                one, what = shared
                source = (
                    "a named one (role memorized)"
                    if suite.removes and learned == "fit"
                    else f"one of the role {learned}, which methods learn from and nothing is"
                    " judged on"
                )
                raise UserError(
                    f"suite {suite.name}: the prompt '{visible(one.id)}' of the role {judged} has"
                    f" the same {what} as {source}; keep them apart"
                )


def _refuse_judged_anchors(suite: Suite) -> None:
    """Methods train on the anchors of named prompts, so that no anchor may be judged."""
    anchors = {prompt.anchor for prompt in suite.prompts("fit")} - {""}
    judged: tuple[Role, ...] = ("unnamed", "neighbours", "clean", "quality")
    for role in judged:
        for prompt in suite.prompts(role):
            if prompt.text in anchors:
                raise UserError(
                    f"suite {suite.name}: the prompt '{visible(prompt.id)}' of the role {role} is"
                    " the anchor of a named prompt, which methods train on; keep them apart"
                )


def _shared(learned: Sequence[Prompt], judged: Sequence[Prompt]) -> tuple[Prompt, str] | None:
    texts = {prompt.text for prompt in learned}
    for prompt in judged:
        if prompt.text in texts:
            return prompt, "text"
    pictures = {path for prompt in learned for path in prompt.references if is_regular_file(path)}
    # Only files of one size can be the same: most are never read.
    sizes = {path.stat().st_size for path in pictures}
    digests: set[str] | None = None
    for prompt in judged:
        for path in filter(is_regular_file, prompt.references):
            if path.stat().st_size not in sizes:
                continue
            if digests is None:
                digests = {path_digest(picture) for picture in pictures}
            if path in pictures or path_digest(path) in digests:
                return prompt, "training picture"
    return None
