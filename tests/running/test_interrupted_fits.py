"""A fit that was interrupted goes on in the store's folder and counts what it took before."""

from __future__ import annotations

import pytest
import torch

from bench.running import fitting
from methods.concept_ablation import ConceptAblation
from one_run import Run

CPU = torch.device("cpu")
FEW = {"steps": 4, "learning_rate": 0.003, "batch": 2, "pictures": 1, "tries": 1, "most": 1.0}


def new_run(suite, folder):
    return Run(suite, "concept_ablation", FEW, folder / "records", folder / "store", CPU)


def test_interrupted_and_repeated_is_undisturbed_and_the_folder_goes_away(
    tiny_suite, tmp_path, monkeypatch
):
    undisturbed = new_run(tiny_suite, tmp_path / "a").fitted()
    assert undisturbed.state
    interrupted, training = new_run(tiny_suite, tmp_path / "b"), fitting.process_kept
    folder = interrupted.images.store.files.local(fitting.CHECKPOINTS)
    original = ConceptAblation.fit

    def dying(self, denoiser, data):
        def report(what, done, total):
            if what == "train" and done == 2:
                raise KeyboardInterrupt

        from dataclasses import replace

        return original(self, denoiser, replace(data, report=report))

    monkeypatch.setattr(ConceptAblation, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fitted()
    assert (folder / "anchors.safetensors").is_file()
    monkeypatch.undo()
    assert fitting.process_kept is training
    again = new_run(tiny_suite, tmp_path / "b")
    found = again.fitted()
    assert found.state.keys() == undisturbed.state.keys()
    assert all(torch.equal(found.state[name], undisturbed.state[name]) for name in found.state)
    assert found.rows == undisturbed.rows
    assert not folder.exists()
    # What all sample with is what the store has.
    stored = new_run(tiny_suite, tmp_path / "b").fitted()
    assert stored.rows == found.rows and stored.state.keys() == found.state.keys()


def test_behind_a_url_nothing_is_kept_and_the_fit_is_the_same(tiny_suite, tmp_path):
    plain = new_run(tiny_suite, tmp_path).fitted()
    away = Run(
        tiny_suite, "concept_ablation", FEW, tmp_path / "records", "memory://interrupted", CPU
    ).fitted()
    assert all(torch.equal(plain.state[name], away.state[name]) for name in plain.state)
