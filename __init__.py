"""HY-WU for ComfyUI: a transformer looks at an image and an instruction and writes a LoRA for them."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # noqa: D103 (ComfyUI's name for it: the pack's nodes)
    # Not at import: pytest and packaging tools import this file where there is no ComfyUI.
    from .nodes import open_extension

    return open_extension()
