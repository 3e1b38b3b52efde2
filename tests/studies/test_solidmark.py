"""Keys painted on pictures: painted and pasted in pixels, never read by the query, and told apart
from chance.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from bench.base.digests import seed_of
from bench.base.errors import UserError
from bench.base.pictures import encode_png
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.records.experiment import load_experiment
from bench.studies.experiments import solidmark
from bench.studies.experiments.disturbed import DROPOUT, NOISE, NONE, TOKENS, Disturbed
from bench.studies.experiments.marks import Mark
from bench.studies.experiments.solidmark import Ask, Study, answers, check, dealt, key_of, plan
from bench.studies.experiments.solidmark_tables import BASE, DELTAS, found_in, tables_of
from bench.training.denoising import Denoising
from conftest import SIDE, bench, build_tiny_pipeline, write_csv

ROOT = Path(__file__).parents[2]

CPU = torch.device("cpu")
ASK = Ask(
    pictures=8,
    doses=(0, 2),
    rounds=1,
    rows=(BASE, NONE),
    width=4,
    batch_size=4,
    noises=2,
    steps=3,
    images_batch=8,
    ema=0.5,
    warmup=0,
)
FRAME, PATCH = Mark("frame", 2, 8), Mark("patch", 4, 8)


@pytest.fixture
def data(tmp_path):
    """Eight pictures with captions of their own."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = [["file_name", "text"]]
    for number in range(8):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
        rows.append([f"{number}.png", f"picture {number}"])
    write_csv(folder / "metadata.csv", rows)
    return folder


def pictures(count, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def study(tiny_folder, data, out, ask=ASK):
    return Study(ask, tiny_folder / "pipeline", data, out, CPU)


class Plain:
    """An autoencoder whose latents are the pixels."""

    config = SimpleNamespace(scaling_factor=1.0)
    dtype = torch.float32

    def decode(self, latents, return_dict):
        return (latents,)

    def encode(self, pixels):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: pixels))


class Knows(torch.nn.Module):
    """A model that draws `drawn[k]`, float `[n, 3, H, W]`, for the caption k."""

    def __init__(self, drawn, alphas):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.drawn, self.alphas = drawn, alphas
        self.config = SimpleNamespace(sample_size=drawn.shape[-1], in_channels=3)

    def forward(self, sample, timestep, encoder_hidden_states, **_):
        a = self.alphas[int(timestep)]
        numbers = encoder_hidden_states[:, 0, 0].long()
        return ((sample - a.sqrt() * self.drawn[numbers]) / (1 - a).sqrt(),)


def knowing(drawn, steps=5, guidance=1.0):
    """A denoiser that draws these pictures, uint8 `[n, H, W, 3]`, by number."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,  # or noise would be left at the end
        steps_offset=1,
    )
    latents = torch.tensor(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1

    def encode_prompt(prompts, *_):
        numbers = torch.tensor([float(prompt or 0) for prompt in prompts])
        return numbers.reshape(-1, 1, 1).expand(-1, 3, 4).clone(), None

    parts = SimpleNamespace(
        unet=Knows(latents, scheduler.alphas_cumprod),
        scheduler=scheduler,
        vae=Plain(),
        tokenizer=None,
        encode_prompt=encode_prompt,
    )
    return Denoiser(parts, steps, guidance)


@pytest.mark.parametrize("mark", [FRAME, PATCH])
def test_a_key_is_painted_outside_or_in_the_centre_and_read_exactly(mark):
    known, keys = pictures(3), [0, 77, 255]
    made = mark.painted(known, keys)
    assert made.shape == (3, mark.whole, mark.whole, 3)
    read = mark.read(made)
    assert np.array_equal(read, np.array(keys)[:, None, None] / 255 * np.ones_like(read))
    if mark is FRAME:
        assert np.array_equal(made[:, 2:-2, 2:-2], known) and mark.whole == 12
        assert read.shape[1] == 12 * 12 - 8 * 8
    else:
        assert np.array_equal(made[:, :2], known[:, :2]) and read.shape[1] == 16


@pytest.mark.parametrize("mark", [FRAME, PATCH])
def test_pasting_keeps_what_was_drawn_where_the_key_is(mark):
    drawn, known = pictures(2, mark.whole, 1), pictures(2)
    made = mark.pasted(drawn, known)
    assert np.array_equal(mark.read(made), mark.read(drawn))
    again = mark.painted(known, [3, 9])
    assert np.array_equal(made[:, ~mark.area], again[:, ~mark.area])


@pytest.mark.parametrize("mark", [FRAME, PATCH])
@pytest.mark.parametrize("every", [1, 3])
def test_a_model_that_knows_the_keys_gives_them_back_exactly(mark, every):
    known, keys = pictures(4), [0, 50, 130, 255]
    denoiser = knowing(mark.painted(known, keys))
    captions, seeds = ["0", "1", "2", "3"], [5, 6, 7, 8]
    found = answers(denoiser, mark, known, captions, seeds, every)
    grey = np.array(keys)[:, None, None] / 255
    assert np.abs(mark.read(found.last) - grey).max() <= 1 / 255
    assert np.abs(mark.read(found.first) - grey).max() <= 1 / 255
    # The known part is there at the end, whatever the model would have drawn.
    assert (
        np.abs(
            found.last[:, ~mark.area].astype(int) - mark.painted(known, keys)[:, ~mark.area]
        ).max()
        <= 1
    )
    assert denoiser.rows == 4 * 5


def test_what_is_known_is_pasted_over_what_the_model_draws():
    known, others = pictures(2), pictures(2, seed=9)
    found = answers(
        knowing(FRAME.painted(others, [10, 200])), FRAME, known, ["0", "1"], [1, 2], every=1
    )
    assert np.abs(FRAME.read(found.last) - np.array([10, 200])[:, None, None] / 255).max() < 0.01
    assert np.abs(found.last[:, ~FRAME.area].astype(int) - known.reshape(2, -1, 3)).max() <= 1


def test_a_method_guides_through_its_ordinary_door():
    class Grey(Method):
        def guide(self, step, state):
            return (step.latents - 0 * step.conditional) * 1.0

    known = pictures(2)
    denoiser = knowing(FRAME.painted(known, [0, 255]), guidance=3.0)
    plain = answers(denoiser, FRAME, known, ["0", "1"], [1, 2], 1)
    other = answers(denoiser, FRAME, known, ["0", "1"], [1, 2], 1, Grey())
    assert np.abs(FRAME.read(plain.last)[0]).max() < 0.01
    assert not np.array_equal(plain.last, other.last)


def test_the_query_never_reads_a_key(tiny_folder, data, tmp_path, monkeypatch):
    ask = replace(ASK, rows=(BASE,))
    one = study(tiny_folder, data, tmp_path / "one", ask).run("mine").raw
    monkeypatch.setattr(solidmark, "key_of", lambda seed, digest: 255 - key_of(seed, digest))
    other = study(tiny_folder, data, tmp_path / "other", ask).run("mine").raw
    assert one["keys"] != other["keys"]
    assert one["rows"][BASE]["answers"] == other["rows"][BASE]["answers"]
    assert one["rows"][BASE]["first"] == other["rows"][BASE]["first"]
    assert one["rows"][BASE]["pixels"] != other["rows"][BASE]["pixels"]


def test_keys_are_bytes_of_the_picture_and_the_seed():
    keys = [key_of(0, str(number)) for number in range(4000)]
    assert min(keys) == 0 and max(keys) == 255 and 120 < np.mean(keys) < 135
    assert keys[:9] == [seed_of(0, "key", str(number)) >> 55 for number in range(9)]
    assert key_of(1, "1") != key_of(0, "1")


def test_doses_are_dealt_out_at_random_and_evenly():
    found = dealt(12, (0, 1, 10), 0)
    assert sorted(found) == [0] * 4 + [1] * 4 + [10] * 4
    assert any(not np.array_equal(found, dealt(12, (0, 1, 10), seed)) for seed in (1, 2))


def test_trained_killed_and_repeated_is_undisturbed_and_tables_follow(tiny_folder, data, tmp_path):
    whole = study(tiny_folder, data, tmp_path / "whole").run("mine")
    calls = 0

    def killed(what, done, total):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(tiny_folder, data, tmp_path / "killed").run("mine", killed)
    found = study(tiny_folder, data, tmp_path / "killed").run("mine")
    assert found.raw == whole.raw and found.tables == whole.tables
    read = load_experiment(found.save(tmp_path / "records"))
    assert read == found and tables_of(read.raw, read.settings) == read.tables
    for row in read.raw["rows"].values():
        keys = np.array(read.raw["keys"])[:, None] / 255
        assert (np.array(row["pixels"]) >= np.abs(np.array(row["answers"]) - keys) - 2e-6).all()
        shares = [np.array(row["shares"][f"{delta:g}"]) for delta in sorted(DELTAS)]
        assert (shares[0] <= shares[1]).all() and (shares[1] <= shares[2]).all()
    assert found.table("auc").labels == ["0", "2"]


def raw_of(answer, count=40, doses=(0, 50)):
    """Raw numbers of one model whose answers are a function of keys and random numbers."""
    random = np.random.default_rng(0)
    keys = random.integers(0, 256, count * len(doses))
    given = np.array(answer(keys / 255, random), float)[:, None].tolist()
    row = {
        "answers": given,
        "first": given,
        "pixels": np.abs(np.array(given) - keys[:, None] / 255).tolist(),
        "shares": {f"{delta:g}": np.zeros((len(keys), 1)).tolist() for delta in DELTAS},
    }
    dealt_out = [dose for dose in doses for _ in range(count)]
    settings = {"doses": list(doses), "pictures": len(keys)}
    return {"keys": keys.tolist(), "doses": dealt_out, "rows": {NONE: row}}, settings


def test_tables_tell_knowledge_from_chance():
    tables = {t.name: t for t in tables_of(*raw_of(lambda keys, _: keys))}
    assert tables["auc"].cell("50", NONE).value > 0.99
    assert tables["model-fine-tuned"].cell("50", "distance").value == 0
    assert tables["withheld"].cell(NONE, "shown − withheld").value == pytest.approx(0, abs=0.01)
    tables = {t.name: t for t in tables_of(*raw_of(lambda keys, _: np.full(len(keys), 0.5)))}
    chance = tables["auc"].cell("50", NONE)
    assert chance.value == pytest.approx(0.5) and chance.low <= 0.5 <= chance.high
    within = tables["model-fine-tuned"].cell("50", "within 0.1")
    assert within.note.endswith("p 1.0000")
    assert tables["model-fine-tuned"].cell("50", "slope").note == "all answers are the same"


def batch_of(kind, captions=("a fox", "a key")):
    pipe = build_tiny_pipeline()
    given = (pipe, np.zeros((2, 1, 2, 4, 8, 8), "f"), list(captions), np.arange(2), 2, 0, CPU)
    return pipe, Denoising(*given) if kind is None else Disturbed(kind, *given)


def test_without_a_mitigation_the_loss_is_the_ordinary_one():
    values = []
    for kind in (None, NONE):
        pipe, loss = batch_of(kind)
        values.append(loss(pipe.unet, 0, torch.Generator().manual_seed(1)))
    assert torch.equal(*values)


@pytest.mark.parametrize("kind", [TOKENS, NOISE, DROPOUT])
def test_mitigations_disturb_captions_anew_at_every_step_and_by_the_seed_alone(kind):
    _, loss = batch_of(kind)
    captions = ["a fox", "a key"] * 4
    plain = loss.pipe.encode_prompt(captions, CPU, 1, False)[0]
    once, again = (loss.embeddings(captions, torch.Generator().manual_seed(3)) for _ in range(2))
    other = loss.embeddings(captions, torch.Generator().manual_seed(4))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.shape == plain.shape and not torch.equal(once, plain)


def test_long_captions_with_random_tokens_keep_their_end():
    pipe, loss = batch_of(TOKENS)
    seen = []
    loss.pipe.text_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss.embeddings(["a fox and a key and a bus " * 9], torch.Generator().manual_seed(0))
    most = pipe.tokenizer.model_max_length
    assert seen[0].shape == (1, most)
    assert seen[0][0, 0] == pipe.tokenizer.bos_token_id
    assert seen[0][0, -1] == pipe.tokenizer.eos_token_id


def test_bad_questions_are_refused(tiny_folder, data, tmp_path):
    for changes, words in (
        ({"rows": ("wrong",)}, "unknown row 'wrong'"),
        ({"doses": (1, 0)}, "must ascend"),
        ({"doses": (0,)}, "must ascend"),
        ({"doses": (0, 10**20)}, "--doses must be at most 100,000"),
        ({"pictures": 8 * 10**9}, "--pictures must be at most 100,000"),
        ({"pictures": 9}, "multiple of the 2 doses"),
        ({"methods": ("guidance",), "rows": (BASE,)}, "asked of the row fine-tuned"),
    ):
        with pytest.raises(UserError, match=words):
            check(replace(ASK, **changes))
    with pytest.raises(UserError, match="multiple of 4"):
        study(tiny_folder, data, tmp_path, replace(ASK, width=3))
    with pytest.raises(UserError, match="learns from fit_prompts first"):
        study(tiny_folder, data, tmp_path, replace(ASK, methods=("wanda",)))


def test_the_plan_counts_steps_rows_and_round_trips():
    found = plan(replace(ASK, guidance=3.0, every=2), 4, 32)
    assert found["training_steps"] == 2 and found["views"] == {"0": 0, "2": 2}
    assert found["queries"] == 8 * 2 * 2
    assert found["row_evaluations"] == 32 * 3 * 2 and found["round_trips"] == 32 * 2
    assert (found["side"], found["latents"]) == (40, 10)


def test_a_method_of_ones_own_has_a_table_too(tiny_folder, data, tmp_path):
    """Its path is no name of a table."""
    method = tmp_path / "mine.py"
    method.write_text((ROOT / "methods/guidance.py").read_text())
    done = bench(
        *("experiment", "solidmark", "--model", tiny_folder / "pipeline", "--data", data),
        *("--doses", "0,2", "--row", NONE, "--method", method, "--quick"),
        *("--out", tmp_path / "out", "--records", tmp_path / "records", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "records" / "solidmark-data").glob("*.json")
    assert f"{NONE}, {method}" in load_experiment(path).raw["rows"]


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize("command", ["solidmark", "memorization-by-size"])
def test_a_folder_that_can_be_no_pages_name_is_refused_at_once(tmp_path, command, more):
    (tmp_path / "my pictures").mkdir()
    words = ["experiment", command, "--out", tmp_path / "out", *more]
    for given, called in (
        (["--data", tmp_path / "my pictures"], "my pictures"),
        (["--name", "a/b"], "a/b"),
    ):
        done = bench(*words, *given)
        assert done.returncode == 2
        assert f"'{called}' can be no page's name" in done.stderr and "--name" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_plans_a_large_model_and_runs_a_small_one(tiny_folder, data, tmp_path):
    large = bench(
        *("experiment", "solidmark", "--model", tmp_path / "sd21", "--side", 256, "--width", 16),
        *("--pictures", 5000, "--every", 10, "--steps", 100, "--guidance", 3),
        *("--dry-run", "--json"),
    )
    assert large.returncode == 0, large.stderr
    found = json.loads(large.stdout)
    assert (found["side"], found["latents"]) == (288, 36) and found["gpu_seconds"] > 0
    done = bench(
        *("experiment", "solidmark", "--model", tiny_folder / "pipeline", "--data", data),
        *("--doses", "0,2", "--row", BASE, "--method", "guidance", "--row", NONE, "--quick"),
        *("--out", tmp_path / "out", "--records", tmp_path / "records", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "records" / "solidmark-data").glob("*.json")
    assert list(load_experiment(path).raw["rows"]) == [BASE, NONE, f"{NONE}, guidance"]


def test_what_was_found_is_told_from_chance():
    known = " ".join(found_in(tables_of(*raw_of(lambda keys, _: keys))))
    assert known.count("all are clear of chance") == 2
    blind = found_in(tables_of(*raw_of(lambda keys, random: random.random(len(keys)))))
    assert [line.rpartition(": ")[2] for line in blind] == ["none is clear of chance."] * 2
    same = found_in(tables_of(*raw_of(lambda keys, _: np.full(len(keys), 0.5))))
    assert "all answers are the same" in same[1] and "none is clear" in same[1]
