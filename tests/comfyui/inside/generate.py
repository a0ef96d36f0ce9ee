"""Generate LoRA and Inspect Adapter in ComfyUI's own process: what counts as an output of their jobs."""

from __future__ import annotations

import json

from open_comfy import open_comfy

work = open_comfy()

import folder_paths  # noqa: E402
import torch  # noqa: E402
from pack.hywu_core.conditions import Condition  # noqa: E402
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


(loaded,) = results(LoadGenerator.execute(generator_name="random_generator.safetensors"))
condition = Condition(torch.ones(2, 5, loaded.generator.config.condition_dim))
generated = GenerateLoRA.execute(generator=loaded, condition=condition)
inspected = InspectAdapter.execute(adapter=results(generated)[0], index=1)
print(json.dumps({"outputs": counted(generated.ui, inspected.ui, PICTURE)}))
