"""Who does the work changes nothing in the result.

What starts Ray stands in `ray_cases.py`, which runs here in a process of its own.
"""

import importlib.util
import pickle
from pathlib import Path

import pytest
import torch

from bench.base.errors import UserError
from bench.running import worker
from bench.running.executors import Local
from bench.running.ray import Crew, Ray
from bench.running.worker import Spec
from bench.store.store import SampleKey
from bench.suite.suite import Suite
from conftest import bench, run_in_child
from one_run import Run

CPU = torch.device("cpu")
MIXING = """
import os
import torch
from pathlib import Path
from bench import Method

class Mixing(Method):
    '''Every image gets a little of its batch's images; each process leaves its number.'''
    notes: str = ""
    def mixes_images(self):
        return True
    def fit(self, denoiser, data):
        return {"drawn": torch.rand(4, 8, 8)}
    def adjust(self, denoiser, request, state):
        if self.notes:
            Path(self.notes, str(os.getpid())).touch()
        mean = request.latents.mean(0, keepdim=True)
        return request.replace(latents=request.latents + state["drawn"] * mean)
"""


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr("bench.running.units.IMAGES_PER_UNIT", 4)


def new_run(suite, place, method="none", executor=None, **parameters):
    records, store = place / "records", place / "store"
    return Run(suite, method, parameters, records, store, CPU, executor=executor)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(900)
def test_ray_does_the_same_work(tmp_path):
    """Ray's core may end the process that drives it without a word; here that is a child, whose
    output names the case that ran.
    """
    run_in_child(Path(__file__).with_name("ray_cases.py"), tmp_path, seconds=840)


def test_a_local_map_is_a_plain_loop_that_begins_when_asked():
    seen = []
    results = Local().map(lambda number: seen.append(number) or -number, [3, 1, 2])
    assert next(results) == -3 and seen == [3] and list(results) == [-1, -2]


def test_a_spec_comes_to_the_same_run(tiny_suite, tmp_path, monkeypatch):
    (tmp_path / "mixing.py").write_text(MIXING)
    run = new_run(tiny_suite, tmp_path, str(tmp_path / "mixing.py"), notes="x")
    experiment, engine, images = pickle.loads(pickle.dumps(Spec.of(*run))).prepared()
    planned = images.units.planned(experiment)
    assert (experiment.id, images.store.folder, planned, engine.device) == (
        run.id,
        run.store.folder,
        run.planned(),
        run.engine.device,
    )
    (tmp_path / "mixing.py").write_text(MIXING + "\n# edited\n")
    with pytest.raises(UserError, match="are not those of the driver"):
        Spec.of(*run).prepared()


def test_a_suite_that_code_made_can_be_sent_too(tiny_suite, tmp_path):
    bare = Suite(
        tiny_suite.settings.model_copy(update={"metrics": {}, "attacks": {}}), tiny_suite.file, 3
    )
    again = pickle.loads(pickle.dumps(Spec.of(*new_run(bare, tmp_path)))).prepared()
    assert again.experiment.suite.fingerprint == bare.fingerprint


def test_files_below_the_working_folder_are_found_in_that_of_the_worker(
    tiny_suite, tmp_path, monkeypatch
):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mixing.py").write_text(MIXING)
    monkeypatch.chdir(tmp_path / "here")
    run = new_run(tiny_suite, tmp_path, "./mixing.py")
    spec = Spec.of(*run)
    (tmp_path / "here" / "mixing.py").unlink()
    monkeypatch.chdir(tmp_path / "there")
    assert spec.prepared().experiment.id == run.id


def test_a_worker_without_the_fitted_state_says_so(tiny_suite, tmp_path, monkeypatch):
    (tmp_path / "mixing.py").write_text(MIXING)
    run = new_run(tiny_suite, tmp_path, str(tmp_path / "mixing.py"))
    refusal = worker.Worker(Spec.of(*run), 1).load()
    assert "give a --store that all machines share" in refusal.line and isinstance(
        refusal.error(), UserError
    )


def test_a_worker_keeps_its_model_and_finishes_what_another_began(
    tiny_suite, tmp_path, monkeypatch
):
    run = new_run(tiny_suite, tmp_path)
    one = worker.Worker(Spec.of(*run), 1)
    assert one.load() is None
    model = one._prepared.engine.denoiser
    first, second = run.planned()[:2]
    run.make({}, [first])
    assert one.make(first) is None and one.make(second) is None
    assert one._prepared.engine.denoiser is model and model.rows == 2 * 3 * len(second)
    run.store.refresh()
    assert not run.store.missing([*first, *second])


def test_images_that_workers_stored_elsewhere_are_one_line(tiny_suite, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    executor = Ray(workers=1)
    monkeypatch.setattr(executor, "_start", lambda: None)
    monkeypatch.setattr(executor, "_count", lambda on_gpu: 1)
    monkeypatch.setattr(Crew, "make", lambda *_: None)
    run = new_run(tiny_suite, tmp_path, executor=executor)
    with pytest.raises(UserError, match="give a --store that all machines share"):
        run.make({}, [(SampleKey("p", 1),)])


def test_without_ray_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'diffusion-memorization-bench\[ray\]'"):
        Ray()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--executor", "dask"], "--executor is local or ray, not 'dask'"),
        (["--workers", "2"], "--workers is for --executor ray"),
        (["--address", "auto"], "--address is for --executor ray"),
        (["--gpus", "0.5"], "--gpus is for --executor ray"),
        (["--executor", "ray", "--workers", "0"], "--workers must be at least 1"),
        (["--executor", "ray", "--gpus", "1.5"], "--gpus must be a share of a GPU"),
        (["--executor", "ray", "--gpus", "nan"], "--gpus must be a finite number"),
        (["--executor", "ray", "--shard", "1/2"], "exclude each other"),
        (["--shard", "2/1"], "--shard must be i/n"),
    ],
)
def test_wrong_options_are_one_line_each(words, says):
    done = bench("run", "--method", "none", "--suite", "testbed-quick", *words)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
