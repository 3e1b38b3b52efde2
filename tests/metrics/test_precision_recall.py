import shutil

import numpy as np
import pytest
import torch

from bench import UserError, read_picture
from bench.base.pictures import encode_png
from bench.features import CleanFeatures
from bench.statistics.frechet import moments, read_features, write_statistics
from bench.suite.load import load_suite
from conftest import bench
from metrics import precision_recall
from metrics.precision_recall import covered, radii, recall
from one_run import Run


def features(seed, n, d=6, shift=0.0, spread=1.0):
    values = np.random.default_rng(seed).normal(size=(n, d)) * spread + shift
    return values.astype(np.float32)


def obvious(points, centres, nearest):
    """For every point: is it within any centre's distance to its `nearest`-th other centre?"""
    inside = []
    for point in points:
        reached = False
        for i, centre in enumerate(centres):
            others = sorted(
                np.linalg.norm(centre - other) for j, other in enumerate(centres) if j != i
            )
            reached |= bool(np.linalg.norm(point - centre) <= others[nearest - 1])
        inside.append(reached)
    return np.array(inside)


@pytest.mark.parametrize("rows", [4, 1024])
@pytest.mark.parametrize(("n", "m", "nearest"), [(20, 25, 3), (25, 20, 1), (9, 9, 5)])
def test_a_point_is_inside_where_a_slow_look_at_all_balls_says_so(n, m, nearest, rows, monkeypatch):
    monkeypatch.setattr(precision_recall, "ROWS", rows)
    points, centres = features(0, n).astype(float), features(1, m, shift=0.5).astype(float)
    expected = obvious(points, centres, nearest)
    assert (covered(points, centres, radii(centres, nearest)) == expected).all()
    assert 0 < expected.mean() < 1


def test_blurred_pictures_lose_recall_and_scattered_ones_precision():
    real = features(2, 300)
    narrow, wide = features(3, 300, spread=0.4), features(4, 300, spread=2.5)

    def both(generated):
        inside = covered(generated, real, radii(real, 3)).mean()
        return inside, recall(generated, real, 3, 1)[0]

    assert both(narrow)[0] > 0.95 and both(narrow)[1] < 0.3
    assert both(wide)[0] < 0.3 and both(wide)[1] > 0.6


def test_the_interval_of_recall_holds_the_value_and_has_a_width():
    value, low, high = recall(features(5, 120), features(6, 120), 3, 2)
    assert 0 <= low < value < high <= 1
    value, low, high = recall(features(5, 60), features(6, 60, shift=50), 3, 2)
    assert value == low == 0 and high > 0.02


CPU = torch.device("cpu")


@pytest.fixture
def suite_of(tiny_folder, tmp_path):
    """The tiny suite with nothing but measures of quality over 8 images, and a folder of real
    pictures; `reference` is their setting of it.
    """
    folder = tmp_path / "suite"
    shutil.copytree(tiny_folder, folder)
    (folder / "real").mkdir()
    random = np.random.default_rng(0)
    for number in range(9):
        picture = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        (folder / f"real/{number}.png").write_bytes(encode_png(picture))
    rows = [
        f"q{i},{prompt}" for i, prompt in enumerate(["a red apple", "a bus", "an owl", "a key"])
    ]
    (folder / "quality.csv").write_text("\n".join(["id,prompt", *rows]) + "\n")

    def make(reference, images=8, nearest=2):
        head = (tiny_folder / "tiny.toml").read_text().split("[prompts.quality]")[0]
        common = f'weights = "./features.safetensors"\nsize = 32\nimages = {images}\n{reference}\n'
        (folder / "tiny.toml").write_text(
            f'{head}[prompts.quality]\nfile = "quality.csv"\nimages_per_prompt = 2\n'
            f"[metrics.precision_recall]\n{common}nearest = {nearest}\n"
            f"[metrics.kid]\n{common}subset_size = 5\n"
        )
        return load_suite(str(folder / "tiny.toml"))

    return make


def run_of(suite, tmp_path):
    return Run(suite, "none", {}, tmp_path / "records", tmp_path / "store", CPU)


def keep(suite, *options):
    out = suite.file.parent / "real.npz"
    network = suite.file.parent / "features.safetensors"
    return bench(
        *("statistics", "--images", suite.file.parent / "real", "--inception", network),
        *("--out", out, "--size", 32, "--device", "cpu", "--force", *options),
        *("--store", suite.file.parent / "store"),
    )


def test_a_folder_and_its_kept_features_give_the_same_numbers(suite_of, tmp_path):
    suite = suite_of('real = "real"')
    assert keep(suite, "--features").returncode == 0
    run = run_of(suite, tmp_path)
    folder = run.execute().scores
    file = run_of(suite_of('statistics = "./real.npz"'), tmp_path).execute().scores
    for name in ("precision", "recall", "kid"):
        assert file[name].value == folder[name].value and file[name].low == folder[name].low
        assert file[name].details == folder[name].details
    assert folder["precision"].prompts == 4 and folder["recall"].details["real_images"] == 8
    network = CleanFeatures(suite.path("./features.safetensors"), 32, CPU)
    generated = run.samples("quality").features(network).reshape(8, -1)
    paths = sorted((suite.file.parent / "real").glob("*.png"))[:8]
    real = network([read_picture(path) for path in paths])
    assert folder["precision"].value == obvious(generated, real, 2).mean()
    assert folder["recall"].value == obvious(real, generated, 2).mean()


def test_statistics_without_features_are_refused_with_the_command_that_makes_them(
    suite_of, tmp_path
):
    suite = suite_of('statistics = "./real.npz"')
    assert keep(suite).returncode == 0
    with pytest.raises(UserError, match="keep no features.*bench statistics --features"):
        run_of(load_suite(str(suite.file)), tmp_path).execute()


def test_features_of_other_statistics_are_refused(tmp_path):
    values, path = features(0, 30), tmp_path / "s.npz"
    write_statistics(moments([values]), path, values)
    assert np.array_equal(read_features(path)[1], values)
    write_statistics(moments([values]), path, values + 0.1)
    with pytest.raises(UserError, match="the mean is not that of the features"):
        read_features(path)
    write_statistics(moments([values]), path, values[:, :4])
    with pytest.raises(UserError, match=r"keep features \[30, 4\] beside a mean of 6"):
        read_features(path)


def test_too_few_pictures_for_the_balls_are_said(suite_of, tmp_path):
    score = run_of(suite_of('real = "real"', nearest=8), tmp_path).execute().scores["recall"]
    assert score.value is None
    assert "balls to neighbour 8 need more pictures than 8" in score.reason
