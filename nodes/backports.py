"""What later ComfyUI versions do by themselves and this pack needs in earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_detection
from comfy_api.v0_0_2 import io
from torch import Tensor

_HEAD_DIM = 128  # of every FLUX.1: its RoPE axes (16, 56, 56) together


def search_words(*words: str) -> dict[str, list[str]]:
    """Further words that the node search finds a node by, as keywords of its `io.Schema`.

    Empty where ComfyUI has none yet: a keyword that Schema does not know would end the whole extension.
    """
    return {"search_aliases": list(words)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}


def shown_again() -> dict[str, bool]:
    """Keywords of an `io.Schema`: in a newly opened page the node shows its report also when it need not run.

    ComfyUI sends what an output node reported from its cache, and what others did if it knows this keyword.
    """
    known = "has_intermediate_output" in io.Schema.__dataclass_fields__
    return {"has_intermediate_output": True} if known else {}


def teach_flux_widths() -> None:
    """Let "Load Diffusion Model" read a FLUX's widths from its tensors, as newer versions do.

    Earlier versions take 3072 and 4096 for granted (0.3.64), or read them and go on believing in 24 heads
    (0.8), and cannot open the embedded backbone. Nothing changes where what they detect is the tensors' own,
    which is to say for every FLUX those versions can open.
    """
    detect = comfy.model_detection.detect_unet_config

    def detect_with_widths(
        state_dict: Mapping[str, Tensor], key_prefix: str, *args: Any, **kwargs: Any
    ) -> Any:
        config = detect(state_dict, key_prefix, *args, **kwargs)
        text_in = state_dict.get(f"{key_prefix}txt_in.weight")
        if config is not None and config.get("image_model") == "flux" and getattr(text_in, "ndim", 0) == 2:
            hidden_size, context_in_dim = text_in.shape
            config |= {
                "hidden_size": hidden_size,
                "context_in_dim": context_in_dim,
                "num_heads": hidden_size // _HEAD_DIM,
            }
        return config

    comfy.model_detection.detect_unet_config = detect_with_widths
