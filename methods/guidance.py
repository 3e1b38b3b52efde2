"""Less guidance at every step: the control for methods that withhold the prompt for a while.

Whatever weakens the prompt also weakens the copy. A method that withholds guidance in some steps
has done something only where it keeps more of what clean prompts ask for than this does at the same
share of copies.
"""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from bench import Method, State, Step, Swept, Where


class Guidance(Method):
    """A control: a smaller constant guidance scale, nothing else."""

    where: ClassVar[Where] = "guidance"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"share": 1}
    swept: ClassVar[Swept | None] = ("share", (0.9, 0.75, 0.6, 0.45, 0.3, 0.15))

    share: float = Field(0.5, ge=0, le=1, description="of the suite's guidance scale, at all steps")

    def guide(self, step: Step, state: State) -> Tensor:
        """The guided prediction `[B, C, h, w]`."""
        return step.guided(self.share * step.guidance_scale)
