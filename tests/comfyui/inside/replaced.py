"""What the loaders notice of replaced files, in ComfyUI's own process."""

from __future__ import annotations

import json
import os
from pathlib import Path

from open_comfy import open_comfy

work = open_comfy()

import folder_paths  # noqa: E402
from pack.hywu_core.generator.release import CONFIG, MODEL_TYPE  # noqa: E402
from pack.nodes.load_adapter import LoadAdapter  # noqa: E402
from pack.nodes.loader import LoadGenerator  # noqa: E402

for kind in ("loras", "hywu"):
    folder_paths.add_model_folder_path(kind, str(work / kind), is_default=True)


def written(path: Path, text: str, date: int = 2_000_000_000) -> None:
    """A file of this date, in seconds; whatever was there is overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (date, date))


def adapter() -> object:
    return LoadAdapter.fingerprint_inputs(adapter_name=os.path.join("peft", "adapter_model.safetensors"))


def generator() -> object:
    return LoadGenerator.fingerprint_inputs(generator_name="released", precision="int8")


released, peft = work / "hywu" / "released", work / "loras" / "peft"
written(released / CONFIG, json.dumps({"model_type": MODEL_TYPE}))
shards = [released / f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
for file in (*shards, peft / "adapter_model.safetensors", peft / "adapter_config.json"):
    written(file, "{}")
measured = {"adapter untouched": adapter() == adapter(), "generator untouched": generator() == generator()}
# Of a linked input ComfyUI knows no value yet; an error would have the node run at every prompt.
linked = {LoadAdapter.fingerprint_inputs(adapter_name=None), LoadGenerator.fingerprint_inputs(None, None)}
measured["linked names"] = len(linked) == 1
before = adapter(), generator()
written(peft / "adapter_config.json", '{"lora_alpha": 8}')
written(shards[0], "[1]", date=1_000_000_000)
measured |= {"adapter": adapter() != before[0], "generator": generator() != before[1]}
print(json.dumps(measured))
