"""The commands that a page prints do what its rows tried."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.auditing.asked import Asked, Lora
from bench.auditing.commands import filter_command, scale_commands
from bench.auditing.rows import travels_as
from bench.auditing.sampling import Column
from bench.auditing.suites import lora_tables
from bench.base.safetensors_header import tensors_digest
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength
from bench.diffusion.lora.rescale import rescaled
from bench.suite.load import load_suite
from bench.suite.schema import LoraSettings
from bench.testbed.subject import SHIPPED
from conftest import bench

LORA = SHIPPED / "subject.safetensors"


@pytest.mark.parametrize("weight", [0.56, -0.5, 0.7 * 0.8])
def test_a_weight_is_written_as_it_was_tried(tmp_path, monkeypatch, weight):
    monkeypatch.chdir(tmp_path)
    strength = Strength(weight, 0.25)
    command = scale_commands([Lora(LORA, strength)])
    assert "&&" not in command
    done = bench(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("*.safetensors")
    expected, _ = rescaled(read_lora(LORA), strength)
    found = load_file(written)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)
    assert len(tensors_digest(written)) == 64


def test_several_files_are_several_commands_and_what_stays_is_none(tmp_path):
    style = tmp_path / "my style.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.ones(1, 1)}, style)
    half, whole, off = Strength(0.5, 0.5), Strength(), Strength(0, 0)
    both = scale_commands([Lora(style, half), Lora(LORA, half)]).split(" && ")
    assert [shlex.split(one)[:3] for one in both] == [["bench", "lora", "scale"]] * 2
    assert str(style) in shlex.split(both[0])
    assert scale_commands([Lora(style, whole), Lora(LORA, off)]) == ""


def test_a_dora_has_no_command(tmp_path):
    dora = tmp_path / "dora.safetensors"
    save_file({"lora_unet_x.dora_scale": torch.ones(1, 4)}, dora)
    assert scale_commands([Lora(dora, Strength(0.5, 0.5))]) == ""
    # where the part with lengths stays as it is, it has one
    assert "--text-weight 0" in scale_commands([Lora(dora, Strength(1, 0))])


def test_files_of_one_name_are_written_under_two(tmp_path):
    loras = []
    for number in range(3):
        file = tmp_path / str(number) / "style.safetensors"
        file.parent.mkdir()
        save_file({"lora_unet_x.lora_up.weight": torch.ones(1, 1)}, file)
        loras.append(Lora(file, Strength(0.5, 0.5)))
    # its own name is the second one's
    loras.append(Lora(loras[0].file, Strength(0.5, 2)))
    words = [shlex.split(one) for one in scale_commands(loras).split(" && ")]
    outs = [one[one.index("--out") + 1] for one in words]
    assert outs == [
        "style-at-0.5.safetensors",
        "style-at-0.5-2.safetensors",
        "style-at-0.5-3.safetensors",
        "style-at-0.5-2-2.safetensors",
    ]


@pytest.mark.parametrize(
    ("unet", "text", "travels"), [(1, 1, "yes"), (1, 0, "yes"), (0.5, 0.5, "as a checkpoint")]
)
def test_a_dora_at_another_weight_travels_as_a_checkpoint(tmp_path, unet, text, travels):
    dora = tmp_path / "dora.safetensors"
    save_file({"lora_unet_x.dora_scale": torch.ones(1, 4)}, dora)
    suite = load_suite("testbed-quick")
    tables = lora_tables([Lora(LORA, Strength(0.5, 0.5)), Lora(dora, Strength(unet, text))])
    loras = tuple(LoraSettings.model_validate(table) for table in tables)
    model = suite.settings.model.model_copy(update={"loras": loras})
    merged = replace(suite, settings=suite.settings.model_copy(update={"model": model}))
    assert travels_as(Column("weight", merged)) == travels
    assert travels_as(Column("weight", suite)) == "yes"


def test_the_filter_is_asked_for_what_the_remedy_was(monkeypatch):
    asked = Asked(
        Path("data"),
        Path("out"),
        model=Path("my model"),
        like="testbed",
        loras=(Lora(LORA, Strength(0.8, 0.8)),),
    )

    def command(**parameters):
        return filter_command(asked, Column("baf", None, "baf", parameters))

    given = {}

    def filtered(asked, parameters, strip, device):
        given.update(asked=asked, parameters=parameters)
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.auditing.filtered.filtered_lora", filtered)
    words = shlex.split(command(q=0.5, rho=0.8))[1:]
    assert bench(*words).returncode == 130
    assert given["parameters"] == {"q": 0.5, "rho": 0.8}
    assert (given["asked"].loras, given["asked"].model) == (asked.loras, asked.model)
    assert given["asked"].like == "testbed"
    assert "--drop" not in command()
    outs = {shlex.split(command(q=0.5, rho=rho))[-1] for rho in (0.8, 0.9)}
    assert len(outs | {shlex.split(command(q=0.5))[-1]}) == 3
    assert command(q=0.5, control="random") == ""
    assert filter_command(asked, Column("wanda", None, "wanda", {})) == ""
