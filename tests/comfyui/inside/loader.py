"""Load HY-WU Generator in ComfyUI's own process: what it lists and keeps in memory, and what moves do."""

from __future__ import annotations

import json

from open_comfy import open_comfy

work = open_comfy()

import comfy.model_management as management  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from pack.hywu_core.conditions import Condition  # noqa: E402
from pack.hywu_core.generator import load_generator  # noqa: E402
from pack.nodes.loader import LoadGenerator, generator_names  # noqa: E402

folder_paths.add_model_folder_path("hywu", str(work), is_default=True)
measured: dict[str, object] = {"names": [name.replace("\\", "/") for name in generator_names()]}


def opened(name: str, precision: str):
    found = LoadGenerator.execute(generator_name=name, precision=precision)
    return found.result[0] if hasattr(found, "result") else found.args[0]


def tensors(generator) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in generator.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n].float(), b[n].float()) for n in a
    )


for name in ("released", "own.safetensors"):
    for precision in ("as in the file", "float32", "bfloat16", "int8", "fp8"):
        loaded = opened(name, precision)
        generator = loaded.generator
        before = tensors(generator)
        condition = Condition(torch.ones(2, 3, generator.config.condition_dim))
        management.load_models_gpu([loaded.patcher])
        first = generator(condition)
        management.unload_all_models()
        loaded.patcher.partially_load(torch.device("cpu"), loaded.patcher.model_size() // 2)
        again = generator(condition)
        loaded.patcher.detach()
        measured[f"{name} {precision}"] = {
            "dtype": str(generator.dtype),
            "fc1": str(generator.blocks[0].feed_forward.fc1.weight.dtype),
            "size": loaded.patcher.model_size(),
            "tensors": sum(t.nbytes for t in before.values()),
            "intact": same(tensors(generator), before),
            "repeats": all(torch.equal(first[n][i], again[n][i]) for n in first for i in (0, 1)),
        }

stamp = LoadGenerator.fingerprint_inputs(generator_name="released")
(work / "released" / "config.json").touch()
measured["replaced"] = LoadGenerator.fingerprint_inputs(generator_name="released", precision="int8") != stamp
for name in ("encoder", "../outside", "nothing", ""):
    try:
        LoadGenerator.execute(generator_name=name)
        measured[f"refused {name}"] = ""
    except ValueError as error:
        measured[f"refused {name}"] = str(error)
management.get_torch_device = lambda: torch.device("mps")
try:
    LoadGenerator.execute(generator_name="own.safetensors", precision="fp8")
except ValueError as error:
    measured["mps"] = str(error)
quantised = load_generator(work / "quantised.safetensors")
management.get_torch_device = lambda: torch.device("cpu")
kept = opened("quantised.safetensors", "as in the file").generator
measured["kept"] = same(tensors(kept), tensors(quantised))
print(json.dumps(measured))
