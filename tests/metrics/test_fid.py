import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from bench import trust
from bench.base.digests import path_digest
from bench.base.errors import Unmeasurable, UserError
from bench.base.parameters import configure
from bench.cli.main import app
from bench.features import real_pictures
from bench.features.networks import CleanFeatures
from bench.features.real_pictures import (
    centre_square,
    decoded,
    feature_blocks,
    pictures_in,
    statistics_of,
)
from bench.leaderboard.board import columns_of, make_boards
from bench.leaderboard.cells import heading
from bench.registry.registry import find
from bench.statistics.frechet import frechet_distance, moments, read_features, read_statistics
from bench.suite.load import load_suite
from metrics.kid import discrepancies
from one_run import Run

CPU = torch.device("cpu")


def in_one_piece(features):
    """The oracle: what the records were made with."""
    features = np.asarray(features, dtype=np.float64)
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def distance_by_roots(mu1, sigma1, mu2, sigma2):
    """The oracle: both roots from symmetric eigendecompositions, as the committed records were
    measured.
    """

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    difference = mu1 - mu2
    return (
        difference @ difference
        + np.trace(sigma1)
        + np.trace(sigma2)
        - 2 * np.linalg.svd(root(sigma2) @ root(sigma1), compute_uv=False).sum()
    )


def distance(x, y):
    a, b = moments([x]), moments([y])
    return frechet_distance(a.mu, a.sigma, b.mu, b.sigma)


def features(seed, n, d, dead=0):
    """As of a network: not negative, correlated, of unequal size, some that never fire."""
    random = np.random.default_rng(seed)
    values = np.maximum(
        random.normal(size=(n, d)) @ (random.normal(size=(d, d)) * np.logspace(0, -2, d)) + 0.5, 0
    )
    values[:, :dead] = 0
    return values.astype(np.float32)


@pytest.mark.parametrize(
    ("n", "d", "dead"), [(500, 64, 0), (20, 64, 0), (3, 64, 5), (1300, 96, 7), (2, 1, 0)]
)
def test_streamed_value_is_that_of_the_committed_records(n, d, dead):
    x, y = features(1, n, d, dead), features(2, 700, d, dead)
    a, b = moments(iter([x[:1], x[1:]])), moments([y])
    mu, sigma = in_one_piece(x)
    np.testing.assert_allclose(a.mu, mu, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.sigma, sigma, rtol=0, atol=1e-12 * abs(sigma).max())
    slow = distance_by_roots(*in_one_piece(x), *in_one_piece(y))
    assert frechet_distance(a.mu, a.sigma, b.mu, b.sigma) == pytest.approx(slow, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 1100), max_size=6))
def test_moments_do_not_depend_on_how_features_were_cut(cuts):
    x = features(3, 1100, 6)
    whole, cut = moments([x]), moments(np.split(x, sorted(cuts)))
    assert (
        np.array_equal(whole.mu, cut.mu)
        and np.array_equal(whole.sigma, cut.sigma)
        and cut.n == 1100
    )


def test_moments_do_not_lose_digits_to_a_large_mean():
    x = np.random.default_rng(4).normal(size=(2000, 3)) + 1e6
    assert moments([x]).sigma == pytest.approx(in_one_piece(x)[1], abs=1e-8)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_pictures_changes_nothing(seed):
    x, y = features(5, 600, 12), features(6, 600, 12)
    assert distance(np.random.default_rng(seed).permutation(x), y) == pytest.approx(
        distance(x, y), rel=1e-8
    )


def test_moments_refuse_what_has_none():
    for blocks, words in (
        ([], "not of 0"),
        ([np.ones((1, 4))], "not of 1"),
        ([np.array([[1.0], [np.nan]])], "NaN or infinity"),
    ):
        with pytest.raises(UserError, match=words):
            moments(blocks)


def test_distance_equals_that_of_clean_fid():
    from cleanfid.fid import frechet_distance as theirs

    x, y = features(7, 400, 32), features(8, 300, 32)
    assert distance(x, y) == pytest.approx(theirs(*in_one_piece(x), *in_one_piece(y)), rel=1e-6)


@pytest.mark.parametrize("n", [300, 9])
def test_distance_is_symmetric_and_nothing_to_itself(n):
    x, y = features(9, n, 48), features(10, 200, 48)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-9)
    assert distance(x, x) <= 1e-6 * np.trace(in_one_piece(x)[1])


def test_distance_of_few_pictures_equals_the_singular_values_of_small_matrices():
    """n < d: the nuclear norm of the product of the centred features, without any covariance."""
    x, y = features(11, 15, 64).astype(float), features(12, 20, 64).astype(float)
    left, right = (x - x.mean(0)) / np.sqrt(14), (y - y.mean(0)) / np.sqrt(19)
    exact = (
        np.square(x.mean(0) - y.mean(0)).sum()
        + np.square(left).sum()
        + np.square(right).sum()
        - 2 * np.linalg.svd(left @ right.T, compute_uv=False).sum()
    )
    assert distance(x, y) == pytest.approx(exact, rel=1e-12)


def test_distance_of_pictures_that_are_all_alike_is_that_of_their_means():
    assert distance(np.zeros((5, 3)), np.ones((4, 3))) == 3


def png(path, seed=0, size=(40, 56), mode="RGB", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BOX).convert(mode).save(
        path, **options
    )
    return path


@pytest.fixture
def folder(tmp_path):
    """Pictures of several sizes, formats and colours, some in folders below."""
    for seed in range(5):
        png(tmp_path / f"real/{seed}.png", seed, (40 + seed, 64))
    png(tmp_path / "real/b/grey.jpg", 11, mode="L", quality=95)
    png(tmp_path / "real/a/cmyk.JPEG", 12, mode="CMYK", quality=95)
    (tmp_path / "real/licence.txt").write_text("not a picture")
    return tmp_path / "real"


@pytest.fixture
def network(tiny_folder):
    return CleanFeatures(tiny_folder / "features.safetensors", 32, CPU)


def test_features_of_a_folder_are_those_of_clean_fid(folder, tiny_folder, tmp_path):
    """clean-fid's own loop over files and ours, with a network that takes 299 pixels."""
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

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
    wrapper = InceptionV3W(str(tmp_path), download=False)
    theirs = get_folder_features(
        str(folder), wrapper, num_workers=0, device=CPU, mode="clean", verbose=False
    )
    ours = np.concatenate(
        list(feature_blocks(pictures_in(folder), CleanFeatures(file, 299, CPU), tmp_path / "cache"))
    )
    assert len(theirs) == len(ours) == 7
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("size", [(48, 64), (300, 199), (31, 31), (33, 100), (512, 513)])
def test_the_cut_is_that_of_torchvision_on_pil_images(size):
    from torchvision import transforms as T

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    theirs = T.Compose(
        [T.Resize(32, T.InterpolationMode.BICUBIC, antialias=True), T.CenterCrop(32)]
    )(picture)
    assert np.array_equal(np.asarray(centre_square(picture, 32)), np.asarray(theirs))


@pytest.mark.parametrize("threads", [1, 3])
def test_pictures_are_decoded_in_order_whatever_their_colours(folder, threads):
    files = pictures_in(folder).files
    assert [path.relative_to(folder).as_posix() for path in files] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "a/cmyk.JPEG",
        "b/grey.jpg",
    ]
    for path, picture in zip(files * 20, decoded(files * 20, None, threads), strict=True):
        assert np.array_equal(picture, np.asarray(Image.open(path).convert("RGB")))


def test_a_picture_that_cannot_be_decoded_is_an_error_with_its_name(folder, network, tmp_path):
    whole = (folder / "b/grey.jpg").read_bytes()
    (folder / "b/grey.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b/grey.jpg cannot be read"):
        statistics_of(pictures_in(folder), network, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npz"))


def test_a_folder_without_pictures_is_refused(tmp_path):
    for path, words in (
        (tmp_path, "holds 0 pictures"),
        (tmp_path / "none", "no folder of pictures"),
    ):
        with pytest.raises(UserError, match=words):
            pictures_in(path)


def test_real_pictures_are_decoded_once(folder, network, tmp_path, monkeypatch):
    first = statistics_of(pictures_in(folder), network, tmp_path / "cache")
    mu, sigma = in_one_piece(
        np.concatenate(list(feature_blocks(pictures_in(folder), network, tmp_path / "cache")))
    )
    monkeypatch.setattr(
        real_pictures, "read_image", lambda path: pytest.fail(f"{path} was decoded again")
    )
    again = statistics_of(pictures_in(folder), network, tmp_path / "cache")
    assert np.array_equal(first.mu, again.mu) and np.array_equal(first.sigma, again.sigma)
    assert (
        vars(first).keys() == vars(again).keys()
        and (again.n, again.pictures, again.crop) == (7, "real", "none")
        and again.digest == first.digest
    )
    np.testing.assert_allclose(again.mu, mu, atol=1e-12)
    np.testing.assert_allclose(again.sigma, sigma, atol=1e-12)


def test_killed_half_way_it_goes_on_after_the_last_whole_part(
    folder, network, tmp_path, monkeypatch
):
    monkeypatch.setattr(real_pictures, "PART", 2)
    whole = statistics_of(pictures_in(folder), network, tmp_path / "whole")
    read = real_pictures.read_image

    def killed(path):
        if path.name == "4.png":
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(real_pictures, "read_image", killed)
    with pytest.raises(KeyboardInterrupt):
        statistics_of(pictures_in(folder), network, tmp_path / "cache")
    seen, told = [], []
    monkeypatch.setattr(
        real_pictures, "read_image", lambda path: seen.append(path.name) or read(path)
    )
    resumed = statistics_of(
        pictures_in(folder),
        network,
        tmp_path / "cache",
        lambda what, done, total: told.append((what, done, total)),
    )
    assert sorted(seen) == ["4.png", "cmyk.JPEG", "grey.jpg"]
    assert np.array_equal(resumed.mu, whole.mu) and np.array_equal(resumed.sigma, whole.sigma)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told) and told[-1] == (
        "real pictures real",
        7,
        7,
    )


@pytest.mark.parametrize("where", [-50, 200])
def test_damaged_features_are_named_and_made_again(folder, network, tmp_path, capsys, where):
    list(feature_blocks(pictures_in(folder), network, tmp_path / "cache"))
    (part,) = (tmp_path / "cache").rglob("*.npy")
    whole = part.read_bytes()
    part.write_bytes(whole[:where] + bytes([whole[where] ^ 1]) + whole[where:][1:])
    statistics_of(pictures_in(folder), network, tmp_path / "cache")
    assert "00000.npy are damaged and are made again" in capsys.readouterr().err
    assert part.read_bytes() == whole


def test_another_picture_cut_or_network_is_measured_anew(folder, network, tmp_path):
    def keys():
        return {path.name for path in (tmp_path / "cache").glob("*.npz")}

    first = statistics_of(pictures_in(folder), network, tmp_path / "cache")
    statistics_of(pictures_in(folder, 16), network, tmp_path / "cache")
    assert len(keys()) == 2
    shutil.copytree(folder, tmp_path / "moved")
    assert pictures_in(tmp_path / "moved").digest == first.digest  # wherever it lies
    png(folder / "2.png", 99)
    assert (
        statistics_of(pictures_in(folder), network, tmp_path / "cache").digest != first.digest
        and len(keys()) == 3
    )


@pytest.fixture
def suite_of(tiny_folder, tmp_path):
    """The tiny suite with nothing but FID, prompts that name originals, and a folder of real
    pictures; `lines` are its settings.
    """
    folder = tmp_path / "suite"
    shutil.copytree(tiny_folder, folder)
    for seed in range(9):
        png(folder / f"real/{seed}.png", seed)
    rows = [
        f"q{i},{prompt},{f'real/{i}.png' + ('|real/7.png' if i == 0 else '')}"
        for i, prompt in enumerate(["a red apple", "a bus", "an owl", "a key"])
    ]

    def make(lines, rows=rows):
        (folder / "quality.csv").write_text("\n".join(["id,prompt,reference", *rows]) + "\n")
        head, tail = (tiny_folder / "tiny.toml").read_text().split("[prompts.quality]")
        text = (
            head + '[prompts.quality]\nfile = "quality.csv"\nimages_per_prompt ='
            ' 2\n[metrics.fid]\nweights = "./features.safetensors"\nsize = 32\n' + lines
        )
        assert tail
        (folder / "tiny.toml").write_text(text)
        return load_suite(str(folder / "tiny.toml"))

    return make


def run_of(suite, tmp_path):
    return Run(suite, "none", {}, tmp_path / "records", tmp_path / "store", CPU)


def test_a_suite_reports_the_whole_set_and_the_matched_originals(
    suite_of, network, tmp_path, monkeypatch
):
    suite = suite_of('images = 7\nreal = "real"\nreal_side = 16\nmatched = true\n')
    run = run_of(suite, tmp_path)
    record = run.execute()
    real = [
        np.asarray(centre_square(Image.open(suite.file.parent / f"real/{i}.png"), 16))
        for i in range(9)
    ]
    generated = in_one_piece(run.samples("quality").features(network).reshape(8, -1)[:7])
    # in the order of the prompts
    for name, pictures in (("fid", real), ("fid_matched", [real[i] for i in (0, 7, 1, 2, 3)])):
        score = record.scores[name]
        assert score.value == pytest.approx(
            distance_by_roots(*generated, *in_one_piece(network(pictures))), rel=1e-6
        )
        assert (score.n, score.prompts, score.unit, score.higher_is_better) == (
            7,
            4,
            "distance",
            False,
        )
        assert (
            score.details["real_images"] == len(pictures)
            and "shorter side to 16" in score.details["crop"]
        )
        assert (
            score.details["captions_sha256"] == path_digest(suite.path("quality.csv"))
            and score.details["weights_sha256"] == network.digest
        )
        assert (score.details["mode"], score.details["size"], score.details["generated_side"]) == (
            "clean",
            32,
            32,
        ) and len(score.details["real_sha256"]) == 64
    assert record.scores["fid"].details["real"] == "real"
    (board,) = make_boards([record])
    assert [heading(board, column) for column in columns_of(board) if column.part == "scores"] == [
        "FID (n=7) ↓",
        "FID matched (n=7) ↓",
    ]
    assert sorted(
        path.parent.relative_to(tmp_path / "store").as_posix()
        for path in (tmp_path / "store").rglob("*.npz")
    ) == ["_real", "_real"]
    monkeypatch.setattr(
        real_pictures, "read_image", lambda path: pytest.fail(f"{path} was decoded again")
    )
    record.path(tmp_path / "records").unlink()
    assert run_of(suite, tmp_path).execute().scores == record.scores


def test_references_that_are_missing_cost_only_the_matched_score(suite_of, tmp_path):
    suite = suite_of(
        'images = 8\nreal = "real"\nmatched = true\n',
        ["q0,a bus,real/0.png", "q1,a key,", "q2,an owl,", "q3,a red apple,real/1.png"],
    )
    record = run_of(suite, tmp_path).execute()
    assert record.scores["fid"].value is not None and record.status == "complete"
    assert (
        record.scores["fid_matched"].value is None
        and record.scores["fid_matched"].reason
        == "2 of 4 prompts name no reference picture, the first of them q1"
    )


def test_a_suite_may_ask_for_the_matched_originals_only(suite_of, tmp_path):
    # the first two images are of the first prompt
    suite = suite_of(
        "images = 2\nmatched = true\n", ["q0,a bus,real/0.png|real/1.png", "q1,a key,"]
    )
    record = run_of(suite, tmp_path).execute()
    assert (
        record.scores.keys() == {"fid_matched"}
        and record.scores["fid_matched"].details["real_images"] == 2
    )


def test_kid_shares_the_features_of_fid(suite_of, network, tmp_path, monkeypatch):
    suite = suite_of(
        'images = 7\nreal = "real"\n[metrics.kid]\nweights = "./features.safetensors"\nreal ='
        ' "real"\nimages = 7\nsize = 32\nsubset_size = 5\n'
    )
    run, seen, read = run_of(suite, tmp_path), [], real_pictures.read_image
    monkeypatch.setattr(
        real_pictures, "read_image", lambda path: seen.append(path.name) or read(path)
    )
    score = run.execute().scores["kid"]
    assert len(seen) == len(set(seen)) == 9
    generated, real = (
        run.samples("quality").features(network).reshape(8, -1)[:7],
        network([real_pictures.read_cut(p, None) for p in pictures_in(suite.path("real")).files]),
    )
    assert score.value == pytest.approx(
        np.mean(list(discrepancies(generated, real, 100, 5, 0))), rel=1e-6, abs=1e-9
    )
    assert (
        score.n,
        score.details["subset_size"],
        score.details["subsets"],
        score.shown.heading,
    ) == (7, 5, 100, "KID")


def test_pictures_of_the_real_set_are_part_of_the_suites_fingerprint(suite_of):
    suite = suite_of('images = 2\nreal = "real"\n')
    before = suite.fingerprint
    png(suite.file.parent / "real/3.png", 77)
    assert load_suite(str(suite.file)).fingerprint != before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "nothing to compare with"),
        ({"statistics": "s", "real": "r"}, "give one of them"),
        ({"statistics": "s", "real_side": 64}, "leave it out"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        configure(
            "metric", "fid", find("metric", "fid").load(), {"weights": "w", "images": 10} | given
        )


def test_bench_statistics_writes_what_a_suite_can_name(suite_of, folder, network, tmp_path):
    suite = suite_of('images = 7\nstatistics = "../real.npz"\n')
    arguments = [
        "statistics",
        "--images",
        folder,
        "--inception",
        network.weights,
        "--out",
        tmp_path / "real.npz",
        "--side",
        16,
        "--size",
        32,
    ]
    arguments = [
        str(word)
        for word in [*arguments, "--store", tmp_path / "store", "--device", "cpu", "--json"]
    ]
    told = CliRunner().invoke(app, arguments, catch_exceptions=False)
    facts = json.loads(told.stdout)
    assert (facts["pictures"], facts["of"], facts["network"]) == (7, "real", network.fingerprint)
    made = read_statistics(tmp_path / "real.npz")
    assert (
        made.digest == facts["sha256"] == pictures_in(folder).digest and made.crop == facts["crop"]
    )
    record = run_of(suite, tmp_path).execute()
    details = record.scores["fid"].details
    assert (details["real"], details["real_images"], details["crop"], details["real_sha256"]) == (
        "real",
        7,
        made.crop,
        made.digest,
    )
    with pytest.raises(UserError, match="there already"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_frechet_distance_of_diagonal_gaussians_has_its_closed_form():
    random = np.random.default_rng(0)
    a, b, mu = random.uniform(0.1, 3, 20), random.uniform(0.1, 3, 20), random.normal(size=20)
    expected = np.square(np.sqrt(a) - np.sqrt(b)).sum() + mu @ mu
    assert frechet_distance(np.zeros(20), np.diag(a), mu, np.diag(b)) == pytest.approx(
        expected, rel=1e-10
    )


def test_frechet_distance_equals_the_matrix_root_of_the_product():
    from scipy.linalg import sqrtm

    random = np.random.default_rng(1)
    x, y = (
        random.normal(size=(200, 12)) @ random.normal(size=(12, 12)),
        random.normal(size=(150, 12)) + 0.3,
    )
    (m1, s1), (m2, s2) = in_one_piece(x), in_one_piece(y)
    slow = np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(slow, rel=1e-8)
    assert frechet_distance(m2, s2, m1, s1) == pytest.approx(slow, rel=1e-8)


def test_frechet_distance_survives_fewer_images_than_dimensions():
    x = np.random.default_rng(2).normal(size=(10, 64))
    mean, covariance = in_one_piece(x)
    assert frechet_distance(mean, covariance, mean, covariance) <= 1e-6 * np.trace(covariance)
    other = frechet_distance(mean, covariance, np.zeros(64), np.eye(64))
    assert np.isfinite(other) and other > 0


def test_doubling_every_image_scales_the_covariance_only():
    x = np.random.default_rng(3).normal(size=(30, 5))
    once, twice = moments([x]), moments([x, x])
    np.testing.assert_allclose(once.mu, twice.mu)
    np.testing.assert_allclose(twice.sigma, once.sigma * 2 * 29 / 59)


def test_fid_refuses_fewer_images_than_the_suite_says():
    metric = find("metric", "fid").load()(weights="w", statistics="s", images=10)

    class Few:
        def samples(self, role):
            return range(9)

    with pytest.raises(Unmeasurable, match="10 images asked for and only 9"):
        metric.measure(Few())


def test_statistics_of_complex_numbers_are_refused(tmp_path):
    """A plain cast drops their imaginary part with a warning that nobody reads."""
    whole = {"mu": np.zeros(5), "sigma": np.eye(5), "n": 3, "features": np.ones((3, 5))}
    for name in ("mu", "sigma", "features"):
        np.savez(tmp_path / "s.npz", **whole | {name: whole[name] * (1 + 1j)})
        with pytest.raises(UserError, match=f"{name} holds complex128, no real numbers"):
            read_features(tmp_path / "s.npz")


def test_statistics_of_another_network_are_refused(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(5), sigma=np.eye(5), n=3)
    with pytest.raises(UserError, match="5 features and the network gives 64"):
        read_statistics(tmp_path / "s.npz", 64)
    (tmp_path / "t.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:40])
    with pytest.raises(UserError, match="cannot be read"):
        read_statistics(tmp_path / "t.npz", 5)
