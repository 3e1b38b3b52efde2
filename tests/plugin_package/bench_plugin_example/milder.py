"""A method of a third party, named by its module."""

from typing import ClassVar

from pydantic import Field

from bench import Method


class Milder(Method):
    """Guide less by a constant share."""

    where: ClassVar[str] = "guidance"

    share: float = Field(0.5, ge=0, le=1, description="of the guidance scale")

    def guide(self, step, state):
        return step.unconditional + self.share * step.guidance_scale * (
            step.conditional - step.unconditional
        )
