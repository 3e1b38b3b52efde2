import shutil

from bench.suite.design import clusters_of, design_of
from bench.suite.load import load_suite
from bench.suite.prompts import Prompt


def prompts(*texts, pictures=()):
    given = dict(pictures)
    return tuple(Prompt(f"p{i}", text, "", tuple(given.get(i, ()))) for i, text in enumerate(texts))


def test_captions_with_half_of_their_words_in_common_are_one_cluster():
    found = clusters_of(
        prompts(
            "Mothers influence on her young hippo",
            "a mothers influence on her hippo",  # 5 of 7 words
            "The No Limits Business Woman Podcast",
            "a mothers influence on his hippo",  # through the second one
            "no limits",
        )
    )
    assert found == {"p0": 0, "p1": 0, "p3": 0}


def test_captions_of_one_picture_are_one_cluster_whatever_it_is_called(tmp_path):
    one, same, other = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    one.write_bytes(b"x"), same.write_bytes(b"x"), other.write_bytes(b"y")
    given = {0: [one], 1: [other], 2: [same]}
    found = clusters_of(prompts("red fox", "blue sea", "green hill", pictures=given))
    assert found == {"p0": 0, "p2": 0}


def test_strata_are_a_suites_own_choice_and_clean_prompts_have_no_clusters(tiny_folder, tmp_path):
    folder = tmp_path / "suite"
    shutil.copytree(tiny_folder, folder)
    file = folder / "tiny.toml"
    assert not design_of(load_suite(str(file)), "memorized").strata
    file.write_text(file.read_text().replace("[model]", "stratified = true\n[model]", 1))
    suite = load_suite(str(file))
    design = design_of(suite, "memorized")
    assert set(design.strata.values()) == {"1", "10"}
    assert design_of(suite, "clean").clusters == {}
