"""What a method may learn from must not be judged: the same text, or the same training picture, in
two roles that a suite has to keep apart.
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


def refuse_leaks(suite: Suite, learned_from: Sequence[Role] = ("fit", "calibration")) -> None:
    """Raises `UserError` where a prompt, or a training picture, of a role that is learned from is
    judged too, or where a control of attacks is a picture that the model was trained on.
    """
    trained_on = [*suite.prompts("fit"), *suite.prompts("memorized")]
    if shared := _shared(trained_on, suite.prompts("control")):
        one, what = shared
        raise UserError(
            f"suite {suite.name}: the prompt '{visible(one.id)}' of the role control has the same"
            f" {what} as one of the roles fit and memorized; controls are what the model was never"
            " trained on"
        )
    for learned, judged_roles in APART:
        for judged in judged_roles if learned in learned_from else ():
            if shared := _shared(suite.prompts(learned), suite.prompts(judged)):
                one, what = shared
                raise UserError(
                    f"suite {suite.name}: the prompt '{visible(one.id)}' of the role {judged} has"
                    f" the same {what} as one of the role {learned}, which methods learn from and"
                    " nothing is judged on; keep them apart"
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
