"""LoRA files: names, each kind against a dense formula in float64, merging, what is refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.base.errors import UserError
from bench.base.safetensors_header import tensors_digest
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.kinds import Adapter
from bench.diffusion.lora.merge import Strength, merge
from bench.diffusion.lora.names import Place, module_names
from bench.diffusion.model import load_pipeline
from bench.suite.load import load_suite
from bench.suite.lora_files import lora_digest
from conftest import build_tiny_pipeline

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
NORM = "down_blocks.0.resnets.0.norm1"
TEXT = "encoder.layers.0.self_attn.q_proj"


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.1


def kohya(path, part="lora_unet_"):
    return part + path.replace(".", "_")


def weights(pipe):
    return {
        f"{part}.{name}": value.detach().clone()
        for part in ("unet", "text_encoder")
        for name, value in getattr(pipe, part).named_parameters()
    }


def changed(pipe, before):
    return {name for name, value in weights(pipe).items() if not torch.equal(value, before[name])}


def written(folder, tensors, name="one.safetensors", header=None):
    save_file(tensors, folder / name, metadata=header)
    return read_lora(folder / name)


def merged(folder, tensors, strength=1.0, header=None):
    """The pipeline with a file merged, and its weights before."""
    pipe = build_tiny_pipeline()
    before = weights(pipe)
    merge(pipe, [(written(folder, tensors, header=header), Strength(strength, strength))])
    return pipe, before


def refused(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def module(path, pipe=None):
    return (pipe or build_tiny_pipeline()).unet.get_submodule(path)


# --- names


def test_no_two_modules_share_a_name_and_every_spelling_leads_home(tiny_pipe):
    names = module_names(tiny_pipe)
    for path in (LINEAR, CONV, NORM):
        for name in (kohya(path), f"unet.{path}", path):
            assert names[name] == Place("unet", path)
    older = LINEAR.replace("to_q", "processor.to_q_lora")
    assert names[f"unet.{older}"] == names[older] == Place("unet", LINEAR)
    (place,) = {place for place in names.values() if place.path.endswith(TEXT)}
    for name in (f"text_model.{TEXT}", TEXT):
        assert names[kohya(name, "lora_te_")] == names[f"text_encoder.{name}"] == place


def test_stabilitys_spelling_is_that_of_checkpoints_in_one_file(tiny_pipe):
    """Against diffusers' own reader of such checkpoints."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = tiny_pipe.unet
    home = {
        name.removeprefix("lora_unet_"): place.path
        for name, place in module_names(tiny_pipe).items()
        if name.startswith("lora_unet_")
    }
    spelled: dict[str, str] = {}
    from bench.diffusion.lora.names import _sgm

    for path, one in unet.named_modules():
        if isinstance(getattr(one, "weight", None), torch.nn.Parameter):
            for name in _sgm(path, unet):
                assert home[name.replace(".", "_")] == path
                spelled[path] = name
    # every module but those inside transformers, whose names are the same
    assert len(spelled) == sum(
        isinstance(getattr(one, "weight", None), torch.nn.Parameter) for one in unet.modules()
    )
    theirs = {
        f"model.diffusion_model.{spelled[path]}.{kind}": value
        for path, one in unet.named_modules()
        if path in spelled
        for kind, value in one.named_parameters(recurse=False)
    }
    config = {**unet.config, "class_embed_type": None, "addition_embed_type": None}
    found = convert_ldm_unet_checkpoint(dict(theirs), config)
    own = unet.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)


# --- kinds, each against sums over indices in float64


def loops(shape, entry):
    found = np.zeros(shape)
    for index in np.ndindex(*shape):
        found[index] = entry(*index)
    return found


def lora(rank=2):
    out, into = 16, 16
    up, down = drawn(out, rank), drawn(rank, into, seed=1)
    dense = loops((out, into), lambda i, j: sum(up[i, r] * down[r, j] for r in range(rank)))
    return {"lora_up.weight": up, "lora_down.weight": down}, dense, LINEAR, rank


def locon(rank=2):
    up, down = drawn(16, rank, 1, 1), drawn(rank, 16, 3, 3, seed=1)
    dense = np.einsum("or,rikl->oikl", up.double()[:, :, 0, 0], down.double())
    return {"lora_up.weight": up, "lora_down.weight": down}, dense, CONV, rank


def tucker(rank=2):
    up, mid = drawn(16, rank, 1, 1), drawn(rank, rank, 3, 3, seed=1)
    down = drawn(rank, 16, 1, 1, seed=2)
    dense = np.zeros((16, 16, 3, 3))
    for m in range(rank):
        for n in range(rank):
            outer = np.multiply.outer(up.double()[:, m, 0, 0], down.double()[n, :, 0, 0])
            dense += outer[:, :, None, None] * mid.double().numpy()[m, n]
    tensors = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down}
    return tensors, dense, CONV, rank


def hadamard(rank=2):
    a, c = (drawn(16, rank, seed=seed) for seed in (0, 2))
    b, d = (drawn(rank, 16, seed=seed) for seed in (1, 3))
    dense = (a.double() @ b.double()).numpy() * (c.double() @ d.double()).numpy()
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return dict(zip(names, (a, b, c, d), strict=True)), dense, LINEAR, rank


def hadamard_tucker(rank=2):
    cores = [drawn(rank, rank, 3, 3, seed=s) for s in (1, 2)]
    a = [drawn(rank, 16, seed=s) for s in (3, 4)]
    b = [drawn(rank, 16, seed=s) for s in (5, 6)]
    factors = []
    for core, left, right in zip(cores, a, b, strict=True):
        total = np.zeros((16, 16, 3, 3))
        for m in range(rank):
            for n in range(rank):
                outer = np.multiply.outer(left.double()[m].numpy(), right.double()[n].numpy())
                total += outer[:, :, None, None] * core.double().numpy()[m, n]
        factors.append(total)
    tensors = {"hada_t1": cores[0], "hada_t2": cores[1]}
    tensors |= {"hada_w1_a": a[0], "hada_w1_b": b[0], "hada_w2_a": a[1], "hada_w2_b": b[1]}
    return tensors, factors[0] * factors[1], CONV, rank


def kronecker(rank=2):
    one, a, b = drawn(4, 4), drawn(4, rank, seed=1), drawn(rank, 4, seed=2)
    two = (a.double() @ b.double()).numpy()
    dense = loops((16, 16), lambda i, j: float(one[i // 4, j // 4]) * two[i % 4, j % 4])
    return {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b}, dense, LINEAR, rank


def kronecker_conv(rank=2):
    one, a, b = drawn(4, 4), drawn(4, rank, seed=1), drawn(rank, 4 * 9, seed=2)
    two = (a.double() @ b.double()).numpy().reshape(4, 4, 3, 3)
    dense = loops(
        (16, 16, 3, 3), lambda i, j, k, m: float(one[i // 4, j // 4]) * two[i % 4, j % 4, k, m]
    )
    return {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b}, dense, CONV, rank


KINDS = [lora, locon, tucker, hadamard, hadamard_tucker, kronecker, kronecker_conv]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("alpha", [None, 0.0, 1.0, 3.0])
def test_each_kind_is_its_dense_formula(tmp_path, kind, alpha):
    tensors, dense, path, rank = kind()
    given = {f"{kohya(path)}.{name}": value for name, value in tensors.items()}
    if alpha is not None:
        given[f"{kohya(path)}.alpha"] = torch.tensor(alpha)
    scale = alpha / rank if alpha else 1.0
    pipe, before = merged(tmp_path, given, strength=0.7)
    wanted = before[f"unet.{path}.weight"].double() + 0.7 * scale * torch.from_numpy(dense)
    torch.testing.assert_close(module(path, pipe).weight.double(), wanted, rtol=0, atol=2e-7)
    assert changed(pipe, before) == {f"unet.{path}.weight"}


def test_two_whole_factors_have_no_scale(tmp_path):
    one, two = drawn(4, 4), drawn(4, 4, seed=1)
    name = kohya(LINEAR)
    pipe, before = merged(
        tmp_path,
        {f"{name}.lokr_w1": one, f"{name}.lokr_w2": two, f"{name}.alpha": torch.tensor(9.0)},
    )
    found = module(LINEAR, pipe).weight - before[f"unet.{LINEAR}.weight"]
    torch.testing.assert_close(found, torch.kron(one, two), rtol=0, atol=2e-7)


def test_full_changes_and_norms_are_added_as_they_are(tmp_path):
    norm = module(NORM)
    size = tuple(norm.weight.shape)
    tensors = {
        f"{kohya(CONV)}.diff": drawn(16, 16, 3, 3),
        f"{kohya(CONV)}.diff_b": drawn(16, seed=1),
        f"{kohya(NORM)}.w_norm": drawn(*size, seed=2),
        f"{kohya(NORM)}.b_norm": drawn(*size, seed=3),
    }
    pipe, before = merged(tmp_path, tensors, strength=0.5)
    for path, kind, name in (
        (CONV, "weight", "diff"),
        (CONV, "bias", "diff_b"),
        (NORM, "weight", "w_norm"),
        (NORM, "bias", "b_norm"),
    ):
        wanted = before[f"unet.{path}.{kind}"] + 0.5 * tensors[f"{kohya(path)}.{name}"]
        assert torch.equal(getattr(module(path, pipe), kind), wanted)


@pytest.mark.parametrize("side", ["columns", "rows", "peft"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_dora_sets_lengths_and_nothing_at_strength_zero(tmp_path, side, strength):
    tensors, dense, path, _ = lora()
    lengths = drawn(16, seed=9).abs() + 0.1
    shaped = {"columns": lengths[None], "rows": lengths[:, None], "peft": lengths}[side]
    name = "lora_magnitude_vector" if side == "peft" else "dora_scale"
    given = {f"{kohya(path)}.{key}": value for key, value in tensors.items()}
    pipe, before = merged(
        tmp_path, given | {f"{kohya(path)}.{name}": shaped.contiguous()}, strength
    )
    weight = before[f"unet.{path}.weight"].double()
    whole = weight + torch.from_numpy(dense)
    axis = 0 if side == "columns" else 1
    renormed = whole * (
        lengths.double().unsqueeze(axis) / whole.pow(2).sum(axis, keepdim=True).sqrt()
    )
    wanted = weight + strength * (renormed - weight)
    torch.testing.assert_close(module(path, pipe).weight.double(), wanted, rtol=0, atol=1e-6)
    assert strength or not changed(pipe, before)


def test_lengths_of_peft_are_of_rows_where_a_convolution_is_as_wide_as_high(tmp_path):
    """peft keeps them as `[1, out, 1, 1]`, which in another spelling would be columns."""
    down, up, lengths = drawn(2, 16, 3, 3), drawn(16, 2, 1, 1), drawn(16, seed=9).abs() + 0.1
    name = f"unet.{CONV}"
    pipe, before = merged(
        tmp_path,
        {
            f"{name}.lora_A.weight": down,
            f"{name}.lora_B.weight": up,
            f"{name}.lora_magnitude_vector": lengths.reshape(1, -1, 1, 1).contiguous(),
        },
    )
    weight = before[f"unet.{CONV}.weight"].double()
    assert weight.shape[:2] == (16, 16)  # as wide as high
    whole = weight + torch.einsum("or,rijk->oijk", up[:, :, 0, 0].double(), down.double())
    norms = whole.flatten(1).norm(dim=1)
    wanted = whole * (lengths.double() / norms)[:, None, None, None]
    torch.testing.assert_close(module(CONV, pipe).weight.double(), wanted, rtol=0, atol=1e-6)


def test_a_scale_of_peft_in_the_header_wins_and_patterns_name_modules(tmp_path):
    tensors, dense, path, _ = lora()
    given = {f"unet.{path}.lora_A.weight": tensors["lora_down.weight"]}
    given[f"unet.{path}.lora_B.weight"] = tensors["lora_up.weight"]
    for said, scale in (
        ({"unet.r": 2, "unet.lora_alpha": 6}, 3.0),
        ({"unet.r": 2, "unet.lora_alpha": 6, "unet.use_rslora": True}, 6 / 2**0.5),
        ({"unet.r": 8, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}}, 0.25),
        ({"unet.r": 8, "unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q1": 2}}, 1.0),
    ):
        header = {"lora_adapter_metadata": json.dumps(said)}
        pipe, before = merged(tmp_path, given, header=header)
        found = module(path, pipe).weight.double() - before[f"unet.{path}.weight"].double()
        torch.testing.assert_close(found, scale * torch.from_numpy(dense), rtol=0, atol=2e-7)


# --- merging


def test_kohyas_and_diffusers_files_give_the_same_bits(tmp_path):
    up, down = drawn(16, 2), drawn(2, 16)
    one, _ = merged(
        tmp_path,
        {
            f"{kohya(LINEAR)}.lora_up.weight": up,
            f"{kohya(LINEAR)}.lora_down.weight": down,
            f"{kohya(LINEAR)}.alpha": torch.tensor(2.0),
        },
    )
    others = [
        {f"unet.{LINEAR}.lora_B.weight": up, f"unet.{LINEAR}.lora_A.weight": down},
        {f"unet.{LINEAR}.lora.up.weight": up, f"unet.{LINEAR}.lora.down.weight": down},
        {
            f"unet.{LINEAR.replace('to_q', 'processor.to_q_lora')}.up.weight": up,
            f"unet.{LINEAR.replace('to_q', 'processor.to_q_lora')}.down.weight": down,
        },
    ]
    for other in others:
        pipe, _ = merged(tmp_path, other)
        assert torch.equal(module(LINEAR, pipe).weight, module(LINEAR, one).weight)


def two_files(folder):
    name = kohya(LINEAR)
    return [
        written(
            folder,
            {
                f"{name}.lora_up.weight": drawn(16, 2, seed=s),
                f"{name}.lora_down.weight": drawn(2, 16),
            },
            f"{s}.safetensors",
        )
        for s in (1, 2)
    ]


def test_order_does_not_matter_the_same_file_twice_is_a_sum_and_zero_is_absence(tmp_path):
    first, second = two_files(tmp_path)

    def after(*given):
        pipe = build_tiny_pipeline()
        merge(pipe, [(file, Strength(weight, weight)) for file, weight in given])
        return weights(pipe)

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    assert same(after((first, 0.3), (second, 0.9)), after((second, 0.9), (first, 0.3)))
    assert same(after((first, 0.25), (first, 0.5)), after((first, 0.75)))
    assert same(after((first, 0.0)), weights(build_tiny_pipeline()))
    assert same(after((first, 1.0), (second, 0.0)), after((first, 1.0)))
    assert not same(after((first, -1.0)), after((first, 1.0)))


def test_alphas_may_differ_from_module_to_module(tmp_path):
    tensors, scales = {}, {LINEAR: 0.5, OTHER: 2.0}
    for path, alpha in scales.items():
        out, into = module(path).weight.shape
        tensors |= {
            f"{kohya(path)}.lora_up.weight": drawn(out, 4),
            f"{kohya(path)}.lora_down.weight": drawn(4, into),
            f"{kohya(path)}.alpha": torch.tensor(alpha * 4),
        }
    pipe, before = merged(tmp_path, tensors)
    for path, scale in scales.items():
        delta = (
            tensors[f"{kohya(path)}.lora_up.weight"] @ tensors[f"{kohya(path)}.lora_down.weight"]
        )
        found = module(path, pipe).weight - before[f"unet.{path}.weight"]
        torch.testing.assert_close(found, scale * delta, rtol=0, atol=2e-7)


def test_text_encoders_have_a_strength_of_their_own(tmp_path):
    tensors = {
        f"{kohya(LINEAR)}.diff": drawn(16, 16),
        f"{kohya('text_model.' + TEXT, 'lora_te_')}.diff": drawn(32, 32),
    }
    file = written(tmp_path, tensors)
    pipe = build_tiny_pipeline()
    before = weights(pipe)
    merge(pipe, [(file, Strength(1.0, 0.0))])
    assert changed(pipe, before) == {f"unet.{LINEAR}.weight"}


def test_half_precision_is_cast_once_at_the_end(tmp_path):
    """Four files of a quarter: added one by one in half precision nothing would be left."""
    pipe = build_tiny_pipeline()
    pipe.unet.half()
    place = pipe.unet.get_submodule(LINEAR)
    with torch.no_grad():
        place.weight.fill_(1.0)
    step = torch.full((16, 16), 2.0**-12)
    given = [
        (
            written(
                tmp_path,
                {f"{kohya(LINEAR)}.diff": step, f"{kohya(CONV)}.diff_b": drawn(16, seed=n)},
                f"{n}.safetensors",
            ),
            Strength(),
        )
        for n in range(4)
    ]
    merge(pipe, given)
    assert bool((place.weight == 1 + 2.0**-10).all())


def test_who_a_file_is_does_not_depend_on_its_header_or_order(tmp_path):
    tensors = {"lora_unet_b.diff": drawn(3), "lora_unet_a.diff": drawn(4)}
    one = written(tmp_path, tensors)
    other = written(tmp_path, dict(reversed(tensors.items())), "two.safetensors", {"ss_tag": "x"})
    assert one.digest == other.digest and len(one.digest) == 64
    third = written(tmp_path, tensors | {"lora_unet_a.diff": drawn(4) + 1}, "three.safetensors")
    assert third.digest != one.digest


def test_peft_unfused_gives_the_same_pictures_within_rounding(tmp_path):
    peft = pytest.importorskip("peft")
    pipe = build_tiny_pipeline()
    plain = copy.deepcopy(pipe)
    adapted = copy.deepcopy(pipe.unet)
    adapted.add_adapter(
        peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "conv1"])
    )
    state = {}
    for number, (name, value) in enumerate(adapted.named_parameters()):
        if "lora_" in name:
            with torch.no_grad():
                value.copy_(drawn(*value.shape, seed=number))
            state[f"unet.{name.replace('.default', '')}"] = value.detach().clone()
    merge(plain, [(written(tmp_path, state), Strength())])
    inputs = (drawn(2, 4, 8, 8), torch.tensor(7), drawn(2, 24, 32))
    with torch.no_grad():
        one = plain.unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample
        other = adapted(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# --- what is refused


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"lora_unet_x.oft_blocks": (2, 2)}, "OFT is not supported (lora_unet_x.oft_blocks)"),
        ({"lora_unet_x.a1.weight": (2, 2)}, "GLoRA is not supported"),
        ({f"{kohya(LINEAR)}.lora_up.weight": (16, 2)}, "has up and no down"),
        ({"lora_unet_nowhere.diff": (2, 2)}, "was made for another model: 1 of its modules"),
        ({f"{kohya(LINEAR)}.strange": (2, 2)}, "nobody knows what the tensor"),
        (
            {f"{kohya(LINEAR)}.diff": (16, 15)},
            "is for a weight of 16x15, and the model's has 16x16",
        ),
        (
            {
                f"{kohya(LINEAR)}.lora_up.weight": (16, 2),
                f"{kohya(LINEAR)}.lora_down.weight": (3, 16),
            },
            "do not fit each other",
        ),
        (
            {
                f"{kohya(OTHER)}.lora_up.weight": (32, 2),
                f"{kohya(OTHER)}.lora_down.weight": (2, 1024),
            },
            "was made for width 1024 (SD 2), the model has 32",
        ),
        (
            {f"{kohya(LINEAR)}.diff": (16, 16), f"unet.{LINEAR}.diff": (16, 16)},
            "names one module twice",
        ),
        ({"transformer.blocks.0.lora_A.weight": (2, 2)}, "flow-matching transformer"),
        ({f"{kohya(LINEAR)}.alpha": ()}, "nothing that changes a weight"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_belong_is_one_line_and_changes_nothing(tmp_path, tensors, says):
    pipe = build_tiny_pipeline()
    before = weights(pipe)
    given = {name: drawn(*shape) + 0.1 for name, shape in tensors.items()}
    assert says in refused(lambda: merge(pipe, [(written(tmp_path, given), Strength())]))
    assert not changed(pipe, before)


def test_a_file_that_changes_nothing_or_is_no_file_of_numbers_is_one_line(tmp_path):
    pipe = build_tiny_pipeline()
    idle = written(
        tmp_path,
        {
            f"{kohya(LINEAR)}.lora_up.weight": torch.zeros(16, 2),
            f"{kohya(LINEAR)}.lora_down.weight": drawn(2, 16),
        },
    )
    assert "changes nothing" in refused(lambda: merge(pipe, [(idle, Strength())]))
    for name in ("x.pt", "x.ckpt", "x.bin"):
        assert "is a pickle" in refused(lambda name=name: read_lora(tmp_path / name))
    assert "there is no LoRA file" in refused(lambda: read_lora(tmp_path / "no.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{}")
    assert "no readable safetensors" in refused(lambda: read_lora(tmp_path / "cut.safetensors"))
    save_file({"a.diff": torch.tensor([float("nan")])}, tmp_path / "nan.safetensors")
    assert "NaN or infinity in a.diff" in refused(lambda: read_lora(tmp_path / "nan.safetensors"))
    save_file({"a.diff": drawn(1)}, tmp_path / "odd.safetensors", {"lora_adapter_metadata": "{"})
    assert "header that cannot be read" in refused(lambda: read_lora(tmp_path / "odd.safetensors"))
    save_file({"a.diff": drawn(1)}, tmp_path / "list.safetensors", {"lora_adapter_metadata": "[]"})
    assert "no JSON object" in refused(lambda: read_lora(tmp_path / "list.safetensors"))


def test_an_adapter_alone_says_what_it_lacks():
    assert "lacks the factor w2" in refused(
        lambda: Adapter("m", {"k_w1": drawn(2, 2)}).change(drawn(4, 4))
    )


# --- in a suite


def lora_suite(folder, tiny_folder, *loras, name="mine"):
    tables = "".join(f"[[model.loras]]\n{lora}\n" for lora in loras)
    (folder / f"{name}.toml").write_text(
        f'extends = "{tiny_folder / "tiny.toml"}"\nname = "{name}"\n{tables}'
    )
    return load_suite(str(folder / f"{name}.toml"))


def test_a_suite_merges_what_it_names_and_who_it_is_follows_the_numbers(
    tmp_path, tiny_folder, monkeypatch
):
    monkeypatch.setenv("BENCH_ALLOW", str(tiny_folder))
    first, _ = two_files(tmp_path)
    plain = lora_suite(tmp_path, tiny_folder, name="plain")
    one = lora_suite(tmp_path, tiny_folder, 'file = "1.safetensors"\nweight = 0.5')
    assert one.lora_strengths == {first.digest: (0.5, 0.5)}
    assert "loras" not in plain.generation and one.generation["loras"] == one.lora_strengths
    pipe, base = (load_pipeline(suite, torch.device("cpu")) for suite in (one, plain))
    before = weights(base)
    assert changed(pipe, before) == {f"unet.{LINEAR}.weight"}
    # the same numbers under another name, header and in two halves are the same model
    save_file(dict(first.tensors), tmp_path / "again.safetensors", {"ss_tag": "x"})
    half = 'file = "again.safetensors"\nweight = 0.25'
    again = lora_suite(tmp_path, tiny_folder, half, half, name="mine")
    assert again.generation == one.generation and again.fingerprint == one.fingerprint
    off = lora_suite(tmp_path, tiny_folder, 'file = "1.safetensors"\nweight = 0', name="off")
    assert not changed(load_pipeline(off, torch.device("cpu")), before)
    text = lora_suite(tmp_path, tiny_folder, 'file = "1.safetensors"\ntext_weight = 0.5', name="t")
    assert text.lora_strengths == {first.digest: (1.0, 0.5)}
    assert len({one.fingerprint, text.fingerprint, off.fingerprint}) == 3


def test_weights_that_add_up_to_more_than_a_number_can_be_are_one_line(
    tmp_path, tiny_folder, monkeypatch
):
    monkeypatch.setenv("BENCH_ALLOW", str(tiny_folder))
    two_files(tmp_path)
    large = 'file = "1.safetensors"\nweight = 1e308'
    suite = lora_suite(tmp_path, tiny_folder, large, large)
    with pytest.raises(UserError, match="named more than once, add up to more"):
        suite.fingerprint  # noqa: B018


def peft_files(folder, **others):
    """LoRA files with the same tensors and other settings of peft, by their names."""
    tensors, _, path, _ = lora()
    given = {f"unet.{path}.lora_A.weight": tensors["lora_down.weight"]}
    given[f"unet.{path}.lora_B.weight"] = tensors["lora_up.weight"]
    return {
        name: written(
            folder,
            given,
            f"{name}.safetensors",
            None if said is None else {"lora_adapter_metadata": json.dumps(said)},
        )
        for name, said in others.items()
    }


def test_who_a_file_is_follows_what_peft_says_of_the_scale_and_nothing_else(tmp_path):
    said = {"unet.r": 2, "unet.lora_alpha": 6}
    files = peft_files(
        tmp_path,
        bare=None,
        idle={"unet.target_modules": ["to_q"], "unet.base_model_name_or_path": "a"},
        plain=said,
        turned={"unet.base_model_name_or_path": "b"} | dict(reversed(said.items())),
        alpha=said | {"unet.lora_alpha": 4},
        rank=said | {"unet.r": 4},
        ranks=said | {"unet.rank_pattern": {"to_q": 4}},
        alphas=said | {"unet.alpha_pattern": {"to_q": 4}},
        root=said | {"unet.use_rslora": True},
        dora=said | {"unet.use_dora": True},
        text={name.replace("unet", "text_encoder"): value for name, value in said.items()},
    )
    digests = {name: file.digest for name, file in files.items()}
    # as it was before the entry counted: that of the tensors
    assert digests["bare"] == tensors_digest(tmp_path / "bare.safetensors") == digests.pop("idle")
    assert digests["plain"] == digests.pop("turned")
    assert len(set(digests.values())) == len(digests)
    assert all(lora_digest(file.path) == file.digest for file in files.values())


def test_files_that_differ_in_the_scale_alone_are_two_in_merging_and_in_suites(
    tmp_path, tiny_folder, monkeypatch
):
    monkeypatch.setenv("BENCH_ALLOW", str(tiny_folder))
    _, dense, path, _ = lora()
    files = peft_files(
        tmp_path, a={"unet.r": 2, "unet.lora_alpha": 6}, b={"unet.r": 2, "unet.lora_alpha": 1}
    )
    for order in ("ab", "ba"):
        pipe = build_tiny_pipeline()
        before = weights(pipe)[f"unet.{path}.weight"].double()
        merge(pipe, [(files[name], Strength()) for name in order])
        found = module(path, pipe).weight.double() - before
        torch.testing.assert_close(found, 3.5 * torch.from_numpy(dense), rtol=0, atol=5e-7)
    suites = [
        lora_suite(tmp_path, tiny_folder, *(f'file = "{name}.safetensors"' for name in names))
        for names in ("a", "b", "ab")
    ]
    assert suites[2].lora_strengths.keys() == {file.digest for file in files.values()}
    assert len({suite.fingerprint for suite in suites}) == 3
    assert len({json.dumps(suite.generation, sort_keys=True) for suite in suites}) == 3


def test_a_suite_whose_lora_is_missing_or_no_file_of_numbers_is_one_line(
    tmp_path, tiny_folder, monkeypatch
):
    monkeypatch.setenv("BENCH_ALLOW", str(tiny_folder))
    suite = lora_suite(tmp_path, tiny_folder, 'file = "no.safetensors"')
    assert "is missing" in refused(lambda: suite.fingerprint)
    (tmp_path / "odd.safetensors").write_bytes(b"no")
    suite = lora_suite(tmp_path, tiny_folder, 'file = "odd.safetensors"')
    assert "no readable safetensors file" in refused(lambda: suite.generation)
    save_file({"a.diff": drawn(1)}, tmp_path / "cut.safetensors", {"lora_adapter_metadata": "{"})
    cut = lora_suite(tmp_path, tiny_folder, 'file = "cut.safetensors"')
    assert "header that cannot be read" in refused(lambda: cut.generation)
    assert "weight" in refused(
        lambda: lora_suite(tmp_path, tiny_folder, 'file = "odd.safetensors"\nweight = "abc"')
    )
