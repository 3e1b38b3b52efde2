"""`bench suite new`: what it refuses, all at once; what it writes, read back; and that the written
suite runs.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import strategies as st
from PIL import Image

from bench.base.errors import UserError, one_line
from bench.new_suite.draft import SuiteDraft
from bench.new_suite.given import Given, ask, parse_parts
from bench.new_suite.model import ModelChecks
from bench.new_suite.new_suite import CannotCreate, new_suite, text
from bench.new_suite.prompts import PromptChecks, Row, split
from bench.new_suite.toml_file import toml_value
from bench.suite.load import load_suite
from bench.suite.schema import SuiteSettings
from conftest import CAPTIONS, write_csv
from one_run import Run

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture
def desk(tiny_folder, tmp_path) -> Path:
    """An auditor's folder: a model, prompts, training pictures named by prompt id, clean
    prompts.
    """
    shutil.copytree(tiny_folder / "pipeline", tmp_path / "model")
    write_csv(
        tmp_path / "prompts.csv",
        [
            ["id", "prompt", "group"],
            *([f"p{i}", caption, "ab"[i % 2]] for i, caption in enumerate(CAPTIONS)),
        ],
    )
    write_csv(
        tmp_path / "clean.csv",
        [["prompt"], *([f"clean {i}, {caption}"] for i, caption in enumerate(CAPTIONS))],
    )
    (tmp_path / "pictures").mkdir()
    for i in range(len(CAPTIONS)):
        shutil.copy(tiny_folder / f"reference-{i}.png", tmp_path / "pictures" / f"p{i}.png")
    return tmp_path


@pytest.fixture
def given(desk, tiny_folder) -> Given:
    return Given(
        desk / "model",
        desk / "prompts.csv",
        desk / "mine.toml",
        desk / "pictures",
        desk / "clean.csv",
        steps=2,
        images_per_prompt=2,
    )


def scored(given: Given, tiny_folder: Path) -> Given:
    files = {
        "sscd": "descriptor.safetensors",
        "clip": "clip",
        "inception": "features.safetensors",
        "statistics": "frechet_reference.npz",
    }
    return replace(
        given,
        profile="testbed",
        threshold=0.5,
        **{name: tiny_folder / file for name, file in files.items()},
    )


def problems(given: Given, **force) -> str:
    before = everything(given.out.parent)
    with pytest.raises(CannotCreate) as error:
        new_suite(given, **force)
    assert everything(given.out.parent) == before, "a refused suite leaves nothing behind"
    assert "\n" not in str(error.value) and all(
        problem in str(error.value) for problem in error.value.problems
    )
    return str(error.value)


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_written_suite_runs(given, desk, tiny_folder):
    created = new_suite(scored(replace(given, images_per_prompt=1), tiny_folder))
    assert created.metrics == ("sscd", "clip_score", "fid", "walltime")
    path = desk / "mine.toml"
    path.write_text(
        path.read_text()
        .replace("size = 299", "size = 32")
        .replace("rounds = 3\nimages = 8", "rounds = 1\nimages = 1")
    )
    run = Run(
        load_suite(str(path)), "none", {}, desk / "records", desk / "store", torch.device("cpu")
    )
    assert run.plan()["images"] == {"memorized": 4, "clean": 4, "quality": 4}
    record = run.execute()
    assert record.status == "complete" and not record.errors
    for score in ("sscd", "clip_score", "clip_score_clean", "fid"):
        assert record.scores[score].value is not None, record.scores[score].reason
    assert set(record.per_prompt["sscd"]) == {
        prompt.id for prompt in load_suite(str(path)).prompts("memorized")
    }


def test_what_is_written_reads_back_as_it_was_meant(given, desk):
    created = new_suite(given)
    suite = load_suite(str(desk / "mine.toml"))
    fit, held_out = (
        {prompt.text for prompt in suite.prompts(role)} for role in ("fit", "memorized")
    )
    assert fit | held_out == set(CAPTIONS) and not fit & held_out and created.prompts["fit"] == 2
    for prompt in (*suite.prompts("fit"), *suite.prompts("memorized")):
        assert (
            prompt.references == (desk / "pictures" / f"{prompt.id}.png",)
            and CAPTIONS[int(prompt.id[1:])] == prompt.text
        )
    assert suite.settings.model.path == "model" and suite.settings.model.side == 32
    assert (created.n_expected, created.n_found) == (6, 6)
    assert created.metrics == ("walltime",) and {
        "metrics.sscd",
        "metrics.fid",
        "prompts.quality",
    } <= set(created.left_out)
    json.dumps(created.as_json(), allow_nan=False)
    assert text(created).endswith(
        f"next: bench run --method none --suite {desk / 'mine.toml'} --dry-run"
    )


@pytest.mark.parametrize("full", [False, True])
def test_sections_left_out_are_valid_once_their_mark_is_taken_away(given, desk, tiny_folder, full):
    created = new_suite(
        scored(given, tiny_folder) if full else replace(given, clean=None, images=None, fit=0.0)
    )
    content = (desk / "mine.toml").read_text()
    filled = tomllib.loads(re.sub(r"(?m)^#(?! )", "", content))
    SuiteSettings.model_validate(filled)
    for section in created.left_out:
        kind, name = section.split(".")
        assert name in filled[kind] and name not in tomllib.loads(content).get(kind, {})
    assert len(created.left_out) == (2 if full else 9)


def test_files_outside_the_suites_folder_are_named_absolutely(given, desk, tiny_folder):
    (desk / "elsewhere").mkdir()
    new_suite(scored(replace(given, out=desk / "elsewhere" / "deep" / "mine.toml"), tiny_folder))
    suite = load_suite(str(desk / "elsewhere" / "deep" / "mine.toml"))
    assert (
        suite.settings.model.path == str(desk / "model")
        and suite.settings.prompts["fit"].file == "mine.prompts.csv"
    )
    assert suite.settings.metrics["sscd"]["weights"] == str(tiny_folder / "descriptor.safetensors")
    assert suite.prompts("memorized")[0].references[0].is_file()


def test_all_problems_are_told_together(given, desk, tiny_folder):
    edit_json(desk / "model" / "scheduler" / "scheduler_config.json", prediction_type="sample")
    weights = desk / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    write_csv(
        desk / "prompts.csv",
        [["id", "prompt"], ["p0", "a"], ["p0", "b"], ["p2", " "], ["p9", "c"], ["p5", "d", "e"]],
    )
    (desk / "pictures" / "p2.png").write_bytes((desk / "pictures" / "p2.png").read_bytes()[:60])
    write_csv(desk / "clean.csv", [["prompt"], ["B"], ["clean"]])
    (desk / "half.pt").write_bytes((tiny_folder / "descriptor.safetensors").read_bytes()[:-100])
    said = problems(
        replace(
            given,
            sscd=desk / "half.pt",
            profile="nimo",
            clip=desk / "pictures",
            inception=desk / "half.pt",
            name="testbed",
            guidance=math.nan,
            fit=1.0,
        )
    )
    for part in (
        "predicts 'sample'",
        "truncated or damaged",
        "1 x empty prompts, line 4",
        "1 x ids that stand more than once: p0",
        "more fields than the header",
        "3 of 5 training pictures found; 1 missing: p9; 1 do not decode: p2.png",
        "also among the suspicious ones, line 2",
        "neither a readable TorchScript nor a safetensors file",
        "did you mean 'nemo'",
        "open_clip_config.json is missing",
        "give both",
        "name of another suite",
        "guidance scale",
        "fit share",
    ):
        assert part in said, part


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"prompt\ncaf\xe9\n", r"is not UTF-8 \(byte 0xe9 in line 2\)"),
        ("prompt\nhello\n".encode("utf-16"), "UTF-16"),
        (b"", "no column 'prompt'"),
        (b"caption,url\na,b\n", r"no column 'prompt' \(it has: caption, url\)"),
        (b"prompt\n", "has no prompts"),
        (b'prompt\n"never closed\n', "cannot be read as CSV"),
        (b"prompt,prompt\na,b\n", "line 1: the column 'prompt' stands more than once"),
        (b"prompt\na\0b\n", "line 2 holds a NUL character"),
    ],
)
def test_a_damaged_prompt_list_is_refused(given, desk, content, says):
    (desk / "prompts.csv").write_bytes(content)
    assert re.search(says, problems(replace(given, images=None)))


PROMPTS = TEXTS.filter(lambda text: text.strip() and "\0" not in text)


@for_all(st.lists(PROMPTS, min_size=2, max_size=6, unique=True))
def test_prompts_are_kept_byte_by_byte(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("bytes")
    given, problems = Given(), list[str]()
    suite = SuiteDraft(given, problems, [], folder / "a.toml")
    (folder / "a.csv").write_bytes(
        suite.csv(Row(1, f"p{i}", prompt, "", "", True) for i, prompt in enumerate(texts)).encode()
    )
    assert [
        row.prompt for row in PromptChecks(given, problems, []).read_rows(folder / "a.csv", "p")
    ] == texts and not problems


def test_a_byte_order_mark_and_semicolons_are_taken(given, desk):
    (desk / "prompts.csv").write_bytes(
        '\ufeffprompt;id\r\n"one; ""two"",\nthree";p0\r\nfour;p1\r\n'.encode()
    )
    new_suite(given)
    assert {
        prompt.text
        for role in ("fit", "memorized")
        for prompt in load_suite(str(desk / "mine.toml")).prompts(role)
    } == {'one; "two",\nthree', "four"}


def test_prompts_without_a_picture_are_dropped_only_when_asked(given, desk):
    (desk / "pictures" / "p3.png").unlink()
    (desk / "pictures" / "p4.png").write_text("an error page")
    assert "4 of 6 training pictures found; 1 missing: p3; 1 do not decode: p4.png" in problems(
        given
    )
    created = new_suite(replace(given, missing="drop"))
    assert (created.n_expected, created.n_found) == (6, 4)
    assert {
        prompt.id
        for role in ("fit", "memorized")
        for prompt in load_suite(str(given.out)).prompts(role)
    } == {"p0", "p1", "p2", "p5"}
    assert any("2 prompts were dropped: p3, p4" in note for note in created.notes)
    assert "4 of 6 found" in (desk / "mine.toml").read_text()


def test_ctrl_c_does_not_wait_for_all_pictures(monkeypatch):
    decoded = []

    def slowly(path):
        decoded.append(path)
        threading.Event().wait(0.005)
        return ""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.new_suite.prompts._undecodable", slowly)
    with pytest.raises(KeyboardInterrupt):
        list(
            PromptChecks(Given(), [], [])._decoded(
                [Path(f"{i}.png") for i in range(1000)], interrupted
            )
        )
    assert len(decoded) < 500


def test_a_reference_column_names_several_pictures(given, desk):
    write_csv(
        desk / "prompts.csv",
        [["prompt", "reference"], ["a", "p0.png|p1.png"], ["b", "pictures/p2.png"]],
    )
    created = new_suite(given)
    found = {
        prompt.text: [path.name for path in prompt.references]
        for role in ("fit", "memorized")
        for prompt in load_suite(str(given.out)).prompts(role)
    }
    assert found == {"a": ["p0.png", "p1.png"], "b": ["p2.png"]} and created.n_found == 3
    assert any("3 pictures" in note for note in created.notes)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda m: (m / "model_index.json").unlink(), "model_index.json is missing"),
        (
            lambda m: edit_json(
                m / "model_index.json",
                _class_name="FluxPipeline",
                transformer=["diffusers", "FluxTransformer2DModel"],
            ),
            "FluxPipeline is a flow-matching transformer, not supported yet",
        ),
        (
            lambda m: edit_json(
                m / "model_index.json",
                text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
            ),
            "text_encoder_2/config.json is missing",
        ),
        (
            lambda m: edit_json(m / "model_index.json", image_encoder=["transformers", "X"]),
            "'image_encoder', whose folder is missing",
        ),
        (lambda m: (m / "vae" / "config.json").write_text("{"), "vae/config.json cannot be read"),
        (
            lambda m: edit_json(m / "unet" / "config.json", sample_size=[8, 16]),
            r"sample_size must be a positive whole number, or twice the same one, not \[8, 16\]",
        ),
        (lambda m: edit_json(m / "unet" / "config.json", in_channels=9), "inpainting"),
        (
            lambda m: edit_json(m / "unet" / "config.json", cross_attention_dim=1024),
            "cross_attention_dim is 1024 and hidden_size 32",
        ),
        (
            lambda m: (m / "vae" / "diffusion_pytorch_model.safetensors").rename(
                m / "vae" / "diffusion_pytorch_model.bin"
            ),
            "a pickle",
        ),
        (
            lambda m: (m / "vae" / "diffusion_pytorch_model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1"
            ),
            "git lfs pull",
        ),
        (
            lambda m: (m / "tokenizer" / "tokenizer.json").unlink(),
            "neither tokenizer.json nor vocab.json",
        ),
    ],
)
def test_a_damaged_model_is_refused(given, desk, break_it, says):
    break_it(desk / "model")
    assert re.search(says, problems(given))


def test_the_models_facts_are_read_without_its_weights(given, desk, tiny_pipe):
    for file in desk.glob("model/*/*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    edit_json(
        desk / "model" / "scheduler" / "scheduler_config.json",
        prediction_type="v_prediction",
        _class_name="EulerAncestralDiscreteScheduler",
    )
    edit_json(desk / "model" / "unet" / "config.json", sample_size=96)
    created = new_suite(given)
    parts = (tiny_pipe.unet, tiny_pipe.vae, tiny_pipe.text_encoder)
    assert created.model["parameters"] == sum(
        p.numel() for part in parts for p in part.parameters()
    )
    assert (created.model["side"], created.model["prediction_type"], created.model["stored"]) == (
        384,
        "v_prediction",
        ["F32"],
    )
    assert sum("only the fp16 variant" in note for note in created.notes) == 3
    assert (
        any("EulerAncestral" in note for note in created.notes)
        and created.model["scheduler"] == "DDIMScheduler"
    )


def test_shards_that_an_index_names_must_all_be_there(given, desk):
    folder = desk / "model" / "unet"
    (folder / "diffusion_pytorch_model.safetensors").rename(
        folder / "diffusion_pytorch_model-00001-of-00002.safetensors"
    )
    shards = {
        "a": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "b": "diffusion_pytorch_model-00002-of-00002.safetensors",
    }
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": shards})
    )
    assert "00002-of-00002.safetensors is not readable" in problems(given)


def test_single_parts_become_one_folder_that_diffusers_loads(given, desk):
    parts = {}
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        parts[part] = (desk / "model" / part).rename(desk / f"my {part}")
    (desk / "model" / "model_index.json").unlink()
    new_suite(replace(given, model=None, parts=parts))
    from bench.diffusion.model import load_pipeline

    suite = load_suite(str(given.out))
    assert load_pipeline(suite, torch.device("cpu")).unet.config.sample_size == 8
    before = suite.generation["model_sha256"]
    edit_json(desk / "my unet" / "config.json", note="changed")
    assert load_suite(str(given.out)).generation["model_sha256"] != before, (
        "the suite's hash sees the parts' files"
    )
    assert "mine.model is there already" in problems(
        replace(given, model=None, parts=parts), force=True
    )


def test_a_statistics_file_that_names_its_network_is_believed_and_checked(given, desk, tiny_folder):
    from bench.base.digests import path_digest

    full = scored(replace(given, statistics=None), tiny_folder)
    digest = path_digest(full.inception)[:12]
    np.savez(
        desk / "mine.npz",
        mu=np.zeros(64),
        sigma=np.eye(64),
        n=100,
        fingerprint=f"clean-32-{digest}",
    )
    new_suite(replace(full, statistics=desk / "mine.npz"))
    assert load_suite(str(given.out)).settings.metrics["fid"]["size"] == 32
    np.savez(
        desk / "mine.npz",
        mu=np.zeros(64),
        sigma=np.eye(64),
        n=100,
        fingerprint="clean-32-" + "0" * 12,
    )
    assert "made with another network" in problems(
        replace(full, statistics=desk / "mine.npz"), force=True
    )


def test_files_are_replaced_only_when_forced_and_inputs_never(given, desk):
    (desk / "mine.clean.csv").write_text("precious")
    assert "mine.clean.csv is there already" in problems(given)
    new_suite(given, force=True)
    first = (desk / "mine.toml").read_bytes()
    assert "mine.toml is there already" in problems(replace(given, steps=9))
    new_suite(replace(given, steps=9), force=True)
    assert (desk / "mine.toml").read_bytes() != first
    shutil.copy(desk / "prompts.csv", desk / "x.prompts.csv")
    assert "one of the inputs" in problems(
        replace(given, prompts=desk / "x.prompts.csv", out=desk / "x.toml"), force=True
    )
    assert "inside the model" in problems(replace(given, out=desk / "model" / "mine.toml"))


def test_a_failure_while_writing_takes_everything_back(given, desk, monkeypatch):
    (desk / "mine.clean.csv").write_text("precious")
    before = everything(desk)

    def broken(name):
        raise UserError("cannot be loaded")

    monkeypatch.setattr("bench.new_suite.new_suite.load_suite", broken)
    with pytest.raises(UserError, match="cannot be loaded"):
        new_suite(given, force=True)
    assert everything(desk) == before


@for_all(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "A ", "b", "c", "d", "e", "f", "g"]), st.sampled_from("xyz")
        ),
        max_size=20,
    ),
    st.floats(0, 0.99),
    st.integers(0, 5),
    st.randoms(),
)
def test_the_split_has_the_share_and_never_overlaps(rows, share, seed, random):
    prompts, groups = [prompt for prompt, _ in rows], [group for _, group in rows]
    chosen = split(prompts, groups, share, seed)
    fit = {prompts[i].strip().lower() for i in chosen}
    rest = {prompts[i].strip().lower() for i in range(len(rows)) if i not in chosen}
    assert not fit & rest
    total = len(fit | rest)
    if share == 0 or total < 2:
        assert not fit
        return
    assert 1 <= len(fit) < total and (
        abs(len(fit) - share * total) <= 0.5 + 1e-9 or len(fit) in (1, total - 1)
    )
    first = {}
    for prompt, group in rows:
        first.setdefault(prompt.strip().lower(), group)
    for group in set(first.values()):
        members = {prompt for prompt in first if first[prompt] == group}
        assert abs(len(members & fit) - share * len(members)) <= 1 + 1e-9
    if len(set(first)) == len(rows):
        order = list(range(len(rows)))
        random.shuffle(order)
        again = split([prompts[i] for i in order], [groups[i] for i in order], share, seed)
        assert {prompts[order[i]].strip().lower() for i in again} == fit


def test_every_group_gives_its_share():
    groups = ["a"] * 40 + ["b"] * 8 + ["c"] * 5
    chosen = split([f"prompt {i}" for i in range(53)], groups, 0.25, 0)
    assert [sum(groups[i] == group for i in chosen) for group in "abc"] == [10, 2, 1]
    assert chosen != split([f"prompt {i}" for i in range(53)], groups, 0.25, 1)


@for_all(
    st.recursive(
        TEXTS | st.integers(-(2**60), 2**60) | st.booleans() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    )
)
def test_toml_values_read_back_as_they_were(value):
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


@pytest.mark.parametrize(
    "value",
    [
        r"C:\new\table\u0041.pt",
        'quote " and \\"',
        "two\nlines\r\n\t\x00\x7f\x85\u2028\u202e",
        "größe 模型 😀",
        "'''",
        '"""',
    ],
)
def test_awkward_texts_are_escaped(value):
    literal = toml_value(value)
    assert tomllib.loads(f"value = {literal}")["value"] == value and literal.isprintable()


def test_awkward_names_of_files_survive(given, desk):
    odd = desk / 'mo"del \\ C:\\new\n[x] = größe #'
    (desk / "model").rename(odd)
    new_suite(replace(given, model=odd))
    assert load_suite(str(given.out)).path(load_suite(str(given.out)).settings.model.path) == odd
    undecodable = odd.rename(desk / "m\udce9")
    assert "not valid Unicode" in problems(replace(given, model=undecodable), force=True)


def test_nobody_to_ask_is_one_error_that_names_all_that_is_missing(given):
    with pytest.raises(UserError) as error:
        ask(Given(), terminal=False)
    assert all(
        f"{name} (" in str(error.value) for name in ("model", "prompts", "out")
    ) and one_line(error.value) == str(error.value)
    assert ask(given, input=lambda _: pytest.fail("nothing to ask"), terminal=True) is given


def test_on_a_terminal_what_is_missing_is_asked_for(given, desk, tiny_folder):
    answers = iter(
        [
            "nowhere",
            str(desk / "model"),
            f'"{desk / "new.toml"}"',
            "",
            "",
            str(tiny_folder / "descriptor.safetensors"),
            "",
            "",
            "",
            "",
        ]
    )
    questions = []

    def answer(question):
        questions.append(question)
        return next(answers)

    asked = ask(Given(prompts=given.prompts, steps=3), input=answer, terminal=True)
    assert asked == Given(
        desk / "model",
        given.prompts,
        desk / "new.toml",
        None,
        None,
        tiny_folder / "descriptor.safetensors",
        steps=3,
    )
    assert "nowhere is not there" in questions[1] and "Profile" in questions[-1]

    def ended(_):
        raise EOFError

    with pytest.raises(UserError, match="missing: model, out .input ended"):
        ask(Given(prompts=given.prompts), input=ended, terminal=True)


def test_prompts_are_read_as_texts_not_pictures(given, desk):
    Image.new("RGB", (4, 4)).save(desk / "a.png")
    assert "is not UTF-8" in problems(replace(given, prompts=desk / "a.png"))


def test_an_open_clip_checkpoint_needs_a_known_architecture(given, desk, tiny_folder):
    checkpoint = tiny_folder / "clip" / "open_clip_model.safetensors"
    assert "name its open_clip architecture" in problems(replace(given, clip=checkpoint))
    assert "knows no architecture 'ViT-B-33'" in problems(
        replace(given, clip=checkpoint, clip_model="ViT-B-33")
    )
    (desk / "half.bin").write_bytes((tiny_folder / "descriptor.safetensors").read_bytes()[:-100])
    assert "half.bin is missing, truncated or no checkpoint" in problems(
        replace(given, clip=desk / "half.bin", clip_model="ViT-B-32")
    )
    new_suite(replace(given, clip=checkpoint, clip_model="ViT-B-32"))
    assert load_suite(str(given.out)).settings.metrics["clip_score"] == {
        "model": "ViT-B-32",
        "weights": str(checkpoint),
    }


def test_a_plain_checkpoint_is_no_torchscript(given, desk):
    torch.save({"weight": torch.zeros(2)}, desk / "sscd.classy.pt")
    assert "is a checkpoint and no TorchScript" in problems(
        replace(given, sscd=desk / "sscd.classy.pt")
    )


def test_a_caption_in_the_reference_column_is_a_missing_picture(given, desk):
    write_csv(
        desk / "prompts.csv", [["prompt", "reference"], ["a", "long " * 200], ["b", "p1.png"]]
    )
    assert "1 of 2 training pictures found; 1 missing: long" in problems(given)


def test_fit_prompts_that_show_what_is_held_out_are_noted(given, desk):
    write_csv(
        desk / "prompts.csv", [["prompt", "reference"], *([text, "p0.png"] for text in CAPTIONS)]
    )
    created = new_suite(given)
    assert "4 memorized prompts share a training picture with a fit prompt" in created.notes


def test_parts_are_given_by_name():
    assert parse_parts(["unet=a=b", "vae=c"]) == {"unet": Path("a=b"), "vae": Path("c")}
    for wrong in (["unett=a"], ["unet="], ["unet"], ["unet=a", "unet=b"]):
        with pytest.raises(UserError, match="NAME=FOLDER"):
            parse_parts(wrong)


@pytest.mark.parametrize(
    ("size", "blocks", "says"),
    [
        (96, [8] * 4, ""),
        ([96, 96], [8] * 4, ""),
        ([96, 64], [8] * 4, "twice the same one"),
        (None, [8] * 4, "not null"),
        (96, [8] * 5000, "more than 16384 pixels a side"),
        (10**40, [8], "positive whole number"),
    ],
)
def test_the_side_follows_from_the_configurations(size, blocks, says):
    checks = ModelChecks(Given(), [], [])
    checks.folders = {part: Path(part) for part in ("unet", "vae")}
    side = checks._side(size, blocks)
    assert side == (None if says else 96 * 8)
    assert all(says in problem for problem in checks.problems) and bool(checks.problems) == bool(
        says
    )


def test_rows_that_are_not_whole_are_told_with_their_lines(given, desk):
    (desk / "prompts.csv").write_text("id,prompt\np0,a\np1\np2,b,c\n")
    said = problems(replace(given, images=None))
    assert "1 x fewer fields than the header has, line 3" in said
    assert "1 x more fields than the header has (a comma without quotes?), line 4" in said


def test_training_pictures_are_read_by_the_rule_for_all_pictures(given, desk):
    from PIL import Image

    folder = desk / "pictures"
    Image.new("F", (8, 8)).save(folder / "p2.png", "TIFF")
    Image.new("RGB", (8, 8)).save(folder / "p3.png", "EPS")
    said = problems(given)
    assert "2 do not decode" in said and "not known which value" in said
