"""Guidance that begins late: the static transition point and opposite guidance (Jain et al., CVPR
2025, arXiv 2411.16738).
"""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from bench import Method, State, Step, Swept, Where


class CfgDelay(Method):
    """Withhold the prompt until a fixed timestep, then guide as usual (static transition point,
    Jain et al.).
    """

    where: ClassVar[Where] = "guidance"
    paper: ClassVar[str] = "Jain et al. 2025, arXiv:2411.16738"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"transition": 1000}
    swept: ClassVar[Swept | None] = ("transition", (900, 800, 700, 600, 500, 400, 300))

    transition: float = Field(
        500,
        ge=0,
        le=1000,
        description=(
            "timestep from which guidance is on; 500 and 600 to 700 are published, 1000 is always"
        ),
    )
    before: float = Field(
        0,
        description=(
            "guidance scale until then: 0 ignores the prompt, -2 is the published opposite guidance"
        ),
    )

    def guide(self, step: Step, state: State) -> Tensor:
        """The guided prediction `[B, C, h, w]`.

        The reference code also changes to a finer grid of timesteps, but only when one of the
        timesteps equals the transition; this keeps the protocol's grid.
        """
        if step.timestep <= self.transition:
            return step.guided(step.guidance_scale)
        return step.guided(self.before) if self.before else step.unconditional_only()
