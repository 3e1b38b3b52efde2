"""The figures of docs/attacks.md are those of the committed records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.records.record import load_record
from bench.studies.tuning import load_tuning

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "leaderboards/records"
# what stands in the table's columns after the row's name and its attacker
ENDINGS = ("zero", "memorized", "control", "excess")
ITEMS = {"weights": "dori", "inputs": "dori_inputs"}


# What a row of the table says of its parameters, as the record has them.
VARIANTS = {
    "(1 %)": {"branch": "cond", "token_norm": "none"},
    "(10 %)": {"branch": "cond", "token_norm": "none", "sparsity": 0.1},
    "(permanent)": {"mode": "permanent"},
}
ALONE = {"guard": {"orthogonal": False}}  # the variant that is measured, which the table omits


def record_of(method: str, item: str, variant: str = ""):
    """The record of the board of attackers, or of the main one where the first has no such row."""
    changed = VARIANTS.get(variant, ALONE.get(method, {}))
    for suite in ("testbed-attackers", "testbed"):
        for file in (RECORDS / suite / method).glob("*.json"):
            record = load_record(file)
            if f"{item}_excess" in record.attacks and record.changed == changed:
                return record
    raise AssertionError(f"no record of {method} {variant} has {item}")


def board_row(method: str, variant: str = ""):
    """The record of the main board, of three generations."""
    changed = VARIANTS.get(variant, ALONE.get(method, {}))
    records = map(load_record, (RECORDS / "testbed" / method).glob("*.json"))
    (row,) = (record for record in records if record.changed == changed)
    return row


def lines():
    page = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    table = page.partition("| row | attacker |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        names, attacker, *values = [cell.strip() for cell in line.strip("|").split("|")]
        for name, variant in re.findall(r"`(\w+)`(?: (\([^)]*\)))?", names):
            yield (
                name,
                variant,
                attacker,
                [float(re.match(r"[.\d]+", value)[0]) for value in values],
            )


@pytest.mark.parametrize(("method", "variant", "attacker", "values"), list(lines()))
def test_a_line_of_the_table_is_what_the_record_says(method, variant, attacker, values):
    item = ITEMS[attacker]
    attacks = record_of(method, item, variant).attacks
    assert values == [round(attacks[f"{item}_{ending}"].value, 2) for ending in ENDINGS]


def test_the_table_has_the_rows_that_the_text_speaks_of():
    assert {(name, attacker) for name, _, attacker, _ in lines()} >= {
        ("none", "weights"),
        ("wen", "inputs"),
        ("wanda", "weights"),
    }
    # every row of the board of attackers against somebody whom it could resist
    measured = {folder.name for folder in (RECORDS / "testbed-attackers").iterdir()}
    assert {name for name, _, _, _ in lines()} == measured


def attackers(method: str, variant: str = ""):
    """What the attackers of the board of attackers got."""
    return record_of(method, "latent_inversion", variant).attacks


def shown(attacks, name: str) -> str:
    return f"{attacks[name].value:.2f}".removeprefix("0")


def test_what_is_said_of_pruning_and_the_other_attackers_stands_in_the_record():
    page = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    said = page.partition("holds against the searched embedding and not against")[2]
    said = said.partition("\n\n")[0]
    attacks = attackers("wanda", "(10 %)")

    def two(name):
        return shown(attacks, name)

    for attack, words in {
        "latent_inversion": "brings back {} (control {})",
        "inpainting": "filled with a copy in {} (control {})",
        "exact_guidance": "gives {} ({})",
        "completion": "began {} ({})",
    }.items():
        assert words.format(two(f"{attack}_memorized"), two(f"{attack}_control")) in said
    assert f"a search over noise {two('noise_memorized')}" in said
    assert f"cycles {two('cyclic_memorized')}" in said


def test_what_is_said_of_the_other_attackers_stands_in_the_records():
    page = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    said = " ".join(page.partition("The other attackers, on eight captions")[2].split())
    none, delay, wen = (attackers(name) for name in ("none", "cfg_delay", "wen"))
    hole, guided = shown(none, "inpainting_control"), shown(none, "exact_guidance_memorized")
    assert f"noise at every step gives {shown(none, 'noise_memorized')}, the hole" in said
    assert f"a copy always (control {hole}), guidance towards the picture gives {guided}" in said
    assert none["exact_guidance_control"].value == 0
    assert none["inpainting_memorized"].value == none["latent_inversion_memorized"].value == 1
    cycles = [
        [shown(attacks, f"cyclic_{name}") for name in ("zero", "memorized")]
        for attacks in (none, delay, wen)
    ]
    assert f"eight cycles of noise raise {cycles[0][0]} to {cycles[0][1]}" in said
    assert f"eight cycles raise {cycles[1][0]} to **{cycles[1][1]}**" in said
    assert delay["latent_inversion_memorized"].value == 1
    assert f"but {shown(delay, 'latent_inversion_control')} for controls too" in said
    assert f"Behind `wen` cycles take away ({cycles[2][0]} to {cycles[2][1]})" in said
    inverted = [shown(wen, f"latent_inversion_{name}") for name in ("zero", "memorized")]
    assert f"inversion gives little ({inverted[0]} to {inverted[1]})" in said


def test_what_is_said_of_all_that_resist_the_search_stands_in_the_records():
    page = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    said = " ".join(page.partition("So it is with all that resist the search")[2].split())
    permanent, hooks = attackers("nemo", "(permanent)"), attackers("nemo")
    inversion, hole = "latent_inversion_memorized", "inpainting_memorized"
    controls = [
        shown(permanent, name.replace("memorized", "control")) for name in (inversion, hole)
    ]
    assert (
        f"the inversion brings back {shown(permanent, inversion)} and the hole"
        f" {shown(permanent, hole)} (controls {controls[0]} and {controls[1]}), though guidance"
        f" gives only {shown(permanent, 'exact_guidance_memorized')}."
    ) in said
    control = shown(hooks, "latent_inversion_control")
    assert f"the inversion gives {shown(hooks, inversion)} ({control})" in said
    for method in ("wen", "prss"):
        assert f"`{method}` ({shown(attackers(method), inversion)}" in said
    for method in ("guard", "sail", "clip_pad"):
        assert attackers(method)[inversion].value == 1


def test_what_is_said_of_pictures_and_of_prompts_stands_in_the_records():
    page = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")

    def clean(method: str, variant: str = "") -> str:
        record = record_of(method, "latent_inversion", variant)
        return f"{record.scores['clip_score_clean'].value:.2f}".removeprefix("0")

    assert (
        f"clean CLIP falls from {clean('none')} to {clean('wanda', '(10 %)')}, and to"
        f" {clean('nemo', '(permanent)')} with `nemo` made permanent"
    ) in " ".join(page.split())
    record = record_of("prss", "dori_inputs")
    copies = f"{record.scores['copies'].value:.2f}".removeprefix("0")
    assert f"makes no copy of its captions ({copies} of the images of copied ones)" in page
    assert f"and {shown(record.attacks, 'dori_inputs_memorized')} behind a searched" in page


def test_what_is_said_of_the_four_newer_methods_stands_in_the_records():
    said = " ".join((ROOT / "docs/reading.md").read_text(encoding="utf-8").split())
    none, prss, guard, clip_pad, sail = (
        board_row(name) for name in ("none", "prss", "guard", "clip_pad", "sail")
    )

    def of(record, name):
        return record.scores[name].value

    def two(value):
        return f"{value:.2f}".removeprefix("0")

    def share_left(record):
        return of(record, "copies") / of(none, "copies")

    more = prss.cost["nfe_per_image"].value / none.cost["nfe_per_image"].value
    clean = [two(of(one, "clip_score_clean")) for one in (none, prss, guard)]
    assert round(1000 * of(prss, "copies")) == 1
    assert "`prss` leaves one image in a thousand a copy" in said
    assert f"at {more - 1:.0%}".replace("%", " %") in said
    assert f"clean CLIP falls from {clean[0]} to {clean[1]}" in said
    words = prss.attacks["paraphrase_extracted"].value
    assert f"gives a copy for {words:.0%}".replace("%", " %") in said
    plain = prss.attacks["paraphrase_plain"].value
    assert f"repeating the caption gives {plain:.0%}".replace("%", " %") in said
    assert f"handed in gives {shown(attackers('prss'), 'dori_inputs_memorized')}" in said
    assert 0.4 < share_left(guard) < 0.5
    assert guard.cost["nfe_per_image"].value == 1.5 * none.cost["nfe_per_image"].value
    assert f"and clean CLIP is {clean[2]}" in said
    assert round(1 / (1 - share_left(clip_pad))) == 8
    assert 0.72 < of(clip_pad, "recognised") < 0.78
    policy = board_row("geometry_policy")
    assert round(1 / (1 - share_left(policy))) == 9
    assert 1.8 < policy.cost["nfe_per_image"].value / none.cost["nfe_per_image"].value < 2
    assert abs(of(policy, "clip_score_clean") - of(none, "clip_score_clean")) < 0.005
    assert round(10 * (1 - share_left(sail))) == 3
    clean, memorized = (
        f"{sail.cost[name].value / none.cost[name].value - 1:.0%}".replace("%", " %")
        for name in ("nfe_per_image_clean", "nfe_per_image")
    )
    assert f"nothing but {clean} more evaluations (memorized ones {memorized})" in said
    assert abs(of(sail, "clip_score_clean") - of(none, "clip_score_clean")) < 0.005


def test_what_is_said_of_the_others_and_of_the_controls_stands_in_the_records():
    said = " ".join((ROOT / "docs/reading.md").read_text(encoding="utf-8").split())
    copies = {
        name: board_row(name, variant).scores["copies"].value
        for name, variant in (
            ("none", ""),
            ("nemo", ""),
            ("wen", ""),
            ("guidance", ""),
            ("random_prune", "(10 %)"),
            ("random_neurons", ""),
        )
    }
    taken = {name: 1 - left / copies["none"] for name, left in copies.items()}
    assert round(4 * copies["none"]) == 3 and "three of four images" in said
    assert round(10 * taken["nemo"]) == 9 and "`nemo` takes nine of ten copies" in said
    assert round(10 * taken["wen"]) == 6 and "`wen` takes six of ten copies" in said
    assert round(10 * taken["guidance"]) == 4 and "half of the guidance takes four of ten" in said
    assert round(1 / taken["random_prune"]) == 13 and "take one copy in thirteen" in said
    assert round(10 * taken["random_neurons"]) == 3
    assert "(`random_neurons`) take three of ten" in said
    rows = [board_row("cfg_delay"), board_row("wanda", "(10 %)"), board_row("none")]
    shares = [f"{row.scores['recognised'].value:.2f}".removeprefix("0") for row in rows]
    assert f"{shares[0]} and {shares[1]} are still recognised, where {shares[2]} were" in said


def test_what_is_said_of_tuned_rows_stands_in_the_records():
    page = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
    said = " ".join(page.partition("Rows with **†**")[2].partition("\n\n")[0].split())
    tuned = {}
    for record in map(load_record, (RECORDS / "testbed").rglob("*.json")):
        if record.tuning:
            tuned[record.method] = record

    def left(record):
        values = (record.scores[name].value for name in ("copies", "clip_score_clean"))
        return [f"{value:.2f}".removeprefix("0") for value in values]

    rows = {
        "it leaves {} of the images copies at clean CLIP {}": tuned["sail"],
        "(with its defaults: {} at {}), as few as `nemo`": board_row("sail"),
        "`wanda` at 2 % leaves {} of the images copies at clean CLIP {}": tuned["wanda"],
        "(at 10 %: {} at {})": board_row("wanda", "(10 %)"),
        "`cfg_delay` {} at {}": tuned["cfg_delay"],
        "(with its defaults: {} at {})": board_row("cfg_delay"),
        "`guard` and `clip_pad`, of which no setting kept to the rule, {} at {}": tuned["guard"],
        " and {} at {}. Of `wen` and `prss`": tuned["clip_pad"],
    }
    for words, record in rows.items():
        assert words.format(*left(record)) in said, words
    assert tuned["wanda"].parameters["sparsity"] == 0.02
    none, sail, nemo = board_row("none"), tuned["sail"], board_row("nemo")
    clean, memorized = (
        sail.cost[name].value / none.cost[name].value
        for name in ("nfe_per_image_clean", "nfe_per_image")
    )
    assert f"for {clean - 1:.0%} more evaluations".replace("%", " %") in said
    assert f"and {memorized - 1:.0%} more of memorized".replace("%", " %") in said
    shares = [f"{row.scores['recognised'].value:.2f}".removeprefix("0") for row in (sail, none)]
    assert f"of clean pictures {shares[0]} are recognised, where {shares[1]} were" in said
    low, high = (nemo.scores["copies"].low, nemo.scores["copies"].high)
    assert low < sail.scores["copies"].value < high
    for method in ("wen", "prss"):
        assert tuned[method].changed == {}
    prss, _ = load_tuning(ROOT / "leaderboards/tuning/testbed/prss.json")
    (chosen,) = (one for one in prss.settings if one.parameters == prss.chosen)
    lost = prss.none["clip_score"] - chosen.scores["clip_score"]
    assert f"lowers the CLIP of fit prompts by {f'{lost:.2f}'.removeprefix('0')})" in said
    assert [tuned[method].tuning["kept"] for method in ("clip_pad", "guard", "prss")] == [0, 0, 0]


def test_what_is_said_of_the_cost_of_nemo_stands_in_the_record():
    said = " ".join((ROOT / "docs/reading.md").read_text(encoding="utf-8").split())
    none, nemo = board_row("none"), board_row("nemo")
    evaluations, seconds = (
        [round(nemo.cost[name].value / none.cost[name].value) for name in names]
        for names in (("nfe_per_image_clean", "nfe_per_image"), ("time_ratio_clean", "time_ratio"))
    )
    assert (
        f"at {evaluations[0]} times the evaluations and {seconds[0]} times the seconds for clean"
        f" captions, {evaluations[1]} and {seconds[1]} times for memorized ones"
    ) in said


def test_what_is_said_of_extraction_stands_in_the_records():
    page = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    said = " ".join(page.partition("an attacker with 16 generations gets")[2].split())
    said = said.partition("- **Exact.**")[0]
    for method, variant, words in (
        ("none", "", "a share of {} of the captions without"),
        ("prss", "", "{} under `prss`"),
        ("nemo", "", "{} under `nemo`"),
        ("cfg_delay", "", "{} under `cfg_delay`"),
        ("wanda", "(10 %)", "{} under 10 % of `wanda`"),
        ("guard", "", "{} under `guard`"),
        ("wen", "", "{} under `wen`"),
        ("guidance", "", "{} under half of the guidance"),
        ("clip_pad", "", "{} under `clip_pad`"),
        ("sail", "", "{} under `sail`"),
        ("geometry_policy", "", "{} under `geometry_policy`"),
        ("random_prune", "(10 %)", "{} where 10 % of the weights are drawn at random"),
        ("random_neurons", "", "and {} where as many neurons are as `nemo` finds"),
    ):
        attacks = board_row(method, variant).attacks
        assert words.format(shown(attacks, "clique_extracted")) in said, method
    # every row of the board
    assert len({folder.name for folder in (RECORDS / "testbed").iterdir()}) == 13
    wanda = board_row("wanda", "(10 %)").attacks
    assert f"resemble one another ({shown(wanda, 'clique_identified')})" in said
    copies = wanda["clique_extracted"].value / wanda["clique_identified"].value
    assert round(3 * copies) == 1 and "two in three of these are no copies" in said
    assert round(3 * wanda["clique_precision"].value) == 1


def test_what_differs_from_the_defaults_on_the_board_is_named_among_the_methods():
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    assert "testbed-quick` has `wanda` with its defaults" in page
    for file in (RECORDS / "testbed").rglob("*.json"):
        record = load_record(file)
        if record.tuning:  # the row bears a mark and names them
            continue
        if record.method == "random_prune":
            assert "`random_prune` at the settings of `wanda`" in page
            assert record.changed == board_row("wanda", "(10 %)").changed
            continue
        (line,) = (
            line
            for line in page.splitlines()
            if line.startswith("|") and f"`{record.method}`" in line.split("|")[1]
        )
        for name, value in record.changed.items():
            told = str(value).lower() if isinstance(value, bool) else value
            assert f"`{name}={told}`" in line
