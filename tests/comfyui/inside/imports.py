"""What importing the pack brings with it, in a ComfyUI that has ComfyUI's requirements and no more."""

from __future__ import annotations

import json
import sys

from open_comfy import open_comfy

ABSENT = ("diffusers", "peft", "accelerate", "matplotlib", "skimage")

sys.modules.update(dict.fromkeys(ABSENT))  # None: as if not installed
open_comfy()
ours = sorted(name for name in sys.modules if name.startswith("pack."))
print(json.dumps({"ours": ours, "absolute": [name for name in sys.modules if name.startswith("hywu_core")]}))
