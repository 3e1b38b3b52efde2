"""From a file of weights to a network, without running anything that the file brings.

A file is safetensors whose metadata name an `architecture` of ours, or safetensors or TorchScript
with the tensors of an official network: those of SSCD and the Inception of clean-fid. Of a
TorchScript only the numbers are read. A TorchScript of any other network is a program: it runs only
where the user trusts it by name (`--trust FILE`), and its sha256 is said and recorded.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bench.base.digests import path_digest
from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically
from bench.features.architectures import inception, small, sscd
from bench.features.torchscript import is_torchscript, read_tensors

ARCHITECTURE = "architecture"  # the key of a safetensors file's metadata
# sha256 of TorchScript files that the user trusts, by the name under which they were given.
_TRUSTED: dict[str, str] = {}

# What tensors of wrong names or shapes raise where a network is built from them.
_NO_NETWORK = (KeyError, ValueError, RuntimeError, TypeError, IndexError, ArithmeticError)
# Whether tensors are those of a published network, and the network of such tensors.
_OFFICIAL = ((sscd.recognises, sscd.sscd), (inception.recognises, inception.inception))


def trust(files: Iterable[Path]) -> None:
    """Let these TorchScript files run in this process. Prints the sha256 of each on stderr.

    Raises `UserError` for one that is not there.
    """
    for file in files:
        if not file.expanduser().is_file():
            raise UserError(f"--trust: there is no file {file}")
        digest = path_digest(file.expanduser())
        if digest not in _TRUSTED:
            print(f"bench: trusting {file.name} to run code, sha256 {digest}", file=sys.stderr)
        _TRUSTED[digest] = file.name


def trusted() -> dict[str, str]:
    """The names of the files that are trusted in this process, by sha256."""
    return dict(_TRUSTED)


def run_mark(digest: str) -> str:
    """The end of the fingerprint of features that a file with this sha256 gives: "-run" where it is
    trusted and so runs. A program's features are then never taken for those of its numbers, and a
    record that has them comes of a command that trusts it, and says so.
    """
    return "-run" if digest in _TRUSTED else ""


def trust_as(known: Mapping[str, str]) -> None:
    """Trust in this process what another one trusts: names by sha256."""
    _TRUSTED.update(known)


def load_network(path: Path, device: Any) -> Any:
    """The network of a file, in evaluation mode on a device: a module, or a TorchScript that the
    user trusts.

    Raises `UserError` when the file is damaged, no network that is known, or not trusted.
    """
    if not is_torchscript(path):
        return _placed(_of_safetensors(path), device)
    if path_digest(path) in _TRUSTED:
        return _run(path, device)
    try:
        network = _official(read_tensors(path), path)
    except UserError as error:
        raise UserError(
            f"{error}. A TorchScript is a program, and only the numbers of SSCD's and Inception's"
            f" are read without running it: if you trust this one, give --trust"
            f" {shlex.quote(str(path))}"
        ) from error
    return _placed(network, device)


def save_network(network: nn.Module, path: Path) -> None:
    """Write a network whose architecture is ours as safetensors, in its place at once."""
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomically(path, save(weights, metadata={ARCHITECTURE: small.name_of(network)}))


def _of_safetensors(path: Path) -> nn.Module:
    try:
        with safe_open(path, framework="pt") as file:
            name = (file.metadata() or {}).get(ARCHITECTURE)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is neither a readable safetensors nor a TorchScript file"
            f" ({one_line(error)[:100]}); fetch or build it again"
        ) from error
    if name is None:
        return _official(tensors, path)
    if name not in small.NAMES:
        raise UserError(
            f"{path} names the architecture '{name[:40]}', which is none of"
            f" {', '.join(small.NAMES)}"
        )
    try:
        return small.small(name, tensors)
    except _NO_NETWORK as error:
        raise UserError(
            f"{path} holds not the tensors of '{name}' ({one_line(error)[:100]}); fetch or build it"
            " again"
        ) from error


def _official(tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    for recognises, network in _OFFICIAL:
        if recognises(tensors):
            try:
                return network(tensors)
            except _NO_NETWORK as error:
                raise UserError(
                    f"{path} has some tensors of a published network and is none of it"
                    f" ({one_line(error)[:100]})"
                ) from error
    raise UserError(f"{path} holds no network that is known here")


def _placed(network: nn.Module, device: Any) -> nn.Module:
    for name, value in network.state_dict().items():
        if not (value.is_floating_point() or name.endswith("num_batches_tracked")):
            raise UserError(f"a network's {name} is of {value.dtype} and not of real numbers")
    return network.float().to(device).eval().requires_grad_(False)


def _run(path: Path, device: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is no readable TorchScript file ({one_line(error)[:100]}); fetch or build it"
            " again"
        ) from error
