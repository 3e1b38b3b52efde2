"""Audits from the folder to the page, on the embedded model with the LoRA that it ships with."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

import bench as harness
from bench.auditing import suites
from bench.auditing.asked import Asked, Lora, Remedy, parse_lora, parse_remedies, parse_weights
from bench.auditing.audit import run_audit
from bench.auditing.header import TrainingHeader
from bench.auditing.pictures import read_pictures
from bench.auditing.plan import plan
from bench.auditing.ready import read_as_trained, ready, try_model
from bench.auditing.rows import remedy_columns
from bench.base.errors import UserError
from bench.captioned.views import Training
from bench.running import generating
from bench.testbed.bundle import BUNDLE
from bench.testbed.subject import SHIPPED
from conftest import bench

SUBJECT = SHIPPED
LORA = SUBJECT / "subject.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def timed_once():
    """Seconds are asserted nowhere, so that one round of one image is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "ROUNDS", 1)
        patch.setattr(suites, "TIMED", 1)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three pictures that were shown 3,200 times, one that was shown 50 times, and three held out;
    as the subject's own data has them.
    """
    root = tmp_path_factory.mktemp("pictures")
    wanted = {"64_scene": 3, "1_scene": 1}
    for folder, count in wanted.items():
        for picture in sorted((SUBJECT / "data" / folder).glob("*.png"))[:count]:
            (root / "data" / folder).mkdir(parents=True, exist_ok=True)
            for file in (picture, picture.with_suffix(".txt")):
                shutil.copy(file, root / "data" / folder / file.name)
    (root / "holdout").mkdir()
    for picture in sorted((SUBJECT / "holdout").glob("*.png"))[:3]:
        for file in (picture, picture.with_suffix(".txt")):
            shutil.copy(file, root / "holdout" / file.name)
    return root


def asked(folders, out, **more):
    given = {
        "holdout": folders / "holdout",
        "loras": (Lora(LORA),),
        "quick": True,
        "weights": (0.5,),
        "steps": 6,
        "images": 2,
    }
    return Asked(folders / "data", out, **(given | more))


@pytest.fixture(scope="module")
def found(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit")
    return out, run_audit(ready(asked(folders, out), CPU))


def test_pictures_that_were_shown_often_come_back_and_no_other(found):
    _, audit = found
    verdicts = {one.name: one.verdict for one in audit.pictures}
    often = [name for name in verdicts if name.startswith("64_")]
    assert Counter(verdicts[name] for name in often)["copied"] >= 2
    assert verdicts[next(name for name in verdicts if name.startswith("1_"))] == "not seen"
    assert audit.base.count == 0
    assert audit.held_out.count == 0
    assert audit.chance.count == 0
    assert audit.pictures[0].name.startswith("64_")  # the nearest first
    assert audit.answer == f"{int(audit.yours.count)} of 4 training pictures come back."


def test_every_number_of_a_picture_can_be_counted_again(found, folders):
    """From the stored images, by the descriptor, one picture after the other."""
    out, audit = found
    prepared = ready(asked(folders, out), CPU)
    images = prepared.studio.made(prepared.yours, prepared.askings)
    describe = prepared.comparison.descriptor
    held = [describe([np.asarray(entry.image())])[0] for entry in prepared.holdout.entries]
    for one in audit.pictures:
        entry = next(entry for entry in prepared.training.entries if entry.name == one.name)
        own = describe([np.asarray(entry.image())])[0]
        copies = best = 0
        for row, key in enumerate(images.keys):
            made = describe(images.pictures([row]))[0]
            near = float(made @ own)
            best = max(best, near)
            if key.prompt == entry.caption:
                copies += near >= audit.threshold and near > max(float(made @ h) for h in held)
        assert one.copies == copies
        assert one.best == pytest.approx(best, abs=1e-5)


def test_copies_grow_with_the_weight(found):
    _, audit = found
    by_weight = {row.weight: row.copies for row in audit.rows if row.weight is not None}
    assert list(by_weight) == [0.0, 0.5, 1.0]
    assert by_weight[0.0] == 0
    assert by_weight[1.0] >= by_weight[0.5]
    assert by_weight[1.0] >= 0.5


def test_the_header_says_how_often_pictures_were_shown(found):
    _, audit = found
    often = next(one for one in audit.pictures if one.name.startswith("64_"))
    assert often.views == 3200
    assert audit.header["folders"]["64_scene"] == [6, 64]


def counting(monkeypatch):
    """How many images are sampled from now on."""
    counts = Counter()
    original = generating.make_batch

    def make_batch(denoiser, keys, *rest):
        counts["images"] += len(keys)
        return original(denoiser, keys, *rest)

    monkeypatch.setattr(generating, "make_batch", make_batch)
    return counts


def test_a_second_audit_makes_nothing_and_another_weight_only_its_own(found, folders, monkeypatch):
    out, audit = found
    counts = counting(monkeypatch)
    again = run_audit(ready(asked(folders, out), CPU))
    assert not counts["images"]
    assert again.pictures == audit.pictures
    assert again.rows == audit.rows
    run_audit(ready(asked(folders, out, weights=(0.5, 0.9)), CPU))
    captions, scenes, few = 4, 8, 2
    assert counts["images"] == captions * few + scenes * 1


def test_the_base_is_the_model_without_the_file_bit_for_bit(found, folders):
    out, _ = found
    prepared = ready(asked(folders, out), CPU)
    base = prepared.studio.made(prepared.base, prepared.askings)
    plain = ready(asked(folders, out / "plain", loras=(), weights=None), CPU)
    # All prompts, so that batches are the same: another number of rows rounds otherwise.
    without = plain.studio.made(plain.yours, prepared.askings)
    assert base.keys == without.keys
    rows = range(len(base.keys))
    pairs = zip(base.pictures(rows), without.pictures(rows), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


def test_an_audit_without_a_base_says_that_it_cannot_tell(folders, tmp_path):
    out = tmp_path / "out"
    more = {"loras": (), "weights": None, "images": 1, "steps": 2, "holdout": None}
    audit = run_audit(ready(asked(folders, out, **more), CPU))
    assert audit.base is None
    assert audit.held_out is None
    assert any("No base model was given" in note for note in audit.notes)
    assert any("No held-out pictures" in note for note in audit.notes)
    from bench.auditing.output import write

    page = write(audit, out)["page"].read_text()
    assert "Nothing here can tell your training from the base model's." in page


def test_the_command_writes_a_page_that_asks_nothing_of_the_network(folders, tmp_path):
    out = tmp_path / "out"
    words = ["audit", "--data", folders / "data", "--holdout", folders / "holdout"]
    words += ["--lora", f"{LORA}:1", "--out", out, "--quick", "--steps", 2, "--images", 1]
    planned = bench(*words, "--weights", "0.5", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert plan["pictures"] == 4
    assert plan["images_missing"] == sum(plan["images"].values())
    assert not (out / "index.html").exists()
    done = bench(*words, "--weights", "0.5", "--fail-above", "0", "--json")
    assert done.returncode in (0, 3), done.stderr
    told = json.loads(done.stdout)
    assert (done.returncode == 3) == any(
        one["verdict"] in ("copied", "extractable") for one in told["pictures"]
    )
    page = (out / "index.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert {path.name for path in out.glob("*.csv")} == {"pictures.csv", "rows.csv"}
    # The suite is an ordinary one.
    shown = bench("show", out / "audit.toml")
    assert shown.returncode == 0, shown.stderr
    after = bench(*words, "--weights", "0.5", "--dry-run", "--json")
    assert json.loads(after.stdout)["images_missing"] == 0


def test_captions_are_escaped(folders, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folders / "data/64_scene", data)
    caption = '<script>alert(1)</script> & "quoted" \u202e'
    for file in data.glob("*.txt"):
        file.write_text(caption + file.stem)
    out = tmp_path / "out"
    harness.audit(data, out, loras=[str(LORA)], quick=True, images=1, steps=2, weights=(0.5,))
    page = (out / "index.html").read_text()
    assert "<script>" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page


def test_folders_of_generations_need_no_model(folders, tmp_path):
    generations = tmp_path / "generations"
    generations.mkdir()
    pictures = sorted((folders / "data/64_scene").glob("*.png"))
    shutil.copy(pictures[0], generations / "copied.png")
    ImageOps.mirror(Image.open(pictures[1])).save(generations / "mirrored.png")
    shutil.copy(sorted((SUBJECT / "holdout").glob("*.png"))[-1], generations / "other.png")
    audit = harness.audit(
        folders / "data",
        tmp_path / "out",
        holdout=folders / "holdout",
        generations=generations,
        like="testbed",
    )
    assert audit.yours.count == 2
    assert audit.held_out.count == 0
    nearest = {one.name: one.nearest[0] for one in audit.pictures if one.verdict == "copied"}
    assert nearest[f"64_scene/{pictures[0].name}"].view == "square"
    assert nearest[f"64_scene/{pictures[1].name}"].view == "square, mirrored"
    frames = audit.frames()
    assert list(frames["pictures"]["verdict"])[:2] == ["copied", "copied"]
    refused = bench(
        "audit", "--data", folders / "data", "--generations", generations, "--lora", LORA
    )
    assert refused.returncode == 2
    assert "leave --lora out" in refused.stderr
    words = ["audit", "--data", folders / "data", "--generations", generations]
    # Pictures of anywhere are judged by SSCD, which is not here; never by the small judge.
    unfetched = bench(*words, "--out", tmp_path / "unfetched")
    assert unfetched.returncode == 2
    assert "sscd_disc_mixup" in unfetched.stderr
    inside = bench(*words[:3], "--generations", folders, "--like", "testbed", "--out", tmp_path)
    assert "name a folder of generations alone" in inside.stderr
    given = bench(*words, "--like", "testbed", "--steps", 3, "--weights", "0.5", "--clip-skip", 0)
    assert "leave --weights, --steps, --clip-skip out" in given.stderr


def test_a_duplicated_picture_is_one_group(folders, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folders / "data/64_scene", data)
    first = min(data.glob("*.png"))
    shutil.copy(first, data / "again.png")
    (data / "again.txt").write_text("the same once more")
    prepared = ready(asked(folders, tmp_path / "out", holdout=None), CPU)
    assert len(set(prepared.groups.tolist())) == 4
    prepared = ready(Asked(data, tmp_path / "more", loras=(Lora(LORA),), quick=True, steps=2), CPU)
    names = [entry.name for entry in prepared.training.entries]
    groups = prepared.groups
    assert groups[names.index("again.png")] == groups[names.index(first.name)]
    assert len(set(groups.tolist())) == 3


def refusal(folders, tmp_path, **more):
    with pytest.raises(UserError) as error:
        prepared = ready(asked(folders, tmp_path / "out", **more), CPU)
        from bench.auditing.ready import try_model

        try_model(prepared)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("store/**/*.png"))
    return str(error.value)


def test_bad_inputs_are_one_line_before_anything_is_generated(folders, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    assert "holds no captioned pictures" in refusal(folders, tmp_path, holdout=other)
    shared = tmp_path / "shared"
    shutil.copytree(folders / "holdout", shared)
    shutil.copy(min((folders / "data/64_scene").glob("*.png")), shared / "h.png")
    (shared / "h.txt").write_text("a caption")
    assert "h.png is also in the training data" in refusal(folders, tmp_path, holdout=shared)
    near = Image.open(shared / "h.png").convert("RGB")
    pixels = np.asarray(near).astype(int)
    Image.fromarray(np.clip(pixels + 2, 0, 255).astype(np.uint8)).save(shared / "h.png")
    assert "h.png is also in the training data" in refusal(folders, tmp_path, holdout=shared)
    pickle = tmp_path / "x.pt"
    pickle.write_bytes(b"\x80")
    assert "is a pickle" in refusal(folders, tmp_path, loras=(Lora(pickle),))
    assert "is a pickle" in refusal(folders, tmp_path, embeddings=(pickle,))
    nothing = tmp_path / "nothing.safetensors"
    save_file({name: torch.zeros_like(t) for name, t in load_file(LORA).items()}, nothing)
    assert "changes nothing" in refusal(folders, tmp_path, loras=(Lora(nothing),))
    nan = tmp_path / "nan.safetensors"
    tensors = load_file(LORA)
    first = next(name for name in tensors if "lora_up" in name)
    save_file(tensors | {first: torch.full_like(tensors[first], float("nan"))}, nan)
    assert "holds NaN" in refusal(folders, tmp_path, loras=(Lora(nan),))
    half = tmp_path / "half.safetensors"
    save_file({name: t for name, t in tensors.items() if name != first}, half)
    said = refusal(folders, tmp_path, loras=(Lora(half),))
    assert "half.safetensors" in said
    assert "has down and no up" in said
    assert "give the last one with --lora" in refusal(
        folders, tmp_path, loras=(), weights=None, epochs=(LORA,)
    )
    longer = tmp_path / "longer.safetensors"
    last = [name for name in tensors if "lora_up" in name][-1]
    save_file(tensors | {last: torch.cat([tensors[last]] * 2)}, longer)
    for epoch, said in ((longer, "is for a weight of"), (nothing, "changes nothing")):
        assert said in refusal(folders, tmp_path, epochs=(epoch,))
    assert "leave --base out" in refusal(folders, tmp_path, base=BUNDLE / "pipeline")
    assert "name that with --model" in refusal(
        folders, tmp_path, loras=(), base=BUNDLE / "pipeline"
    )
    same = {"loras": (), "weights": None, "base": BUNDLE / "pipeline", "model": BUNDLE / "pipeline"}
    assert "nothing to compare" in refusal(folders, tmp_path, like="testbed", **same)
    assert "nothing to compare" in refusal(folders, tmp_path, loras=(parse_lora(f"{LORA}:0"),))
    assert "give --lora FILE" in refusal(folders, tmp_path, loras=())
    assert "exclude each other" in refusal(folders, tmp_path, calibrate=True, threshold=0.6)
    assert "raise --images" in refusal(folders, tmp_path, calibrate=True, images=1)
    assert "it has no base" in refusal(folders, tmp_path, calibrate=True, loras=(), weights=None)
    assert "give --holdout FOLDER" in refusal(folders, tmp_path, holdout=None, holdout_random=True)
    assert "lies in" in refusal(folders, folders / "data")
    assert "has no [metrics.sscd]" in refusal(folders, tmp_path, like=_without_sscd(tmp_path))


def _without_sscd(tmp_path) -> str:
    file = tmp_path / "plain.toml"
    file.write_text(
        'name = "plain"\n[model]\npath = "suite:testbed:../testbed/bundle/pipeline"\nside = 32\n'
        '[prompts.memorized]\nfile = "x.csv"\n[metrics.walltime]\n'
    )
    return str(file)


@pytest.mark.parametrize(
    ("text", "file", "unet", "text_encoder"),
    [
        ("a.safetensors", "a.safetensors", 1, 1),
        ("a.safetensors:0.5", "a.safetensors", 0.5, 0.5),
        ("a.safetensors:-1,0", "a.safetensors", -1, 0),
        ("folder:x/a.safetensors:2", "folder:x/a.safetensors", 2, 2),
    ],
)
def test_weights_stand_behind_the_last_colon(text, file, unet, text_encoder):
    lora = parse_lora(text)
    assert (lora.file, lora.strength.unet, lora.strength.text) == (Path(file), unet, text_encoder)


@pytest.mark.parametrize("text", ["a:abc", "a:1,2,3", "a:nan", "a:inf", "a:"])
def test_a_weight_is_a_number(text):
    with pytest.raises(UserError, match="is no weight"):
        parse_lora(text)


def test_weights_and_remedies_are_parsed_or_refused():
    assert parse_weights("0.5, 1.2") == (0.5, 1.2)
    assert parse_weights("") is None
    with pytest.raises(UserError, match="give numbers with commas"):
        parse_weights("0.5;1")
    given = parse_remedies(["guidance:share=0.5", "wen"])
    assert [(one.method, one.parameters) for one in given] == [
        ("guidance", {"share": 0.5}),
        ("wen", {}),
    ]
    assert parse_remedies(["none"]) == ()
    with pytest.raises(UserError, match="stands alone"):
        parse_remedies(["none", "wen"])
    assert parse_remedies(None) is None


def test_pictures_that_share_a_caption_share_its_images_in_the_curve():
    """Each picture gets its part, and an image counts whichever of them it copies."""
    from bench.auditing.prompts import Asking
    from bench.auditing.rows import _copies
    from bench.auditing.sampling import Generated

    asking = [Asking("caption", "both", 4, (0, 1)), Asking("caption", "one", 2, (2,))]
    made = Generated(asking, np.array([0, 0, 0, 0, 1, 1]), (), None)
    hit = np.zeros((6, 3), dtype=bool)
    hit[0, 1] = hit[2, 1] = hit[5, 2] = True
    assert _copies(hit, made, 3).tolist() == [[1, 0], [1, 0], [0, 1]]


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """The embedded model with the LoRA merged into it, saved as a model that was fine-tuned as a
    whole.
    """
    from bench.diffusion.lora.file import read_lora
    from bench.diffusion.lora.merge import Strength, merge
    from bench.diffusion.model import load_pipeline
    from bench.suite.load import load_suite

    folder = tmp_path_factory.mktemp("model") / "pipeline"
    shutil.copytree(BUNDLE / "pipeline", folder)
    pipe = load_pipeline(load_suite("testbed"), CPU)
    merge(pipe, [(read_lora(LORA), Strength())])
    pipe.unet.save_pretrained(folder / "unet", safe_serialization=True)
    return folder


def as_a_whole(fine_tuned, **more):
    given = {"loras": (), "model": fine_tuned, "base": BUNDLE / "pipeline", "like": "testbed"}
    return given | more


def test_a_model_that_was_fine_tuned_as_a_whole_is_compared_with_its_base(
    folders, tmp_path, fine_tuned
):
    """It moves with the weight as the file does that was merged into it, remedies beside."""
    remedies = (Remedy("guidance", {"share": 0.5}),)
    more = as_a_whole(fine_tuned, remedies=remedies)
    prepared = ready(asked(folders, tmp_path / "out", **more), CPU)
    audit = run_audit(prepared)
    assert audit.yours.count >= 2
    assert audit.base.count == 0
    weights = [(row.name, row.weight) for row in audit.rows if row.kind == "weight"]
    assert weights == [("base", 0.0), ("weight 0.5", 0.5), ("yours", 1.0)]
    assert audit.rows[1].travels == "as a checkpoint"
    assert audit.rows[-1].name == "guidance (share 0.5)"
    assert not any("weights between" in line for line in audit.not_tried)
    (half, _, _) = prepared.settings()[0]
    file = ready(asked(folders, tmp_path / "file"), CPU)
    (of_file, _, _) = file.settings()[0]
    made = prepared.studio.made(half, prepared.askings, 1)
    by_file = file.studio.made(of_file, prepared.askings, 1)
    rows = range(len(made.keys))
    differences = [
        np.abs(one.astype(int) - other).max()
        for one, other in zip(made.pictures(rows), by_file.pictures(rows), strict=True)
    ]
    assert max(differences) <= 1  # the file was rounded once more when it was merged and stored
    from bench.auditing.output import write

    page = write(audit, tmp_path / "out")["page"].read_text()
    assert "0 is the base, 1 your model" in page
    assert "the autoencoder is yours" in page
    assert "of the LoRA" not in page


def test_another_autoencoder_of_the_base_is_said(folders, tmp_path, fine_tuned):
    from bench.auditing.ready import OTHER_AUTOENCODER, try_model

    base = tmp_path / "base"
    shutil.copytree(BUNDLE / "pipeline", base)
    file = next((base / "vae").glob("*.safetensors"))
    save_file({name: 1.01 * value for name, value in load_file(file).items()}, file)
    prepared = ready(asked(folders, tmp_path / "out", **as_a_whole(fine_tuned, base=base)), CPU)
    try_model(prepared)
    assert OTHER_AUTOENCODER in prepared.notes


def test_a_base_that_predicts_something_else_has_no_weights(folders, tmp_path, fine_tuned):
    """It is compared all the same; whoever asks for weights is told."""
    from bench.auditing.ready import try_model

    base = tmp_path / "base"
    shutil.copytree(BUNDLE / "pipeline", base)
    file = base / "scheduler/scheduler_config.json"
    settings = json.loads(file.read_text())
    other = "epsilon" if settings.get("prediction_type") == "v_prediction" else "v_prediction"
    file.write_text(json.dumps(settings | {"prediction_type": other}))
    more = as_a_whole(fine_tuned, base=base)
    assert "there is nothing between" in refusal(folders, tmp_path, **more)
    prepared = ready(asked(folders, tmp_path / "out", **more | {"weights": None}), CPU)
    try_model(prepared)
    assert not prepared.settings()
    assert any(note.startswith("No weights were tried") for note in prepared.notes)


def test_the_attacker_who_knows_the_base_is_tried(folders, tmp_path):
    """On a few pictures: what the record says is what the audit says."""
    more = {"quick": False, "remedies": (), "images": 2, "steps": 4, "holdout": None}
    prepared = ready(asked(folders, tmp_path / "out", **more), CPU)
    audit = run_audit(prepared)
    record = prepared.studio.record(prepared.attack)
    assert audit.attack.scores["model_guidance_extracted"] == (
        record.attacks["model_guidance_extracted"].value
    )
    assert "names a copy of" in audit.attack.words
    assert {one.verdict for one in audit.pictures} <= {"copied", "extractable", "not seen"}


def test_a_held_out_picture_may_not_be_a_training_picture_that_is_not_looked_for(folders, tmp_path):
    shared = tmp_path / "shared"
    shutil.copytree(folders / "holdout", shared)
    pictures = sorted((folders / "data").rglob("*.png"))
    for number, picture in enumerate(pictures):
        shutil.copy(picture, shared / f"h{number}.png")
        said = refusal(folders, tmp_path, holdout=shared, limit=1)
        assert f"h{number}.png is also in the training data" in said
        (shared / f"h{number}.png").unlink()


def test_what_the_page_shows_is_of_this_audit(folders, tmp_path):
    """Also where an earlier one in the same folder had other settings."""
    out = tmp_path / "out"
    more = {"images": 1, "holdout": None}
    harness.audit(folders / "data", out, loras=[str(LORA)], quick=True, steps=2, weights=(0.5,))
    before = {path.name for path in (out / "images").glob("*.png")}
    again = harness.audit(
        folders / "data", out, loras=[f"{LORA}:0.2"], quick=True, steps=3, weights=(0.5,), **more
    )
    shown = {Path(near.file).name for one in again.pictures for near in one.nearest}
    assert {path.name for path in (out / "images").glob("*.png")} == shown
    assert not shown & before
    assert "weight 0.1" in {row.name for row in again.rows}


def test_held_out_pictures_are_asked_as_training_pictures_are(folders, tmp_path):
    more = {"instance_prompt": "a photo of zwx", "images": 2}
    prepared = ready(asked(folders, tmp_path / "out", **more), CPU)
    assert {one.text for one in prepared.held_out_askings} == {"a photo of zwx"}
    assert [one.images for one in prepared.held_out_askings] == [6]


def test_a_lora_of_stable_diffusion_xl_is_audited(folders, tmp_path):
    """On a tiny model with random weights: nothing comes back, and what does not work there is
    named and left out.
    """
    from bench.testbed.tiny import build_tiny_xl_pipeline

    pipe = build_tiny_xl_pipeline()
    pipe.save_pretrained(tmp_path / "xl")
    random, tensors = torch.Generator().manual_seed(0), {}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder_2", "lora_te2_")):
        for name, module in getattr(pipe, part).named_modules():
            if isinstance(module, torch.nn.Linear) and ("attn2" in name or "self_attn" in name):
                key = prefix + name.replace(".", "_")
                down = torch.randn(2, module.in_features, generator=random)
                tensors[f"{key}.lora_down.weight"] = 0.1 * down
                tensors[f"{key}.lora_up.weight"] = torch.randn(
                    module.out_features, 2, generator=random
                )
    save_file(tensors, tmp_path / "xl.safetensors")
    audit = harness.audit(
        folders / "data",
        tmp_path / "out",
        loras=[str(tmp_path / "xl.safetensors")],
        model=tmp_path / "xl",
        like="testbed",
        limit=2,
        images=1,
        steps=2,
        weights=(0.5,),
        remedies=(Remedy("guidance", {"share": 0.5}),),
    )
    assert audit.yours.count == 0
    names = [row.name for row in audit.rows]
    assert names == [
        "base",
        "weight 0.5",
        "yours",
        "text encoder untouched",
        "guidance (share 0.5)",
    ]
    assert any("The attack was not tried" in note for note in audit.notes)
    assert "in 1 image of each caption" in audit.answer


def test_methods_act_on_the_weights_with_the_file_merged_in(folders, tmp_path):
    """What wanda takes away is W + dW, and what it leaves is just that."""
    from bench.contracts.method import FitData
    from bench.diffusion.lora.file import read_lora
    from bench.diffusion.lora.merge import Strength, merge
    from bench.diffusion.model import load_denoiser, load_pipeline
    from methods.wanda import Wanda, feed_forward_outputs

    prepared = ready(asked(folders, tmp_path / "out"), CPU)
    denoiser = load_denoiser(prepared.suite, CPU)
    by_hand = load_pipeline(harness.load_suite("testbed"), CPU)
    merge(by_hand, [(read_lora(LORA), Strength())])
    method = Wanda(sparsity=0.1, calls=2)
    state = method.fit(denoiser, FitData(fit_prompts=tuple(prepared.training.captions)))
    merged = feed_forward_outputs(by_hand.unet)
    with method.attach(denoiser.pipe, state):
        for name, layer in feed_forward_outputs(denoiser.pipe.unet).items():
            expected = merged[name].weight.masked_fill(state[name], 0)
            assert torch.equal(layer.weight, expected)
            assert bool(state[name].any())


def test_methods_that_prune_are_rows_of_an_audit(folders, tmp_path):
    """wanda travels as a checkpoint, nemo's search for each prompt does not; both are held against
    the weights of the file.
    """
    searched = {"calibration_prompts": 2, "seeds": 2, "threshold": 0.99}
    pruned = {"sparsity": 0.1, "branch": "cond", "token_norm": "none"}
    remedies = (Remedy("wanda", pruned), Remedy("nemo", searched))
    more = {"quick": False, "attack": False, "remedies": remedies, "images": 1, "steps": 2}
    audit = run_audit(ready(asked(folders, tmp_path / "out", limit=2, **more), CPU))
    rows = {row.name.partition(" ")[0]: row for row in audit.rows if row.kind == "remedy"}
    assert rows.keys() == {"wanda", "nemo"}
    assert rows["wanda"].travels == "as a checkpoint"
    assert rows["nemo"].travels == "only where you serve the model"
    assert all(0 <= row.copies <= 1 and row.seconds > 0 for row in rows.values())
    assert not any("was not tried" in note for note in audit.notes)


def test_a_picture_that_cannot_be_cut_is_named(folders, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folders / "data/64_scene", data)
    Image.new("RGB", (1, 60_000)).save(data / "thin.png")
    with pytest.raises(UserError, match=r"picture thin\.png cannot be used"):
        read_pictures(data, Training(2048), lambda pixels: np.ones((len(pixels), 4)))


def test_extractable_is_what_ordinary_images_do_not_give(folders, tmp_path, monkeypatch):
    """A picture that as many plain images name as well was not got by the attack."""
    from types import SimpleNamespace

    from bench.auditing.attack import attack_found
    from bench.auditing.sampling import Studio

    prepared = ready(asked(folders, tmp_path / "out", quick=False, remedies=()), CPU)
    names = [entry.name for entry in prepared.training.entries]
    named = dict(zip(names, (1.0, 1.0, 0.0, 0.0), strict=True))
    plain = dict(zip(names, (0.0, 1.0, 1.0, 0.0), strict=True))
    scores = {
        f"model_guidance_{kind}": SimpleNamespace(value=0.5)
        for kind in ("extracted", "own", "plain", "excess")
    }
    record = SimpleNamespace(
        per_prompt={"model_guidance_extracted": named, "model_guidance_plain": plain},
        attacks=scores,
    )
    monkeypatch.setattr(Studio, "record", lambda studio, column: record)
    found, extracted = attack_found(prepared)
    assert extracted.tolist() == [[True, False, False, False]]
    assert "names a copy of 2 of 4 pictures" in found.words


def test_held_out_pictures_have_as_many_images_as_training_pictures(found, folders):
    """Those of all training prompts and of their own captions, none of each other's."""
    from bench.auditing.audit import _held_out_hits
    from bench.auditing.compare import Seen

    out, _ = found
    prepared = ready(asked(folders, out), CPU)
    everything = [*prepared.askings, *prepared.held_out_askings]
    made = prepared.studio.planned(prepared.yours, everything)
    first = len(prepared.studio.planned(prepared.yours, prepared.askings).keys)
    for row, expected in ((0, True), (first, True), (first + 2, False)):
        near = np.zeros((len(made.keys), 3))
        near[row, 0] = 1.0  # images of the first held-out caption begin at `first`, two of each
        seen = Seen(np.zeros((len(near), 4)), np.zeros((len(near), 4)), near)
        assert _held_out_hits(prepared, seen, made).tolist() == [expected, False, False]


def test_pictures_are_found_whichever_caption_gives_them(found, folders, tmp_path):
    """Captions dealt out anew: the same pictures come back, by captions that are not theirs."""
    out, before = found
    data = tmp_path / "data"
    shutil.copytree(folders / "data", data)
    texts = sorted(data.rglob("*.txt"))
    captions = [file.read_text() for file in texts]
    for file, caption in zip(texts, captions[1:] + captions[:1], strict=True):
        file.write_text(caption)
    given = replace(asked(folders, tmp_path / "out", store=str(out / "store")), data=data)
    audit = run_audit(ready(given, CPU))
    verdicts = {one.name: one.verdict for one in before.pictures}
    assert {one.name: one.verdict for one in audit.pictures} == verdicts
    assert audit.by_caption == 0
    assert audit.chance.count > 0


@pytest.fixture(scope="module")
def calibrated(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrated")
    given = asked(folders, out, calibrate=True, images=8, steps=6)
    return given, run_audit(ready(given, CPU))


def test_images_of_the_base_set_the_threshold(calibrated):
    """Counted again from the stored images: none is as similar to a picture that it was not asked
    for, and one just below it is.
    """
    given, audit = calibrated
    told = audit.copy_threshold
    prepared = ready(given, CPU)
    assert prepared.judges.threshold == 0.8975 != audit.threshold == told.value
    everything = [*prepared.askings, *prepared.held_out_askings]
    made = prepared.studio.made(prepared.base, everything)
    describe = prepared.comparison.descriptor
    views = [
        describe([np.asarray(entry.image()), np.asarray(ImageOps.mirror(entry.image()))])
        for entry in prepared.training.entries
    ]
    nearest = []
    for row, key in enumerate(made.keys):
        image = describe(made.pictures([row]))[0]
        nearest.append(
            max(
                float((seen @ image).max())
                for entry, seen in zip(prepared.training.entries, views, strict=True)
                if entry.caption != key.prompt
            )
        )
    assert told.alarms.total == len(nearest) == 88
    assert told.prompts == 15
    assert told.nearest == pytest.approx(max(nearest), abs=1e-4)
    assert 0 < audit.threshold - told.nearest < 2e-4


def test_a_threshold_that_was_set_is_that_of_everything(calibrated, monkeypatch):
    """Of the suites, so of methods and attack; and a second audit makes nothing."""
    given, audit = calibrated
    for one in audit.pictures:
        assert all(near.similarity >= audit.threshold for near in one.nearest if near.copy)
    counts = counting(monkeypatch)
    run_audit(ready(given, CPU))
    assert not counts["images"]
    planned = plan(ready(given, CPU))
    assert planned["images"]["base"] == 88  # held-out captions too
    assert not planned["images_missing"]
    again = run_audit(ready(given, CPU))
    assert again.copy_threshold == audit.copy_threshold
    assert again.pictures == audit.pictures
    for name in ("audit", "audit-base"):
        suite = harness.load_suite(str(given.out / f"{name}.toml"))
        assert suite.settings.metrics["sscd"]["threshold"] == audit.threshold


def test_which_threshold_it_is_stands_everywhere(calibrated, tmp_path):
    from bench.auditing.output import markdown, text, write

    given, audit = calibrated
    files = write(audit, given.out)
    words = audit.copy_threshold.words
    assert words in markdown(audit)
    assert words in text(audit, files)
    assert words in files["page"].read_text()
    assert f"at least {audit.threshold:g} similar" in files["page"].read_text()
    assert "its images set the threshold" in files["page"].read_text()
    told = json.loads(files["json"].read_text())["copy_threshold"]
    assert (told["origin"], told["value"]) == ("calibrated", audit.threshold)
    assert told["alarms"]["total"] == 88
    for name in ("pictures", "rows"):
        header, row = files[name].read_text().splitlines()[:2]
        found = dict(zip(header.split(",")[-6:], row.split(",")[-6:], strict=True))
        assert found["threshold"] == f"{audit.threshold}"
        assert found["threshold_origin"] == "calibrated"
        assert found["threshold_pairs"] == "88"


def test_a_threshold_that_is_not_set_says_so_and_its_false_alarms(found):
    _, audit = found
    told = audit.copy_threshold
    assert (told.value, told.origin) == (0.8975, "suite")
    assert told.alarms.count == 0
    assert told.alarms.total == 4 * 2 + 8
    assert "The threshold is that of suite testbed" in told.words
    assert "False alarms: 0 of 16 images of the base" in told.words
    assert not any(one.similar for one in audit.pictures)


def test_similar_pictures_are_shown_in_grey(folders, tmp_path, monkeypatch):
    """A picture half alike to some generation is not counted, and said; SSCD alone has a half that
    means something.
    """
    from bench.auditing import threshold
    from bench.auditing.output import text, write

    monkeypatch.setattr(threshold, "NOT_SSCD", ())
    generations = tmp_path / "generations"
    generations.mkdir()
    pictures = sorted((folders / "data/64_scene").glob("*.png"))
    shutil.copy(pictures[0], generations / "copied.png")
    near = np.asarray(Image.open(pictures[1]).convert("RGB")).copy()
    near[:, :8] = 128
    Image.fromarray(near).save(generations / "near.png")
    audit = harness.audit(
        *(folders / "data", tmp_path / "out"), generations=generations, like="testbed"
    )
    similar = [one for one in audit.pictures if one.similar]
    assert similar and all(0.5 <= one.best < 0.8975 for one in similar)
    assert all(one.verdict == "not seen" for one in similar)
    assert audit.copy_threshold.origin == "borrowed"
    files = write(audit, tmp_path / "out")
    assert "similar, not counted" in text(audit, files)
    assert 'class="chip similar"' in files["page"].read_text()
    assert audit.frames()["pictures"]["similar"].sum() == len(similar)


def test_pictures_that_another_model_was_trained_on_do_not_come_back(found, folders, tmp_path):
    out, _ = found
    given = asked(folders, tmp_path / "out", store=str(out / "store"), holdout=None)
    audit = run_audit(ready(replace(given, data=folders / "holdout"), CPU))
    assert audit.yours.total == 3
    assert audit.yours.count == 0


def test_an_embedding_is_a_word_of_the_model_and_not_of_its_base(folders, tmp_path):
    width = load_testbed().text_encoder.config.hidden_size
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, tmp_path / "scene.safetensors")
    more = {"loras": (), "weights": None, "images": 1, "steps": 2, "holdout": None}
    given = asked(
        folders, tmp_path / "out", embeddings=(tmp_path / "scene.safetensors",), remedies=(), **more
    )
    prepared = ready(given, CPU)
    assert list(prepared.suite.embedding_digests) == ["scene"]
    assert prepared.trigger == "scene"
    assert prepared.base.suite.embedding_digests == {}
    assert prepared.base.suite.generation != prepared.suite.generation
    found = run_audit(prepared)
    assert found.base is not None and found.model.endswith("with embedding scene.safetensors")
    assert found.settings["embeddings"] == prepared.suite.embedding_digests
    uncalled = "No caption has the word scene of its embedding"
    called = any("scene" in one.lower() for one in prepared.training.captions)
    assert any(note.startswith(uncalled) for note in found.notes) is not called
    assert not any("No base model was given" in note for note in found.notes)
    # whoever knows the trigger tries it alone, and it is not what the base makes of the same text
    (word,) = [one for one in prepared.askings if one.kind == "trigger"]
    images = [prepared.studio.made(one, [word]) for one in (prepared.yours, prepared.base)]
    assert not np.array_equal(*(made.pictures([0])[0] for made in images))


def zyx(tmp_path):
    """A textual inversion of two vectors, the word zyx."""
    width = load_testbed().text_encoder.config.hidden_size
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, tmp_path / "zyx.safetensors")
    return tmp_path / "zyx.safetensors"


def test_beside_a_lora_the_curve_begins_at_the_base_with_the_embedding(folders, tmp_path):
    more = {"embeddings": (zyx(tmp_path),), "remedies": (), "trigger": "zyx"}
    given = asked(folders, tmp_path / "out", images=1, steps=2, holdout=None, **more)
    prepared = ready(given, CPU)
    begin = prepared.base_with_embeddings
    asks = [one for one in prepared.askings if "zyx" in one.text][:1]
    made = [prepared.studio.made(one, asks, 1) for one in (begin, prepared.base)]
    assert not np.array_equal(*(one.pictures([0])[0] for one in made))
    planned = plan(prepared)
    assert planned["images"]["base with the embedding"] == planned["images"]["weight 0.5"]
    found = run_audit(prepared)
    assert plan(prepared)["images_missing"] == 0
    weights = [(row.name, row.weight) for row in found.rows]
    assert weights[0] == ("base with the embedding", 0.0)
    assert [weight for _, weight in weights[1:3]] == [0.5, 1.0]
    assert found.base is not None  # verdicts are held against the base as it is published


def test_with_an_embedding_alone_the_page_says_that_remedies_have_no_yardstick(folders, tmp_path):
    from bench.auditing.output import write

    more = {"embeddings": (zyx(tmp_path),), "loras": (), "weights": None}
    remedies = (Remedy("guidance", {"share": 0.5}),)
    given = asked(
        folders, tmp_path / "out", images=1, steps=2, holdout=None, remedies=remedies, **more
    )
    found = run_audit(ready(given, CPU))
    assert [row.against for row in found.rows] == ["", "", ""]
    assert found.rows[-1].not_against.startswith("not compared: no weight between")
    page = write(found, tmp_path / "out")["page"].read_text()
    assert page.count("not compared: no weight between base and model was tried") == 1


def said(tmp_path, **header):
    """The subject's LoRA with more in its header."""
    save_file(load_file(LORA), tmp_path / "said.safetensors", header)
    return Lora(tmp_path / "said.safetensors")


@pytest.mark.parametrize(
    ("given", "clip_skip", "line"),
    [
        (None, 1, "says clip_skip 2, which diffusers counts as 1: texts are read so here"),
        (
            0,
            0,
            "says clip_skip 2, which diffusers counts as 1; texts are read with 0, as was asked",
        ),
        (1, 1, ""),
    ],
)
def test_texts_are_read_at_the_layer_that_the_header_names(
    folders, tmp_path, given, clip_skip, line
):
    lora = said(tmp_path, ss_clip_skip="2")
    prepared = ready(asked(folders, tmp_path / "out", loras=(lora,), clip_skip=given), CPU)
    for column in (prepared.yours, prepared.base):
        assert column.suite.settings.model.clip_skip == clip_skip
    notes = [note for note in prepared.notes if "clip_skip" in note]
    assert len(notes) == bool(line) and all(line in note for note in notes)
    assert prepared.files.with_loras(prepared.suite, ()).settings.model.clip_skip == clip_skip


@pytest.mark.parametrize(
    ("length", "given", "chunks", "line"),
    [
        ("225", None, 3, "max_token_length 225: prompts are read in 3 chunks of 75 tokens"),
        ("150", 1, 1, "max_token_length 150; prompts are read in one chunk, as was asked for"),
        ("150", 2, 2, ""),
        ("None", 2, 2, ""),
        ("75", None, 1, ""),
    ],
)
def test_prompts_are_read_in_as_many_chunks_as_the_header_names(
    folders, tmp_path, length, given, chunks, line
):
    lora = said(tmp_path, ss_max_token_length=length)
    prepared = ready(asked(folders, tmp_path / "out", loras=(lora,), chunks=given), CPU)
    for column in (prepared.yours, prepared.base):
        assert column.suite.settings.model.chunks == chunks
    notes = [note for note in prepared.notes if "max_token_length" in note]
    assert len(notes) == bool(line) and all(line in note for note in notes)


def test_an_audit_in_chunks_counts_what_is_cut_and_tries_what_works_on_them(folders, tmp_path):
    data = shutil.copytree(folders / "data", tmp_path / "data")
    captions = sorted(data.rglob("*.txt"))
    most = load_testbed().tokenizer.model_max_length - 2
    for file, words in zip(captions, (3 * most, 2 * most, most + 1, 1), strict=True):
        file.write_text(" ".join(["a"] * words))
    more = {"holdout": None, "images": 1, "steps": 2, "weights": (0.5,), "quick": False}
    more |= {"remedies": None, "attack": True}
    given = asked(folders, tmp_path / "out", chunks=2, **more)
    prepared = ready(replace(given, data=data), CPU)
    try_model(prepared)
    (note,) = [note for note in prepared.notes if note.startswith("Captions longer")]
    assert f"the {2 * most + 2} tokens that are read, with beginning and end: 1." in note
    assert "--chunks 3 reads more" in note
    tried = {column.method for column in remedy_columns(prepared)}
    assert {"guidance", "random_tokens", "wen", "wanda", "baf"} <= tried
    assert prepared.attack is not None
    refused = replace(prepared.asked, remedies=(Remedy("clip_pad", {}),))
    prepared = replace(prepared, asked=refused)
    with pytest.raises(UserError, match="reads prompts in 2 chunks"):
        remedy_columns(prepared)


def test_of_xl_the_header_decides_no_layer():
    header = TrainingHeader(clip_skip=2)
    plain = Asked(Path("data"), Path("out"))
    assert read_as_trained(plain, header, "sdxl") == (plain, [])
    assert read_as_trained(plain, header, "sd")[0].clip_skip == 1


def load_testbed():
    from bench.diffusion.model import load_pipeline

    return load_pipeline(harness.load_suite("testbed"), CPU)
