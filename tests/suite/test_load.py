"""Suite files: their fingerprints, how they extend one another, and every refusal as one line."""

import json
import os
import shutil
from pathlib import Path

import pytest

import bench
from bench.base.digests import digest_of
from bench.base.errors import UserError
from bench.base.prompt_lists import read_list
from bench.registry import registry
from bench.suite.load import load_suite
from bench.suite.needs import lenient, readable_part
from bench.suite.schema import protocol
from conftest import SUITE

RECORDS = Path(bench.__file__).parents[1] / "leaderboards" / "records"

# Of the settings alone, since what these suites name is not shipped. A change here makes records
# of before stand apart: raise the version of the suite, or put the default of a new setting into
# `LATER`.
PROTOCOLS = {
    "sd14-mem500-coco30k": "7a2c58631cb5678f",
    "sd14-mem500": "ffc390a136642d4d",
    "sd14-removal": "cd8f32c66cb35c32",
    "sd15-mem500-coco30k": "0f14293425ec09e5",
    "sd15-mem500": "3913a4fdb6fee2a0",
    "sd20-mem219-coco30k": "1598c69bdf92d0f6",
    "sd20-mem219": "66cfc894898d4105",
    "sd21-mem219-coco30k": "00bd98e16fdc07be",
    "sd21-mem219": "393501bc28d0f9e9",
}
EMBEDDED = ["testbed", "testbed-attackers", "testbed-quick", "testbed-removal"]
OWN = 'name = "mine"\nextends = "{}"\n[model]\nsteps = 4\n'


def written(folder, text, name="own.toml") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def refused(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_shipped_suite_has_the_fingerprint_of_its_committed_records(name):
    records = [json.loads(file.read_text()) for file in (RECORDS / name / "none").glob("*.json")]
    assert {record["suite_fingerprint"] for record in records} == {load_suite(name).fingerprint}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_suite_whose_files_are_not_shipped_keeps_its_protocol(name):
    assert digest_of(protocol(load_suite(name).settings))[:16] == PROTOCOLS[name]


def test_every_shipped_suite_is_pinned():
    assert set(registry.suites()) == {*PROTOCOLS, *EMBEDDED}


@pytest.mark.parametrize("parent", ["testbed", "testbed-quick"])
def test_three_lines_give_a_shipped_suite_other_steps(tmp_path, parent):
    mine, theirs = load_suite(written(tmp_path, OWN.format(parent))), load_suite(parent)
    assert mine.settings.model.steps == 4 != theirs.settings.model.steps
    for role in theirs.settings.prompts:
        assert mine.prompts(role) == theirs.prompts(role)
    assert mine.path(mine.settings.model.path) == theirs.path(theirs.settings.model.path)
    for metric in ("sscd", "fid"):
        ours, weights = (suite.settings.metrics[metric]["weights"] for suite in (mine, theirs))
        assert mine.path(ours) == theirs.path(weights)
    assert mine.settings.metrics["sscd"]["profile"] == "testbed"  # a name and no path
    assert mine.fingerprint != theirs.fingerprint


def test_the_fingerprint_of_an_extension_does_not_depend_on_where_it_lies(tmp_path):
    here, there = (
        load_suite(written(tmp_path / folder, OWN.format("testbed-quick")))
        for folder in ("here", "there/deeper")
    )
    assert here.fingerprint == there.fingerprint
    again = load_suite(written(tmp_path / "third", OWN.format("../here/own.toml")))
    assert again.fingerprint == here.fingerprint


def test_an_extension_of_a_suite_in_another_folder_has_its_files(tiny_folder, tmp_path):
    parent = load_suite(str(tiny_folder / "tiny.toml"))
    nearer = os.path.relpath(tiny_folder / "tiny.toml", tmp_path / "a")
    mine = load_suite(written(tmp_path / "a", OWN.format(nearer)))
    further = load_suite(written(tmp_path / "b", OWN.format("../a/own.toml")))
    for suite in (mine, further):
        assert suite.prompts("memorized") == parent.prompts("memorized")
        assert suite.path(suite.settings.model.path) == parent.path(parent.settings.model.path)
    own_list = OWN.format(nearer) + '[prompts.clean]\nfile = "clean.csv"\n'
    (tmp_path / "a" / "clean.csv").write_text("id,prompt\nx,of my own\n")
    own = load_suite(written(tmp_path / "a", own_list))
    assert [prompt.text for prompt in own.prompts("clean")] == ["of my own"]


DAMAGED = {
    "deep lists": (SUITE + "\n[attacks.x]\na = " + "[" * 100_000, "nested too deeply"),
    "deep tables": (SUITE + "\n[attacks." + ".".join("a" * 5000) + "]", "nested more than"),
    "a long number": (SUITE.replace("steps = 3", "steps = " + "9" * 5000), "not valid TOML"),
    "a large number": (SUITE.replace("steps = 3", "steps = 0x" + "f" * 5000), "beyond 64 bits"),
    "infinite guidance": (SUITE + "\n[attacks.x]\na = inf", "attacks.x.a must be a finite"),
    "NUL in a path": (SUITE.replace("clean.csv", "a\\u0000.csv"), "file holds a NUL"),
    "no text": (SUITE.replace('name = "tiny"', "name = 5"), "name: input should be a valid string"),
    "extends a number": ("extends = 5", "extends must be the name or the path"),
    "assets are no table": (SUITE.replace('name = "tiny"', 'name = "tiny"\nassets = 5'), "assets"),
    "roles are a list": ('name = "x"\nprompts = []', "prompts: input should be"),
    "a quote as delimiter": (
        SUITE.replace("[prompts.clean]", "[prompts.clean]\ndelimiter = '\"'"),
        "it must be no quote",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_suite_is_one_line(tmp_path, what):
    text, says = DAMAGED[what]
    assert says in refused(lambda: load_suite(written(tmp_path, text)))


def test_a_suite_that_is_no_file_is_one_line(tmp_path):
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("loop", "pipe", "folder", "bytes", "a\0b", "x" * 5000):
        refused(lambda name=name: load_suite(f"{tmp_path}/{name}.toml"))


def test_suites_that_extend_one_another_have_an_end(tmp_path):
    written(tmp_path, SUITE, "0.toml")
    for number in range(1, 40):
        written(tmp_path, f'name = "x"\nextends = "{number - 1}.toml"', f"{number}.toml")
    assert load_suite(str(tmp_path / "16.toml")).settings.model.steps == 3
    assert "more than 16 suites" in refused(lambda: load_suite(str(tmp_path / "39.toml")))
    written(tmp_path, 'name = "x"\nextends = "39.toml"', "38.toml")
    assert "extends itself" in refused(lambda: load_suite(str(tmp_path / "39.toml")))


@pytest.mark.parametrize("path", ["x" * 300, "x" * 5000, "loop", "suite:testbed", "suite:x.toml:y"])
def test_a_path_that_leads_nowhere_is_one_line(tiny_folder, tmp_path, path):
    (tmp_path / "loop").symlink_to("loop")
    text = OWN.format(tiny_folder / "tiny.toml") + f'path = "{path}"\n'
    suite = load_suite(written(tmp_path, text + f'[prompts.clean]\nfile = "{path}"\n'))
    refused(lambda: suite.fingerprint)
    refused(lambda: suite.path(suite.settings.model.path))
    refused(lambda: suite.prompts("clean"))


def test_a_setting_of_any_length_is_no_file(tiny_folder, tmp_path):
    text = OWN.format(tiny_folder / "tiny.toml") + f'[metrics.sscd]\nnote = "{"x" * 5000}"\n'
    assert load_suite(written(tmp_path, text)).fingerprint


def test_a_plan_passes_over_what_is_missing_and_nothing_else(tiny_folder, tmp_path):
    base = OWN.format(tiny_folder / "tiny.toml")
    gone = base + '[prompts.clean]\nfile = "gone.csv"\nexpected = 3\nwhere = {}\n'
    suite = load_suite(written(tmp_path, gone))
    assert "'gone.csv' is missing" in refused(lambda: suite.prompts("clean"))
    assert len(suite.prompts("memorized")) == 4  # each list is read when it is asked for
    assert [prompt.id for prompt in lenient(suite).prompts("clean")] == [
        f"clean-{number:05d}" for number in range(3)
    ]
    (tmp_path / "gone.csv").write_text("prompt\na,b\n")
    assert "line 2: 2 cells" in refused(lambda: lenient(suite).prompts("clean"))


def test_the_readable_part_of_a_suite_says_what_cannot_be_read(tiny_folder, tmp_path):
    (tmp_path / "bad.csv").write_text("prompt\na,b\n")
    text = OWN.format(tiny_folder / "tiny.toml") + '[prompts.clean]\nfile = "bad.csv"\n'
    suite, reasons = readable_part(load_suite(written(tmp_path, text)))
    assert list(reasons) == ["clean"] and "line 2: 2 cells" in reasons["clean"]
    assert suite.prompts("clean") == () and len(suite.prompts("memorized")) == 4


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (['{"prompt": "a"}', '{"id": 1}'], "line 2: the column 'prompt' is missing"),
        (['{"prompt": "a", "id": 1}', '{"prompt": "b"}'], "line 2: the column 'id' is missing"),
        (['{"prompt": "a"}', '{"prompt": null}'], "line 2: the column 'prompt' holds null"),
        (['{"prompt": ["a"]}'], "line 1: the column 'prompt' holds a list"),
        (['{"prompt": 5}'], "line 1: the column 'prompt' holds a number"),
        (['{"prompt": "a", "reference": null}'], "line 1: the column 'reference' holds null"),
        (['{"prompt": "a", "group": [1]}'], "line 1: the column 'group' holds a list"),
    ],
)
def test_a_list_of_objects_is_read_strictly(tiny_folder, tmp_path, rows, says):
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    text = OWN.format(tiny_folder / "tiny.toml")
    text += '[prompts.clean]\nfile = "list.jsonl"\nformat = "jsonl"\n'
    suite = load_suite(written(tmp_path, text))
    assert says in refused(lambda: suite.prompts("clean"))


def test_filters_ask_every_row(tiny_folder, tmp_path):
    (tmp_path / "list.jsonl").write_text('{"prompt": "a", "kind": "x"}\n{"prompt": "b"}')
    text = OWN.format(tiny_folder / "tiny.toml")
    text += '[prompts.clean]\nfile = "list.jsonl"\nformat = "jsonl"\nwhere = { kind = "x" }\n'
    suite = load_suite(written(tmp_path, text))
    assert "line 2: the column 'kind' is missing" in refused(lambda: suite.prompts("clean"))


def test_the_lists_of_the_testbed_are_read_to_the_letter():
    bundle = Path(bench.__file__).parent / "testbed" / "bundle" / "prompts"
    for file in bundle.glob("*.csv"):
        assert all(row.text("prompt").strip() for row in read_list(file).rows)


def test_a_folder_that_bears_a_profiles_name_changes_nothing(tiny_folder, tmp_path):
    (tmp_path / "parent").mkdir()
    parent = written(tmp_path / "parent", OWN.format(tiny_folder / "tiny.toml"))
    before = load_suite(parent).fingerprint
    (tmp_path / "parent" / "testbed").mkdir()
    (tmp_path / "parent" / "testbed" / "notes.txt").write_text("anything")
    assert load_suite(parent).settings.metrics["sscd"]["profile"] == "testbed"
    assert load_suite(parent).fingerprint == before
    child = load_suite(written(tmp_path / "child", OWN.format("../parent/own.toml")))
    assert child.settings.metrics["sscd"]["profile"] == "testbed"


def test_code_and_files_of_metrics_stay_where_the_suite_that_names_them_has_them(tmp_path):
    parent = SUITE + '\n[metrics."./mine.py"]\nnetwork = "net.pt"\nlater = "./later.json"\n'
    parent += 'name = "net"\nmodel = "asset:x"\n'
    written(tmp_path / "parent", parent)
    (tmp_path / "parent" / "net.pt").write_text("")
    child = load_suite(written(tmp_path / "child", OWN.format("../parent/own.toml")))
    assert child.settings.metrics["../parent/mine.py"] == {
        "network": "../parent/net.pt",
        "later": "../parent/later.json",
        "name": "net",
        "model": "asset:x",
    }


def test_a_folder_that_bears_a_settings_value_as_its_name_changes_nothing(tiny_folder, tmp_path):
    folder = tmp_path / "suite"
    shutil.copytree(tiny_folder, folder)
    (folder / "own.py").write_text(
        "from bench import Metric\n\n\nclass Own(Metric):\n    names = ('own',)\n    roles ="
        " ('clean',)\n    files = ('data',)\n    style: str = 'plain'\n    data: str = ''\n"
    )
    file = folder / "tiny.toml"
    file.write_text(file.read_text() + '\n[metrics."./own.py"]\nstyle = "plain"\ndata = "facts"\n')
    (folder / "facts").mkdir()
    (folder / "facts/a.txt").write_text("1")
    before = load_suite(str(file)).fingerprint
    (folder / "plain").mkdir()
    (folder / "plain/notes.txt").write_text("x")
    assert load_suite(str(file)).fingerprint == before
    (folder / "facts/a.txt").write_text("2")  # declared as a file, so its content counts
    assert load_suite(str(file)).fingerprint != before
