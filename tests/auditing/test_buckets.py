"""Pictures that are asked for in the sides that they were trained in."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.auditing.asked import Asked, Lora, Remedy
from bench.auditing.audit import _by_text, run_audit
from bench.auditing.header import read_training_header
from bench.auditing.plan import plan
from bench.auditing.prompts import Asking, caption_askings
from bench.auditing.ready import _buckets, ready, try_model
from bench.auditing.verdicts import Assigned, chance
from bench.base.errors import UserError
from bench.captioned.buckets import believed, buckets_of, nearest_bucket
from bench.contracts.method import Method
from bench.diffusion.model import load_denoiser
from bench.running import engine, generating
from bench.running.sampling import sample
from bench.suite.load import load_suite
from bench.testbed.subject import SHIPPED

CPU = torch.device("cpu")
SIDE = load_suite("testbed").settings.model.side


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four training pictures: two squares, one wide and one high, the latter with the caption of a
    square; a wide held-out one and a square one.
    """
    root = tmp_path_factory.mktemp("buckets")
    pictures = sorted((SHIPPED / "data/64_scene").glob("*.png"))[:4]
    held = sorted((SHIPPED / "holdout").glob("*.png"))[:2]
    shapes = {0: (SIDE, SIDE), 1: (SIDE, SIDE), 2: (2 * SIDE, SIDE), 3: (SIDE, 2 * SIDE)}
    for folder, files in (("data", pictures), ("holdout", held)):
        (root / folder).mkdir()
        for number, file in enumerate(files):
            shape = shapes[number] if folder == "data" else shapes[1 + number]
            Image.open(file).resize(shape).save(root / folder / f"{number}.png")
            text = files[1] if folder == "data" and number == 3 else file
            shutil.copy(text.with_suffix(".txt"), root / folder / f"{number}.txt")
    return root


def asked(folders, out, **more):
    given = {
        "holdout": folders / "holdout",
        "loras": (Lora(SHIPPED / "subject.safetensors"),),
        "quick": True,
        "weights": (0.5,),
        "steps": 2,
        "images": 1,
        "buckets": True,
    }
    return Asked(folders / "data", out, **(given | more))


def test_each_caption_is_asked_for_in_the_sides_of_its_pictures(folders, tmp_path):
    audit = ready(asked(folders, tmp_path / "out"), CPU)
    width, height = nearest_bucket(2 * SIDE, SIDE, buckets_of(SIDE))
    narrow, high = nearest_bucket(SIDE, 2 * SIDE, buckets_of(SIDE))
    assert width > height
    assert narrow < high
    captions = [one for one in audit.askings if one.kind == "caption"]
    assert {one.own: one.size for one in captions} == {
        (0,): None,
        (1,): None,
        (2,): (height, width),
        (3,): (high, narrow),
    }
    assert captions[1].text == captions[3].text
    assert {one.size for one in audit.askings if one.kind != "caption"} == {None}
    assert Counter(one.size for one in audit.held_out_askings) == {None: 1, (height, width): 1}
    assert any("2 of 4 training pictures were asked for in the sides" in n for n in audit.notes)


def test_images_have_these_sides_and_a_second_audit_makes_none(folders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    remedies = (Remedy("guidance", {"share": 0.5}),)
    given = asked(folders, out, quick=False, attack=False, weights=(0.5,), remedies=remedies)
    audit = ready(given, CPU)
    planned = plan(audit)
    assert planned["images_missing"] == sum(planned["images"].values())
    found = run_audit(audit)
    made = audit.studio.made(audit.yours, audit.askings)
    for row, picture in enumerate(made.pictures(range(len(made.keys)))):
        size = made.askings[int(made.prompt[row])].size
        assert picture.shape[:2] == (size or (SIDE, SIDE))
    features = made.features(audit.comparison.descriptor)
    for row, picture in enumerate(made.pictures(range(len(made.keys)))):
        alone = audit.comparison.descriptor([picture])[0]
        np.testing.assert_allclose(features[row], alone, atol=1e-5)
    assert {row.name for row in found.rows} >= {"base", "weight 0.5", "guidance (share 0.5)"}
    assert found.settings["buckets"] is True
    assert not any("not square" in line for line in found.not_tried)

    def no_more(*_):
        raise AssertionError("an image was made again")

    monkeypatch.setattr(generating, "make_batch", no_more)
    again = run_audit(ready(given, CPU))
    assert again.pictures == found.pictures
    assert plan(ready(given, CPU))["images_missing"] == 0


def test_every_model_is_loaded_once_for_all_sizes(folders, tmp_path, monkeypatch):
    loads = []
    load = engine.load_denoiser
    monkeypatch.setattr(engine, "load_denoiser", lambda *a, **k: loads.append(a) or load(*a, **k))
    audit = ready(asked(folders, tmp_path / "out"), CPU)
    made = audit.studio.made(audit.yours, audit.askings)
    assert len(made.parts) == 3
    assert len(loads) == 1
    # as if each had been loaded for itself
    wide = made.parts[1]
    again = load_denoiser(wide.prepared.experiment.suite, CPU)
    request = again.request([key.prompt for key in wide.keys], [key.seed for key in wide.keys])
    alone = again.decode(sample(again, request, Method(), {}))
    for row, picture in zip(wide.rows, alone, strict=True):
        assert np.abs(made.pictures([row])[0].astype(int) - picture.astype(int)).max() <= 1


def test_an_audit_of_squares_is_the_same_with_and_without_buckets(folders, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for file in (folders / "data").glob("[01].*"):
        shutil.copy(file, data)
    audits = [
        ready(
            replace(asked(folders, tmp_path / f"{each}", buckets=each, holdout=None), data=data),
            CPU,
        )
        for each in (True, False, None)
    ]
    first = audits[0]
    for audit in audits:
        assert audit.askings == first.askings
        assert audit.suite.generation == first.suite.generation
        assert not any("bucket" in note for note in audit.notes)
        made = audit.studio.planned(audit.yours, audit.askings)
        assert [part.prepared.experiment.suite for part in made.parts] == [audit.suite]


def test_the_header_says_whether_pictures_kept_their_proportions():
    def said(**header):
        return read_training_header({f"ss_{name}": text for name, text in header.items()}).buckets

    assert said(enable_bucket="True") is True
    assert said(enable_bucket="False") is False
    assert said() is None
    assert said(datasets=json.dumps([{"enable_bucket": True, "subsets": []}])) is True


def test_sides_that_the_model_cannot_make_are_one_line_before_anything_is_made(folders, tmp_path):
    audit = ready(asked(folders, tmp_path / "out"), CPU)
    audit.askings = [replace(audit.askings[0], size=(SIDE, SIDE + 1)), *audit.askings]
    with pytest.raises(UserError, match="must be multiples of") as error:
        try_model(audit)
    assert "\n" not in str(error.value)


def test_a_caption_in_two_sizes_is_one_caption_where_captions_are_exchanged():
    """Or its own images of another size would count as those of another caption."""
    asking = caption_askings(["a", "b", "a"], 1, [None, None, (8, 16)])
    assert [(one.text, one.own, one.size) for one in asking] == [
        ("a", (0,), None),
        ("b", (1,), None),
        ("a", (2,), (8, 16)),
    ]
    prompts = Assigned(np.arange(3), np.eye(3, dtype=bool))
    merged, kept = _by_text(asking, prompts, np.ones(3, dtype=bool))
    assert merged.prompt.tolist() == [0, 1, 0]
    assert kept.tolist() == [True, True, False]
    assert merged.own[0].tolist() == [True, False, True]
    # Pictures 0 and 2 are hit by each other's images, which have their own caption.
    hit = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]], dtype=bool)
    assert chance(hit, merged, kept, np.arange(3)).count == 0
    assert chance(hit, prompts, np.ones(3, dtype=bool), np.arange(3)).count > 0
    alone = [Asking("caption", "a", 1, (0,)), Asking("caption", "b", 1, (1,))]
    same, all_kept = _by_text(
        alone, Assigned(np.arange(2), np.eye(2, dtype=bool)), np.ones(2, bool)
    )
    assert same.prompt.tolist() == [0, 1]
    assert all_kept.all()


def test_what_a_header_says_of_its_buckets():
    def told(**header):
        return read_training_header({f"ss_{name}": text for name, text in header.items()})

    info = {"buckets": {"0": {"resolution": [640, 384], "count": 3}, "1": {"resolution": [5]}}}
    for found in (
        told(bucket_info=json.dumps(info), resolution="(512, 512)", max_bucket_reso="2048"),
        told(
            datasets=json.dumps(
                [{"bucket_info": info, "resolution": [512, 512], "max_bucket_reso": 2048}]
            )
        ),
    ):
        assert found.bucket_sizes == ((640, 384),)
        assert (found.resolution, found.bucket_most, found.bucket_least) == (512, 2048, None)
    assert told(resolution="768,512").resolution == 627
    assert told(resolution="512").resolution == 512
    for nonsense in ("", "None", "1,2,3", "wide"):
        assert told(resolution=nonsense).resolution is None
    assert told(bucket_info="[1]").bucket_sizes == ()
    assert told(bucket_info='{"buckets": [1], "x": 2}').bucket_sizes == ()


@pytest.mark.parametrize(
    ("stated", "side", "taken"),
    [
        (None, 512, 512),
        (0, 512, 512),
        (1, 512, 512),
        (255, 512, 512),  # no bucket has it
        (256, 512, 256),
        (768, 512, 768),
        (99_999, 512, 1024),
        (256, 1024, 256),
        (255, 1024, 1024),
        (1, 32, 32),
        (7, 32, 32),
        (8, 32, 8),
        (64, 32, 64),
        (65, 32, 64),
    ],
)
def test_a_resolution_is_believed_within_bounds(stated, side, taken):
    assert believed(stated, side) == taken


@given(
    st.one_of(st.text(alphabet="0123456789,() .-x", max_size=20), st.integers(0, 10**6).map(str)),
    st.integers(-5, 10**13),
    st.integers(-5, 10**13),
    st.sampled_from([8, 32, 64, 255, 256, 512, 1024]),
)
def test_whatever_a_header_says_every_picture_has_a_bucket(resolution, least, most, side):
    header = read_training_header(
        {
            "ss_resolution": resolution,
            "ss_datasets": json.dumps([{"min_bucket_reso": least, "max_bucket_reso": most}]),
        }
    )
    buckets = _buckets(header, side)
    assert all(min(sides) > 0 for sides in buckets)
    for width, height in ((1, 5000), (5000, 1), (side, side)):
        assert nearest_bucket(width, height, buckets) in buckets
