"""What the header of a checkpoint in one file says: kinds that cannot be sampled, and a folder of
configurations that does not belong to it, each in one line before anything is loaded.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.base.errors import UserError
from bench.diffusion.checkpoint import check_checkpoint
from bench.testbed.tiny import build_tiny_xl_pipeline
from conftest import build_tiny_pipeline
from one_file import ldm_state, xl_state

UNET = "model.diffusion_model."
NOTHING = torch.zeros(0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Checkpoints of both families, each with a folder of its configurations."""
    root = tmp_path_factory.mktemp("whole")
    sd, xl = build_tiny_pipeline(), build_tiny_xl_pipeline(second_width=48)
    sd.save_pretrained(root / "sd")
    xl.save_pretrained(root / "sdxl")
    save_file(ldm_state(sd), root / "sd.safetensors")
    save_file(xl_state(xl), root / "sdxl.safetensors")
    return root


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_checkpoint_belongs_to_the_folder_of_its_pipeline(whole, family):
    check_checkpoint(whole / f"{family}.safetensors", whole / family, family)


def lacking(*beginnings):
    def change(state):
        return {name: one for name, one in state.items() if not name.startswith(beginnings)}

    return change


def also(name, tensor=NOTHING):
    return lambda state: state | {name: tensor}


REFUSED = {
    "a LoRA": ("sd", lambda _: {"lora_unet_x.lora_up.weight": NOTHING}, "is a LoRA file"),
    "FLUX": ("sd", lambda _: {"double_blocks.0.img_attn.qkv.weight": NOTHING}, "flow-matching"),
    "SD 3": ("sd", also(f"{UNET}joint_blocks.0.x_block.mlp.fc1.weight"), "flow-matching"),
    "video": ("sd", also(f"{UNET}input_blocks.1.1.time_stack.0.x"), "model of video"),
    "a UNet of diffusers": ("sd", lambda _: {"down_blocks.0.x": NOTHING}, "is no checkpoint of"),
    "without an autoencoder": ("sd", lacking("first_stage"), "holds no autoencoder"),
    "without a text encoder": ("sd", lacking("cond_stage"), "holds no text encoder"),
    "inpainting": (
        "sd",
        also(f"{UNET}input_blocks.0.0.weight", torch.zeros(8, 9, 3, 3)),
        "reads 9 channels and predicts 4",
    ),
    "the refiner": ("sdxl", lacking("conditioner.embedders.1."), "is the refiner"),
    "unCLIP": ("sd", also(f"{UNET}label_emb.0.0.weight"), "reads more than a text"),
    "zero SNR": ("sdxl", also("ztsnr"), "zero terminal SNR"),
    "another width": (
        "sd",
        also(f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight", torch.zeros(8, 64)),
        "reads texts of width 64",
    ),
    "another prediction": ("sd", also("v_pred"), "says that it predicts v"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_sampled_is_refused_in_one_line(whole, tmp_path, kind):
    family, change, says = REFUSED[kind]
    file = tmp_path / "model.safetensors"
    save_file(change(load_file(whole / f"{family}.safetensors")), file)
    with pytest.raises(UserError, match=says) as error:
        check_checkpoint(file, whole / family, family)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_a_checkpoint_that_predicts_v_goes_with_a_scheduler_that_says_so(whole, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(load_file(whole / "sd.safetensors") | {"v_pred": NOTHING}, file)
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        table = json.loads((whole / "sd" / part).read_text())
        (tmp_path / part).parent.mkdir()
        (tmp_path / part).write_text(json.dumps(table | {"prediction_type": "v_prediction"}))
    check_checkpoint(file, tmp_path, "sd")


def test_a_folder_of_another_family_and_a_damaged_file_are_one_line(whole, tmp_path):
    with pytest.raises(UserError, match="is a model of Stable Diffusion XL, and the config"):
        check_checkpoint(whole / "sdxl.safetensors", whole / "sd", "sd")
    with pytest.raises(UserError, match="is a model of Stable Diffusion 1 and 2, and the config"):
        check_checkpoint(whole / "sd.safetensors", whole / "sdxl", "sdxl")
    (tmp_path / "short.safetensors").write_bytes(b"\x00\x01")
    with pytest.raises(UserError, match="missing or damaged") as error:
        check_checkpoint(tmp_path / "short.safetensors", whole / "sd", "sd")
    assert "\n" not in str(error.value)
