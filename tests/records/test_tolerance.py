import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.base.errors import UserError
from bench.records.record import RunRecord, Score, load_record
from bench.records.tolerance import TOLERANCES, Tolerance, compare, main

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "leaderboards/records/testbed-quick/none").glob("*.json"))
VALUES = {"sscd": 0.5, "memorized_ratio": 0.2, "clip_score": 0.3, "fid": 50.0}
COSTS = {"nfe_per_image": 50.0, "seconds_per_image": 0.4}


def score(value, **changes):
    return Score(
        **{
            "value": value,
            "n": 54,
            "unit": "cosine",
            "higher_is_better": False,
            "metric": "m",
            "metric_version": 1,
            "reason": "" if value is not None else "no weights",
        }
        | changes
    )


def record(changed=None, **fields):
    values = {
        name: given if isinstance(given, Score) else score(given)
        for name, given in ({**VALUES, **COSTS} | (changed or {})).items()
    }
    content = {
        "run": "0123456789ab",
        "status": "complete",
        "suite": "demo",
        "suite_version": 1,
        "suite_fingerprint": "f" * 16,
        "method": "none",
        "method_version": 1,
        "where": "nothing",
        "needs": [],
        "paper": "",
        "parameters": {},
        "scores": {name: s for name, s in values.items() if name not in COSTS},
        "cost": {name: s for name, s in values.items() if name in COSTS},
    }
    return RunRecord(**(content | fields))


def breaches(new, old=None):
    return {line.name: line.verdict for line in compare(new, old or record()) if not line.within}


def test_a_record_agrees_with_itself():
    assert breaches(record()) == {}
    assert {line.name for line in compare(record(), record())} == {*VALUES, *COSTS}


@pytest.mark.parametrize(
    ("name", "within", "beyond"),
    [
        ("sscd", 0.52, 0.5201),
        ("sscd", 0.48, 0.4799),
        ("clip_score", 0.32, 0.3201),
        ("memorized_ratio", 0.22, 0.2201),
        ("fid", 55.0, 55.01),
        ("fid", 45.0, 44.99),
        ("nfe_per_image", 50.0, 50.0001),
    ],
)
def test_the_tolerance_is_the_last_value_within(name, within, beyond):
    assert breaches(record({name: within})) == {}
    assert list(breaches(record({name: beyond}))) == [name]


def test_time_is_only_reported():
    assert breaches(record({"seconds_per_image": 40.0})) == {}
    assert "reported only" in str(
        next(line for line in compare(record(), record()) if line.name == "seconds_per_image")
    )


def test_null_on_one_side_is_a_breach_and_on_both_is_none():
    assert "no weights" in breaches(record({"fid": None}))["fid"]
    assert "no weights" in breaches(record(), record({"fid": None}))["fid"]
    assert breaches(record({"fid": None}), record({"fid": None})) == {}


def test_a_score_that_one_record_lacks_or_that_has_no_tolerance_is_a_breach():
    assert "only the new" in breaches(record({"diversity": 0.4}))["diversity"]
    assert "only the old" in breaches(record(), record({"diversity": 0.4}))["diversity"]
    assert (
        "no tolerance" in breaches(record({"surprise": 0.4}), record({"surprise": 0.4}))["surprise"]
    )


def test_scores_of_other_metrics_or_numbers_of_images_are_not_the_same():
    assert "version 2 against 1" in breaches(record({"sscd": score(0.5, metric_version=2)}))["sscd"]
    assert "96 against 54" in breaches(record({"fid": score(50.0, n=96)}))["fid"]


@pytest.mark.parametrize(
    "fields",
    [
        {"suite_fingerprint": "e" * 16},
        {"suite": "other"},
        {"limit": 3},
        {"method": "wen"},
        {"method_version": 2},
        {"parameters": {"lr": 1}},
        {"status": "partial"},
        {"scores": {}, "cost": {}},
    ],
)
def test_records_of_unlike_runs_are_refused(fields):
    with pytest.raises(UserError):
        compare(record(), record(**fields))


def test_the_command_prints_every_score_and_tells_the_verdict_by_its_status(tmp_path, capsys):
    new, old, far, other = (
        each.save(tmp_path / name)
        for name, each in (
            ("new", record()),
            ("old", record()),
            ("far", record({"fid": 60.0})),
            ("other", record(suite_fingerprint="e" * 16)),
        )
    )
    assert main([str(new), str(old)]) == 0
    capsys.readouterr()
    assert main([str(far), str(old)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == sorted({*VALUES, *COSTS})
    (fid,) = [line for line in lines if line.startswith("fid")]
    assert all(
        part in fid for part in ("60.000000", "50.000000", "+10.000000", "10% of old", "BREACH")
    )
    assert main([str(other), str(old)]) == 2
    assert "suite_fingerprint" in capsys.readouterr().err
    assert main([str(tmp_path / "missing.json"), str(old)]) == 2


@pytest.mark.parametrize("word", ["NaN", "Infinity"])
def test_a_record_cannot_hold_nan(tmp_path, word):
    path = record().save(tmp_path)
    content = json.loads(path.read_text())
    content["scores"]["fid"]["value"] = float(word)
    content.pop("content_sha256", None)  # so that the number itself is what is refused
    path.write_text(json.dumps(content))
    assert word in path.read_text()
    assert main([str(path), str(path)]) == 2


@given(new=st.floats(-10, 10), old=st.floats(-10, 10), limit=st.floats(0.001, 1))
def test_tolerances_are_symmetric_in_direction_and_wider_ones_allow_more(new, old, limit):
    narrow, wide = Tolerance("absolute", limit), Tolerance("absolute", limit * 2)
    assert narrow.allows(new, old) == narrow.allows(old, new) == narrow.allows(-new, -old)
    assert wide.allows(new, old) or not narrow.allows(new, old)
    assert (
        narrow.allows(new, old) == (abs(new - old) <= limit) or abs(abs(new - old) - limit) <= 2e-9
    )
    assert not Tolerance("absolute", limit).allows(float("nan"), old)


def test_every_score_of_the_committed_record_has_a_tolerance_and_one_more_copy_passes():
    assert len(COMMITTED) == 1  # the workflow names it with a star
    committed = load_record(COMMITTED[0])
    assert {*committed.scores, *committed.cost, *committed.attacks} <= TOLERANCES.keys()
    assert breaches(committed, committed) == {}
    ratio = committed.scores["memorized_ratio"]
    assert ratio.value is not None
    assert TOLERANCES["memorized_ratio"].allows(ratio.value + 1 / ratio.n, ratio.value)
    assert not TOLERANCES["memorized_ratio"].allows(ratio.value + 2 / ratio.n, ratio.value)


# ---- workflows


def workflow(name):
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text())


def commands(job):
    """What a job's steps run, with every choice of its matrix filled in."""
    choices = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
    for step in job["steps"]:
        for choice in choices if "run" in step else []:
            yield re.sub(
                r"\$\{\{ matrix\.(\w+) \}\}",
                lambda match, choice=choice: choice[match[1]],
                step["run"],
            )


@pytest.mark.parametrize("name", ["ci.yml", "canary.yml"])
def test_workflows_read_only_end_and_run_what_exists(name):
    content = workflow(name)
    assert content["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    variables = set(
        re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    )
    found = []
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert all(
            re.fullmatch(r"actions/[a-z-]+@v[0-9]+", step["uses"])
            for step in job["steps"]
            if "uses" in step
        )
        found += list(commands(job))
    for command in found:
        program, *words = command.split()
        if program == "make":
            assert {word for word in words if "=" not in word} <= targets
            assert {word.partition("=")[0] for word in words if "=" in word} <= variables
        elif program == ".ci/run":
            assert os.access(ROOT / program, os.X_OK)
        else:
            assert (program, words[0]) == (".venv/bin/python", "-m") and importlib.util.find_spec(
                words[1]
            )
    assert found


def test_ci_runs_on_push_and_pull_request_with_every_python_and_lints_once():
    content = workflow("ci.yml")
    assert set(content[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    (job,) = content["jobs"].values()
    assert [choice["python"] for choice in job["strategy"]["matrix"]["include"]] == [
        "3.11",
        "3.12",
        "3.13",
    ]
    assert sorted(commands(job)) == [".ci/run", "make test", "make test"]


def test_the_canary_runs_weekly_and_compares_records_that_the_run_writes():
    content = workflow("canary.yml")
    assert set(content[True]) == {"schedule", "workflow_dispatch"}
    (when,) = content[True]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", when["cron"])
    (job,) = content["jobs"].values()
    run, comparison = commands(job)
    assert run == "make run METHOD=none SUITE=testbed-quick"
    new, old = comparison.split()[-2:]
    assert sorted(ROOT.glob(old)) == COMMITTED
    assert new == old.replace("leaderboards/", "runs/")
