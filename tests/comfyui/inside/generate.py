"""Generate LoRA and Inspect Adapter in ComfyUI's own process: room in memory, what counts as an output."""

from __future__ import annotations

import json

from open_comfy import open_comfy

work = open_comfy()

import comfy.model_management as management  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from pack.hywu_core.conditions import Condition  # noqa: E402
from pack.hywu_core.generator.memory import memory_plan  # noqa: E402
from pack.nodes.generate import GenerateLoRA  # noqa: E402
from pack.nodes.inspect_adapter import InspectAdapter  # noqa: E402
from pack.nodes.loader import LoadGenerator  # noqa: E402

try:
    from comfy_execution.jobs import get_outputs_summary
except ImportError:  # older ones do not count
    get_outputs_summary = None

folder_paths.add_model_folder_path("hywu", str(work), is_default=True)
PICTURE = {"images": [{"filename": "edited.png", "subfolder": "", "type": "output"}]}


def results(output):
    return output.result if hasattr(output, "result") else output.args


def counted(*shown: dict) -> int | None:
    """How many outputs ComfyUI counts in a job whose nodes have shown this."""
    if get_outputs_summary is None:
        return None
    return get_outputs_summary({str(number): ui for number, ui in enumerate(shown)})[0]


def planned(generator, n_condition: int) -> int:
    """What one forward pass takes beyond the weights, for one condition."""
    settings = {"dtype": generator.dtype, "keep_start_bytes": generator.keep_start_bytes}
    shape = (generator.config, generator.spec, generator.layout)
    return memory_plan(*shape, n_condition=n_condition, **settings).extra


asked: list[int] = []
load_models_gpu = management.load_models_gpu


def watch(models, memory_required: int = 0, **settings) -> None:
    asked.append(memory_required)
    load_models_gpu(models, memory_required, **settings)


(loaded,) = results(LoadGenerator.execute(generator_name="random_generator.safetensors"))
condition = Condition(torch.ones(2, 5, loaded.generator.config.condition_dim))
management.load_models_gpu = watch
generated = GenerateLoRA.execute(generator=loaded, condition=condition)
management.unload_all_models()
again = GenerateLoRA.execute(generator=loaded, condition=condition, max_norm=1.0)
inspected = InspectAdapter.execute(adapter=results(generated)[0], index=1)
measured = {
    "outputs": counted(generated.ui, inspected.ui, PICTURE),
    "asked": asked,
    "planned": planned(loaded.generator, 5),
    "again": again.ui["hywu_report"][0],
}
print(json.dumps(measured))
