import pytest

from bench.base.errors import UserError
from bench.suite.load import load_suite
from conftest import SUITE, write_csv


def changed(tiny_folder, name, *replacements):
    text = SUITE
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = tiny_folder / name
    path.write_text(text)
    return str(path)


def test_roles_are_filtered_and_seeds_are_an_images_own(tiny_suite):
    assert [p.id for p in tiny_suite.prompts("fit")] == ["p0", "p1"]
    assert [p.id for p in tiny_suite.prompts("memorized")] == ["p2", "p3", "p4", "p5"]
    seeds = {
        tiny_suite.image_seed(p.text, i) for p in tiny_suite.prompts("clean") for i in range(3)
    }
    assert len(seeds) == 3 * len(tiny_suite.prompts("clean")) and all(
        0 <= seed < 2**63 for seed in seeds
    )


def test_the_fingerprint_follows_the_protocol_and_the_files_but_not_the_description(
    tiny_folder, tiny_suite
):
    base = tiny_suite.fingerprint
    same = load_suite(
        changed(tiny_folder, "a.toml", ('name = "tiny"', 'name = "tiny"\ndescription = "words"'))
    ).fingerprint
    other = load_suite(changed(tiny_folder, "b.toml", ("steps = 3", "steps = 4"))).fingerprint
    limited = load_suite(str(tiny_folder / "tiny.toml"), limit=2).fingerprint
    assert base == same
    assert len({base, other, limited}) == 3


def test_the_fingerprint_sees_a_changed_reference_picture(tiny_folder, tiny_suite):
    from bench.store.store import decode_png, encode_png

    picture = tiny_folder / "reference-3.png"
    original, before = picture.read_bytes(), tiny_suite.fingerprint
    try:
        picture.write_bytes(encode_png(255 - decode_png(original)))
        assert load_suite(str(tiny_folder / "tiny.toml")).fingerprint != before
    finally:
        picture.write_bytes(original)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("steps = 3", "step = 3", "unknown key in .*'model.step': did you mean 'model.steps'"),
        ("[prompts.clean]", "[prompts.cleen]", "did you mean 'prompts.clean'"),
        ("steps = 3", 'steps = "many"', "model.steps: input should be a valid integer"),
        ("steps = 3", "steps = 0", "greater than or equal to 1"),
        ("[model]", "[model", "not valid TOML"),
        ('file = "clean.csv"', 'file = "nowhere.csv"', "'nowhere.csv' is missing"),
        ('split = "memorized"', 'split = "nothing"', "no prompts of the role memorized"),
        ('split = "memorized"', 'splitt = "memorized"', "has no column 'splitt'"),
    ],
)
def test_a_wrong_suite_is_one_clear_line(tiny_folder, old, new, says):
    with pytest.raises(UserError, match=says) as error:
        suite = load_suite(changed(tiny_folder, "wrong.toml", (old, new)))
        suite.prompts("memorized"), suite.prompts("clean")
    assert "\n" not in str(error.value)


def test_an_empty_prompt_list_is_refused(tiny_folder):
    write_csv(tiny_folder / "empty.csv", [["id", "prompt"]])
    suite = load_suite(
        changed(tiny_folder, "empty.toml", ('file = "clean.csv"', 'file = "empty.csv"'))
    )
    with pytest.raises(UserError, match="no prompts of the role clean"):
        suite.prompts("clean")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tiny_folder, limit):
    with pytest.raises(UserError, match="--limit must be at least 1"):
        load_suite(str(tiny_folder / "tiny.toml"), limit)


def test_unknown_suites_are_answered_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'testbed-quick'"):
        load_suite("testbed-quik")
    with pytest.raises(UserError, match="does not exist"):
        load_suite("./nowhere.toml")


@pytest.mark.parametrize("per_group, ids", [(1, "0 2 5"), (2, "0 1 2 3 5"), (9, "0 1 2 3 4 5")])
def test_so_many_prompts_of_each_group_are_kept_in_file_order(
    tmp_path, tiny_folder, per_group, ids
):
    groups = ["one", "one", "two", "two", "two", "three"]
    rows = "".join(f"{i},a picture,{group}\n" for i, group in enumerate(groups))
    (tmp_path / "list.csv").write_text("id,prompt,group\n" + rows)
    text = f'name = "mine"\nextends = "{tiny_folder / "tiny.toml"}"\n[prompts.clean]\n'
    text += f'file = "list.csv"\nper_group = {per_group}\n'
    (tmp_path / "own.toml").write_text(text)
    prompts = load_suite(str(tmp_path / "own.toml")).prompts("clean")
    assert " ".join(prompt.id for prompt in prompts) == ids


def test_prompts_of_each_group_need_the_column_group(tmp_path, tiny_folder):
    text = (
        f'name = "mine"\nextends = "{tiny_folder / "tiny.toml"}"\n[prompts.clean]\nper_group = 1\n'
    )
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(UserError, match="has no column 'group'"):
        load_suite(str(tmp_path / "own.toml")).prompts("clean")
