"""The parts that models with Qwen2.5-VL as their text encoder share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .folders import ModelFolder
from .loading import attempt, load_part

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import Qwen2VLProcessor

PROCESSORS = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")
TEXT_PARTS = {
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
}


def load_processor(folder: ModelFolder, name: str) -> Qwen2VLProcessor:
    """The processor of a folder; where torchvision is not installed, without its part for films."""
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLProcessor
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return load_part(folder, name)

    class PictureProcessor(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: object) -> type | None:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    part = folder.part(name)
    pictures = attempt(part, lambda: AutoImageProcessor.from_pretrained(part, local_files_only=True))
    words = attempt(part, lambda: AutoTokenizer.from_pretrained(part, local_files_only=True))
    return PictureProcessor(image_processor=pictures, tokenizer=words)


def to_pil(picture: Tensor) -> Image:
    """A picture (1, 3, H, W) in [0, 1] as the processors take it; exact for 8-bit pictures."""
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(picture.float()))[0]
