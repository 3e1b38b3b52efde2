"""How a run is executed changes no picture beyond rounding, no key and no fingerprint, and batch
sizes by trial stay below their ceiling.
"""

import json
import mmap

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.base.errors import UnknownName, UserError
from bench.cli.main import app
from bench.contracts.method import FitData, Method
from bench.diffusion import batch_size as trial
from bench.diffusion.batch_size import batch_size_by_trial, largest, predicted
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.execution import (
    Execution,
    compile_when_plain,
    float32_products,
    is_plain,
    parsed_batch_size,
    prepare,
)
from bench.diffusion.memory import host_peak, peak_memory_mib, peak_within
from bench.running.sampling import sample
from conftest import CAPTIONS, build_tiny_pipeline
from methods.cross_attention import CrossAttention
from methods.nemo import Nemo
from methods.wanda import Wanda
from methods.wen import Wen
from one_run import Run

CPU = torch.device("cpu")
DATA = FitData(fit_prompts=tuple(CAPTIONS[:3]), clean_prompts=tuple(CAPTIONS[3:]))
METHODS = {
    "none": Method(),
    "cross_attention": CrossAttention(c1=2.0),
    "wanda": Wanda(sparsity=0.3),
    "wen": Wen(quantile=0, iterations=1),
    "nemo": Nemo(threshold=-1, seeds=2, similarity="ssim", theta=1.0, theta_min=0.5),
}


def drawn(method, execution=None, backend=None):
    """State and latents of a method on a fresh tiny model, and what it reported."""
    pipe = build_tiny_pipeline()
    prepare(pipe, execution or Execution())
    if backend:
        compile_when_plain(pipe.unet, backend)
    denoiser = Denoiser(pipe, steps=3, guidance_scale=4.0, batch_size=4)
    state = method.fit(denoiser, DATA)
    request = denoiser.request(CAPTIONS[:2], [1, 2])
    with method.attach(pipe, state):
        return state, sample(denoiser, request, method, state), request.facts, denoiser.evaluations


@pytest.mark.parametrize("name", METHODS)
def test_methods_work_with_sliced_attention_and_channels_last_and_find_the_same(name):
    plain, other = (
        drawn(METHODS[name]),
        drawn(METHODS[name], Execution(attention="sliced", channels_last=True)),
    )
    torch.testing.assert_close(other[1], plain[1], rtol=0, atol=2e-3)
    for key, tensor in plain[0].items():
        if tensor.dtype == torch.bool:  # a mask may lose a tie to rounding, and no more
            assert (tensor != other[0][key]).double().mean() < 0.01
    assert other[3] == plain[3]


@pytest.mark.parametrize("name", ["wanda", "wen", "nemo"])
def test_compiled_hooks_fire_edits_take_effect_and_gradients_flow(name):
    plain, compiled = drawn(METHODS[name]), drawn(METHODS[name], backend="eager")
    torch.testing.assert_close(compiled[1], plain[1], rtol=0, atol=1e-4)
    assert (compiled[1] - drawn(METHODS["none"])[1]).abs().max() > 1e-3  # the method does something
    assert compiled[3] == plain[3]


def test_what_is_compiled_sees_weights_that_are_edited_later_and_is_left_alone_by_hooks():
    pipe = build_tiny_pipeline()
    calls = []

    def backend(graph, inputs):
        def counted(*arguments):
            calls.append(len(arguments))
            return graph.forward(*arguments)

        return counted

    compile_when_plain(pipe.unet, backend)
    denoiser = Denoiser(pipe, steps=2, guidance_scale=4.0)
    scaled, timestep = denoiser.start(denoiser.initial_latents([1]))
    text = denoiser.encode(CAPTIONS[:1])
    with torch.no_grad():
        before = denoiser.epsilon(scaled, timestep, text)
        compiled_calls = len(calls)
        assert compiled_calls > 0
        pipe.unet.conv_out.weight.mul_(0)
        pipe.unet.conv_out.bias.fill_(3)
        assert bool((denoiser.epsilon(scaled, timestep, text) == 3).all()) and not bool(
            (before == 3).all()
        )
        compiled_calls, seen = len(calls), []
        hook = pipe.unet.conv_out.register_forward_pre_hook(lambda *_: seen.append(1))
        denoiser.epsilon(scaled, timestep, text)
        assert seen == [1] and len(calls) == compiled_calls and not is_plain(pipe.unet)
        hook.remove()
        denoiser.epsilon(scaled, timestep, text)
        assert len(calls) > compiled_calls and seen == [1] and is_plain(pipe.unet)
    assert denoiser.rows == 4


def test_attention_of_somebody_elses_and_a_forward_of_its_own_are_not_compiled():
    class Processor:
        def __call__(self, attn, hidden_states, **named):
            return hidden_states

    unet = build_tiny_pipeline().unet
    assert is_plain(unet)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.set_processor(Processor())
    assert not is_plain(unet)
    unet = build_tiny_pipeline().unet
    unet.conv_in.forward = lambda x: x
    assert not is_plain(unet)


# Options


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"batch_size": 0}, "above 0"),
        ({"batch_size": "all"}, "above 0, or auto"),
        ({"memory_gib": 4.0}, "give both or none"),
        ({"memory_gib": -1.0, "batch_size": "auto"}, "above 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(settings, line):
    with pytest.raises(UserError, match=line):
        Execution(**settings)


def test_attention_is_named_and_a_batch_size_is_a_number_or_auto():
    with pytest.raises(UnknownName, match="did you mean 'sliced'"):
        Execution(attention="slice")
    assert (parsed_batch_size(None), parsed_batch_size("auto"), parsed_batch_size("12")) == (
        None,
        "auto",
        12,
    )
    with pytest.raises(UserError, match="not 'x'"):
        parsed_batch_size("x")


def test_methods_that_mix_the_images_of_a_batch_keep_the_suites_size(tiny_suite, tmp_path):
    def resolve(batch_size):
        return Run(
            tiny_suite,
            "wen",
            {"preset": "reference"},
            tmp_path,
            tmp_path,
            CPU,
            execution=Execution(batch_size),
        )

    for size in (2, "auto"):
        with pytest.raises(
            UserError,
            match=(
                "method wen: images of one batch influence each other, so the batch size stays the"
                " suite's 4"
            ),
        ):
            resolve(size)
    assert resolve(4).engine.batch_size == resolve(None).engine.batch_size == 4


def test_tf32_is_off_unless_asked_for_and_what_was_set_returns():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    with float32_products(True):
        assert matmul.allow_tf32 and cudnn.allow_tf32
        with pytest.raises(KeyError), float32_products(False):
            assert not matmul.allow_tf32 and not cudnn.allow_tf32
            raise KeyError
        assert matmul.allow_tf32 and cudnn.allow_tf32
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


# Batch size by trial


@example(held=0, each=45, ceiling=540, most=12)
@given(st.integers(0, 100), st.integers(1, 50), st.integers(1, 2000), st.integers(1, 64))
def test_a_predicted_batch_stays_below_its_ceiling_and_nothing_larger_than_two_is_tried(
    held, each, ceiling, most
):
    tried = []

    def peak(size):
        tried.append(size)
        return held + each * size

    size = predicted(peak, ceiling, most, held)
    assert 0 <= size <= most
    assert size == 0 or held + each * size <= ceiling
    assert max(tried) <= 2 and all(held + each * size <= ceiling for size in tried[1:])
    best = min(most, max(0, (ceiling - held) // each))
    assert size >= min(best, int(1 + (best - 1) / trial.SPREAD))  # not far below what would fit


@given(st.integers(1, 1000), st.integers(1, 300))
def test_on_a_gpu_batches_grow_until_one_does_not_fit(fits, most):
    tried = []

    def peak(size):
        tried.append(size)
        # beyond the ceiling it may still fit, or not
        return float("inf") if size > 2 * fits else float(size)

    size = largest(peak, fits, most)
    best = min(fits, most)
    assert best - max(1, size // 8) <= size <= best
    assert max(tried) <= 2 * size


def test_a_peak_hidden_by_an_earlier_one_is_looked_for_with_larger_batches_below_the_ceiling():
    assert predicted(lambda size: max(100, 10 * size), 200, 64) >= 16
    assert 1 <= predicted(lambda size: 100, 1000, 64) <= 64


def test_a_trial_counts_no_evaluation_and_a_ceiling_below_one_image_is_said(denoiser):
    denoiser.rows = denoiser.backward_rows = 5
    assert 1 <= batch_size_by_trial(denoiser, 64.0, gradients=True, most=3) <= 3
    assert (denoiser.rows, denoiser.backward_rows) == (5, 5)
    with pytest.raises(UserError, match="one image at a time already takes more than 0.0 GiB"):
        batch_size_by_trial(denoiser, 0.001)


def test_the_peak_of_a_block_is_its_own_and_the_record_keeps_the_highest():
    with peak_within(CPU) as peak:
        low = peak()
        # pages of its own: what numpy gets may be resident already
        with mmap.mmap(-1, 2**25) as block:
            block.write(b"x" * 2**25)
            assert peak() >= low + 2**24
    before = host_peak()
    with peak_within(CPU):
        pass
    assert host_peak() >= before > 0
    assert peak_memory_mib(CPU)["device"] is None


# Runs


def run_of(suite, folder, name="none", **settings):
    return Run(
        suite, name, {}, folder / "records", folder / "store", CPU, execution=Execution(**settings)
    )


def test_the_batch_size_changes_neither_id_nor_key_nor_picture_and_stands_in_the_record(
    tiny_suite, tmp_path
):
    suite = tiny_suite
    one, other = (
        run_of(suite, tmp_path / "a"),
        run_of(suite, tmp_path / "b", batch_size=3, vae_slicing=True, channels_last=True),
    )
    assert one.id == other.id and one.store.folder.name == other.store.folder.name
    for run in (one, other):
        run.generate({}, run.keys("memorized"))
    for a, b in zip(
        one.store.pictures(one.keys("memorized")),
        other.store.pictures(other.keys("memorized")),
        strict=True,
    ):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    described = other.engine.described()
    assert described["execution"]["batch_size"] == 3 and described["execution"]["stored"]["types"][
        "unet"
    ] == ["F32"]
    assert described["peak_memory_mib"]["host"] > 0


def test_a_batch_that_does_not_fit_is_halved_where_the_size_is_ours_to_choose(
    tiny_suite, tmp_path, monkeypatch
):
    from bench.running import generating

    sizes = []

    real = generating.make_batch

    def make_batch(denoiser, keys, method, state, recorders):
        sizes.append(len(keys))
        if len(keys) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(denoiser, keys, method, state, recorders)

    monkeypatch.setattr(generating, "make_batch", make_batch)
    monkeypatch.setattr("bench.diffusion.model.batch_size_by_trial", lambda *_: 5)
    run = run_of(tiny_suite, tmp_path, batch_size="auto")
    run.generate({}, run.keys("memorized")[:3])
    assert sizes == [3, 3, 2, 1] or sizes == [3, 2, 1]
    assert not run.store.missing(run.keys("memorized")[:3])
    with pytest.raises(
        UserError, match="4 images at once do not fit .* with --batch-size 2, or auto"
    ):
        fixed = run_of(tiny_suite, tmp_path / "other")
        fixed.generate({}, fixed.keys("memorized"))


def test_the_command_line_has_it_and_the_record_says_how_and_with_how_much_memory(
    tiny_suite, tmp_path
):
    words = [
        "run",
        "--method",
        "none",
        "--suite",
        str(tiny_suite.file),
        "--device",
        "cpu",
        "--json",
        "--records",
        str(tmp_path / "r"),
        "--store",
        str(tmp_path / "s"),
    ]
    options = [
        "--batch-size",
        "auto",
        "--memory",
        "64",
        "--channels-last",
        "--attention",
        "sliced",
        "--vae-slicing",
    ]
    done = CliRunner().invoke(app, [*words, *options], catch_exceptions=False)
    environment = json.loads(done.stdout)["environment"]
    asked = {
        "batch_size_asked": "auto",
        "memory_gib": 64.0,
        "channels_last": True,
        "attention": "sliced",
        "vae_slicing": True,
        "compile": False,
        "tf32": False,
    }
    assert asked.items() <= environment["execution"].items()
    assert (
        environment["execution"]["batch_size"] >= 1 and environment["peak_memory_mib"]["host"] > 0
    )
    refused = CliRunner().invoke(app, [*words, "--memory", "4"])
    assert isinstance(refused.exception, UserError)
