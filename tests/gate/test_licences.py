"""The page of licences names what we ask for and what can be fetched; versions may be older."""

import re
import tomllib

import pytest
from licences import CATALOGUE, PAGE, PROJECT, brought, fetched_table, licence, with_table
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE_TEXT = PAGE.read_text(encoding="utf-8")


def test_every_direct_dependency_is_named_with_a_licence():
    lines = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    wanted = {canonicalize_name(Requirement(line).name) for line in lines} - {PROJECT["name"]}
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \| (us|others) \|$", PAGE_TEXT, re.M)
    named = {name: text for name, text, asked in rows if asked == "us"}
    assert named.keys() == wanted
    assert "unknown" not in named.values()


def test_every_package_stands_in_one_table():
    names = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \| (?:us|others) \|$", PAGE_TEXT, re.M)
    assert len(names) == len(set(names))


def test_what_can_be_fetched_is_what_the_catalogue_says():
    assert fetched_table() in PAGE_TEXT
    for name, entry in tomllib.loads(CATALOGUE.read_text(encoding="utf-8")).items():
        assert f"| `{name}` | {entry.get('licence', 'that of each picture')}" in PAGE_TEXT


def test_requirements_of_requirements_are_found():
    names = brought([Requirement("jinja2"), Requirement("no-such-distribution-of-anybody")])
    assert names == {"jinja2", "markupsafe"}


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ("License-Expression: MIT\nLicense: other", "MIT"),
        ("License: BSD", "BSD"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License", "MIT License"),
        ("License: " + "words " * 50 + "\nClassifier: License :: Free", "Free"),
        ("Classifier: License :: OSI Approved", "unknown"),
    ],
)
def test_the_licence_is_the_most_exact_that_metadata_names(about, said, tmp_path, monkeypatch):
    folder = tmp_path / "made_up-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-up\nVersion: 1\n{about}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert licence("made-up") == said


def test_a_table_is_put_between_its_marks_and_nowhere_else():
    page = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n"
    assert with_table(page, "two", "new") == page.replace("two -->\n", "two -->\nnew\n")
    assert with_table(page, "one", "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no marks for the table three"):
        with_table(page, "three", "new")
