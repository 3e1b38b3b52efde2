"""`bench lora filter`: the file it writes is what `baf` leaves of the fine-tuning."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bench.contracts.method import FitData
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from conftest import bench, build_tiny_pipeline
from methods.baf import Baf
from one_file import ldm_state

HEADER = {
    "ss_network_module": "lycoris.kohya",
    "ss_network_dim": "4",
    "ss_network_alpha": "2.0",
    "ss_tag_frequency": '{"10_me": {"red hair": 3}}',
    "sshs_model_hash": "of the old tensors",
    "lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model as a folder and in one file, and a LoRA of all of its attention layers."""
    root = tmp_path_factory.mktemp("filtered")
    pipe, random, tensors = build_tiny_pipeline(), torch.Generator().manual_seed(1), {}
    pipe.save_pretrained(root / "model")
    save_file(ldm_state(pipe), root / "model.safetensors")
    for path, one in pipe.unet.named_modules():
        if isinstance(one, torch.nn.Linear) and ".attn" in path:
            down = torch.randn(4, one.in_features, generator=random) * 0.3
            up = torch.randn(one.out_features, 4, generator=random)
            tensors |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    save_file(tensors, root / "style.safetensors", metadata=HEADER)
    return root


def weights(pipe):
    return {
        f"{part}.{name}": value.detach().clone()
        for part in ("unet", "text_encoder")
        for name, value in getattr(pipe, part).named_parameters()
    }


def on_the_base(file):
    pipe = build_tiny_pipeline()
    merge(pipe, [(read_lora(file), Strength())])
    return weights(pipe)


def expected(place, strength, q, rho=0.9):
    pipe = build_tiny_pipeline()
    merge(pipe, [(read_lora(place / "style.safetensors"), Strength(strength, strength))])
    base = Denoiser(build_tiny_pipeline(), 4, 4.0)
    left = Baf(q=q, rho=rho).fit(Denoiser(pipe, 4, 4.0), FitData(base=base))
    assert left
    return weights(pipe) | left


def close(found, wanted):
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=2e-6)


def test_the_file_on_the_base_is_the_filtered_model_and_keeps_what_stays_true(place, tmp_path):
    out = tmp_path / "kept.safetensors"
    words = ["lora", "filter", f"{place / 'style.safetensors'}:0.8", "--like", "testbed"]
    words += ["--model", place / "model", "--drop", "0.5", "--rank-share", "0.8", "--out", out]
    done = bench(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sha256"] == read_lora(out).digest
    close(on_the_base(out), expected(place, 0.8, 0.5, 0.8))
    assert read_lora(out).header == {
        "format": "pt",
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "Dynamic",
        "ss_tag_frequency": HEADER["ss_tag_frequency"],
    }
    stripped = bench(*words, "--force", "--strip-header")
    assert stripped.returncode == 0, stripped.stderr
    assert read_lora(out).header == {"format": "pt"}


def test_a_model_in_one_file_and_one_that_was_fine_tuned_as_a_whole(place, tmp_path):
    pipe = build_tiny_pipeline()
    merge(pipe, [(read_lora(place / "style.safetensors"), Strength())])
    pipe.save_pretrained(tmp_path / "tuned")
    wanted = expected(place, 1, 0.25)
    single = place / "model.safetensors"
    of_file = [place / "style.safetensors", "--model", single, "--config", place / "model"]
    of_whole = ["--model", tmp_path / "tuned", "--base", single]
    for number, words in enumerate((of_file, of_whole)):
        out = tmp_path / f"{number}.safetensors"
        done = bench("lora", "filter", *words, "--like", "testbed", "--out", out)
        assert done.returncode == 0, done.stderr
        close(on_the_base(out), wanted)


def test_bad_inputs_are_one_line_and_nothing_is_written(place, tmp_path):
    def refusal(*words):
        out = tmp_path / "out.safetensors"
        done = bench("lora", "filter", *words, "--out", out, "--like", "testbed")
        assert done.returncode == 2
        assert not out.exists()
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr

    style, model = place / "style.safetensors", place / "model"
    assert "name what is filtered" in refusal("--model", model)
    assert "name what is filtered" in refusal(style, "--model", model, "--base", model)
    assert "name that with --model" in refusal("--base", model)
    assert "is no weight" in refusal(f"{style}:abc", "--model", model)
    assert "there is no model" in refusal(style, "--model", tmp_path / "gone.safetensors")
    assert "rho" in refusal(style, "--model", model, "--rank-share", "1.5")
    assert "no LoRA file" in refusal(tmp_path / "gone.safetensors", "--model", model)
    assert "is for a weight of" in refusal(style)
