"""The methods on the embedded model, against figures of the published procedures that were computed
once (`make.py`): a change of a method is seen even where its own oracle changes with it.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.mitigations import ALPHA, FULL, L_PR, L_SS, RATE, UPDATES

from bench.base.digests import path_digest
from bench.base.pictures import read_picture
from bench.contracts.method import FitData
from bench.diffusion.model import load_denoiser
from bench.features import CopyDescriptor
from bench.running.sampling import sample
from bench.suite.load import load_suite
from bench.testbed.bundle import BUNDLE
from methods._nemo_layers import RowMasks, mean_activations, value_layers
from methods._nemo_probe import Probe
from methods._nemo_search import selected
from methods.clip_pad import ClipPad
from methods.guard import Guard
from methods.nemo import Nemo
from methods.prss import Prss
from methods.sail import Sail
from methods.wanda import Wanda, feed_forward_outputs
from methods.wen import Wen

FIGURES = json.loads((Path(__file__).parent / "figures.json").read_text())
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def denoiser():
    made = load_denoiser(load_suite("testbed-quick"), CPU, gradients=True)
    yield made
    made.close()


def test_the_figures_are_of_this_model():
    assert FIGURES["model"] == path_digest(BUNDLE / "pipeline"), "make them again: golden/make.py"


@pytest.mark.parametrize("variant", ["both l2", "cond none"])
def test_masks_of_wanda(denoiser, variant):
    branch, token_norm = variant.split()
    prompts = tuple(FIGURES["wen"])
    method = Wanda(sparsity=0.05, prompts=2, calls=3, branch=branch, token_norm=token_norm)
    state = method.fit(denoiser, FitData(fit_prompts=prompts))
    golden = FIGURES["wanda"][variant]
    assert state.keys() == golden.keys() == feed_forward_outputs(denoiser.pipe.unet).keys()
    for name, mask in state.items():
        # Sums in another order may swap two scores that nearly tie.
        assert int(mask.sum()) == pytest.approx(golden[name]["pruned"], rel=0.005, abs=2)
        theirs = np.unpackbits(np.frombuffer(bytes.fromhex(golden[name]["rows"]), np.uint8))
        ours = mask[:4].numpy().astype(np.uint8).ravel()
        assert (theirs[: ours.size] != ours).mean() < 0.002, name


def test_statistics_similarities_and_neurons_of_nemo(denoiser):
    golden, layers = FIGURES["nemo"], value_layers(denoiser.pipe.unet)
    method = Nemo(seeds=4, seed=1)
    clean = [row["prompt"] for row in _rows("calibration")][:8]
    activations = mean_activations(layers, denoiser.encode(clean))
    means = [rows.mean(0) for rows in activations]
    deviations = [rows.std(0) for rows in activations]
    assert [float(mean.mean()) for mean in means] == pytest.approx(golden["mean"], abs=2e-5)
    assert [float(dev.mean()) for dev in deviations] == pytest.approx(golden["std"], abs=2e-5)
    masks = RowMasks(layers)
    with masks.hooked():
        probe = Probe(denoiser, masks, method.detection)
        for prompt, figures in golden["prompts"].items():
            whole = probe.whole(denoiser.encode([prompt]))
            best = probe.pairs(whole).amax(1).tolist()
            assert best == pytest.approx(figures["best"], abs=2e-4)
            own = [rows[0] for rows in mean_activations(layers, denoiser.encode([prompt]))]
            z = [
                ((active - mean) / dev).abs()
                for active, mean, dev in zip(own, means, deviations, strict=True)
            ]
            found = selected(z, own, 3.0, 2)
            theirs = {
                (layer, channel)
                for layer, channels in enumerate(figures["neurons"])
                for channel in channels
            }
            assert len(set(found) ^ theirs) <= 1  # one may lie on the edge


def test_magnitudes_and_first_gradients_of_wen(denoiser, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watched(self):
        norms.append(float(self.param_groups[0]["params"][0].grad.norm()))
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    for number, (prompt, golden) in enumerate(FIGURES["wen"].items()):
        norms.clear()
        request = denoiser.request([prompt], [number])
        Wen(target=1e-6, iterations=3, lr=0.05).adjust(denoiser, request, {})
        assert norms == pytest.approx(golden["gradients"][:3], rel=1e-3)
        assert request.facts["magnitude_before"][0] == pytest.approx(
            golden["magnitudes"][0], rel=1e-4
        )
        assert request.facts["magnitude_after"][0] == pytest.approx(
            golden["magnitudes"][3], rel=1e-3
        )


@pytest.mark.parametrize("variant", ["pad", "eot", "ratio"])
def test_token_embeddings_of_clip_pad(denoiser, variant):
    prompts = [prompt for prompt in FIGURES["clip_pad"] if prompt]
    request = denoiser.request(prompts, [0] * len(prompts))
    found = ClipPad(variant=variant).adjust(denoiser, request, {})
    for row, prompt in enumerate(prompts):
        lengths = found.embeddings[row].norm(dim=1).tolist()
        assert lengths == pytest.approx(FIGURES["clip_pad"][prompt][variant], abs=2e-4)
    if variant != "ratio":  # the empty prompt is filled up too, and keeps its end token
        lengths = found.null_embeddings[0].norm(dim=1).tolist()
        assert lengths == pytest.approx(FIGURES["clip_pad"][""]["pad"], abs=2e-4)


def test_search_and_guidance_of_prss(denoiser):
    method = Prss(l_ss=L_SS, l_pr=L_PR, full=FULL, paraphrases=3)
    clean = tuple(row["prompt"] for row in _rows("calibration"))[:200]
    state = method.fit(denoiser, FitData(clean_prompts=clean))
    for number, (prompt, golden) in enumerate(FIGURES["prss"].items()):
        request = denoiser.request([prompt], [number])
        latents = sample(denoiser, request, method, state)
        assert request.facts["length_before"] == pytest.approx(golden["lengths"][:1], rel=1e-4)
        assert request.facts["length_after"] == pytest.approx([min(golden["lengths"])], rel=1e-4)
        assert request.facts["tried"] == [len(golden["lengths"]) - 1]
        assert golden["turned"], "the figures must show the guidance that turns"
        _is_picture(latents, golden)


def test_values_of_sail(denoiser):
    method = Sail(threshold=1e-6, attempts=1, steps=UPDATES, lr=RATE, alpha=ALPHA)
    for number, (prompt, golden) in enumerate(FIGURES["sail"].items()):
        request = denoiser.request([prompt], [number])
        method.adjust(denoiser, request, {})
        assert request.facts["updates"] == [UPDATES]
        assert request.facts["value_before"] == pytest.approx(golden["values"][:1], rel=1e-4)
        assert request.facts["value_after"] == pytest.approx([min(golden["values"])], rel=1e-3)


def test_guidance_of_guard(denoiser):
    method = Guard()
    for number, (prompt, golden) in enumerate(FIGURES["guard"].items()):
        request = denoiser.request([prompt], [number])
        with method.attach(denoiser.pipe, {}):
            latents = sample(denoiser, request, method, {})
        assert request.facts["orthogonalised"] == [golden["orthogonalised"]]
        _is_picture(latents, golden)


def _is_picture(latents, golden):
    flat = latents.flatten()
    assert float(flat.norm()) == pytest.approx(golden["norm"], rel=1e-3)
    few = flat[:: max(1, len(flat) // 8)][:8].tolist()
    assert few == pytest.approx(golden["latents"], abs=5e-3)


def test_similarities_of_the_descriptor():
    paths = sorted((BUNDLE / "references").glob("verbatim-*-00.png"))[:6]
    described = CopyDescriptor(BUNDLE / "scorers/descriptor.safetensors", "testbed", CPU)
    rows = described([read_picture(path) for path in paths])
    np.testing.assert_allclose(rows @ rows.T, FIGURES["sscd"], atol=2e-5)


def _rows(name):
    with (BUNDLE / f"prompts/{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
