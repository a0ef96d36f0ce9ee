"""The ComfyUI nodes: one topic a file, each between sockets and `hywu_core`, which does the work."""

from comfy_api.v0_0_2 import ComfyExtension, io

from .apply import ApplyLoRA
from .backports import teach_flux_widths
from .combine import CombineAdapters
from .condition import EncodeCondition
from .embedded import EmbeddedEncode
from .folders import register_model_folders
from .generate import GenerateLoRA
from .inspect_adapter import InspectAdapter
from .load_adapter import LoadAdapter
from .loader import LoadGenerator
from .save import SaveAdapter

NODES = [
    LoadGenerator,
    EncodeCondition,
    GenerateLoRA,
    ApplyLoRA,
    SaveAdapter,
    LoadAdapter,
    CombineAdapters,
    InspectAdapter,
    EmbeddedEncode,
]


class HywuExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return NODES


def open_extension() -> HywuExtension:
    """Make the pack's model folders known, then hand over the nodes (their menus list those folders)."""
    # Here and not in `on_load`, which ComfyUI 0.3.64 does not call.
    register_model_folders()
    teach_flux_widths()
    return HywuExtension()
