"""Options of `bench run` that have a grammar of their own, on a suite that is in order."""

import json
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from rule import DEEP, DIGITS, changed, damaged, keeps_the_rule, numbers, words

from conftest import examples

texts = st.one_of(words, numbers.map(str)).filter(lambda text: "\ud800" not in text)
WANDA = "leaderboards/archive/2026-11-22/tuning/wanda.json"
GRAMMARS = {
    "--shard": st.one_of(texts, st.tuples(texts, texts).map("/".join)),
    "--batch-size": texts,
    "--memory": texts,
    "--seeds": texts,
    "--limit": texts,
    "--keep-images": texts,
    "--attention": texts,
    "--device": texts,
    "--workers": texts,
    "--gpus": texts,
    "--address": texts,
    "--executor": texts,
}


def dry_run(fuzz_folder, *options):
    return keeps_the_rule(
        *(
            "run",
            "--suite",
            fuzz_folder / "tiny.toml",
            "--dry-run",
            "--store",
            fuzz_folder / "store",
        ),
        *options,
    )


@examples(60)
@given(data=st.data())
def test_an_option_of_a_run(fuzz_folder, data):
    options = data.draw(st.lists(st.sampled_from(sorted(GRAMMARS)), min_size=1, max_size=2))
    dry_run(
        fuzz_folder,
        *("--method", "none"),
        *(part for option in options for part in (option, data.draw(GRAMMARS[option]))),
    )


@example("sparsity=" + "[" * DEEP)
@example("sparsity=" + '{"a":' * DEEP)
@example("sparsity=" + "9" * DIGITS)
@example("sparsity=1e999")
@example("=")
@examples(60)
@given(
    st.one_of(
        texts,
        st.tuples(
            st.sampled_from(["sparsity", "branch", "token_norm", "", "neutral", "version"]), texts
        ).map("=".join),
    )
)
def test_a_parameter(fuzz_folder, assignment):
    dry_run(fuzz_folder, "--method", "wanda", "-p", assignment)


@examples(20)
@given(texts)
def test_a_method_and_a_suite(fuzz_folder, text):
    dry_run(fuzz_folder, "--method", text)
    keeps_the_rule("run", "--method", "none", "--suite", text, "--dry-run", "--limit", 1)


TUNED = json.loads(Path(__file__).parents[2].joinpath(WANDA).read_text(encoding="utf-8"))


@examples(40)
@given(
    st.one_of(
        changed(TUNED).map(lambda table: json.dumps(table).encode()),
        damaged(json.dumps(TUNED).encode()),
    )
)
@example(b"[" * DEEP)
@example(b'{"chosen": ' * DEEP)
@example(b'{"chosen": {"sparsity": ' + b"9" * DIGITS + b"}}")
def test_a_file_of_tuned_parameters(fuzz_folder, content):
    (fuzz_folder / "tuned.json").write_bytes(content)
    dry_run(fuzz_folder, "--method", "wanda", "--tuned", fuzz_folder / "tuned.json")
