"""The tiny model and suite of `bench.testbed.tiny`, as fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from bench.diffusion.denoiser import Denoiser
from bench.suite.load import load_suite
from bench.suite.suite import Suite
from bench.testbed.tiny import (
    CAPTIONS,
    SIDE,
    SUITE,
    build_tiny_pipeline,
    build_tiny_suite,
    write_csv,
)

# what tests take from here
__all__ = ["CAPTIONS", "SIDE", "SUITE", "build_tiny_pipeline", "write_csv"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """Everything the tiny suite names, as files."""
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_suite(folder)
    return folder


@pytest.fixture
def tiny_suite(tiny_folder) -> Suite:
    return load_suite(str(tiny_folder / "tiny.toml"))


@pytest.fixture(scope="session")
def tiny_pipe():
    return build_tiny_pipeline()


@pytest.fixture
def denoiser(tiny_pipe):
    denoiser = Denoiser(tiny_pipe, steps=4, guidance_scale=4.0, batch_size=4)
    yield denoiser
    denoiser.close()
