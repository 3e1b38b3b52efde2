"""Files of weights become networks without anything of theirs being run."""

from __future__ import annotations

import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from bench.base.errors import UserError
from bench.features import CleanFeatures, CopyDescriptor, weights
from bench.features.architectures.inception import Inception
from bench.features.architectures.small import SmallDescriptor, SmallFeatures
from bench.features.architectures.sscd import SSCD
from bench.features.torchscript import _tensor, read_tensors
from bench.features.weights import load_network, save_network, trust

CPU = torch.device("cpu")
PICTURES = list(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8))


def traced(module, path, side=64):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.eval(), torch.rand(2, 3, side, side)).save(str(path))
    return path


def lively(module):
    """Normalisation as after training: every number of a network has an effect."""
    generator = torch.Generator().manual_seed(3)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point() and value.ndim == 1:
            drawn = torch.rand(value.shape, generator=generator) * 0.5
            value.data.copy_(drawn + (0.75 if "bias" not in name and "beta" not in name else 0))
    return module.eval()


class ClassyLayer(nn.Module):
    """A block as Classy Vision lays it out, written down again for this test."""

    def __init__(self, inputs, outputs, middle, groups, stride):
        super().__init__()
        self.convolutional_block = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride, 1, groups=groups, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, outputs, 1, bias=False),
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        short = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn(self.convolutional_block(x)) + short)


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self._module = module

    def forward(self, x):
        return self._module(x)


class GeM(nn.Module):
    def forward(self, x):
        n, channels, height, width = x.size()
        flat = x.reshape(n, channels, height * width)
        return flat.clamp(min=1e-6).pow(3.0).mean(dim=2).pow(1.0 / 3.0)


class Normalised(nn.Module):
    def forward(self, x):
        return F.normalize(x)


class Trunk(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        self.initial_block, self.blocks = Wrapped(stem), blocks

    def forward(self, x):
        return self.blocks(self.initial_block(x))


class ClassySSCD(nn.Module):
    """SSCD on Classy Vision's trunk with one block of every width; `groups` 32 is a ResNeXt."""

    def __init__(self, groups, wrapped):
        super().__init__()
        blocks, inputs = [], 64
        for level in range(4):
            outputs = 256 * 2**level
            middle = 128 * 2**level if groups > 1 else 64 * 2**level
            layer = ClassyLayer(inputs, outputs, middle, groups, 1 if level == 0 else 2)
            blocks.append(nn.Sequential(Wrapped(layer) if wrapped else layer))
            inputs = outputs
        self.backbone = Trunk(nn.Sequential(*blocks))
        self.embeddings = nn.Sequential(GeM(), nn.Linear(inputs, 24), Normalised())

    def forward(self, x):
        return self.embeddings(self.backbone(x))


@pytest.mark.parametrize(("groups", "wrapped"), [(1, True), (32, False)])
def test_sscd_read_from_its_torchscript_gives_what_the_torchscript_gives(tmp_path, groups, wrapped):
    torch.manual_seed(0)
    path = traced(lively(ClassySSCD(groups, wrapped)), tmp_path / "sscd.torchscript.pt")
    network = load_network(path, CPU)
    assert isinstance(network, SSCD)
    pixels = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        theirs, ours = torch.jit.load(str(path))(pixels), network(pixels)
    assert ours.shape == (3, 24)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_sscd_with_torchvisions_names_is_known_too(tmp_path, kind):
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    torch.manual_seed(0)
    block = Bottleneck if kind == "bottleneck" else BasicBlock
    network = lively(SSCD(ResNet(block, [1, 2, 1, 1], num_classes=16)))
    path = traced(network, tmp_path / "sscd.torchscript.pt")
    found = load_network(path, CPU)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        np.testing.assert_allclose(found(pixels), network(pixels), atol=1e-6)


def clean_fids_inception():
    """The network as clean-fid and pytorch-fid build it on torchvision, and the place of each of
    its convolutions in the file of 2015.
    """
    from cleanfid import inception_pytorch as theirs
    from torchvision.models import inception_v3

    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False, weights=None)
    network.Mixed_5b = theirs.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = theirs.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = theirs.FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = theirs.FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = theirs.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = theirs.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = theirs.FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = theirs.FIDInceptionE_1(1280)
    network.Mixed_7c = theirs.FIDInceptionE_2(2048)
    stem = dict(zip(("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"), range(5), strict=True))
    places = {f"Conv2d_{a}": "conv" + (f"_{b}" if b else "") for a, b in stem.items()}
    ends = {
        "A": {
            "branch1x1": "conv",
            "branch5x5_1": "tower.conv",
            "branch5x5_2": "tower.conv_1",
            "branch3x3dbl_1": "tower_1.conv",
            "branch3x3dbl_2": "tower_1.conv_1",
            "branch3x3dbl_3": "tower_1.conv_2",
            "branch_pool": "tower_2.conv",
        },
        "B": {
            "branch3x3": "conv",
            "branch3x3dbl_1": "tower.conv",
            "branch3x3dbl_2": "tower.conv_1",
            "branch3x3dbl_3": "tower.conv_2",
        },
        "C": {
            "branch1x1": "conv",
            "branch7x7_1": "tower.conv",
            "branch7x7_2": "tower.conv_1",
            "branch7x7_3": "tower.conv_2",
            "branch7x7dbl_1": "tower_1.conv",
            **{f"branch7x7dbl_{n + 1}": f"tower_1.conv_{n}" for n in range(1, 5)},
            "branch_pool": "tower_2.conv",
        },
        "D": {
            "branch3x3_1": "tower.conv",
            "branch3x3_2": "tower.conv_1",
            "branch7x7x3_1": "tower_1.conv",
            **{f"branch7x7x3_{n + 1}": f"tower_1.conv_{n}" for n in range(1, 4)},
        },
        "E": {
            "branch1x1": "conv",
            "branch3x3_1": "tower_conv",
            "branch3x3_2a": "tower_mixed_conv",
            "branch3x3_2b": "tower_mixed_conv_1",
            "branch3x3dbl_1": "tower_1_conv",
            "branch3x3dbl_2": "tower_1_conv_1",
            "branch3x3dbl_3a": "tower_1_mixed_conv",
            "branch3x3dbl_3b": "tower_1_mixed_conv_1",
            "branch_pool": "tower_2_conv",
        },
    }
    blocks = "5b A 5c A 5d A 6a B 6b C 6c C 6d C 6e C 7a D 7b E 7c E".split()
    for number, (block, kind) in enumerate(zip(blocks[::2], blocks[1::2], strict=True)):
        mixed = "mixed" + (f"_{number}" if number else "")
        places |= {f"Mixed_{block}.{a}": f"{mixed}.{b}" for a, b in ends[kind].items()}
    return network.eval(), places


def test_inception_is_the_network_that_clean_fid_builds(tmp_path):
    """Weights of clean-fid's own network under the names of the file of 2015: the same features,
    from tensors and from a TorchScript.
    """
    torch.manual_seed(0)
    network, places = clean_fids_inception()
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, place in places.items():
        part = network.get_submodule(name)
        nn.init.kaiming_normal_(part.conv.weight, nonlinearity="relu", generator=generator)
        part.bn.bias.data.uniform_(-0.1, 0.1, generator=generator)
        part.bn.running_mean.uniform_(-0.1, 0.1, generator=generator)
        part.bn.running_var.uniform_(0.8, 1.2, generator=generator)
        assert part.bn.eps == 0.001
        state |= {
            f"layers.{place}.weight": part.conv.weight.data,
            f"layers.{place}.beta": part.bn.bias.data,
            f"layers.{place}.mean": part.bn.running_mean,
            f"layers.{place}.var": part.bn.running_var,
        }
    ours = Inception().eval()
    ours.load_state_dict(state)
    seen = []
    network.avgpool.register_forward_hook(lambda *found: seen.append(found[2].flatten(1)))
    pixels = torch.rand(1, 3, 299, 299, generator=generator) * 2 - 1
    network.transform_input = False
    with torch.no_grad():
        network(pixels)
        np.testing.assert_allclose(ours(pixels), seen[0], atol=1e-4, rtol=1e-4)
    assert seen[0].std() > 0.01

    path = traced(ours, tmp_path / "inception-2015-12-05.pt", 299)
    loaded = CleanFeatures(path, 299, CPU)
    with torch.no_grad():
        script = torch.jit.load(str(path)).layers(pixels).flatten(1)
        assert torch.equal(loaded.layers(pixels).flatten(1), ours(pixels))
        np.testing.assert_allclose(script, ours(pixels), atol=1e-4, rtol=1e-4)


def test_our_own_networks_come_back_as_they_were_written(tmp_path):
    torch.manual_seed(0)
    for network in (SmallDescriptor(12), SmallFeatures(9)):
        save_network(lively(network), tmp_path / "w.safetensors")
        found = load_network(tmp_path / "w.safetensors", CPU)
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(found(pixels), network(pixels))
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors", {"architecture": "nobody's"})
    with pytest.raises(UserError, match="nobody's"):
        load_network(tmp_path / "w.safetensors", CPU)
    save_file(
        {"linear.weight": torch.zeros(2, 9)},
        tmp_path / "w.safetensors",
        {"architecture": "colours"},
    )
    with pytest.raises(UserError, match="not the tensors of 'colours'"):
        load_network(tmp_path / "w.safetensors", CPU)
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no network that is known"):
        load_network(tmp_path / "w.safetensors", CPU)


class Writer(nn.Module):
    """A TorchScript that leaves a file wherever it likes when it is asked for features."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = torch.from_file(self.place, shared=True, size=4)
        return x.flatten(1)[:, :8] + left.fill_(1.0).sum()


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("colours", {"linear.weight": torch.tensor(1.0)}),
        ("small-descriptor", {}),
        (None, {"backbone.conv1.weight": torch.zeros(1), "backbone.fc.weight": torch.zeros(1)}),
        (
            None,
            {
                "backbone.conv1.weight": torch.zeros(1),
                "backbone.fc.weight": torch.zeros(2, 2),
                "backbone.layer1.0.conv2.weight": torch.zeros(4, 0),
                **{f"backbone.layer{n}.10000000000.conv2.weight": torch.zeros(1) for n in range(5)},
            },
        ),
        (
            None,
            dict.fromkeys(
                ("layers.conv.beta", "layers.mixed_10.tower_2_conv.weight"), torch.zeros(1)
            ),
        ),
    ],
)  # fmt: skip
def test_tensors_of_wrong_shapes_are_one_line(tmp_path, name, tensors):
    path = tmp_path / "w.safetensors"
    held = {key: value.clone() for key, value in tensors.items()}
    save_file(held, path, {"architecture": name} if name else None)
    with pytest.raises(UserError) as error:
        load_network(path, CPU)
    assert "\n" not in str(error.value)


@pytest.fixture
def nobody_trusted(monkeypatch):
    monkeypatch.setattr(weights, "_TRUSTED", {})


def test_a_torchscript_runs_only_where_the_user_trusts_it(tmp_path, nobody_trusted, capsys):
    place, path = tmp_path / "left behind", tmp_path / "writer.pt"
    torch.jit.script(Writer(str(place))).save(str(path))
    with pytest.raises(UserError, match="give --trust .*writer.pt"):
        CopyDescriptor(path, "testbed", CPU)(PICTURES)
    assert not place.exists()
    untrusted = CopyDescriptor(path, "testbed", CPU).fingerprint
    trust([path])
    assert CopyDescriptor(path, "testbed", CPU).fingerprint == untrusted + "-run"
    assert "writer.pt" in capsys.readouterr().err and len(next(iter(weights.trusted()))) == 64
    CopyDescriptor(path, "testbed", CPU)(PICTURES)
    assert place.exists()  # which is what trust means
    path.write_bytes(path.read_bytes() + b"\0")  # another file under that name
    with pytest.raises(UserError):
        CopyDescriptor(path, "testbed", CPU)(PICTURES)
    with pytest.raises(UserError, match="there is no file"):
        trust([tmp_path / "nothing"])


class Calls:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


def archive_of(content, path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/code/__torch__.py", "")
        archive.writestr("a/data.pkl", content)
    return path


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", b"\x80\x02.", b"\x80\x02}q\x00.", pickle.dumps({"a": 1}, 2),
     b"\x80\x02" + b"(" * 50_000, b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."],
)  # fmt: skip
def test_a_file_that_only_looks_like_a_torchscript_is_refused_in_one_line(tmp_path, content):
    path = archive_of(content, tmp_path / "x.pt")
    with pytest.raises(UserError) as error:
        load_network(path, CPU)
    assert "\n" not in str(error.value)


def test_the_reader_of_tensors_runs_nothing(tmp_path):
    place = tmp_path / "opened"
    path = archive_of(pickle.dumps(Calls(place), 2), tmp_path / "x.pt")
    with pytest.raises(UserError, match="no part of a network's weights"):
        read_tensors(path)
    assert not place.exists()
    packed = archive_of(pickle.dumps({}, 2), tmp_path / "y.pt", zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed"):
        read_tensors(packed)


def test_tensors_that_lead_outside_their_numbers_are_refused(tmp_path):
    path = traced(SmallDescriptor(4), tmp_path / "d.pt", 32)
    tensors = read_tensors(path)
    state = SmallDescriptor(4).state_dict()
    assert {name: value.shape for name, value in tensors.items()} == {
        name: value.shape for name, value in state.items()
    }
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = max((n for n in parts if "/data/" in n), key=lambda n: len(parts[n]))
    parts[name] = parts[name][:-4]
    with zipfile.ZipFile(tmp_path / "cut.pt", "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    with pytest.raises(UserError, match="not all there"):
        read_tensors(tmp_path / "cut.pt")


TEXT = b"X\x01\x00\x00\x00a"
MODULE = b"c__torch__\nM\n)\x81"


def tensors_of_one_storage(count):
    """So many attributes, each all of the one storage."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x04tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x04\x85K\x01\x85\x89"
        b"ccollections\nOrderedDict\n)RtR"
    )
    named = b"".join(b"X\x04\x00\x00\x00" + b"%04d" % n + tensor for n in range(count))
    return b"\x80\x02" + MODULE + b"}(" + named + b"ub."


BOMBS = {
    "memory for what is remembered": b"\x80\x02}r\xff\xff\xff\x03.",
    "tuples within tuples": (
        b"\x80\x02}(" + TEXT + b"\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01u."
    ),
    "a module within itself": (
        b"\x80\x02" + MODULE + b"q\x00}(X\xa0\x86\x01\x00" + b"n" * 100_000 + b"h\x00ub."
    ),
    "a tensor that is built anew": tensors_of_one_storage(1)[:-3] + b"(K\x00tbub.",
    "a function that is changed": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}"
    + TEXT
    + b"K\x01sb.",
    "an opcode of no network": b"\x80\x04\x8c\x01a\x94.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_that_would_take_all_memory_or_time_are_refused(tmp_path, bomb):
    path = archive_of(BOMBS[bomb], tmp_path / "bomb.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/0", bytes(16))
    with pytest.raises(UserError, match="no readable TorchScript"):
        read_tensors(path)
    assert _tensor.__defaults__ is None


def test_a_storage_that_stands_for_many_tensors_takes_no_more_room_than_the_file(tmp_path):
    for count, whole in ((1, True), (300, False)):
        path = tmp_path / "many.pt"
        archive_of(tensors_of_one_storage(1) if whole else tensors_of_one_storage(300), path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("a/data/0", bytes(16))
        assert len(read_tensors(path)) == count  # their names take more room than they do
    large = bytes(4 * 2**20)
    table = tensors_of_one_storage(50).replace(b"K\x04", b"J\x00\x00\x10\x00")
    path = archive_of(table, tmp_path / "large.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/0", large)
    with pytest.raises(UserError, match="more room than the file"):
        read_tensors(path)
