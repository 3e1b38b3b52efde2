import json
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench.base.distribution import NAME
from bench.diffusion.execution import Execution
from bench.doctor import examine as doctor
from bench.doctor import machine as doctor_machine
from bench.doctor import slow_facts
from bench.doctor import suites as doctor_suites
from bench.doctor.examine import examine
from bench.doctor.report import Fact, FileFact, Gpu, Report, SuiteFact
from bench.doctor.suites import Room
from bench.doctor.text import COLUMNS, LINES, text
from bench.running.timing import timing_file
from bench.suite.load import load_suite
from conftest import SUITE

GIB = 2**30


def lines_of(check):
    return {fact.name: fact for fact in check}


@pytest.fixture
def files(monkeypatch):
    """The system's files, as a dict of paths to texts."""
    found = {}
    monkeypatch.setattr(doctor_machine, "_read", lambda path: found.get(path, ""))
    return found


@pytest.fixture
def quick(monkeypatch):
    """No child process: what it would have told, by name."""
    told = {"torch": {"version": "2.15", "threads": 1, "gpus": [], "build": "CPU"}}
    monkeypatch.setattr(doctor, "ask_classes", lambda names, seconds: told)
    return told


def gpu(free, **changes):
    return Gpu("H100", 80 * GIB, free, "9.0", True, True, **changes)


# --- the machine


@pytest.fixture
def half_free(monkeypatch):
    """A machine with 16 GiB, of which 8 are free."""
    memory = SimpleNamespace(total=16 * GIB, available=8 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.usefixtures("half_free")
def test_memory_is_what_the_machine_has_where_no_group_allows_less(files):
    assert doctor_machine.main_memory() == (16 * GIB, 8 * GIB, False)


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/user/job7", "/sys/fs/cgroup/user", ("memory.max", "memory.current", "inactive_file")),
        ("0::/", "/sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:memory:/user/job7",
            "/sys/fs/cgroup/memory/user",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
@pytest.mark.usefixtures("half_free")
def test_memory_is_what_a_group_above_allows_less_what_it_uses_and_cannot_give_back(
    files, line, folder, names
):
    limit, usage, cached = names
    files["/proc/self/cgroup"] = f"9:pids:/other\n{line}\n"
    files[f"{folder}/{limit}"], files[f"{folder}/{usage}"] = f"{4 * GIB}\n", f"{3 * GIB}\n"
    files[f"{folder}/memory.stat"] = f"anon 5\n{cached} {GIB}\n"
    assert doctor_machine.main_memory() == (4 * GIB, 2 * GIB, True)


@pytest.mark.usefixtures("half_free")
def test_a_group_without_limit_limits_nothing(files):
    files["/proc/self/cgroup"] = "0::/a\n4:memory:/b\nnonsense\n"
    files["/sys/fs/cgroup/a/memory.max"], files["/sys/fs/cgroup/memory/b/memory.limit_in_bytes"] = (
        "max\n",
        "9223372036854771712\n",
    )
    assert doctor_machine.main_memory()[2] is False


@pytest.mark.parametrize(
    ("threads", "quota", "mark", "says", "get"),
    [
        (2, "", "ok", "2 cores, 4 hardware threads", ""),
        (4, "", "warn", "would use 4 threads, hyperthreads", "export OMP_NUM_THREADS=2"),
        (8, "", "warn", "more threads than there are cores", "export OMP_NUM_THREADS=2"),
        (2, "100000 100000", "warn", "limited to 1 by a cgroup", "export OMP_NUM_THREADS=1"),
        (2, "150000 100000", "ok", "limited to 1.5 by a cgroup", ""),
        (None, "max 100000", "ok", "2 cores", ""),
    ],
)
def test_threads_are_compared_with_cores_and_not_with_hyperthreads(
    files, monkeypatch, threads, quota, mark, says, get
):
    monkeypatch.setattr(doctor_machine, "_usable_cpus", lambda: [0, 1, 2, 3])
    files.update(
        {
            f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": (
                f"{cpu % 2},{cpu % 2 + 2}\n"
            )
            for cpu in range(4)
        }
    )
    files.update(
        {
            "/proc/cpuinfo": "x\nflags : fpu avx512_bf16 \n",
            "/proc/self/cgroup": "0::/\n",
            "/sys/fs/cgroup/cpu.max": quota,
        }
    )
    (fact,) = doctor_machine.processor_facts(threads)
    assert (
        (fact.mark, fact.get) == (mark, get)
        and says in fact.text
        and "bf16 yes, fp16 no" in fact.text
    )


@pytest.mark.parametrize(
    ("version", "mark"),
    [
        ((3, 10, 9), "missing"),
        ((3, 11, 3), "missing"),
        ((3, 11, 4), "ok"),
        ((3, 13, 4), "ok"),
        ((3, 14, 0), "warn"),
    ],
    ids=lambda value: str(value),
)
def test_python_is_supported_from_3_11_to_3_13(monkeypatch, version, mark):
    monkeypatch.setattr(doctor_machine.sys, "version_info", version)
    assert [fact.mark for fact in doctor_machine.python_facts()] == [mark]


def test_packages_that_are_absent_or_too_old_say_what_to_install(monkeypatch):
    wanted = [
        "numpy>=2",
        "torch>=2.11",
        "rich>=13",
        "nowhere>=1; python_version<'3'",
        "ray>=2; extra == 'ray'",
        f"{NAME}[ray]; extra == 'dev'",
    ]
    monkeypatch.setattr(doctor_machine.metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(
        doctor_machine, "_installed", {"numpy": "1.26", "torch": None, "rich": "14.0"}.get
    )
    absent, unfit, extras = doctor_machine.package_facts()
    assert (absent.mark, absent.text, absent.get) == (
        "missing",
        "torch is not installed",
        "pip install 'torch>=2.11'",
    )
    assert (unfit.mark, unfit.text, unfit.get) == (
        "warn",
        "numpy 1.26 is not >=2",
        "pip install 'numpy>=2'",
    )
    assert (
        extras.text == "dev not installed (ray); ray not installed (ray)"
        and extras.get == f"pip install '{NAME}[dev,ray]'"
    )


def test_a_checkout_that_is_not_installed_says_so_and_is_judged_by_its_pyproject(monkeypatch):
    def absent(name):
        raise doctor_machine.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor_machine.metadata, "requires", absent)
    found = lines_of(doctor_machine.package_facts())
    assert "not installed" in found["project"].text and re.fullmatch(
        r"all \d+ required ones fit", found["packages"].text
    )


def test_a_folder_that_cannot_be_made_is_missing_and_nothing_is_left_in_one_that_can(tmp_path):
    (fact,) = doctor_machine.folder_facts("store", tmp_path / "a" / "b")
    assert fact.mark != "missing" and "not made yet" in fact.text and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    (fact,) = doctor_machine.folder_facts("store", tmp_path / "file" / "store")
    assert (
        fact.mark == "missing"
        and "cannot be written" in fact.text
        and fact.get == "name another folder with --store"
    )


# --- torch


def fake_torch(problem=None, available=True):
    class Ones:
        def __mul__(self, other):
            return self

        def sum(self):
            return 4.0

    def ones(*shape, device):
        if problem:
            raise RuntimeError(problem)
        return Ones()

    about = SimpleNamespace(name="Tesla V100", total_memory=16 * GIB, major=7, minor=0)
    cuda = SimpleNamespace(
        is_available=lambda: available,
        device_count=lambda: 1,
        get_device_properties=lambda number: about,
        mem_get_info=lambda number: (9 * GIB, 16 * GIB),
    )
    return SimpleNamespace(
        __version__="2.15",
        get_num_threads=lambda: 3,
        version=SimpleNamespace(cuda="13.2"),
        cuda=cuda,
        ones=ones,
    )


def test_a_gpu_is_told_with_its_memory_capability_and_half_precision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    told = slow_facts._torch()
    found = lines_of(doctor_machine.torch_facts(told))
    assert found["gpu 0"] == Fact(
        "ok",
        "gpu 0",
        "Tesla V100, 9.0 GiB free of 16.0 GiB, compute capability 7.0, bf16 no, fp16 yes",
    )
    assert found["torch"].text == "2.15, CUDA 13.2 build, threads: 3"


def test_a_gpu_that_does_not_compute_is_a_warning_and_takes_no_suite(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch("no kernel image"))
    told = slow_facts._torch()
    assert (
        "does not compute: no kernel image"
        in lines_of(doctor_machine.torch_facts(told))["gpu 0"].text
    )
    room = Room((Gpu(**told["gpus"][0]),), memory=8 * GIB)
    assert doctor_suites._verdict((), (), 1, doctor_suites.SLOW + 1, GIB, 1, room) == (
        "warn",
        "can run slowly (CPU)",
    )


@pytest.mark.parametrize(
    ("build", "says"), [("CPU", "torch is a CPU build"), ("CUDA 13.2", "no reason given")]
)
def test_a_gpu_that_torch_cannot_use_says_why(monkeypatch, build, says):
    monkeypatch.setattr(doctor_machine, "has_gpu_device", lambda: True)
    found = lines_of(
        doctor_machine.torch_facts({"version": "2", "threads": 1, "build": build, "gpus": []})
    )
    assert (
        found["gpu"].mark == "warn"
        and says in found["gpu"].text
        and "pytorch.org" in found["gpu"].get
    )


def child_of(monkeypatch, tmp_path, torch):
    """The real child process, with a torch of ours."""
    (tmp_path / "torch.py").write_text(torch)
    monkeypatch.setattr(slow_facts.sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(doctor_machine, "git_facts", list)
    monkeypatch.setattr(doctor_machine, "name_facts", list)


def test_a_torch_that_crashes_is_one_line_and_nothing_can_run(monkeypatch, tmp_path):
    child_of(monkeypatch, tmp_path, "import os; os.abort()")
    report = examine(["testbed-quick"], tmp_path, tmp_path, seconds=60)
    torch = lines_of(report.facts)["torch"]
    assert torch.mark == "missing" and "ended Python (exit code -6)" in torch.text and not report.ok
    assert "cannot run: torch: importing it ended Python" in report.suites[0].verdict


def test_a_torch_that_hangs_costs_its_own_lines_and_no_more_than_the_time_allowed(
    monkeypatch, tmp_path
):
    child_of(monkeypatch, tmp_path, "import threading; threading.Event().wait()")
    report = examine(["testbed-quick"], tmp_path, tmp_path, seconds=2)
    assert report.seconds < 4 and "repeat the command" in lines_of(report.facts)["torch"].text
    (suite,) = report.suites
    assert (
        report.ok and suite.verdict == "can run" and suite.images == 187 and not suite.images_exact
    )


# --- suites


def changed(folder, *replacements):
    content = SUITE
    for old, new in replacements:
        assert old in content
        content = content.replace(old, new)
    (folder / "changed.toml").write_text(content)
    return str(folder / "changed.toml")


def test_every_missing_file_of_a_suite_is_named_with_the_path_looked_at(tmp_path, quick):
    (tmp_path / "prompts.csv").write_text(
        "id,prompt,split,reference\na,x,fit,one.png|two.png\nb,y,memorized,three.png\n"
    )
    (tmp_path / "two.png").write_bytes(b"")
    (suite,) = examine([changed(tmp_path)], tmp_path, tmp_path).suites
    lacking = {
        Path(file.path).relative_to(tmp_path.resolve()).as_posix()
        for file in suite.files
        if file.problem == "missing"
    }
    named = {"descriptor.safetensors", "clip", "features.safetensors", "frechet_reference.npz"}
    lists = {"calibration.csv", "clean.csv", "controls.csv"}
    assert lacking == {"pipeline", "one.png", "three.png", *lists, *named}
    assert (
        suite.verdict == "cannot run: 10 missing of 12 files"
        and suite.get == "put the files there, or correct changed.toml"
    )
    assert suite.images == 2 and suite.row_evaluations == 12 and not suite.images_exact


def test_what_detectors_are_judged_on_is_said_and_stands_in_nobodys_way(tmp_path):
    (quick,) = examine(["testbed-quick"], tmp_path, tmp_path, seconds=2).suites
    assert quick.detectors.startswith("judged on 26 memorized, 102 clean, 32 pristine")
    suite = tmp_path / "mine.toml"
    suite.write_text(
        'extends = "testbed-quick"\nname = "mine"\n[detection.negatives.other]\nfile = "no.csv"\n'
    )
    (mine,) = examine([str(suite)], tmp_path, tmp_path, seconds=2).suites
    assert mine.verdict == "can run"
    assert mine.detectors.startswith("cannot be judged: ") and "no.csv" in mine.detectors


def safetensors(path, shape, size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 2 * shape[0] * shape[1]
    header = json.dumps(
        {
            "w": {"dtype": "F16", "shape": shape, "data_offsets": [0, count]},
            "__metadata__": {"format": "pt"},
        }
    ).encode()
    path.write_bytes(
        struct.pack("<Q", len(header)) + header + bytes(count if size is None else size)
    )


def diffusers_folder(folder):
    for name in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    safetensors(folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors", [3, 5])
    safetensors(folder / "unet/diffusion_pytorch_model-00002-of-00002.safetensors", [3, 7])
    safetensors(folder / "unet/diffusion_pytorch_model.fp16.safetensors", [90, 90])
    safetensors(folder / "vae/diffusion_pytorch_model.fp16.safetensors", [2, 2])
    safetensors(folder / "text_encoder/model.safetensors", [1, 1])
    safetensors(folder / "safety_checker/model.safetensors", [900, 900])


def test_a_models_size_is_read_from_headers_once_for_each_part(tmp_path):
    diffusers_folder(tmp_path)
    files, parameters = doctor_suites._model_files(tmp_path)
    assert parameters == 15 + 21 + 4 + 1 and not any(file.problem for file in files)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda folder: safetensors(folder / "text_encoder/model.safetensors", [9, 9], size=100),
            "truncated: ",
        ),
        (
            lambda folder: safetensors(folder / "text_encoder/model.safetensors", [9, 9], size=900),
            "damaged: ",
        ),
        (
            lambda folder: (folder / "text_encoder/model.safetensors").write_bytes(
                b"<html>404 not found</html>"
            ),
            "no header",
        ),
        (lambda folder: (folder / "text_encoder/model.safetensors").write_bytes(b""), "no header"),
        (
            lambda folder: (
                folder / "unet/diffusion_pytorch_model-00002-of-00002.safetensors"
            ).unlink(),
            "only 1 of 2 parts",
        ),
        (
            lambda folder: (folder / "text_encoder/model.safetensors").rename(
                folder / "text_encoder/model.bin"
            ),
            "there is only model.bin",
        ),
        (lambda folder: (folder / "vae/config.json").unlink(), "missing"),
    ],
)
def test_a_damaged_model_is_told_by_the_file_that_is_damaged(tmp_path, damage, says):
    diffusers_folder(tmp_path)
    damage(tmp_path)
    (problem,) = [file.problem for file in doctor_suites._model_files(tmp_path)[0] if file.problem]
    assert says in problem


@pytest.mark.parametrize(
    ("room", "parameters", "memory", "mark", "says"),
    [
        (Room(memory=8 * GIB, disk=GIB), 5_000_000, GIB, "ok", "can run"),
        (Room(memory=8 * GIB, disk=GIB), 10**9, 6 * GIB, "warn", "can run slowly (CPU)"),
        (
            Room(memory=6 * GIB, disk=GIB),
            10**9,
            6 * GIB,
            "missing",
            "cannot run: needs about 7.0 GiB of memory, 6.0 GiB are free",
        ),
        (Room((gpu(9 * GIB),), memory=1, disk=GIB), 10**9, 6 * GIB, "ok", "can run"),
        (
            Room((gpu(2 * GIB), gpu(9 * GIB)), memory=1, disk=GIB),
            10**9,
            6 * GIB,
            "ok",
            "can run with --device cuda:1",
        ),
        (
            Room((gpu(2 * GIB),), memory=99 * GIB, disk=GIB),
            10**9,
            6 * GIB,
            "warn",
            "GPU 0 has 2.0 GiB free; give --device cpu",
        ),
        (
            Room(memory=8 * GIB, disk=99),
            5_000_000,
            GIB,
            "missing",
            "cannot run: needs about 0.0 MiB of disk",
        ),
        (
            Room(memory=8 * GIB, disk=GIB, blocked="python: too old"),
            5_000_000,
            GIB,
            "missing",
            "cannot run: python: too old",
        ),
        (
            Room(memory=8 * GIB, late=True),
            10**9,
            6 * GIB,
            "warn",
            "if its GPU has 6.0 GiB free: torch did not answer in time",
        ),
        (Room(memory=None, disk=None), None, None, "warn", "its size is not known"),
    ],
)
def test_verdicts(room, parameters, memory, mark, says):
    found, verdict = doctor_suites._verdict((), (), 3, parameters, memory, 100, room)
    assert found == mark and says in verdict


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name = ", "not valid TOML"),
        ('name = "x"', "model"),
        ("\x00", "TOML"),
        (SUITE.replace("steps = 3", "step = 3"), "did you mean 'model.steps'"),
    ],
)
def test_a_suite_that_cannot_be_read_is_one_verdict_beside_the_others(
    tmp_path, quick, content, says
):
    (tmp_path / "broken.toml").write_text(content)
    report = examine(
        [str(tmp_path / "broken.toml"), "testbed-quick", "no-such-suite"], tmp_path, tmp_path
    )
    broken, good, unknown = report.suites
    assert (
        broken.verdict.startswith("cannot run: ")
        and says in broken.verdict
        and "unknown suite" in unknown.verdict
    )
    assert good.verdict == "can run" and report.ok


def test_a_stored_timing_of_none_gives_hours_and_one_of_another_protocol_does_not(tmp_path):
    suite = load_suite("testbed-quick")
    folder = tmp_path / "testbed-quick" / "none-0123"
    folder.mkdir(parents=True)
    generation = suite.picture_settings | {"model_sha256": "x"}
    (folder / "key.json").write_text(json.dumps({"generation": generation}))
    (folder / "timing-m-1.json").write_text(
        json.dumps({"method_seconds": [6.0, 9.0, 60.0], "images": 18})
    )
    assert doctor_suites._seconds_an_image(suite, tmp_path, "timing-m-*.json") == 1.5
    assert doctor_suites._seconds_an_image(suite, tmp_path, "timing-other-*.json") is None
    (folder / "key.json").write_text(json.dumps({"generation": generation | {"steps": 50}}))
    assert doctor_suites._seconds_an_image(suite, tmp_path, "timing-m-*.json") is None
    (folder / "key.json").write_text("{")
    assert doctor_suites._seconds_an_image(suite, tmp_path, "timing-m-*.json") is None


def test_images_and_evaluations_are_those_of_the_plan_of_a_run(tmp_path):
    import torch

    from one_run import Run

    for name in ("testbed-quick", "testbed"):
        told = slow_facts._asked_classes(name)
        run = Run(load_suite(name), "none", {}, tmp_path, tmp_path, torch.device("cpu"))
        planned = run.plan()
        assert told["exact"] and not told["problems"]
        assert told["timing"] == timing_file(run.engine.device, Execution(), None)
        attacked = sum(one["row_evaluations"] for one in planned["pictures_attacked"].values())
        assert told["images"] == planned["images_missing"] and told["searched"] == attacked
        of_images = told["images"] * run.suite.settings.model.steps * 2
        assert of_images + attacked == planned["row_evaluations"]
        assert (attacked > 0) == (name == "testbed")


def test_a_metric_that_is_unknown_or_misconfigured_is_a_problem_of_its_suite(tmp_path):
    path = changed(
        tmp_path, ("[metrics.fid]", "[metrics.fidd]"), ('profile = "testbed"', 'profil = "testbed"')
    )
    told = slow_facts._asked_classes(path)
    assert (
        not told["exact"]
        and any("did you mean 'fid'" in problem for problem in told["problems"])
        and any("profil" in problem for problem in told["problems"])
    )


# --- the whole


def test_no_check_can_make_it_fail(monkeypatch, tmp_path):
    def odd(*arguments):
        raise RuntimeError("something \x1b[31m odd\nhappened")

    machine = ("python", "package", "torch", "processor", "memory", "folder", "git", "name")
    for check in (*(f"{what}_facts" for what in machine), "main_memory", "nearest_folder"):
        monkeypatch.setattr(doctor_machine, check, odd)
    monkeypatch.setattr(doctor, "ask_classes", odd)
    monkeypatch.setattr(doctor_suites, "_model_files", odd)
    report = examine(["testbed-quick"], tmp_path, tmp_path)
    assert not report.ok and {fact.mark for fact in report.facts} == {"warn"}
    assert all(
        "RuntimeError: something" in fact.text for fact in report.facts
    ) and "\x1b" not in text(report)
    monkeypatch.setattr(doctor, "suite_names", odd)
    assert examine(None, tmp_path, tmp_path).suites == ()


@pytest.mark.parametrize("count", [0, 1, 8, 300])
def test_text_is_one_screen_with_marks_in_words(count):
    facts = tuple(
        Fact(mark, f"name {i}", "about it " * (3 + 9 * (i == 2)), "pip install it")
        for i, mark in enumerate(["ok", "warn", "missing"] * 3)
    )
    files = tuple(
        FileFact("reference", f"/far/{'away/' * 40}{i}.png", "missing") for i in range(500)
    )
    suites = tuple(
        SuiteFact(
            f"suite-{i}",
            "missing",
            "cannot run: 500 missing of 500 files",
            (),
            files,
            f"bench fetch --suite suite-{i}",
        )
        for i in range(count)
    )
    shown = text(Report(facts, (), suites, 1.0)).splitlines()
    assert len(shown) <= LINES and max(map(len, shown)) <= COLUMNS
    assert all(
        any(line.startswith(mark) for line in shown) for mark in ("ok  ", "warn  ", "missing ")
    )
    if 0 < count < 10:
        assert (
            sum("cannot run" in line for line in shown) == count
            and sum("bench fetch --suite" in line for line in shown) == count
        )
    if count == 300:
        assert "more suites: bench doctor --json" in shown[-1]


def test_on_this_machine_the_testbed_can_run(tmp_path):
    report = examine(["testbed-quick", "testbed"], tmp_path, tmp_path, seconds=60)
    assert report.ok and [suite.images_exact for suite in report.suites] == [True, True]
    assert [suite.row_evaluations for suite in report.suites] == [9350, 172700 + 55296]  # dori
    facts = report.as_json()
    assert json.loads(json.dumps(facts, allow_nan=False))["ok"] is True
    assert {fact["name"] for fact in facts["facts"]} >= {
        "python",
        "packages",
        "torch",
        "processor",
        "memory",
        "store",
        "records",
        "git",
        "names",
    }
    parameters = report.suites[0].parameters
    assert 1_000_000 < parameters < 20_000_000
    # float32, a batch of 32 pictures of 32 x 32, each with a quarter of the parameters' bytes at
    # 512 x 512, and 1 GiB for the program
    assert report.suites[0].memory_bytes == round(4 * parameters * (1 + 32 / 16**2 / 4)) + GIB
    assert len(text(report).splitlines()) <= LINES


def test_a_package_that_is_missing_costs_its_own_lines_only(tmp_path, quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    report = examine(["testbed-quick"], tmp_path, tmp_path)
    facts = {fact.name: fact for fact in report.facts}
    assert facts["memory"].text == "not known"
    assert "psutil" in facts["processor"].text and facts["processor"].mark == "warn"
    assert facts["python"].mark == "ok" and report.suites[0].verdict.startswith("can run")
