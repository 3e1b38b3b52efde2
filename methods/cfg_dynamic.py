"""Guidance that begins at each image's own transition point (Jain et al., CVPR 2025, arXiv
2411.16738).
"""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench import Method, State, Step, Swept, Where


class CfgDynamic(Method):
    """Withhold the prompt until its pull has passed a minimum, image by image (dynamic transition
    point, Jain et al.).
    """

    where: ClassVar[Where] = "guidance"
    paper: ClassVar[str] = "Jain et al. 2025, arXiv:2411.16738"
    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {"fallback": 1000}
    swept: ClassVar[Swept | None] = ("fallback", (900, 800, 700, 600, 500, 400))

    before: float = Field(
        0, description="guidance scale until the switch: 0 in the paper, 1 in its code"
    )
    fallback: float = Field(
        500,
        ge=0,
        le=1000,
        description=(
            "timestep at which an image without a minimum switches; 1000 is always guided, 0 never"
            " falls back"
        ),
    )

    def guide(self, step: Step, state: State) -> Tensor:
        """Switch, for good, at the first step whose |e_c - e_u| is above that of the step before,
        which was below its own predecessor's.
        """
        pulls = step.memory.setdefault("pulls", [])
        pulls.append((step.conditional - step.unconditional).flatten(1).float().norm(dim=1))
        switched = step.memory.setdefault("switched", torch.zeros_like(pulls[0], dtype=torch.bool))
        now = torch.full_like(switched, step.timestep <= self.fallback)
        if len(pulls) >= 3:
            now |= (pulls[-3] > pulls[-2]) & (pulls[-2] < pulls[-1])
        at = step.request.facts.setdefault("switch_timestep", [0] * len(switched))
        step.request.facts["switch_timestep"] = [
            step.timestep if new else t
            for t, new in zip(at, (now & ~switched).tolist(), strict=True)
        ]
        step.memory["switched"] = switched | now
        guided = step.guided(step.guidance_scale)
        return torch.where((switched | now)[:, None, None, None], guided, step.guided(self.before))
