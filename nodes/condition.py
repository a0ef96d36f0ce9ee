"""HY-WU Condition: what the generator is told about each edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..hywu_core.conditions import BackboneHiddenEncoder, Condition, hidden_condition, join_edits
from ..hywu_core.errors import HywuError
from .backports import search_words, shown_again
from .encoders import encoder_for
from .sockets import (
    CATEGORY,
    ConditionSocket,
    GeneratorSocket,
    LoadedGenerator,
    instructions,
    per_line_input,
    pixels,
)

Conditioning = Sequence[tuple[torch.Tensor, Mapping[str, Any]]]


class EncodeCondition(io.ComfyNode):
    """Images and instructions, or hidden states, to a HYWU_CONDITION."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="HYWU_Condition",
            display_name="HY-WU Condition",
            category=CATEGORY,
            description="Encodes images and instructions with the encoder the generator learned with. One "
            "instruction goes with many images, one image with many instructions, or each with its own.",
            is_input_list=True,
            **shown_again(),
            **search_words("prompt", "instruction", "encode", "siglip", "reference image"),
            inputs=[
                GeneratorSocket.Input("generator", tooltip="Decides which encoder is used."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to do with the image, in your own words. A list makes a batch.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="What is to be edited. A batch, or a list of images of any sizes, gives a "
                    "condition for each. Not needed with hidden_states.",
                ),
                io.Image.Input(
                    "image_2",
                    optional=True,
                    tooltip="A second reference image of the same edit: one for all, or one for each. Only "
                    "for generators that learned with several.",
                ),
                io.Image.Input("image_3", optional=True, tooltip="A third reference image, as image_2."),
                io.Conditioning.Input(
                    "hidden_states",
                    optional=True,
                    tooltip="For generators that read their backbone's own hidden states instead of images: "
                    "(batch, tokens, channels), with attention_mask if some are padding.",
                ),
                per_line_input(),
                io.Boolean.Input(
                    "download",
                    default=False,
                    optional=True,
                    tooltip="Fetch the encoder from Hugging Face if it is neither in models/hywu nor in the "
                    "Hugging Face cache. Off, nothing ever uses the network.",
                ),
            ],
            outputs=[ConditionSocket.Output(display_name="condition", tooltip="For Generate LoRA.")],
        )

    @classmethod
    def execute(
        cls,
        generator: list[LoadedGenerator],
        prompt: list[str],
        image: list[torch.Tensor] | None = None,
        image_2: list[torch.Tensor] | None = None,
        image_3: list[torch.Tensor] | None = None,
        hidden_states: list[Conditioning] | None = None,
        one_prompt_per_line: Sequence[bool] = (False,),
        download: Sequence[bool] = (False,),
    ) -> io.NodeOutput:
        """Encode."""
        if len(generator) > 1:
            raise HywuError(f"HY-WU Condition takes one generator, and was given a list of {len(generator)}.")
        (loaded,) = generator
        images = {"image": image, "image_2": image_2, "image_3": image_3}
        info = loaded.generator.encoder_info
        if hidden_states:
            if info.get("kind") != BackboneHiddenEncoder.kind:
                raise HywuError(
                    f"This generator reads conditions of the encoder '{info.get('id')}', not hidden states; "
                    "disconnect hidden_states and connect an image."
                )
            worded = any(text.strip() for text in prompt)  # they have been read: none need be given again
            prompts = instructions(prompt, one_prompt_per_line[0] and worded)
            condition = _of_hidden_states(hidden_states, prompts, info.get("dim"))
            condition = replace(condition, encoder=info.get("id"))
            return _output(condition, [name for name, given in images.items() if given])
        pictures = {
            name: [picture for batch in given or () for picture in pixels(batch)]
            for name, given in images.items()
        }
        # Before an encoder is read for them, or even downloaded.
        edits = join_edits(instructions(prompt, one_prompt_per_line[0]), pictures)
        if not pictures["image"] and info.get("kind") != BackboneHiddenEncoder.kind:
            raise HywuError(
                f"The encoder {info.get('id')} of this generator looks at a picture; connect an image."
            )
        encoder = encoder_for(loaded, download[0])
        # ComfyUI keeps what a node gives, and would not count it if it were on a GPU.
        return _output(replace(encoder.encode(*edits).to("cpu"), encoder=info.get("id")))


def _of_hidden_states(given: list[Conditioning], prompts: list[str], dim: int | None) -> Condition:
    """Every entry of every CONDITIONING as conditions of one batch."""
    entries = [entry for conditioning in given for entry in conditioning]
    if not entries:
        raise HywuError("hidden_states is an empty conditioning; connect what the backbone's encoder gave.")
    parts = []
    for hidden, extras in entries:
        mask = extras.get("attention_mask")
        if mask is not None and mask.ndim == 2 and len(mask) == 1:
            mask = mask.expand(len(hidden), -1)
        parts.append(hidden_condition(hidden, mask))
    condition = Condition.stack(parts)
    if dim not in (None, condition.dim):
        raise HywuError(
            f"The hidden states have {condition.dim} channels, but the generator learned with {dim}; connect "
            "those of the backbone it was made for."
        )
    if len(prompts) not in (1, condition.batch):
        raise HywuError(
            f"There are {len(prompts)} instructions and {condition.batch} hidden states, which do not fit "
            "together: give one instruction for all, or one for each."
        )
    # They are the backbone's reading of an instruction; which one is known only if it was given here too.
    each = prompts * (condition.batch // len(prompts))
    return replace(condition, prompts=tuple(each) if all(text.strip() for text in each) else None)


def _output(condition: Condition, unread: Sequence[str] = ()) -> io.NodeOutput:
    several = f"{condition.batch} conditions" if condition.batch > 1 else "1 condition"
    report = [f"{several} of {condition.tokens.shape[1]} tokens and {condition.dim} channels"]
    if unread:
        report.append(f"Not read: {', '.join(unread)}; the hidden states have seen what they show")
    return io.NodeOutput(condition, ui={"hywu_report": report})
