"""Gradients of adapters through frozen backbones, however the trainer runs them; compiled ones."""

from __future__ import annotations

import pytest
import torch

from hywu_core import Adapter, LoraSpec, attach
from hywu_core.backbones.inputs import EditInputs
from hywu_core.backbones.registry import backbone_class

from .tiny_folders import write_qwen_image_edit

KINDS = ("flux_kontext", "qwen_image_edit", "longcat_image_edit")


def inputs() -> tuple[torch.Tensor, torch.Tensor, EditInputs]:
    random = torch.Generator().manual_seed(1)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    text = {"embeds": tensor(2, 7, 32), "pooled": tensor(2, 32)}
    return tensor(2, 16, 8, 8), torch.tensor([0.3, 0.7]), EditInputs(text, (tensor(2, 16, 8, 8),))


def gradients(backbone) -> dict[str, torch.Tensor | None]:
    spec = LoraSpec.from_module(backbone.transformer, include=backbone.default_targets, rank=2)
    random = torch.Generator().manual_seed(2)

    def factor(*shape: int) -> torch.Tensor:
        return (torch.randn(2, *shape, generator=random) * 0.1).requires_grad_()

    weights = {t.name: (factor(2, t.d_in), factor(t.d_out, 2)) for t in spec.targets}
    with attach(backbone.transformer, Adapter(weights, spec.scale)):
        backbone(*inputs()).square().mean().backward()
    return {name: pair[0].grad for name, pair in weights.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_activations_can_be_computed_twice(kind, folders):
    backbone = backbone_class(kind).load_transformer(folders[kind], dtype=torch.float32)
    kept = gradients(backbone)
    backbone.transformer.enable_gradient_checkpointing()
    again = gradients(backbone)
    for name, gradient in kept.items():
        if gradient is None:
            assert again[name] is None, name
        else:
            torch.testing.assert_close(again[name], gradient, msg=name)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in kept.values()) > len(kept) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_call_is_one_graph(kind, load):
    backbone = load(kind)[1]
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs()), backbone(*inputs()))


def test_edit_2511_sees_its_pictures_at_time_zero(tmp_path):
    folder = write_qwen_image_edit(tmp_path / "2511", zero_cond_t=True)
    backbone = backbone_class("qwen_image_edit").load_transformer(folder, dtype=torch.float32)
    x, time, edit = inputs()
    assert backbone.transformer.config.zero_cond_t
    assert backbone(x, time, edit).shape == x.shape
    assert gradients(backbone)["transformer_blocks.0.attn.to_q"].any()


def test_edit_2511_modulates_every_edit_by_its_own_lora(tmp_path):
    folder = write_qwen_image_edit(tmp_path / "2511", zero_cond_t=True)
    backbone = backbone_class("qwen_image_edit").load_transformer(folder, dtype=torch.float32)
    spec = LoraSpec.from_module(backbone.transformer, include=("*img_mod*", "time_text_embed*"), rank=2)
    random = torch.Generator().manual_seed(2)
    weights = {
        t.name: tuple(torch.randn(2, *s, generator=random) * 0.3 for s in ((2, t.d_in), (t.d_out, 2)))
        for t in spec.targets
    }
    adapter, (x, time, edit) = Adapter(weights, spec.scale), inputs()
    with attach(backbone.transformer, adapter, copies=backbone.copies):
        together = backbone(x, time, edit)
    for row in range(2):
        one = slice(row, row + 1)
        alone = EditInputs({n: t[one] for n, t in edit.text.items()}, tuple(c[one] for c in edit.controls))
        with attach(backbone.transformer, adapter.select(row), copies=backbone.copies):
            torch.testing.assert_close(
                backbone(x[one], time[one], alone), together[one], rtol=1e-4, atol=1e-5
            )
