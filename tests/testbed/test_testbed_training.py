"""Training that is killed anywhere and repeated gives the same weights as undisturbed training."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import bench
from bench.base.digests import path_digest
from bench.testbed.autoencoder import autoencoder_job, latent_scale
from bench.testbed.captions import train_tokenizer
from bench.testbed.denoiser import clean_captions, denoiser_job
from bench.testbed.plan import PLANS
from bench.testbed.training import Job, one_cycle, train

pytest.importorskip("resvg_py", reason="rendering needs the extra `testbed`")
CPU = torch.device("cpu")
PLAN = replace(PLANS["tiny"], denoiser_batch=8, levels=((1, 3),), template_levels=((2, 1),))


class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return (torch.tensor([float(index % 7)]),)


def line_job(steps):
    torch.manual_seed(0)

    def loss(module, batch, generator):
        noise = torch.randn(batch[0].shape, generator=generator)
        return (module(batch[0]) - 3 * batch[0] + 0.01 * noise).square().mean()

    return Job("line", torch.nn.Linear(1, 1), Numbers(), loss, steps, 4, 0.1, seed=5)


def denoiser(folder):
    from transformers import CLIPTokenizer

    train_tokenizer(clean_captions(0, 50), folder / "tokenizer", 600)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    autoencoder = autoencoder_job(0, PLAN.side, 1).module.eval().requires_grad_(False)
    autoencoder.register_to_config(
        scaling_factor=latent_scale(autoencoder, torch.rand(4, 3, 32, 32))
    )
    return denoiser_job(PLAN, tokenizer, autoencoder)


JOBS = {
    "denoiser": denoiser,
    "autoencoder": lambda folder: autoencoder_job(0, PLAN.side, 12, batch_size=2),
    "line": lambda folder: line_job(40),
}


@pytest.mark.parametrize("name", JOBS)
def test_interrupted_five_times_at_random_ends_where_undisturbed_training_ends(
    name, tmp_path, monkeypatch
):
    calm, calm_facts = train(JOBS[name](tmp_path), tmp_path / "calm", CPU)
    monkeypatch.setattr("bench.testbed.training.CHECKPOINT_STEPS", 2)
    for seed in range(5):
        job = JOBS[name](tmp_path)
        left = random.Random(seed).randrange(1, max(2, job.steps // 4))

        def interrupted(module, batch, generator, job=job, left=left, calls=[]):  # noqa: B006
            calls.append(1)
            if len(calls) > left:
                raise KeyboardInterrupt
            return job.loss(module, batch, generator)

        with pytest.raises(KeyboardInterrupt):
            train(replace(job, loss=interrupted), tmp_path / "hit", CPU)
    resumed, facts = train(JOBS[name](tmp_path), tmp_path / "hit", CPU)
    assert facts["final_loss"] == calm_facts["final_loss"]
    for one, other in zip(calm.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import bench.testbed.training as training
from bench.testbed.build import Workshop, run_stages
from bench.testbed.plan import PLANS
training.CHECKPOINT_STEPS = 1
folder, left = Path(sys.argv[1]), int(sys.argv[2])
rate = training.one_cycle
def counted(progress):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(progress)
training.one_cycle = counted
stages = ("tokenizer", "autoencoder", "recogniser", "denoiser", "descriptor", "features")
run_stages(Workshop(PLANS["tiny"], folder, torch.device("cpu"), folder / "bundle"), stages)
"""
FINISHED = ("autoencoder", "recogniser.safetensors", "features.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("BENCH_SLOW"), reason="minutes: set BENCH_SLOW=1")
def test_a_build_that_was_killed_five_times_gives_the_same_bytes(tmp_path):
    def build(folder, left):
        command = [sys.executable, "-c", KILLED, str(folder), str(left)]
        source = os.path.dirname(os.path.dirname(bench.__file__))  # noqa: PTH120
        environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True).returncode

    assert build(tmp_path / "calm", 0) == 0
    for seed in range(5):
        assert build(tmp_path / "hit", random.Random(seed).randrange(1, 4)) == -signal.SIGKILL
    assert build(tmp_path / "hit", 0) == 0
    for name in FINISHED:
        assert path_digest(tmp_path / "calm" / name) == path_digest(tmp_path / "hit" / name)
    calm, hit = (
        torch.load(tmp_path / name / "denoiser.pt", weights_only=True) for name in ("calm", "hit")
    )
    assert all(torch.equal(calm[key], hit[key]) for key in calm)


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    def broken(module, batch, generator):
        return module(batch[0]).sum() * float("nan")

    with pytest.raises(FloatingPointError, match="training line: the loss is nan at step 0"):
        train(replace(line_job(5), loss=broken), tmp_path, CPU)


def test_the_learning_rate_rises_and_falls_once():
    rates = [one_cycle(i / 100) for i in range(101)]
    assert max(rates) == pytest.approx(1, abs=0.01) and rates[0] < 0.1
    assert rates[100] == pytest.approx(0, abs=1e-6)


def test_samples_are_drawn_at_their_steps_and_at_the_end_and_change_nothing(tmp_path):
    calm, _ = train(line_job(10), tmp_path / "calm", CPU)
    steps = []

    def watch(step, averaged):
        steps.append(step)
        torch.rand(3)

    watched, _ = train(line_job(10), tmp_path / "watched", CPU, watch, 4)
    assert steps == [4, 8, 10]
    assert torch.equal(calm.weight, watched.weight)
