"""Words of textual inversions in an audit, the weights beside them, and the model of `--like`."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.auditing.asked import Asked, Lora
from bench.auditing.curve import Point
from bench.auditing.ready import Audit, _uncalled
from bench.auditing.rows import NO_WEIGHTS, _row
from bench.auditing.suites import embedding_tables, model_side, model_table
from bench.base.errors import UserError
from bench.suite.load import load_suite
from bench.suite.schema import ModelSettings


def embedding(file, count=2):
    file.parent.mkdir(parents=True, exist_ok=True)
    vectors = torch.randn(count, 32, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, file)
    return file


def linked(folder):
    """A file as a hub's cache has it: a link that says its name, to one that says nothing."""
    blob = embedding(folder / "blobs/0a1b2c")
    (folder / "snapshot").mkdir()
    (folder / "snapshot/zyx.safetensors").symlink_to(blob)
    return folder / "snapshot/zyx.safetensors"


def suite_of(folder, tiny_folder, model, name="mine"):
    file = folder / f"{name}.toml"
    file.write_text(f'extends = "{tiny_folder / "tiny.toml"}"\nname = "{name}"\n{model}')
    return load_suite(str(file))


def audited(like, asked):
    """The suite of an audit: its model in the place of that of `like`."""
    table = model_table(asked, like, on_gpu=True)
    table.setdefault("embeddings", []).extend(embedding_tables(asked.embeddings))
    model = ModelSettings.model_validate(table)
    return replace(like, settings=like.settings.model_copy(update={"model": model}))


# --- the word


def test_a_file_behind_a_link_has_the_word_of_the_link_in_suite_and_audit(tmp_path, tiny_folder):
    file = linked(tmp_path)
    stated = f'[[model.embeddings]]\npath = "{file}"\n'
    mine = suite_of(tmp_path, tiny_folder, stated)
    assert list(mine.embedding_digests) == ["zyx"]
    plain = suite_of(tmp_path, tiny_folder, "", "plain")
    ours = audited(plain, Asked(tmp_path, tmp_path / "out", embeddings=(file,)))
    assert ours.embedding_digests == mine.embedding_digests
    (table,) = embedding_tables([file])
    assert table == {"path": str(file), "token": "zyx"}
    # and where an audit takes the suite's model, which lies behind a link too
    taken = audited(mine, Asked(tmp_path, tmp_path / "out"))
    assert taken.embedding_digests == mine.embedding_digests


def test_a_word_inside_of_another_is_no_word_of_a_caption():
    assert _uncalled(["art"], ["a party", "ARTS"])
    assert not _uncalled(["art"], ["a party", "a piece of ART, large"])
    assert not _uncalled(["<art>"], ["a p<art>y"])
    assert _uncalled(["style"], ["a \u017ftyle"])


# --- the curve


def point(name, weight, likeness, copies):
    table = np.zeros((20, 4))
    table[:copies] = 1
    like = np.full((8, 4), likeness)
    return Point(name, table, like, like, weight, kind="remedy" if weight is None else "weight")


def test_a_remedy_is_held_against_no_weight_that_nobody_can_make():
    """With an embedding alone there are base and model, and nothing lies between them."""
    ends = [point("base", 0.0, 0.2, 0), point("yours", 1.0, 0.8, 16)]
    remedy = point("r", None, 0.5, 2)
    row = _row(remedy, [*ends, remedy], None)
    assert (row.against, row.not_against) == ("", NO_WEIGHTS)
    row = _row(remedy, [*ends, point("half", 0.5, 0.6, 12), remedy], None)
    assert row.against.startswith("better than weight") and row.not_against == ""
    # where there is no base at all the page says so by itself
    assert _row(remedy, [ends[1], remedy], None).not_against == ""


def test_the_curve_begins_at_the_base_with_the_embedding(tmp_path, tiny_folder):
    file = embedding(tmp_path / "zyx.safetensors")
    lora = embedding(tmp_path / "lora.safetensors", 3)
    like = suite_of(tmp_path, tiny_folder, "")
    audit = Audit.__new__(Audit)
    audit.asked = Asked(tmp_path, tmp_path / "out", embeddings=(file,), loras=(Lora(lora),))
    audit.suite = audited(like, audit.asked)
    tables = ModelSettings.model_validate(
        audit.suite.settings.model.model_dump() | {"loras": [{"file": str(lora)}]}
    )
    settings = audit.suite.settings.model_copy(update={"model": tables})
    audit.suite = replace(audit.suite, settings=settings)
    column = audit.base_with_embeddings
    assert column.name == "base with the embedding"
    # it is the model at weight 0: the embedding alone
    assert column.suite.generation == audited(like, replace(audit.asked, loras=())).generation
    assert list(column.suite.embedding_digests) == ["zyx"]
    assert column.suite.lora_strengths == {}
    for other in ({"embeddings": ()}, {"loras": ()}):
        audit.asked = Asked(tmp_path, tmp_path / "out", **{"loras": (Lora(lora),)} | other)
        assert audit.base_with_embeddings is None


# --- the model of a suite


@pytest.mark.parametrize(
    "model",
    [
        "[model]\nvae_tiling = true\n",
        "[model]\n[model.size_conditioning]\noriginal = [64, 96]\ncrop = [0, 8]\n",
        '[[model.embeddings]]\npath = "zyx.safetensors"\ntoken = "<mine>"\n',
        '[[model.loras]]\nfile = "lora.safetensors"\nweight = 0.5\n',
        '[model]\nbase = "base"\nweight = 0.5\n',
    ],
    ids=["vae_tiling", "size_conditioning", "embeddings", "loras", "weight"],
)
def test_an_audit_without_a_model_has_that_of_the_suite(tmp_path, tiny_folder, model):
    embedding(tmp_path / "zyx.safetensors"), embedding(tmp_path / "lora.safetensors", 3)
    shutil.copytree(tiny_folder / "pipeline", tmp_path / "base")
    like = suite_of(tmp_path, tiny_folder, model)
    plain = suite_of(tmp_path, tiny_folder, "", "plain")
    assert like.generation != plain.generation
    ours = audited(like, Asked(tmp_path, tmp_path / "out"))
    assert ours.generation == like.generation
    assert (ours.base and ours.base.generation) == (like.base and like.base.generation)


def test_a_lora_on_top_of_a_merged_or_blended_model_is_refused_in_one_line(tmp_path, tiny_folder):
    lora = embedding(tmp_path / "lora.safetensors", 3)
    asked = Asked(tmp_path, tmp_path / "out", loras=(Lora(lora),))
    for model, has in (
        ('[[model.loras]]\nfile = "lora.safetensors"\n', "LoRA files"),
        ('[model]\nbase = "base"\nweight = 0.5\n', "a weight between base and model"),
    ):
        like = suite_of(tmp_path, tiny_folder, model)
        with pytest.raises(UserError, match=f"suite mine has {has} .*--model") as error:
            model_side(asked, like)
        assert "\n" not in str(error.value)
    # what the suite's model was itself fine-tuned from is not the base of that LoRA
    like = suite_of(tmp_path, tiny_folder, '[model]\nbase = "base"\n')
    assert model_side(asked, like) == like.settings.model.side
    assert "base" not in model_table(asked, like, on_gpu=True)
