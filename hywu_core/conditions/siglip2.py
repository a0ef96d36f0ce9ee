"""SigLIP2 conditions, the paper's default: what its towers make of pictures and words, token by token.

Shapes: B edits, N image tokens of a picture, M text tokens of a prompt, S condition tokens, D channels.

`c = concat[Enc_img(image), Enc_txt(instruction)]` along the token axis (paper 3.3). The pictures are
prepared by `pictures.py`: the processors of transformers need torchvision.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from ..errors import HywuError
from .condition import Condition
from .encoder import MODEL_NAME, weights_hash
from .pictures import Pictures, as_pictures, cut_patches, once_each, patch_grid, resize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "google/siglip2-base-patch16-256"
DEFAULT_PATCHES = 256  # of a NaFlex picture, as in its training

logger = logging.getLogger("hywu")


class SigLIP2Encoder:
    """Both towers of a SigLIP2 model, frozen; fixed-resolution or NaFlex (native aspect ratio) ones.

    max_patches: how many image tokens a NaFlex picture has at most; fixed-resolution models ignore it.
    """

    kind = "siglip2"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        id: str,
        max_patches: int = DEFAULT_PATCHES,
    ) -> None:
        """`model` is a transformers `SiglipModel` or `Siglip2Model`; HywuError for any other."""
        kind = model.config.model_type
        if kind not in ("siglip", "siglip2"):
            raise HywuError(f"{id} is a {kind} model; the siglip2 encoder needs a siglip or siglip2 one.")
        if max_patches < 1:
            raise HywuError(f"max_patches is {max_patches}; a picture needs at least one.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.id = id
        self.naflex = kind == "siglip2"
        self.max_patches = max_patches
        self.dim = max(model.config.vision_config.hidden_size, model.config.text_config.hidden_size)

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_patches: int = DEFAULT_PATCHES,
        allow_download: bool = False,
    ) -> SigLIP2Encoder:
        """Read a folder, or a hub name from the Hugging Face cache; only `allow_download` uses the network.

        Its id is its hub name, or the folder's own. Raises HywuError when it is not there, is no SigLIP2
        model, lacks weights, or has a name that generators cannot find it by.
        """
        from huggingface_hub import snapshot_download
        from transformers import AutoModel, AutoTokenizer

        id, place = _id_of(model), str(model)
        local = {"local_files_only": not allow_download, "trust_remote_code": False}
        try:
            if not allow_download and not Path(model).is_dir():
                # By its name transformers would ask the hub for this and that, whatever it is told.
                place = snapshot_download(place, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(place, **local)
            weights, report = AutoModel.from_pretrained(
                place, **local, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            hint = "" if allow_download else ", or allow the download"
            reason = str(error).strip().partition("\n")[0]
            raise HywuError(
                f"The SigLIP2 model {model} cannot be loaded: give a folder with its config, weights and "
                f"tokenizer, or a name that is in the Hugging Face cache{hint} ({reason})"
            ) from error
        if missing := sorted(report["missing_keys"]):  # transformers leaves them random
            raise HywuError(
                f"The SigLIP2 model {model} lacks {len(missing)} of its weights, such as {missing[0]}."
            )
        return cls(weights.to(device, dtype), tokenizer, id, max_patches)

    @cached_property
    def sha256(self) -> str:
        """Of its weights, see `weights_hash`; computed when it is first asked for."""
        return weights_hash(self)

    def info(self) -> dict[str, str | int]:
        """What a generator's file says about this encoder."""
        info: dict[str, str | int] = {"kind": self.kind, "id": self.id, "dim": self.dim}
        info["sha256"] = self.sha256
        return info | {"max_patches": self.max_patches} if self.naflex else info

    @torch.no_grad()
    def encode(self, images: Sequence[Pictures] | Tensor, prompts: Sequence[str]) -> Condition:
        """For each prompt the tokens of its pictures, in order, then those of its text: (B, S, D) float32.

        Where one tower is narrower than the other, zeros fill its channels. Raises HywuError for bad
        pictures, and when the result is not finite.
        """
        edits = as_pictures(images, prompts)
        conditions = []
        for seen, prompt in zip(once_each(edits, self._see), prompts, strict=True):
            parts = [*seen, self._read(prompt)]
            tokens = torch.cat([F.pad(part, (0, self.dim - part.shape[1])) for part in parts])
            conditions.append(Condition(tokens[None].float(), prompts=(prompt,)))
        return Condition.stack(conditions).check()

    def _see(self, picture: Tensor) -> Tensor:
        """A picture (3, H, W) to its image tokens (N, D)."""
        vision, device, dtype = self.model.config.vision_config, self.model.device, self.model.dtype
        if not self.naflex:
            pixels = resize(picture, (vision.image_size, vision.image_size))[None]
            return self.model.vision_model(pixels.to(device, dtype)).last_hidden_state[0]
        grid = patch_grid(*picture.shape[1:], vision.patch_size, self.max_patches)
        patches = cut_patches(picture, grid, vision.patch_size)[None].to(device, dtype)
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=device)
        # By position, because the mask's name differs between versions of transformers.
        output = self.model.vision_model(patches, mask, torch.tensor([grid], device=device))
        return output.last_hidden_state[0]

    def _read(self, prompt: str) -> Tensor:
        """A prompt to its text tokens (M, D), without padding."""
        length = self.model.config.text_config.max_position_embeddings
        lowered = prompt.lower()  # as in SigLIP2's training
        if (n_ids := len(self.tokenizer(lowered, verbose=False)["input_ids"])) > length:
            logger.warning("SigLIP2 reads %d tokens; an instruction of %d is cut.", length, n_ids)
        # It was trained with padding to the full length, without a mask, and with the sentence summed up in
        # the last place, be it padding or not.
        batch = self.tokenizer(
            [lowered],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        hidden = self.model.text_model(input_ids=batch["input_ids"]).last_hidden_state[0]
        real = batch["attention_mask"][0].bool()
        real[-1] = True
        return hidden[real]


def _id_of(model: str | Path) -> str:
    """What a model is found by again (`registry.find_model`); HywuError for a folder with another name."""
    folder = Path(os.path.abspath(model))
    if not folder.is_dir():
        if "/" not in str(model):
            raise HywuError(f"There is no folder {model}; of a model on the hub, give owner and name.")
        return str(model)
    cached = folder.parent.parent.name.split("--")  # of the Hugging Face cache: models--owner--name
    if folder.parent.name == "snapshots" and cached[0] == "models":
        return "/".join(cached[1:])
    if not MODEL_NAME.fullmatch(folder.name):
        raise HywuError(
            f"A generator could not find the encoder {str(folder)!r} again by its folder's name "
            f"{folder.name!r}; rename it to letters, digits, '-', '_' and '.', the first one no '.'."
        )
    return folder.name
