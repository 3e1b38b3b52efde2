"""Audits of models that come as a checkpoint in one file."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.auditing.asked import Asked
from bench.auditing.ready import ready, try_model
from bench.base.errors import UserError
from bench.testbed.subject import SHIPPED
from conftest import build_tiny_pipeline
from one_file import ldm_state

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two pictures; a model as a folder and in one file, another model beside it, and a folder of
    their configurations without weights.
    """
    root = tmp_path_factory.mktemp("one_file")
    (root / "data").mkdir()
    for picture in sorted((SHIPPED / "data/64_scene").glob("*.png"))[:2]:
        for file in (picture, picture.with_suffix(".txt")):
            shutil.copy(file, root / "data" / file.name)
    for name, seed in (("mine", 0), ("began", 1)):
        pipe = build_tiny_pipeline(seed=seed)
        pipe.save_pretrained(root / name)
        save_file(ldm_state(pipe), root / f"{name}.safetensors")
    shutil.copytree(root / "mine", root / "config")
    for file in (root / "config").rglob("*.safetensors"):
        file.unlink()
    return root


def prepared(place, out, **more):
    given = {"quick": True, "images": 1, "steps": 2, "like": "testbed"}
    return ready(Asked(place / "data", out, **(given | more)), CPU)


def pictures(audit, column):
    made = audit.studio.made(column, audit.askings[:1])
    return np.stack(made.pictures(range(len(made.keys))))


def test_a_model_and_its_base_in_one_file_each_give_the_pictures_of_their_folders(place, tmp_path):
    config = place / "config"
    files = {"model": place / "mine.safetensors", "base": place / "began.safetensors"}
    audit = prepared(place, tmp_path / "files", config=config, **files)
    try_model(audit)
    folders = {"model": place / "mine", "base": place / "began"}
    same = prepared(place, tmp_path / "folders", **folders)
    for column, other in ((audit.yours, same.yours), (audit.base, same.base)):
        assert np.array_equal(pictures(audit, column), pictures(same, other))
    between, same_between = (one.settings()[0][0] for one in (audit, same))
    assert np.array_equal(pictures(audit, between), pictures(same, same_between))
    for end in (audit.yours, audit.base):
        assert not np.array_equal(pictures(audit, end), pictures(audit, between))
    assert not np.array_equal(pictures(audit, audit.yours), pictures(audit, audit.base))


def test_where_one_of_both_is_a_folder_it_has_the_configurations_of_the_other(place, tmp_path):
    of_file = prepared(
        place, tmp_path / "file", model=place / "mine.safetensors", base=place / "began"
    )
    of_folder = prepared(
        place, tmp_path / "folder", model=place / "mine", base=place / "began.safetensors"
    )
    for audit in (of_file, of_folder):
        try_model(audit)
    assert of_file.suite.settings.model.config == str(place / "began")
    assert of_folder.suite.settings.model.config is None
    # The base of the suite, which attacks and methods ask, is that of the column.
    assert of_folder.suite.base.generation == of_folder.base.suite.generation
    assert of_file.suite.base.generation == of_file.base.suite.generation


def test_a_file_behind_a_link_without_a_suffix_is_found(place, tmp_path):
    """As a hub's cache keeps it."""
    shutil.copy(place / "mine.safetensors", tmp_path / "blob")
    (tmp_path / "linked.safetensors").symlink_to(tmp_path / "blob")
    audit = prepared(
        place, tmp_path / "out", model=tmp_path / "linked.safetensors", config=place / "config"
    )
    try_model(audit)


def test_what_cannot_be_audited_is_one_line(place, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))  # holds no model of a suite

    def refusal(**more):
        with pytest.raises(UserError) as error:
            try_model(prepared(place, tmp_path / "out", **more))
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "old.ckpt").write_bytes(b"\x80\x04")
    assert "is a pickle" in refusal(model=tmp_path / "old.ckpt")
    assert "is a pickle" in refusal(model=place / "mine", base=tmp_path / "old.ckpt")
    assert "there is no model" in refusal(model=tmp_path / "gone.safetensors")
    save_file({"lora_unet_x.lora_up.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    assert "is a LoRA file" in refusal(model=tmp_path / "lora.safetensors", config=place / "config")
    file = place / "mine.safetensors"
    assert "model_index.json is missing" in refusal(model=file, config=tmp_path)
    assert "--config is for a checkpoint in one file" in refusal(
        model=place / "mine", config=place / "config"
    )
    assert "give --config FOLDER" in refusal(model=file, like="sd14-mem500", sscd=file)
    shutil.copy(file, tmp_path / "same.safetensors")
    assert "nothing to compare" in refusal(
        model=file, base=tmp_path / "same.safetensors", config=place / "config"
    )
