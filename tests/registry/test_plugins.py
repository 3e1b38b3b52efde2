import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from bench.base.child import ask_child
from bench.base.errors import UserError
from bench.cli.list import listing_text
from bench.cli.show import show_text
from bench.records.record import load_records
from bench.registry import plugins, registry
from bench.registry.listing import list_names
from bench.registry.probe import probe
from bench.suite.load import load_suite
from one_run import Run

EXAMPLE = Path(__file__).parents[1] / "plugin_package"
METHOD = "from bench import Method\n\nclass {name}(Method):\n    '''{doc}'''\n"


class Site:
    """A folder of installed distributions, as an installer leaves it: code, and a `.dist-info`
    folder for each.
    """

    def __init__(self, folder):
        self.folder = folder

    def install(self, name, points, version="0.1.0", **modules):
        """`points`: group to lines of `name = value`; `modules`: name to code."""
        for module, code in modules.items():
            (self.folder / f"{module}.py").write_text(code)
        info = self.folder / f"{re.sub('[-.]+', '_', name)}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(
            "\n".join(f"[bench.{group}]\n{lines}\n" for group, lines in points.items())
        )
        files = [
            path
            for path in self.folder.rglob("*")
            if path.is_file() and not path.is_relative_to(info)
        ]
        (info / "RECORD").write_text(
            "".join(f"{path.relative_to(self.folder).as_posix()},,\n" for path in files)
        )
        self.forget()

    def install_example(self, version="0.1.0"):
        project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
        shutil.copytree(EXAMPLE / "bench_plugin_example", self.folder / "bench_plugin_example")
        points = {
            group.removeprefix("bench."): "\n".join(f"{k} = {v}" for k, v in named.items())
            for group, named in project["entry-points"].items()
        }
        self.install(project["name"], points, version)

    def imported(self):
        return [
            name
            for name, module in list(sys.modules.items())
            if str(getattr(module, "__file__", "")).startswith(str(self.folder))
        ]

    def forget(self):
        """What another process would not know: imported code and metadata that was read before."""
        for name in self.imported():
            del sys.modules[name]
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()
        plugins._scan.cache_clear()


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    installed = Site(folder)
    yield installed
    installed.forget()


def command(monkeypatch, capsys, *arguments):
    """`bench ...` in this process: exit code, standard output, standard error."""
    from bench.cli.main import main

    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        main()
    return done.value.code, *capsys.readouterr()


def resolve(suite, method, tmp_path):
    return Run(suite, method, {}, tmp_path / "records", tmp_path / "store", torch.device("cpu"))


def refusal(kind, name):
    with pytest.raises(UserError) as error:
        registry.find(kind, name).load()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_installed_package_is_listed_and_its_broken_method_says_why(site):
    site.install_example()
    found = list_names(None)
    assert (
        found["methods"]["milder"] == "Guide less by a constant share. [bench-plugin-example 0.1.0]"
    )
    assert (
        found["methods"]["broken"]
        == "broken: ImportError: libmilder.so is missing and so is its manual [bench-plugin-example"
        " 0.1.0]"
    )
    assert found["metrics"]["brightness"].startswith("Mean brightness")
    assert found["suites"]["example"].startswith("A suite of a third party")
    assert found["methods"]["wanda"].startswith("Zero the feed-forward weights")
    assert not site.imported()
    assert re.search(r"^  milder +Guide less", listing_text(found), re.M)


def test_listing_with_plug_ins_imports_neither_them_nor_torch(site):
    site.install_example()
    for arguments, shows in (["--help"], "leaderboard"), (["list", "--json"], "milder"):
        code = (
            f"import sys; sys.path.insert(0, {str(site.folder)!r}); sys.argv = ['bench',"
            f" *{arguments!r}]\nfrom bench.cli.main import main\n"
        )
        code += "try:\n    main()\nexcept SystemExit:\n    pass\n"
        code += (
            "sys.stderr.write(str([name for name in ('torch', 'bench_plugin_example') if name in"
            " sys.modules]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stderr == "[]" and shows in done.stdout


def test_without_plug_ins_listing_starts_no_process(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(registry, "plugins", lambda kind: ())
    assert "none" in list_names("methods")["methods"]


BROKEN = {
    "gone": ("no_such_module", None, "ModuleNotFoundError: No module named 'no_such_module'"),
    "syntax": ("b_syntax", "def broken(:\n", "SyntaxError"),
    "leaves": ("b_leaves", "import sys\nsys.exit('no licence')\n", "SystemExit: no licence"),
    "ends": ("b_ends", "import os\nos._exit(3)\n", "importing it ended Python (exit code 3)"),
    "noclass": (
        "b_none",
        "x = 1\n",
        "must hold exactly one class derived from bench.Method; found: none",
    ),
    "twoclasses": (
        "b_two",
        METHOD.format(name="A", doc="") + METHOD.format(name="B", doc=""),
        "found: A, B",
    ),
    "misnamed": (
        "b_misnamed:Milder",
        METHOD.format(name="Wilder", doc=""),
        "b_misnamed:Milder is no class derived from bench.Method",
    ),
    "base": (
        "b_base:Method",
        "from bench import Method\n",
        "is no class derived from bench.Method",
    ),
    "bad name": ("b_good", METHOD.format(name="Good", doc=""), "a name may hold letters"),
    "../../up": ("b_good", None, "a name may hold letters"),
}


def test_every_way_to_be_broken_is_one_line_and_disturbs_nobody(site, monkeypatch, capsys):
    lines = (
        "\n".join(f"{name} = {value}" for name, (value, _, _) in BROKEN.items())
        + "\nzgood = b_talks"
    )
    modules = {value.partition(":")[0]: code for value, code, _ in BROKEN.values() if code}
    modules["b_talks"] = (
        "print('not JSON')\nimport sys; print('nor this', file=sys.__stdout__)\n"
        + METHOD.format(name="Talks", doc="Works.")
    )
    site.install("sad", {"methods": lines}, **modules)
    code, out, err = command(monkeypatch, capsys, "list", "methods", "--json")
    found = json.loads(out)["methods"]
    for name, (_, _, says) in BROKEN.items():
        shown = found[name if plugins.NAME.fullmatch(name) else f"sad/{name}"]
        assert shown.startswith("broken: ") and says in shown and "\n" not in shown
    assert code == 0 and not err
    assert found["zgood"].startswith("Works.") and not found["none"].startswith("broken")
    assert registry.find("method", "zgood").load()().version == 1
    assert "no licence" in refusal("method", "leaves")
    assert "a name may hold" in refusal("method", "sad/bad name")


def test_a_plug_in_that_does_not_come_back_is_stopped_and_the_others_are_tried(site, monkeypatch):
    def patient_with_one(module, arguments, seconds):
        """The limit holds where both are left; torch alone may take longer than that."""
        return ask_child(module, arguments, seconds if len(arguments) == 2 else 100)

    monkeypatch.setattr("bench.registry.probe.ask_child", patient_with_one)
    works = METHOD.format(name="W", doc="W.")
    site.install(
        "slow",
        {"methods": "hangs = hangs\nworks = works"},
        hangs="import threading\nthreading.Event().wait()\n",
        works=works,
    )
    found = probe(
        [entry for entry in registry.entries("method").values() if entry.plugin], seconds=2
    )
    assert [*found.values()] == ["broken: importing it takes longer than 2 seconds", "W."]


def test_show_knows_plug_ins_by_both_names(site, monkeypatch, capsys):
    site.install_example()
    text = show_text("milder", as_json=False)
    assert (
        "distribution: bench-plugin-example 0.1.0" in text
        and "-p share=number  (default 0.5)" in text
    )
    assert (
        json.loads(show_text("Bench_Plugin.Example/milder", as_json=True))["parameters"]["share"][
            "default"
        ]
        == 0.5
    )
    assert (
        json.loads(show_text("bench-plugin-example/brightness", as_json=True))["kind"] == "metric"
    )
    code, _, err = command(monkeypatch, capsys, "show", "broken")
    *announced, line = err.splitlines()
    assert code == 2 and "libmilder.so is missing" in line
    assert all("running code of plug-in bench-plugin-example/" in each for each in announced)
    assert (
        "did you mean 'bench-plugin-example/milder'"
        in command(monkeypatch, capsys, "show", "bench-plugin-exmple/milder")[2]
    )


def test_a_plug_ins_suite_and_method_and_metric_run_and_the_record_says_whose_they_are(
    site, tiny_folder, tmp_path, monkeypatch, capsys
):
    site.install_example()
    shutil.copytree(tiny_folder, site.folder / "bench_plugin_example/suites", dirs_exist_ok=True)
    place = ["--records", tmp_path / "records", "--store", tmp_path / "store", "--device", "cpu"]
    code, _, err = command(
        monkeypatch,
        capsys,
        "run",
        "--method",
        "bench-plugin-example/milder",
        "--suite",
        "bench-plugin-example/example",
        *place,
    )
    assert code == 0, err
    code, out, _ = command(
        monkeypatch, capsys, "run", "--method", "milder", "--suite", "example", *place, "--json"
    )
    [record] = load_records(tmp_path / "records")[0]
    assert json.loads(out)["run"] == record.run  # both names mean one run
    assert record.status == "complete" and 0 < record.scores["brightness"].value < 1
    assert (
        record.path(tmp_path)
        == tmp_path / f"plugin-example/bench-plugin-example.milder/{record.run}.json"
    )
    assert record.environment["plugins"] == {"bench-plugin-example": "0.1.0"}
    assert re.fullmatch(
        "bench-plugin-example 0.1.0 [0-9a-f]{64}",
        record.sources["method bench-plugin-example.milder"],
    )
    assert record.sources["metric brightness"].startswith("bench-plugin-example 0.1.0 ")
    assert registry.find("method", record.method).name == record.method


def test_another_release_or_an_edit_is_another_run_with_other_pictures(site, tiny_suite, tmp_path):
    site.install_example()
    ours = resolve(tiny_suite, "milder", tmp_path)
    assert resolve(tiny_suite, "bench-plugin-example/milder", tmp_path).id == ours.id
    shutil.rmtree(site.folder)
    site.folder.mkdir()
    site.install_example(version="0.2.0")
    released = resolve(tiny_suite, "milder", tmp_path)
    with (site.folder / "bench_plugin_example/milder.py").open("a") as file:
        file.write("# edited\n")
    site.forget()
    edited = resolve(tiny_suite, "milder", tmp_path)
    assert len({run.id for run in (ours, released, edited)}) == 3
    assert len({run.store.folder for run in (ours, released, edited)}) == 3


def test_an_edited_metric_of_a_plug_in_is_another_run_with_the_same_pictures(
    site, tiny_suite, tiny_folder, tmp_path
):
    site.install_example()
    (tiny_folder / "bright.toml").write_text(
        (tiny_folder / "tiny.toml").read_text() + "\n[metrics.'bench-plugin-example/brightness']\n"
    )
    before = resolve(load_suite(str(tiny_folder / "bright.toml")), "none", tmp_path)
    with (site.folder / "bench_plugin_example/brightness.py").open("a") as file:
        file.write("# edited\n")
    site.forget()
    after = resolve(load_suite(str(tiny_folder / "bright.toml")), "none", tmp_path)
    assert before.id != after.id and before.store.folder == after.store.folder
    assert before.plugins == {"bench-plugin-example": "0.1.0"}


def test_a_file_with_a_metrics_name_keeps_its_own_source(tiny_suite, tmp_path):
    path = tmp_path / "sscd.py"
    path.write_text(METHOD.format(name="Mine", doc=""))
    before = resolve(tiny_suite, str(path), tmp_path)
    path.write_text(METHOD.format(name="Mine", doc="Edited."))
    assert before.store.folder != resolve(tiny_suite, str(path), tmp_path).store.folder


def test_a_built_in_keeps_its_name_and_the_plug_in_is_reached_by_its_full_name(
    site, tiny_suite, tmp_path
):
    site.install(
        "Other.Dist",
        {"methods": "none = other_none", "suites": "testbed = nowhere:testbed.toml"},
        other_none=METHOD.format(name="N", doc="Other."),
    )
    found = list_names("methods")["methods"]
    assert found["none"].startswith("No mitigation") and found["other-dist/none"].startswith(
        "Other."
    )
    assert registry.find("method", "none").load().__module__ == "methods.none"
    theirs = registry.find("method", "other-dist/none")
    assert theirs.load().__module__ == "other_none" and theirs.name == "other-dist.none"
    assert registry.find_suite("testbed") == registry.suites()["testbed"]
    none, other = (
        resolve(tiny_suite, "none", tmp_path),
        resolve(tiny_suite, "other-dist/none", tmp_path),
    )
    assert none.id != other.id and none.store.folder != other.store.folder
    assert none.sources == {} and none.plugins == {}


def test_two_plug_ins_with_one_name_are_both_reached_only_by_their_full_names(site):
    site.install(
        "first", {"methods": "same = first_same"}, first_same=METHOD.format(name="F", doc="First.")
    )
    site.install(
        "second",
        {"methods": "same = second_same"},
        second_same=METHOD.format(name="S", doc="Second."),
    )
    found = list_names("methods")["methods"]
    assert "same" not in found
    assert found["first/same"].startswith("First.") and found["second/same"].startswith("Second.")
    assert "'same' is given by 2 plug-ins: say which, first/same or second/same" in refusal(
        "method", "same"
    )
    assert registry.find("method", "second/same").load().__name__ == "S"
    with pytest.raises(UserError, match="say which, first/same or second/same"):
        show_text("same", as_json=False)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mildr", "unknown method 'mildr': did you mean 'milder'?"),
        ("bench-plugin-example/mildr", "did you mean 'bench-plugin-example/milder'?"),
        (
            "bench-plugin-exampl/milder",
            (
                "unknown distribution with method plug-ins 'bench-plugin-exampl': did you mean"
                " 'bench-plugin-example'?"
            ),
        ),
        (
            "elsewhere/wanda",
            "unknown distribution with method plug-ins 'elsewhere': known: bench-plugin-example",
        ),
        (
            "broken",
            (
                "method 'bench-plugin-example/broken' (bench_plugin_example.broken) cannot be"
                " imported: ImportError"
            ),
        ),
        ("", "unknown method ''"),
    ],
)
def test_a_wrong_name_is_one_line_that_knows_plug_ins(site, name, says):
    site.install_example()
    assert says in refusal("method", name)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (
            "mine.py",
            "raise RuntimeError('two\\nlines')\n",
            "cannot be imported: RuntimeError: two lines",
        ),
        ("mine.py", "raise SystemExit\n", "cannot be imported: SystemExit"),
        ("mine.py", "import bench_plugin_example.broken\n", "cannot be imported"),
        ("mine.txt", "", "is a file whose name does not end in .py"),
        ("my method.py", METHOD.format(name="A", doc=""), "rename it to letters"),
        ("dist.name.py", METHOD.format(name="A", doc=""), "rename it to letters"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, file, text, says):
    (tmp_path / file).write_text(text)
    assert says in refusal("method", str(tmp_path / file))
    assert not [name for name in sys.modules if name.startswith("bench_file_mine")]


def test_a_folder_is_no_file(tmp_path, monkeypatch):
    (tmp_path / "folder.py").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "is a folder; give the .py file in it" in refusal("method", str(tmp_path))
    assert "is a folder" in refusal("method", "./folder.py")
    assert "is a folder; give the .toml file in it" in refusal("suite", ".")
    assert "unknown method './nowhere'" in refusal("method", "./nowhere")
    (tmp_path / "none").mkdir()
    assert registry.find("method", "none").module == "methods.none"


SUITES = (
    "good = pack.suites:good.toml\ndeep = pack:suites/good.toml\nup ="
    " pack.suites:../../secret.toml\nroot = pack:/etc/mine.toml\ngone = pack:gone.toml\n"
)
SUITES += (
    "nopack = nothing_here:x.toml\nmodule = pack\ntorn = pack:torn.toml\nlink = pack:link.toml\n"
)


def test_suites_are_found_inside_their_package_without_importing_it(site):
    folder = site.folder / "pack/suites"
    folder.mkdir(parents=True)
    (site.folder / "pack/__init__.py").write_text("raise ImportError('never imported')\n")
    (site.folder / "secret.toml").write_text("description = 'secret'\n")
    # as some editable installs leave it
    (site.folder / "pack/link.toml").symlink_to(folder / "good.toml")
    (site.folder / "pack/torn.toml").write_text("name = \n")
    (folder / "good.toml").write_text("description = 'Good.'\n")
    site.install("suited", {"suites": SUITES})
    found = list_names("suites")["suites"]
    assert found["good"] == found["deep"] == found["link"] == "Good. [suited 0.1.0]"
    assert registry.find_suite("good") == registry.find_suite("suited/deep") == folder / "good.toml"
    for name, says in {
        "up": "leads out of the package pack.suites",
        "root": "leads out of the package pack",
        "gone": "the package pack holds no file 'gone.toml'",
        "nopack": "there is no package 'nothing_here'",
        "module": "is not of the form package:file.toml",
    }.items():
        assert found[name].startswith("broken: ") and says in found[name]
        with pytest.raises(UserError, match=re.escape(says)):
            registry.find_suite(name)
    assert found["torn"].startswith("broken: Invalid value")
    assert "testbed" in found and not site.imported()


def test_damaged_metadata_of_one_distribution_disturbs_nobody(site):
    site.install_example()
    site.install("torn", {"methods": "no equals sign"})
    site.install("twice", {"methods": "double = a_module\ndouble = b_module"})
    found = registry.entries("method")
    assert found["torn/unknown"].summary.startswith(
        "broken: the distribution's metadata cannot be read"
    )
    assert (
        found["twice/double"].summary
        == "broken: the distribution gives the name twice: a_module, b_module"
    )
    assert found["milder"].load().__doc__.startswith("Guide less") and "none" in found
    assert "gives the name twice" in refusal("method", "double")


def test_a_distribution_that_is_hidden_by_another_of_its_name_gives_nothing(site, tmp_path):
    hidden = Site(tmp_path / "hidden")
    hidden.folder.mkdir()
    sys.path.append(str(hidden.folder))  # the fixture of `site` puts sys.path back
    hidden.install("same", {"methods": "old = old_module"}, version="0.1")
    site.install("same", {"methods": "new = new_module"}, version="0.2")
    assert [plugin.name for plugin in plugins.plugins("method")] == ["new"]
