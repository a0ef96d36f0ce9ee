"""A node pack for the test servers: trouble in mid-sampling, and what a server holds on to.

Copied into a server's custom_nodes; not part of the pack.
"""

import comfy.model_management
import psutil
import torch

ERRORS = {
    "out of memory": lambda: torch.OutOfMemoryError("Allocation on device (made up by a test)"),
    "exception": lambda: ValueError("made up by a test"),
}


class Trouble:
    """A model whose second step fails inside of a block."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "kind": (list(ERRORS),)}}

    def make(self, model, kind):
        model, calls = model.clone(), []

        def fail(args):
            calls.append(None)
            if len(calls) > 1:
                raise ERRORS[kind]()
            return args

        model.set_model_patch(fail, "post_input")
        return (model,)


class Holdings:
    """What the process holds: memory in bytes, and the models that are counted as loaded."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "count", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    @classmethod
    def IS_CHANGED(cls, samples):
        return float("nan")

    def count(self, samples):
        loaded = comfy.model_management.current_loaded_models
        names = [type(one.model.model).__name__ if one.model else "dead" for one in loaded]
        vram = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        return {"ui": {"rss": [psutil.Process().memory_info().rss], "vram": [vram], "loaded": names}}


NODE_CLASS_MAPPINGS = {"HywuTestTrouble": Trouble, "HywuTestHoldings": Holdings}
