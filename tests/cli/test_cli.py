import json
import subprocess
import sys

import pytest

from conftest import bench


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "methods"]])
def test_help_and_list_import_no_torch(arguments):
    """What makes them quick; tests/benchmarks/start.py measures how quick."""
    code = (
        f"import sys; sys.argv = ['bench', *{arguments!r}]\n"
        "from bench.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(str('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("False")


def test_a_process_of_its_own_ends_with_the_same_code_and_line():
    arguments = ["run", "--method", "wnda"]
    child = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True
    )
    here = bench(*arguments)
    assert (child.returncode, child.stdout, child.stderr) == (2, "", here.stderr)
    assert here.returncode == 2 and "did you mean 'wanda'" in here.stderr


def test_list_knows_the_built_ins():
    found = json.loads(bench("list", "--json").stdout)
    assert {"none", "wanda"} <= found["methods"].keys()
    assert {"sscd", "clip_score", "fid", "kid", "walltime", "sscd_wen24", "sscd_nemo24"} <= found[
        "metrics"
    ].keys()
    assert {"testbed", "testbed-quick", "sd14-mem500", "sd21-mem219-coco30k"} <= found[
        "suites"
    ].keys()
    assert all(
        text and not text.startswith("broken") for kind in found.values() for text in kind.values()
    )


def test_show_tells_parameters_and_protocol():
    wanda = json.loads(bench("show", "wanda", "--json").stdout)
    assert wanda["parameters"]["sparsity"]["default"] == 0.01 and "2406.18566" in wanda["paper"]
    shown = json.loads(bench("show", "testbed").stdout)
    assert shown["model"]["steps"] == 25 and shown["detection"]["prompts"]["pristine"] == 32


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--method", "wnda"], "unknown method 'wnda': did you mean 'wanda'"),
        (["run", "--method", "./nowhere.py"], "method file './nowhere.py' does not exist"),
        (["run", "--method", "none", "--suite", "testbed-quik"], "did you mean 'testbed-quick'"),
        (["run", "--method", "wanda", "-p", "sparsty=0.1"], "did you mean 'sparsity'"),
        (
            ["run", "--method", "wanda", "-p", "sparsity=lots"],
            "sparsity: input should be a valid number",
        ),
        (["run", "--method", "wanda", "-p", "sparsity=2"], "less than or equal to 1"),
        (["run", "--method", "wanda", "-p", "sparsity"], "not of the form name=value"),
        (["run", "--method", "none", "--limit", "0"], "--limit must be at least 1"),
        (["run", "--method", "none", "--device", "cuda:9"], "device 'cuda:9' cannot be used here"),
        (["show", "wandaa"], "did you mean 'wanda'"),
        (["show", "runs/records/wen/1.json"], "bench report shows a record"),
        (["list", "method"], "did you mean 'methods'"),
        (["leaderboard", "--records", "nowhere"], "no records below nowhere"),
        (["testbed", "build", "--plan", "cpuu"], "did you mean 'cpu'"),
        (["testbed", "info", "--bundle", "nowhere"], "holds no testbed bundle"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_two(arguments, says, tmp_path):
    done = bench(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("bench: ")]) == 1


def run_with(tiny_folder, tmp_path, text, name):
    (tiny_folder / name).write_text(text)
    return bench(
        "run",
        "--method",
        "none",
        "--suite",
        tiny_folder / name,
        "--records",
        tmp_path / "r",
        "--store",
        tmp_path / "s",
    )


def test_an_unknown_metric_in_a_suite_is_suggested(tiny_folder, tmp_path):
    from conftest import SUITE

    done = run_with(
        tiny_folder,
        tmp_path,
        SUITE.replace("[metrics.walltime]", "[metrics.waltime]"),
        "metric.toml",
    )
    assert done.returncode == 2 and "did you mean 'walltime'" in done.stderr


def test_a_truncated_checkpoint_is_one_clear_line(tiny_folder, tmp_path):
    import shutil

    from conftest import SUITE

    shutil.copytree(tiny_folder / "pipeline", tiny_folder / "cut", dirs_exist_ok=True)
    weights = tiny_folder / "cut/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    done = run_with(
        tiny_folder, tmp_path, SUITE.replace('path = "pipeline"', 'path = "cut"'), "cut.toml"
    )
    assert (
        done.returncode == 2
        and "cannot be loaded" in done.stderr
        and "Traceback" not in done.stderr
    )
    weights.unlink()
    done = run_with(
        tiny_folder, tmp_path, SUITE.replace('path = "pipeline"', 'path = "cut"'), "cut.toml"
    )
    assert done.returncode == 2 and "cannot be loaded" in done.stderr


def test_the_whole_command_on_files_of_the_real_formats(tiny_folder, tmp_path):
    """none, then wanda with its differences, then the leaderboard of both and its check."""
    place = [
        "--suite",
        tiny_folder / "tiny.toml",
        "--records",
        tmp_path / "records",
        "--store",
        tmp_path / "store",
    ]
    dry = bench("run", "--method", "none", *place, "--dry-run", "--json")
    assert json.loads(dry.stdout)["images_missing"] == 10 and not (tmp_path / "records").exists()
    assert "SSCD" in bench("run", "--method", "none", *place).stdout
    wanda = bench("run", "--method", "wanda", "-p", "sparsity=0.2", *place)
    assert wanda.returncode == 0 and "difference" in wanda.stdout, wanda.stderr
    pages = ["leaderboard", "--records", tmp_path / "records", "--out", tmp_path / "out"]
    assert bench(*pages).returncode == 0
    assert bench(*pages, "--check").returncode == 0
    page = tmp_path / "out/tiny.md"
    page.write_text(page.read_text().replace("wanda", "wandb", 1))
    checked = bench(*pages, "--check")
    assert checked.returncode == 1 and "tiny.md differs" in checked.stdout


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--debug", "run", "--method", "wnda"],
        capture_output=True,
        text=True,
    )
    assert "Traceback" in done.stderr
