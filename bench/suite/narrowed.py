"""A suite with fewer prompts in some of its roles, for studies that make many runs under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from bench.base.digests import digest_of
from bench.suite.prompts import Prompt
from bench.suite.schema import Role, SuiteSettings
from bench.suite.suite import Suite


@dataclass(frozen=True)
class NarrowedSuite(Suite):
    """A suite whose roles in `chosen` have these prompts and no others.

    Model, sampling and seeds of images stay, so its images are those of the whole suite wherever
    the method learned from the same prompts. Its fingerprint is another one.
    """

    chosen: Mapping[Role, tuple[Prompt, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, suite: Suite, settings: SuiteSettings, chosen: Mapping[Role, tuple[Prompt, ...]]
    ) -> NarrowedSuite:
        """`suite` under changed settings, with the prompts of `chosen`."""
        return cls(
            settings=settings,
            file=suite.file,
            limit=suite.limit,
            entries=suite.entries,
            lenient=suite.lenient,
            unread=suite.unread,
            chosen=chosen,
        )

    def prompts(self, role: Role) -> tuple[Prompt, ...]:
        """The prompts that were chosen for a role, or else those of the whole suite."""
        return self.chosen[role] if role in self.chosen else super().prompts(role)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the protocol of the whole suite and the prompts chosen, 16 hex digits."""
        prompts = {role: [prompt.text for prompt in found] for role, found in self.chosen.items()}
        return digest_of([super().fingerprint, prompts])[:16]
