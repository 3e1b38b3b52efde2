"""Who does the work changes nothing in the result.

What needs Ray shares one cluster of two workers here, and is skipped where Ray is not installed.
"""

import os
import pickle
import signal

import pytest
import torch
from typer.testing import CliRunner

from bench.base.errors import Unmeasurable, UserError
from bench.cli.main import app
from bench.running import executors, worker
from bench.running.demand import planned
from bench.running.executors import Local
from bench.running.ray import Ray
from bench.running.run import Run
from bench.running.worker import Spec
from bench.store.store import SampleKey, pixel_digest
from bench.suite.load import load_suite
from bench.suite.suite import Suite
from conftest import SUITE

CPU = torch.device("cpu")
ATTACKED = (
    SUITE
    + "\n[attacks.clique_extraction]\nimages = 3\nclique = 2\nthreshold = 0.2\nclean_prompts = 2\n"
)
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
HURT = """
import os
from bench import Method

class Hurt(Method):
    "Goes wrong at the first step."
    die: bool = False
    def guide(self, step, state):
        if self.die:
            os._exit(1)
        return step.conditional * float("nan")
"""


@pytest.fixture(scope="module")
def two_workers():
    pytest.importorskip("ray")
    executor = Ray(workers=2)
    yield executor
    executor.close()


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr("bench.running.demand.IMAGES_PER_UNIT", 4)


def new_run(suite, place, method="none", executor=None, **parameters):
    run = Run.resolve(suite, method, parameters, place / "records", place / "store", CPU)
    run.executor = executor or Local()
    return run


def without_time(record):
    """All fields but seconds and what follows from them, the machine, and the digest over
    everything.
    """
    content = record.model_dump(exclude={"environment", "content_sha256"})
    content["cost"] = {
        name: score
        for name, score in content["cost"].items()
        if score["unit"] not in ("s", "x none")
    }
    return content


def digests(run):
    keys = [key for unit in planned(run) for key in unit]
    return {
        key: pixel_digest(picture)
        for key, picture in zip(keys, run.store.pictures(keys), strict=True)
    }


def test_ray_gives_the_record_of_a_local_run(two_workers, tiny_folder, tmp_path):
    (tiny_folder / "scaled.toml").write_text(ATTACKED)
    suite = load_suite(str(tiny_folder / "scaled.toml"))
    local, spread = (
        new_run(suite, tmp_path / "local"),
        new_run(suite, tmp_path / "ray", executor=two_workers),
    )
    expected, record = local.execute(), spread.execute()
    assert (
        without_time(record) == without_time(expected)
        and record.cost["nfe_per_image"].value == expected.cost["nfe_per_image"].value
    )
    assert digests(spread) == digests(local)
    assert {shard.name.partition("-")[2] for shard in spread.store.shards()} == {
        shard.name.partition("-")[2] for shard in local.store.shards()
    }


def test_a_killed_worker_changes_nothing_even_where_images_of_a_batch_influence_each_other(
    two_workers, tiny_suite, tmp_path
):
    (tmp_path / "mixing.py").write_text(MIXING)
    (notes := tmp_path / "notes").mkdir()
    local, spread = (
        new_run(
            tiny_suite, tmp_path / place, str(tmp_path / "mixing.py"), executor, notes=str(notes)
        )
        for place, executor in (("local", Local()), ("ray", two_workers))
    )
    state = spread.fitted()[0]  # random numbers: both must sample with what this store has
    killed = []

    def kill_one(what, done, total):
        if what == "generate" and done and not killed:
            killed.append(next(notes.iterdir()).name)
            os.kill(int(killed[0]), signal.SIGKILL)

    spread.report = kill_one
    spread.executor.make(spread, state, planned(spread))
    assert killed
    for note in notes.iterdir():
        note.unlink()
    local.executor.make(local, state, planned(local))
    assert digests(spread) == digests(local)


def test_what_a_user_must_put_right_is_raised_once_and_a_deadly_unit_is_given_up(
    two_workers, tiny_suite, tmp_path, monkeypatch
):
    (tmp_path / "hurt.py").write_text(HURT)
    wrong = new_run(tiny_suite, tmp_path, str(tmp_path / "hurt.py"), two_workers)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        wrong.executor.make(wrong, {}, planned(wrong)[:1])
    monkeypatch.setattr(executors, "RETRIES", 0)
    deadly = new_run(tiny_suite, tmp_path, str(tmp_path / "hurt.py"), two_workers, die=True)
    with pytest.raises(UserError, match="1 workers were lost while they made the unit of prompt"):
        deadly.executor.make(deadly, {}, planned(deadly)[:1])


def test_a_map_over_ray_keeps_the_order_and_the_errors(two_workers):
    assert list(two_workers.map(lambda number: number**2, range(20))) == [
        number**2 for number in range(20)
    ]

    def refuse(error):
        raise {"user": UserError, "nothing": Unmeasurable, "bug": ZeroDivisionError}[error](
            "no such thing"
        )

    for name, kind in (("user", UserError), ("nothing", Unmeasurable), ("bug", ZeroDivisionError)):
        with pytest.raises(kind, match="no such thing"):
            list(two_workers.map(refuse, [name]))


def test_a_local_map_is_a_plain_loop_that_begins_when_asked():
    seen = []
    results = Local().map(lambda number: seen.append(number) or -number, [3, 1, 2])
    assert next(results) == -3 and seen == [3] and list(results) == [-1, -2]


def test_a_spec_comes_to_the_same_run(tiny_suite, tmp_path, monkeypatch):
    (tmp_path / "mixing.py").write_text(MIXING)
    run = new_run(tiny_suite, tmp_path, str(tmp_path / "mixing.py"), notes="x")
    again = pickle.loads(pickle.dumps(Spec.of(run))).run()
    assert (again.id, again.store.folder, planned(again), again.device) == (
        run.id,
        run.store.folder,
        planned(run),
        run.device,
    )
    (tmp_path / "mixing.py").write_text(MIXING + "\n# edited\n")
    with pytest.raises(UserError, match="are not those of the driver"):
        Spec.of(run).run()


def test_a_suite_that_code_made_can_be_sent_too(tiny_suite, tmp_path):
    bare = Suite(
        tiny_suite.settings.model_copy(update={"metrics": {}, "attacks": {}}), tiny_suite.file, 3
    )
    assert (
        pickle.loads(pickle.dumps(Spec.of(new_run(bare, tmp_path)))).run().suite.fingerprint
        == bare.fingerprint
    )


def test_files_below_the_working_folder_are_found_in_that_of_the_worker(
    tiny_suite, tmp_path, monkeypatch
):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mixing.py").write_text(MIXING)
    monkeypatch.chdir(tmp_path / "here")
    run = new_run(tiny_suite, tmp_path, "./mixing.py")
    spec = Spec.of(run)
    (tmp_path / "here" / "mixing.py").unlink()
    monkeypatch.chdir(tmp_path / "there")
    assert spec.run().id == run.id


def test_a_worker_without_the_fitted_state_says_so(tiny_suite, tmp_path, monkeypatch):
    (tmp_path / "mixing.py").write_text(MIXING)
    run = new_run(tiny_suite, tmp_path, str(tmp_path / "mixing.py"))
    refusal = worker.Worker(Spec.of(run), 1).load()
    assert "give a --store that all machines share" in refusal.line and isinstance(
        refusal.error(), UserError
    )


def test_a_worker_keeps_its_model_and_finishes_what_another_began(
    tiny_suite, tmp_path, monkeypatch
):
    run = new_run(tiny_suite, tmp_path)
    one = worker.Worker(Spec.of(run), 1)
    assert one.load() is None
    model = one._run.denoiser
    first, second = planned(run)[:2]
    run.executor.make(run, {}, [first])
    assert one.make(first) is None and one.make(second) is None
    assert one._run.denoiser is model and model.rows == 2 * 3 * len(second)
    run.store.refresh()
    assert not run.store.missing([*first, *second])


def test_images_that_workers_stored_elsewhere_are_one_line(tiny_suite, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    executor = Ray(workers=1)
    monkeypatch.setattr(executor, "_start", lambda: None)
    monkeypatch.setattr(executor, "_distribute", lambda *_: None)
    run = new_run(tiny_suite, tmp_path)
    with pytest.raises(UserError, match="give a --store that all machines share"):
        executor.make(run, {}, [(SampleKey("p", 1),)])


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
        (["--executor", "ray", "--gpus", "nan"], "--gpus must be a share of a GPU"),
        (["--executor", "ray", "--shard", "1/2"], "exclude each other"),
        (["--shard", "2/1"], "--shard must be i/n"),
    ],
)
def test_wrong_options_are_one_line_each(words, says):
    error = (
        CliRunner()
        .invoke(app, ["run", "--method", "none", "--suite", "testbed-quick", *words])
        .exception
    )
    assert isinstance(error, UserError) and says in str(error) and "\n" not in str(error)
