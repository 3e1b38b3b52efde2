"""A suite reads below its own folder, and where its user says."""

from __future__ import annotations

import os

import pytest

from bench.base.errors import UserError
from bench.suite.load import load_suite
from bench.suite.reach import VARIABLE, allow
from conftest import bench

SUITE = """
name = "mine"
[model]
path = "pipeline"
[prompts.memorized]
file = "{file}"
format = "{format}"
[metrics.walltime]
"""


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    """A suite in a folder of its own, beside a file that is none of its business."""
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "diary.txt").write_text("nobody's business\n")
    (tmp_path / "photo.png").write_bytes(b"x")

    def suite(file, format="lines", rows=None):
        if rows is not None:
            (tmp_path / "theirs/list.csv").write_text(rows)
        path = tmp_path / "theirs/suite.toml"
        path.write_text(SUITE.format(file=file, format=format))
        return load_suite(str(path))

    return suite


@pytest.mark.parametrize("how", ["../diary.txt", "absolute", "link"])
def test_a_list_outside_the_suites_folder_is_refused_and_can_be_allowed(strangers, tmp_path, how):
    diary, file = tmp_path / "diary.txt", how
    if how == "absolute":
        file = str(diary)
    if how == "link":
        (tmp_path / "theirs/link.txt").symlink_to(diary)
        file = "link.txt"
    suite = strangers(file)
    with pytest.raises(UserError, match="its list .* lies outside the suite's folder") as error:
        suite.prompts("memorized")
    assert "\n" not in str(error.value) and "bench --allow" in str(error.value)
    allow([tmp_path])
    assert [prompt.text for prompt in suite.prompts("memorized")] == ["nobody's business"]
    with pytest.raises(UserError, match="there is no folder"):
        allow([tmp_path / "nothing"])
    assert os.environ[VARIABLE] == str(tmp_path)


@pytest.mark.parametrize("reference", ["../photo.png", "{tmp}/photo.png", "../theirs/../photo.png"])
def test_a_picture_outside_the_suites_folder_is_refused(strangers, tmp_path, reference):
    rows = f"prompt,reference\na photo,{reference.format(tmp=tmp_path)}\n"
    suite = strangers("list.csv", "csv", rows)
    with pytest.raises(UserError, match="its training picture .* lies outside"):
        suite.prompts("memorized")


def test_code_outside_the_suites_folder_is_refused(tiny_folder, tmp_path, monkeypatch):
    from bench.running.experiment import Experiment

    monkeypatch.setenv(VARIABLE, str(tiny_folder))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = tmp_path / "theirs/suite.toml"
    path.write_text(f'name = "mine"\nextends = "{tiny_folder}/tiny.toml"\n[metrics."../code.py"]\n')
    with pytest.raises(UserError, match="its code .* lies outside"):
        Experiment.resolve(load_suite(str(path)), "none", {})
    with pytest.raises(UserError, match="its code .* lies outside"):
        load_suite(str(path)).fingerprint  # noqa: B018
    assert bench("show", path).returncode == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("url", ["{tmp}/diary.txt", "file://{tmp}/diary.txt", "../diary.txt"])
def test_an_asset_of_a_suite_is_no_file_of_somebody_else(strangers, tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path / "theirs")
    path = tmp_path / "theirs/suite.toml"
    path.write_text(
        SUITE.format(file="asset:stolen", format="lines")
        + f'[assets.stolen]\npath = "x.txt"\nurls = ["{url.format(tmp=tmp_path)}"]\n'
    )
    with pytest.raises(UserError, match="its asset stolen .* lies outside"):
        load_suite(str(path))
    allow([tmp_path])
    load_suite(str(path))


@pytest.mark.parametrize("named", ["../diary.txt", "{tmp}/diary.txt"])
def test_a_calibration_is_written_below_the_suites_folder_only(
    tiny_folder, tmp_path, monkeypatch, named
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "diary.txt").write_text("mine")
    path = tmp_path / "theirs/suite.toml"
    path.write_text(
        f'name = "mine"\nextends = "{tiny_folder}/tiny.toml"\n[attacks.clique_extraction]\n'
        f'images = 2\nclique = 2\ncalibration = "{named.format(tmp=tmp_path)}"\n'
    )
    done = bench("calibrate", "clique_extraction", "--suite", path, "--store", "store")
    assert done.returncode == 2 and "say with --out where it goes" in done.stderr
    assert (tmp_path / "diary.txt").read_text() == "mine" and not (tmp_path / "store").exists()


def test_a_calibration_that_is_no_path_is_one_line(tiny_folder, tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(
        f'name = "mine"\nextends = "{tiny_folder}/tiny.toml"\n[attacks.clique_extraction]\n'
        "images = 2\nclique = 2\ncalibration = 5\n"
    )
    done = bench("calibrate", "clique_extraction", "--suite", path, "--store", tmp_path / "store")
    assert done.returncode == 2 and "must be a path, not 5" in done.stderr


def test_pictures_of_a_metric_or_attack_lie_where_the_suite_may_read(
    tiny_folder, tmp_path, monkeypatch
):
    from bench.running.experiment import Experiment

    monkeypatch.setenv(VARIABLE, str(tiny_folder))
    for name in ("theirs", "photos"):
        (tmp_path / name).mkdir()
    path = tmp_path / "theirs/suite.toml"
    for section in ('metrics.fid]\nreal = "../photos"\nstatistics = ""',
                    'attacks.knn_extraction]\ntraining = "../photos"'):  # fmt: skip
        path.write_text(f'name = "mine"\nextends = "{tiny_folder}/tiny.toml"\n[{section}\n')
        with pytest.raises(UserError, match="lies outside the suite's folder"):
            Experiment.resolve(load_suite(str(path)), "none", {})


@pytest.mark.parametrize("value", ["rel/ative", ".", "x:/tmp"])
def test_folders_that_are_allowed_for_good_are_whole_paths(strangers, monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(UserError, match="holds the relative folder"):
        strangers("../diary.txt").prompts("memorized")


def test_the_users_own_folder_may_be_allowed(strangers, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "~")
    assert strangers("../diary.txt").prompts("memorized")
    (tmp_path / "a:b").mkdir()
    with pytest.raises(UserError, match="stands between folders"):
        allow([tmp_path / "a:b"])


def test_shipped_suites_read_what_comes_with_them(monkeypatch):
    monkeypatch.delenv(VARIABLE)
    assert load_suite("testbed-quick").prompts("memorized")


def test_a_suite_that_extends_a_shipped_one_reads_what_that_one_reads(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nextends = "testbed-quick"\n[model]\nsteps = 10\n')
    assert load_suite(str(path)).prompts("memorized")[0].references


def test_a_cache_whose_folders_are_links_is_a_good_cache(strangers, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.png").write_bytes(b"x")
    (tmp_path / "cache/pictures").symlink_to(tmp_path / "disk")
    suite = strangers("list.csv", "csv", "id,prompt\na,a photo\n")
    places = suite.places
    picture = places.assets.cache / "pictures/a.png"
    places.refuse_outside("training picture", picture, "asset:pictures")
    for path, stated in (
        (picture, "pictures/a.png"),  # by a path of the suite's own it is the other disk's
        (places.assets.cache / "../photo.png", "asset:pictures"),
    ):
        with pytest.raises(UserError, match="lies outside"):
            places.refuse_outside("training picture", path, stated)


def test_a_link_through_a_folder_named_like_the_cache_reaches_nothing(
    strangers, tmp_path, monkeypatch
):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "theirs/x/cache"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"x")
    theirs = tmp_path / "theirs"
    (theirs / "sub/deep/x").mkdir(parents=True)
    (theirs / "sub/x").mkdir()
    (theirs / "sub/x/cache").symlink_to(tmp_path / "photos")
    (theirs / "l").symlink_to("sub/deep")
    suite = strangers("list.csv", "csv", "prompt,reference\na,l/../x/cache/a.png\n")
    with pytest.raises(UserError, match="its training picture .* lies outside"):
        suite.prompts("memorized")
