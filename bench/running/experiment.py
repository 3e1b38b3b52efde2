"""The question that a run answers: suite, method, metrics, attacks and seeds, without any model.

Everything that planning, sharding and sharing work out among machines need is known here: ids,
roles, image keys, the order in which images are asked for. Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.assets.catalogue import PREFIX
from bench.base.digests import digest_of, path_digest
from bench.base.errors import UserError, one_line
from bench.base.parameters import configure
from bench.base.source import code_of
from bench.contracts.method import FitData
from bench.diffusion.families import family_of_suite, refuse_chunks, refuse_family
from bench.registry import registry
from bench.registry.registry import Entry
from bench.store.store import SampleKey
from bench.suite.leaks import refuse_leaks
from bench.suite.needs import refuse_missing_assets
from bench.suite.prompts import Prompt
from bench.suite.schema import MEASURED_ROLES, Role
from bench.suite.suite import Suite

if TYPE_CHECKING:
    from bench.contracts.attack import Attack
    from bench.contracts.method import Method, Need
    from bench.contracts.metric import Metric

# Grows with every change of the way from a request to pixels, so that images of another number are
# made again.
SAMPLER = 1
GENERATION = 1_000_000  # image indices of a prompt that one generation may use
# Whose prompts a method gets for each of its needs.
NEEDED_ROLE: dict[Need, Role] = {
    "fit_prompts": "fit",
    "training_images": "fit",
    "anchors": "fit",
    "clean_prompts": "calibration",
}


@dataclass(frozen=True)
class Experiment:
    """One method under one suite, with everything resolved that has a name.

    `sources` holds the digest of the code of the method and of each metric and attack that is not
    a built-in, by kind and name ("method mine"); `plugins` the distributions that they came from,
    with their versions. `seeds` counts generations of every prompt. `problems` holds
    what stands in the way of a lenient suite, whose files may be missing.
    """

    suite: Suite
    method_name: str
    method: Method
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    attacks: Mapping[str, Attack] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 1
    problems: tuple[str, ...] = ()

    @classmethod
    def resolve(
        cls, suite: Suite, method: str | Entry, parameters: Mapping[str, Any], seeds: int = 1
    ) -> Experiment:
        """Find the method (by name, file or registry entry) and what the suite names.

        Raises `UserError` for everything that is unknown, missing or does not fit together, before
        any work is done.
        """
        if seeds < 1:
            raise UserError(f"--seeds must be at least 1, not {seeds}")
        entry = registry.find("method", method) if isinstance(method, str) else method
        configured = configure("method", entry.name, entry.load(), parameters)
        if not suite.lenient:
            refuse_missing_assets(suite)
        judges = _Judges.of(suite)
        _refuse_equal_names(suite, judges)
        refuse_other_models(suite, entry.name, configured, judges.attacks)
        for role in suite.settings.prompts:
            suite.prompts(role)
        _refuse_unmet_needs(suite, entry.name, configured)
        roles = [NEEDED_ROLE[need] for need in configured.needed() if need in NEEDED_ROLE]
        refuse_leaks(suite, roles)
        entries = {f"method {entry.name}": entry} | judges.entries
        return cls(
            suite,
            entry.name,
            configured,
            judges.metrics,
            judges.attacks,
            sources={name: found.source for name, found in entries.items() if found.source},
            plugins={
                found.plugin.distribution: found.plugin.version
                for found in entries.values()
                if found.plugin
            },
            seeds=seeds,
            problems=tuple(judges.problems),
        )

    @cached_property
    def id(self) -> str:
        """12 hex digits: the same question, asked of the same code, has the same id."""
        metrics = {
            name: [metric.version, self.sources.get(f"metric {name}")]
            for name, metric in self.metrics.items()
        }
        attacks = {
            name: [attack.version, self.sources.get(f"attack {name}")]
            for name, attack in self.attacks.items()
        }
        content = self._method_identity | {
            "suite": self.suite.fingerprint,
            "metrics": metrics,
            "attacks": attacks,
        }
        if self.seeds > 1:
            content["seeds"] = self.seeds
        return digest_of(content)[:12]

    @property
    def _method_identity(self) -> dict[str, Any]:
        return {
            "method": self.method_name,
            "version": self.method.version,
            "parameters": self.method.model_dump(mode="json"),
            "source": self.sources.get(f"method {self.method_name}"),
        }

    @cached_property
    def store_identity(self) -> dict[str, Any]:
        """What an image depends on besides its prompt and seed: the key of its folder in a store.

        What a method learned is a function of the protocol, the method and the data that it
        learned from, so these stand for it, and the key is known before anything is fitted.
        """
        pictures = {
            prompt: [path_digest(path) for path in paths]
            for prompt, paths in self.fit_data.training_images.items()
        }
        fitted_on: list[Any] = [self.fit_data.fit_prompts, self.fit_data.clean_prompts, pictures]
        # What came later is part of the identity only of methods that use it.
        needs = self.method.needed()
        if "anchors" in needs:
            fitted_on.append({"anchors": self.fit_data.anchors})
        if "copy_judge" in needs:
            fitted_on.append({"judge": _judge_identity(self.suite)})
        if "base" in needs:
            fitted_on.append({"base": self.suite.needed_base(self.method_name).generation})
        module = type(self.method).__module__
        identity = self._method_identity | {
            "generation": self.suite.generation,
            "fit": digest_of(fitted_on),
            "sampler": SAMPLER,
            # A plug-in's source is part of the method's identity already.
            "code": code_of(module) if module.startswith("methods.") else None,
        }
        if self.method.mixes_images():
            identity["batch_size"] = self.suite.settings.model.batch_size
            # The order decides which images share a batch.
            identity["order"] = digest_of(
                [[[key.prompt, key.seed] for key in part] for part in self.asked()]
            )
        return identity

    @cached_property
    def fit_data(self) -> FitData:
        """What the method may learn from: only what it declares to need."""
        needs = self.method.needed()
        learns = any(NEEDED_ROLE.get(need) == "fit" for need in needs)
        fit = self.suite.prompts("fit") if learns else ()
        clean = self.suite.prompts("calibration") if "clean_prompts" in needs else ()
        pictured = fit if "training_images" in needs else ()
        return FitData(
            fit_prompts=tuple(prompt.text for prompt in fit),
            clean_prompts=tuple(prompt.text for prompt in clean),
            training_images={prompt.text: prompt.references for prompt in pictured},
            anchors={
                prompt.text: prompt.anchor
                for prompt in (fit if "anchors" in needs else ())
                if prompt.anchor
            },
        )

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the numbers must know of what was asked, where nothing forbids it."""
        needs = self.method.needed()
        if "anchors" not in needs or not self.suite.is_fetched() or self.fit_data.anchors:
            return ()
        return (
            f"method {self.method_name} turns prompts into their anchors, and the lists of suite"
            f" {self.suite.name} name none: the empty prompt stands in for each (suites of the"
            " track removal name them)",
        )

    @property
    def needs_base(self) -> bool:
        """Whether the method or an attack needs what the model was fine-tuned from."""
        attacks = self.attacks.values()
        return "base" in self.method.needed() or any(attack.needs_base for attack in attacks)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that some metric reads and the suite has, in a fixed order."""
        read = {role for metric in self.metrics.values() for role in metric.roles}
        return tuple(role for role in MEASURED_ROLES if role in read and self.suite.prompts(role))

    def images_per_prompt(self, role: Role) -> int:
        """Images of each prompt of a role in one generation."""
        return self.suite.settings.prompts[role].images_per_prompt

    def keys(self, role: Role) -> list[SampleKey]:
        """The images of a role in all generations, generation by generation, prompt by prompt."""
        prompts, images = self.suite.prompts(role), self.images_per_prompt(role)
        return [
            key
            for generation in range(self.seeds)
            for key in self.keys_of(prompts, images, generation)
        ]

    def keys_of(
        self, prompts: Sequence[Prompt], images: int, generation: int = 0
    ) -> tuple[SampleKey, ...]:
        """The keys of the first `images` images of each prompt, prompt by prompt."""
        # A text that stands in the list twice gets further seeds the second time, or it would be
        # the same image again.
        seen = Counter({prompt.text: generation * GENERATION for prompt in prompts})
        keys = []
        for prompt in prompts:
            seeds = [
                self.suite.image_seed(prompt.text, seen[prompt.text] + index)
                for index in range(images)
            ]
            if prompt.seed is not None and generation == 0:
                seeds[0] = prompt.seed
            keys += [SampleKey(prompt.text, seed) for seed in seeds]
            seen[prompt.text] += images
        return tuple(keys)

    def asked(self) -> list[list[SampleKey]]:
        """The images that a run asks for, as it asks: of its roles, then of every attack.

        The images of an attack come generation by generation and ask by ask. An attack that
        decides as it goes ends the list: what comes after it would be cut into other units than
        one process makes.
        """
        found = [[key for role in self.roles for key in self.keys(role)]]
        for attack in self.attacks.values():
            if attack.adaptive():
                break
            found += [list(keys) for keys in self.keys_of_attack(attack)]
        return found

    def keys_of_attack(self, attack: Attack) -> list[tuple[SampleKey, ...]]:
        """The images that one attack says it will ask for, by generation and ask."""
        return [
            self.keys_of(prompts, images, generation)
            for generation in range(self.seeds)
            for prompts, images in attack.asks(self.suite)
        ]


@dataclass
class _Judges:
    """The metrics and attacks of a suite with their registry entries."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    attacks: dict[str, Attack] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, suite: Suite) -> _Judges:
        found = cls()
        for kind, name, settings in suite.settings.judges():
            entry = registry.find(kind, suite.places.judge(name))
            found.entries[f"{kind} {name}"] = entry
            judge: Any = configure(kind, name, entry.load(), settings)
            _refuse_far_files(suite, name, judge)
            if kind == "attack" and judge.needs_base:
                suite.needed_base(f"attack {name}")
            if kind == "attack":
                found.attacks[name] = judge
            else:
                found.metrics[name] = judge
            if suite.lenient:
                found.problems += judge_problems(suite, kind, name, judge)
                continue
            judge.fits(suite)
            for file in (getattr(judge, field_name) for field_name in judge.files):
                if file:
                    suite.path(file)
        return found


def metric_settings(suite: Suite, name: str) -> dict[str, Any] | None:
    """What a suite says of a metric, for whoever needs it without measuring; None where the suite
    does not have it. Raises `UserError` for settings that the metric does not take.
    """
    given = suite.settings.metrics.get(name)
    if given is None:
        return None
    configure("metric", name, registry.find("metric", suite.places.judge(name)).load(), given)
    return dict(given)


# Of these a record gets digests alone, and people keep them on other disks.
ANYWHERE = ("weights", "descriptor", "statistics")


def _refuse_far_files(suite: Suite, name: str, judge: Metric | Attack) -> None:
    """Labels, calibrations and pictures of a metric or attack lie where the suite may read."""
    for field_name in judge.files:
        if field_name not in ANYWHERE and (file := getattr(judge, field_name)):
            what = f"{field_name} of {name}"
            suite.places.refuse_outside(what, suite.places.beside_suite(file), file)


def _refuse_equal_names(suite: Suite, judges: _Judges) -> None:
    given: list[Metric | Attack] = [*judges.metrics.values(), *judges.attacks.values()]
    names = Counter(name for judge in given for name in judge.names)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(
            f"suite {suite.name}: two of its metrics and attacks give the score '{twice[0]}'; leave"
            " one out or rename its score"
        )


def refuse_other_models(
    suite: Suite, name: str, method: Method, attacks: Mapping[str, Attack] | None = None
) -> None:
    """Raises `UserError` for a model that cannot be sampled, for one of a family that the method or
    an attack does not work on, and for prompts in chunks where one of them does not.
    """
    family = family_of_suite(suite)
    refuse_family(family, method.families, f"method {name}")
    refuse_chunks(suite, method.in_chunks, f"method {name}")
    for attack_name, attack in (attacks or {}).items():
        refuse_family(family, attack.works_on(), f"attack {attack_name}")
        refuse_chunks(suite, attack.in_chunks, f"attack {attack_name}")


def _refuse_unmet_needs(suite: Suite, name: str, method: Method) -> None:
    for need in method.needed():
        if need == "copy_judge":
            if "sscd" not in suite.settings.metrics:
                raise UserError(
                    f"method {name} tells copies as the suite's metric sscd does, and suite"
                    f" {suite.name} has no [metrics.sscd]"
                )
            continue
        if need == "base":
            suite.needed_base(f"method {name}")
            continue
        role = NEEDED_ROLE[need]
        prompts = suite.prompts(role)
        if not prompts:
            raise UserError(
                f"method {name} needs {need.replace('_', ' ')} and suite {suite.name} has no"
                f" [prompts.{role}]"
            )
        pictured = all(prompt.references for prompt in prompts)
        if need == "training_images" and not suite.lenient and not pictured:
            raise UserError(
                f"method {name} needs training images and suite {suite.name} has fit prompts"
                " without a reference"
            )
        if need == "training_images" and suite.settings.model.size:
            raise UserError(
                f"method {name} learns from training pictures, which are cut to squares, and suite"
                f" {suite.name} makes other pictures: leave [model] size out (in an audit:"
                " --no-buckets)"
            )


def _judge_identity(suite: Suite) -> dict[str, Any]:
    """What decides which pictures are copies to a method."""
    given = suite.settings.metrics["sscd"]
    return dict(given) | {"weights": suite.digest(given["weights"])}


def judge_problems(suite: Suite, kind: str, name: str, judge: Any) -> list[str]:
    """What stands in the way of a metric or attack: missing files, settings that do not fit."""
    problems = []
    for file in (getattr(judge, field_name) for field_name in judge.files):
        if file and not file.startswith(PREFIX) and not suite.place(file).exists():
            place = suite.place(file)
            problems.append(f"{kind} {name} names '{file}', which is missing (looked at {place})")
    # A metric looks into its files; what is missing was said above.
    if kind == "attack" or not problems:
        try:
            judge.fits(suite)
        except UserError as error:
            problems.append(one_line(error))
    return problems
