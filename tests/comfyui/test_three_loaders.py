"""Saved files under ComfyUI's own LoRA loader: every key is placed, and the merged weights are right.

The backbones are diffusers' own models with random weights. What must come out is made without any LoRA: the
same model with the updates added to its weights, opened by ComfyUI. (diffusers and PEFT: tests/lora.)
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from hywu_core import LoraSpec, load_adapter, save_adapter

from ..lora import stock
from .inside import measure

pytestmark = pytest.mark.comfyui
EXACT = 1e-5
STRENGTH = 0.5


def write_flux(folder, name, model, plan, foreign):
    """The model, the model with the updates in its weights, our files, and others' that we save again."""
    spec = LoraSpec.from_module(model, include="*", rank=4, alpha=8)
    adapter = stock.random_adapter(spec)
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    changed = dict(model.state_dict())
    for target, (A, B) in adapter.items():
        changed[f"{target}.weight"] = changed[f"{target}.weight"] + STRENGTH * adapter.scale * B[0] @ A[0]
    save_file(changed, folder / f"{name}_merged.safetensors")
    files = []
    for key_format in ("auto", "diffusers", "kohya"):
        file = f"{name}_{key_format}.safetensors"
        save_adapter(adapter, folder / file, strength=STRENGTH, key_format=key_format)
        files.append({"name": file, "merged": f"{name}_merged.safetensors"})
    for kind, tensors in foreign.items():
        theirs, ours = f"{name}_{kind}.safetensors", f"{name}_{kind}_ours.safetensors"
        save_file(tensors, folder / theirs)
        save_adapter(load_adapter(folder / theirs), folder / ours)
        files.append({"name": ours, "like": theirs})
    plan[name] = {"file": f"{name}.safetensors", "targets": list(adapter), "files": files}


def write_qwen(folder, plan):
    """One block of Qwen-Image at its true width, by shapes alone."""
    model = stock.qwen_shapes()
    adapter = stock.random_adapter(LoraSpec.from_module(model, include="*", rank=2, alpha=1))
    save_adapter(adapter, folder / "qwen_auto.safetensors", strength=STRENGTH)
    save_adapter(adapter, folder / "qwen_kohya.safetensors", strength=STRENGTH, key_format="kohya")
    save_adapter(adapter, folder / "qwen_diffusers.safetensors", strength=STRENGTH, key_format="diffusers")
    plan["qwen"] = {
        "shapes": {key: list(value.shape) for key, value in model.state_dict().items()},
        "targets": list(adapter),
        "files": [
            {"name": f"qwen_{kind}.safetensors", "products": "qwen_auto.safetensors", "largest": largest}
            for kind, largest in (("auto", 2**40), ("kohya", 2**24), ("diffusers", 2**24))
        ],
    }


@pytest.fixture(scope="module")
def work(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loaders")
    plan = {}
    torch.manual_seed(6)
    write_flux(folder, "embedded", world.backbone.transformer, plan, {})
    flux = stock.tiny_flux(guidance=True)
    write_flux(folder, "flux", flux, plan, stock.flux_files(flux))
    write_qwen(folder, plan)
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


@pytest.fixture(scope="module")
def answers(install, work):
    return measure(install, "loaders.py", work)


@pytest.mark.parametrize(("model", "kind"), [("embedded", "Flux"), ("flux", "Flux"), ("qwen", "QwenImage")])
def test_every_linear_is_a_target_with_a_place(answers, work, model, kind):
    plan = json.loads((work / "plan.json").read_text())[model]
    assert answers[model]["kind"] == kind
    assert answers[model]["places"] == len(plan["targets"])


@pytest.mark.parametrize("model", ["embedded", "flux", "qwen"])
def test_the_stock_loader_places_every_key_and_merges_the_same_update(answers, model):
    for name, found in answers[model]["files"].items():
        assert found["unmatched"] == [], name
        assert found["gap"] <= EXACT, name
        assert found["changed"] > 1e-3, name
        if "_ours" not in name:
            assert found["weights"] == answers[model]["linears"], name
