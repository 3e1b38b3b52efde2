"""The images of one experiment: where they are kept, which are missing, and which pictures stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.assets.asset import cache_folder
from bench.base.errors import one_line
from bench.base.progress import Report
from bench.contracts.samples import SampleSet
from bench.features.extractor import in_whole_batches
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.kept_pictures import KeepImages, Keeping, keeping_of
from bench.running.recorded import Recorded
from bench.running.units import Units
from bench.store.folders import Root, open_folder
from bench.store.shards import extracted
from bench.store.store import SampleKey, SampleStore
from bench.suite.prompts import Prompt
from bench.suite.schema import Role


@dataclass(frozen=True)
class Images:
    """The images of `experiment` in the store at `root`.

    `keep` says which pictures stay once they have their features; the features come from the
    networks that `engine` holds.
    """

    experiment: Experiment
    engine: Engine
    root: Root
    keep: KeepImages = "all"

    @cached_property
    def store(self) -> SampleStore:
        """The folder of this experiment's images; its name follows from what they depend on."""
        asked = self.experiment
        return SampleStore(
            self.root, asked.suite.store_name, asked.method_name, asked.store_identity
        )

    @property
    def cache(self) -> Path:
        """A local folder for what is the same in every run, such as features of real pictures.

        No suite's name begins as its name does.
        """
        local = open_folder(self.root).local("_real")
        return local or cache_folder() / "_real"

    @cached_property
    def recorded(self) -> Recorded:
        """What is kept of the sampling of images, beside their pictures."""
        return Recorded.of_run(self.experiment, self.store.files)

    @cached_property
    def units(self) -> Units:
        """The units that the images are made in."""
        return Units(self.experiment.suite.settings.model.batch_size)

    @cached_property
    def keeping(self) -> Keeping:
        """Which pictures are kept, and which features are made of each while it is in memory."""
        return keeping_of(self.experiment, self.keep, self.engine.device, self.engine.kept)

    def samples(self, role: Role, generation: int = 0) -> SampleSet:
        """The images of a role in one generation, made or not."""
        prompts = self.experiment.suite.prompts(role)
        return self.sample_set(prompts, self.experiment.images_per_prompt(role), generation)

    def of_all_generations(self, role: Role) -> SampleSet:
        """The images of a role in every generation, side by side in the rows of their prompts."""
        sets = [self.samples(role, generation) for generation in range(self.experiment.seeds)]
        first, each = sets[0], sets[0].images
        keys = [
            key
            for row in range(len(first.prompts))
            for one in sets
            for key in one.keys[row * each : (row + 1) * each]
        ]
        return SampleSet(first.prompts, each * len(sets), tuple(keys), self.store)

    def sample_set(self, prompts: Sequence[Prompt], images: int, generation: int = 0) -> SampleSet:
        """The first `images` images of each prompt, made or not.

        They are the same ones for whoever asks, and others in another generation.
        """
        keys = self.experiment.keys_of(prompts, images, generation)
        return SampleSet(tuple(prompts), images, keys, self.store)

    def missing(self) -> list[SampleKey]:
        """Those images of the experiment's roles that must be made."""
        roles = self.experiment.roles
        return self.lacking(key for role in roles for key in self.experiment.keys(role))

    def lacking(
        self, keys: Iterable[SampleKey], read: Set[SampleKey] = frozenset()
    ) -> list[SampleKey]:
        """Those images that must be made, each once, in the order given.

        They are not stored, or are stored without what is still needed of them. Of images in
        `read` the pictures themselves are needed.
        """
        store = self.store
        lacking = set(store.missing(keys := list(dict.fromkeys(keys))))
        without = [key for key in keys if key in store.dropped]
        lacking.update(read & set(without))
        if without:
            wanted = self.keeping
            having = {name: store.with_features(name) for name in wanted.of_unit(without)}

            def is_whole(key: SampleKey) -> bool:
                return key in wanted.droppable and all(
                    store.has_features(key, having[name])
                    for name in wanted.extractors.get(key, ())
                    if name in having
                )

            lacking.update(key for key in without if not is_whole(key))
        return [key for key in keys if key in lacking]

    def keep_unit(
        self,
        keys: Sequence[SampleKey],
        pictures: list[np.ndarray],
        facts: list[dict[str, float]],
        evaluations: list[float],
        read: Set[SampleKey],
        report: Report,
    ) -> None:
        """Store one unit with its features, without the pictures that nothing reads any more.

        Images in `read` keep theirs, because somebody reads them now. Where an extractor breaks,
        the pictures stay, for whoever asks for its features to say what is wrong.
        """
        wanted, features = self.keeping, dict[str, np.ndarray]()
        dropped = wanted.droppable.intersection(keys) - read
        try:
            for name in wanted.of_unit(keys):
                try:
                    extractor = in_whole_batches(wanted.by_fingerprint[name])
                    features[name] = extracted(extractor, name, pictures)
                except Exception as error:
                    wanted.broken.add(name)
                    report(f"features {name} cannot be made yet: {one_line(error)[:80]}", 0, 1)
            dropped = frozenset(
                key
                for key in dropped
                if all(name in features for name in wanted.extractors.get(key, ()))
            )
        except BaseException:  # Ctrl-C: the pictures are there, so features can be made later
            self._append(keys, pictures, facts, evaluations)
            raise
        self._append(keys, pictures, facts, evaluations, features, dropped)

    def _append(
        self,
        keys: Sequence[SampleKey],
        pictures: list[np.ndarray],
        facts: list[dict[str, float]],
        evaluations: list[float],
        features: dict[str, np.ndarray] | None = None,
        dropped: Set[SampleKey] = frozenset(),
    ) -> None:
        maker = self.engine.made_by
        self.store.append(keys, pictures, facts, features, dropped, evaluations, maker)
