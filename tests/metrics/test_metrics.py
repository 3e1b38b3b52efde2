import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bench import trust
from bench.base.errors import Unmeasurable, UserError
from bench.features.networks import PROFILES, CleanFeatures, CopyDescriptor, OpenClip, preprocess
from bench.registry.registry import find
from metrics.sscd import mean_pairwise_similarity, reduce_references


def random_picture(seed, height=48, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", list(PROFILES))
def test_sscd_preprocessing_equals_torchvision_on_pil_images(name):
    from torchvision import transforms as T

    profile = PROFILES[name]
    steps = (
        [T.Resize((profile.square, profile.square))]
        if profile.square
        else [T.Resize(profile.short)]
        if profile.short
        else []
    )
    steps += [T.CenterCrop(profile.crop)] if profile.crop else []
    reference = T.Compose([*steps, T.ToTensor(), T.Normalize(*profile.normalisation)])
    # 322, 374 and 425: sides whose quotient of floats falls one short
    sizes = [(48, 64), (300, 200), (512, 512), (322, 400), (500, 374), (425, 425), (601, 322)]
    for seed, size in enumerate(sizes):
        picture = random_picture(seed, *size)
        torch.testing.assert_close(
            preprocess(picture, profile), reference(Image.fromarray(picture)), atol=1e-6, rtol=0
        )


def test_descriptors_are_unit_vectors_whatever_the_batch(tiny_folder):
    pictures = [random_picture(seed) for seed in range(7)]
    one = CopyDescriptor(
        tiny_folder / "descriptor.safetensors", "testbed", torch.device("cpu"), batch_size=1
    )(pictures)
    many = CopyDescriptor(
        tiny_folder / "descriptor.safetensors", "testbed", torch.device("cpu"), batch_size=64
    )(pictures)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_another_profile_is_another_fingerprint(tiny_folder):
    prints = {
        CopyDescriptor(
            tiny_folder / "descriptor.safetensors", name, torch.device("cpu")
        ).fingerprint
        for name in PROFILES
    }
    assert len(prints) == len(PROFILES)


def test_reference_reducers_on_a_worked_example():
    similarity = np.array([[0.1, 0.9, 0.3, 0.2], [0.5, 0.5, 0.5, 0.5]])
    assert reduce_references(similarity, "max").tolist() == [0.9, 0.5]
    assert reduce_references(similarity, "mean").tolist() == pytest.approx([0.375, 0.5])
    assert (
        reduce_references(similarity, "lower_median").tolist()
        == torch.tensor(similarity).median(1).values.tolist()
    )


def test_pairwise_similarity_equals_the_loop_over_pairs():
    features = np.random.default_rng(0).normal(size=(5, 4, 8))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    slow = [np.mean([a @ b for a, b in itertools.combinations(prompt, 2)]) for prompt in features]
    np.testing.assert_allclose(mean_pairwise_similarity(features), slow, atol=1e-12)
    assert mean_pairwise_similarity(np.repeat(features[:, :1], 4, axis=1)) == pytest.approx(1)


def test_clip_score_equals_one_picture_and_one_text_at_a_time(tiny_folder):
    import open_clip

    pictures, texts = (
        [random_picture(s) for s in range(5)],
        ["a red apple", "a bus", "a red apple", "owl", ""],
    )
    clip = OpenClip("clip", tiny_folder / "clip", None, torch.device("cpu"))
    images, (embedded, truncated) = clip(pictures), clip.texts(texts)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_folder / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_folder / 'clip'}")
    model.eval()
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        with torch.no_grad():
            a = model.encode_image(transform(Image.fromarray(picture))[None])[0].numpy()
            b = model.encode_text(tokenizer([text]))[0].numpy()
        assert images[i] @ embedded[i] == pytest.approx(
            a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5
        )
    assert truncated == 0
    assert clip.texts(["apple " * 40])[1] == 1


def test_clean_features_equal_clean_fid_on_an_inception_shaped_file(tmp_path):
    """clean-fid's own wrapper and ours on the same TorchScript: 299 pixels in, 2048 features
    out.
    """
    from cleanfid.fid import get_batch_features
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    class Shaped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.AvgPool2d(23), torch.nn.Flatten(), torch.nn.Linear(507, 2048)
            )

        def forward(self, x):
            return self.layers(x)

    torch.manual_seed(0)
    file = tmp_path / "inception-2015-12-05.pt"
    torch.jit.trace(Shaped().eval(), torch.rand(2, 3, 299, 299)).save(str(file))
    trust([file])
    pictures = [random_picture(s) for s in range(3)]
    ours = CleanFeatures(file, 299, torch.device("cpu"))(pictures)
    batch = torch.from_numpy(
        np.stack([build_resizer("clean")(p) for p in pictures]).transpose(0, 3, 1, 2)
    )
    theirs = get_batch_features(
        batch, InceptionV3W(str(tmp_path), download=False), torch.device("cpu")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_walltime_is_the_method_over_none():
    from bench.contracts.samples import Timing

    class Stopwatch:
        fit_seconds, fit_rows = 3.0, 40

        def samples(self, role):
            if role == "clean":
                raise Unmeasurable("the suite has no prompts of the role clean")
            spent = np.array([[50.0, 50.0], [50.0, 70.0]])
            return SimpleNamespace(prompts=("p", "q"), evaluations=lambda: spent)

        def time(self, role, rounds, images):
            assert role == "memorized"
            return Timing((4.0, 6.0, 9.0), (2.0, 2.0, 4.0), 30, 3000, 1500)

    cost = find("metric", "walltime").load()(rounds=3, images=10).measure(Stopwatch())
    # sum over sum, and the slowest and fastest round
    assert cost["time_ratio"].value == 19 / 8 and cost["time_ratio"].interval == (2, 3)
    assert cost["seconds_per_image"].value == pytest.approx(19 / 30)
    assert cost["nfe_per_image"].table.mean() == 55
    assert (cost["fit_nfe"].value, cost["fit_seconds"].value) == (40, 3.0)
    assert isinstance(cost["nfe_per_image_clean"], Unmeasurable)


def test_a_truncated_scorer_is_one_clear_line(tiny_folder, tmp_path):
    cut = tmp_path / "cut.pt"
    cut.write_bytes((tiny_folder / "descriptor.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="neither a readable safetensors nor") as error:
        CopyDescriptor(cut, "testbed", torch.device("cpu"))([random_picture(0)])
    assert "\n" not in str(error.value)


def test_png_round_trip_keeps_pixels():
    from bench.store.store import decode_png, encode_png

    picture = random_picture(5)
    assert np.array_equal(decode_png(encode_png(picture)), picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).convert("L").save(buffer, "PNG")
    assert decode_png(buffer.getvalue()).shape == picture.shape
