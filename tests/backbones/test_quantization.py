"""Quantised backbones stay near the whole ones, and gradients reach adapters through them."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch

from hywu_core import Adapter, LoraSpec, attach
from hywu_core.backbones import quantization
from hywu_core.backbones.base import EditBackbone
from hywu_core.backbones.inputs import EditInputs
from hywu_core.backbones.registry import backbone_class
from hywu_core.errors import HywuError

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
NEEDS = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}


def inputs() -> tuple[torch.Tensor, torch.Tensor, EditInputs]:
    random = torch.Generator().manual_seed(1)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    text = {"embeds": tensor(2, 7, 32), "pooled": tensor(2, 32)}
    time = torch.tensor([0.3, 0.7], device=DEVICE)
    return tensor(2, 16, 8, 8).to(DEVICE), time, EditInputs(text, (tensor(2, 16, 8, 8),))


@pytest.mark.parametrize("kind", ["flux_kontext", "qwen_image_edit", "longcat_image_edit"])
@pytest.mark.parametrize("quantize", [None, *NEEDS])
def test_adapters_learn_on_a_quantised_backbone(kind, quantize, folders):
    if quantize is not None:
        pytest.importorskip(NEEDS[quantize])
    if quantize == "nf4" and not CUDA:
        pytest.skip("diffusers loads nf4 on a GPU only")
    backbone_type = backbone_class(kind)
    whole = backbone_type.load_transformer(folders[kind], DEVICE)
    backbone = backbone_type.load_transformer(folders[kind], DEVICE, quantize=quantize)
    spec = LoraSpec.from_module(backbone.transformer, include=backbone.default_targets, rank=2)
    assert spec == LoraSpec.from_module(whole.transformer, include=backbone.default_targets, rank=2)
    linear = backbone.transformer.get_submodule(spec.targets[0].name)
    stored = sum(tensor.nbytes for tensor in parts_of(linear.weight))
    assert stored < (0.6 if quantize else 1.1) * 2 * linear.in_features * linear.out_features + 1024
    x, time, edit = inputs()
    expected = whole(x, time, edit).float()
    assert (backbone(x, time, edit).float() - expected).norm() < 0.1 * expected.norm()
    assert learning(backbone, spec) == learning(whole, spec)
    assert backbone.dtype == torch.bfloat16


def learning(backbone: EditBackbone, spec: LoraSpec) -> set[str]:
    """The targets whose adapters get a gradient; the last block's text is read by nobody."""
    random = torch.Generator().manual_seed(2)

    def factor(*shape: int) -> torch.Tensor:
        return (torch.randn(2, *shape, generator=random) * 0.1).to(DEVICE).requires_grad_()

    weights = {t.name: (factor(spec.rank, t.d_in), factor(t.d_out, spec.rank)) for t in spec.targets}
    x, time, edit = inputs()
    with attach(backbone.transformer, Adapter(weights, spec.scale)):
        backbone(x, time, edit).float().square().mean().backward()
    used = {name: pair for name, pair in weights.items() if pair[0].grad is not None}
    assert len(used) > len(weights) / 2
    for pair in used.values():
        assert all(tensor.grad.isfinite().all() for tensor in pair)
    return {name for name, pair in used.items() if all(tensor.grad.any() for tensor in pair)}


def parts_of(weight: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a quantised weight is made of; a plain one is its own."""
    names = weight.__tensor_flatten__()[0] if hasattr(weight, "__tensor_flatten__") else ()
    return [getattr(weight, name) for name in names] or [weight]


@pytest.mark.parametrize(
    ("quantize", "device", "words"),
    [
        ("int3", "cpu", "no quantisation 'int3'; there are int8, fp8, nf4"),
        ("nf4", "cpu", "nf4 is not possible on cpu, only on cuda"),
        ("int8", "mps", "int8 is not possible on mps"),
    ],
)
def test_what_is_not_possible_is_a_sentence(quantize, device, words):
    with pytest.raises(HywuError, match=words):
        quantization.quantization_config(quantize, torch.device(device), torch.bfloat16)


@pytest.mark.parametrize("quantize", NEEDS)
def test_a_missing_package_is_named(quantize, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        quantization, "find_spec", lambda name: None if name == NEEDS[quantize] else real(name)
    )
    with pytest.raises(HywuError, match=f"pip install {NEEDS[quantize]}"):
        quantization.quantization_config(quantize, torch.device("cpu"), torch.bfloat16)


def test_nothing_is_quantised_twice(folders, tmp_path):
    folder = shutil.copytree(folders["flux_kontext"], tmp_path / "kontext")
    config = folder / "transformer" / "config.json"
    settings = json.loads(config.read_text("utf-8")) | {"quantization_config": {"quant_method": "torchao"}}
    config.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(HywuError, match="quantised already"):
        backbone_class("flux_kontext").load_transformer(folder, quantize="int8")
