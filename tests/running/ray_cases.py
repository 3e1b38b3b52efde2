"""What Ray's workers do: one cluster of two workers for all cases.

Not collected with the tests: `test_executors.py` runs this file in a child process.
"""

import os
import signal

import numpy as np
import pytest
from test_executors import MIXING, new_run

from bench.base.errors import Unmeasurable, UserError
from bench.base.pictures import decode_small_png
from bench.running.executors import Local
from bench.running.ray import Ray
from bench.store.store import pixel_digest
from bench.suite.load import load_suite
from conftest import SUITE

ATTACKED = (
    SUITE
    + "\n[attacks.clique_extraction]\nimages = 3\nclique = 2\nthreshold = 0.2\nclean_prompts = 2\n"
    "\n[attacks.dori]\ntargets = 3\nimages = 1\ncurve = [0, 1]\n"
)
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
    executor = Ray(workers=2)
    yield executor
    executor.close()


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr("bench.running.units.IMAGES_PER_UNIT", 4)
    monkeypatch.setattr("bench.running.pieces.PICTURES", 1)


def without_time(record):
    """All fields but seconds and what follows from them, the machine, and the digest over
    everything.
    """
    content = record.model_dump(exclude={"environment", "content_sha256", "exhibits"})
    content["cost"] = {
        name: score
        for name, score in content["cost"].items()
        if score["unit"] not in ("s", "x none")
    }
    return content


def same_exhibits(ours, theirs):
    """Attacks on known pictures work on as many at once as a worker is given, and products of other
    numbers of rows may round to the next of 256 levels.
    """
    apart = {"pictures", "reference"}
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.model_dump(exclude=apart) == other.model_dump(exclude=apart)
        assert one.reference == other.reference
        for png, expected in zip(one.pictures, other.pictures, strict=True):
            pixels = [decode_small_png(encoded).astype(int) for encoded in (png, expected)]
            assert np.abs(pixels[0] - pixels[1]).max() <= 1


def digests(run):
    keys = [key for unit in run.planned() for key in unit]
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
    same_exhibits(record.exhibits, expected.exhibits)
    assert without_time(record) == without_time(expected)
    assert record.cost["nfe_per_image"].value == expected.cost["nfe_per_image"].value
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
    state = spread.fitted().state  # random numbers: both must sample with what this store has
    killed = []

    def kill_one(what, done, total):
        if what == "generate" and done and not killed:
            killed.append(next(notes.iterdir()).name)
            os.kill(int(killed[0]), signal.SIGKILL)

    spread.report = kill_one
    spread.make(state, spread.planned())
    assert killed
    for note in notes.iterdir():
        note.unlink()
    local.make(state, local.planned())
    assert digests(spread) == digests(local)


def test_what_a_user_must_put_right_is_raised_once_and_a_deadly_unit_is_given_up(
    two_workers, tiny_suite, tmp_path, monkeypatch
):
    (tmp_path / "hurt.py").write_text(HURT)
    wrong = new_run(tiny_suite, tmp_path, str(tmp_path / "hurt.py"), two_workers)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        wrong.make({}, wrong.planned()[:1])
    monkeypatch.setattr("bench.running.ray.RETRIES", 0)
    deadly = new_run(tiny_suite, tmp_path, str(tmp_path / "hurt.py"), two_workers, die=True)
    with pytest.raises(UserError, match="1 workers were lost while they made the unit of prompt"):
        deadly.make({}, deadly.planned()[:1])


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
