"""What the trainer needs of a frozen image-editing model: one protocol, a short file for each model.

Shapes: B batch, Z latent channels, h x w latents, N image tokens, S text tokens, E text channels.

A model comes in two halves that need not be in memory together. `EditEncoders` turn pictures and prompts into
tensors, which are kept on disk; an `EditBackbone` is the transformer that is trained through. Both are
diffusers' own models, loaded from a folder in diffusers' layout or by a hub id.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import HywuError
from .folders import TRANSFORMER, ModelFolder, open_folder, read_json
from .inputs import EditInputs, EditSample, collate
from .loading import Parts, check_parts, check_transformer, load_transformer
from .packing import count_tokens, patchify, unpatchify
from .sampling import euler
from .schedule import FlowSchedule

_SCHEDULER = "scheduler"
_PARTS = (TRANSFORMER, _SCHEDULER)


@dataclass(frozen=True)
class PictureSizes:
    """Sizes of pictures that a model was trained with: about `area` pixels, sides multiples of `divisor`."""

    area: int
    divisor: int


class EditEncoders(ABC):
    """Autoencoder and text encoder of a model: pictures and prompts in, tensors of one sample out.

    parts: the sub-folders that are read, and the classes each may have.
    id: hub id or folder name. fingerprint: of all their files.
    pipeline: diffusers' own, which holds the text encoder.
    text_sees_pictures: whether what a prompt becomes depends on the pictures; where not, it is encoded once.
    """

    kind: ClassVar[str]
    parts: ClassVar[Parts]
    text_sees_pictures: ClassVar[bool] = True
    pipeline: Any

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> None:
        self.id, self.device, self.dtype = folder.id, device, dtype
        self.fingerprint = folder.fingerprint(self.parts)

    @property
    def encoder_id(self) -> str:
        """Everything that what is encoded depends on, as a key of a cache; not where the files lie."""
        return f"{self.kind} {self.fingerprint} {str(self.dtype).removeprefix('torch.')}"

    def forget_text(self) -> None:
        """Let the text encoder go; pictures can still be encoded and decoded."""
        self.pipeline = None

    @abstractmethod
    def encode_image(self, image: Tensor) -> Tensor:
        """A picture (1, 3, H, W) in [0, 1] to latents (1, Z, h, w) as the transformer takes them."""

    @abstractmethod
    def decode_latent(self, latent: Tensor) -> Tensor:
        """Latents (B, Z, h, w) to pictures (B, 3, H, W) float32 in [0, 1]."""

    @abstractmethod
    def encode_text(self, prompt: str, controls: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """A prompt, with the pictures (1, 3, H, W) in [0, 1] that it speaks of, to its tensors.

        "embeds" (1, S, E) is the sequence that the transformer reads, without padding that it could tell from
        text; some models have more, such as "pooled" (1, P). HywuError for a number of pictures that the
        model cannot see.
        """


class EditBackbone(nn.Module, ABC):
    """A frozen velocity field over latents, given pictures and a prompt.

    kind, pipelines, transformer_class: how a folder of this model is known.
    encoders: the class of its other half.
    target_sizes, control_sizes: of pictures; None: controls get the size of the target.
    n_controls: the fewest and the most pictures an edit may have; None: any number.
    default_targets: patterns for `LoraSpec.from_module(backbone.transformer, include=...)`: all linears of
        attention and MLP in the blocks.
    id: hub id or folder name. fingerprint: of the files it was read from.
    """

    kind: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    transformer_class: ClassVar[str]
    encoders: ClassVar[type[EditEncoders]]
    target_sizes: ClassVar[PictureSizes]
    control_sizes: ClassVar[PictureSizes | None]
    n_controls: ClassVar[tuple[int, int | None]] = (0, None)
    default_targets: ClassVar[tuple[str, ...]]
    fingerprint: str = ""

    def __init__(self, transformer: nn.Module, id: str, schedule: FlowSchedule | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.id = id
        self.schedule = schedule if schedule is not None else FlowSchedule()

    @classmethod
    def load_encoders(
        cls,
        model: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        allow_download: bool = False,
    ) -> EditEncoders:
        """Autoencoder and text encoder of a folder or hub id; HywuError, as `open`, for what is amiss."""
        folder = cls.open(model, tuple(cls.encoders.parts), allow_download)
        check_parts(folder, cls.encoders.parts)
        return cls.encoders(folder, torch.device(device), dtype)

    @classmethod
    def check_transformer(
        cls,
        model: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        quantize: str | None = None,
        allow_download: bool = False,
    ) -> nn.Module:
        """The transformer that `load_transformer` would load, without its weights; HywuError as there."""
        folder = cls.open(model, _PARTS, allow_download)
        cls._schedule(folder)
        return check_transformer(folder, cls.transformer_class, torch.device(device), dtype, quantize)[0]

    @classmethod
    def load_transformer(
        cls,
        model: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        quantize: str | None = None,
        allow_download: bool = False,
    ) -> EditBackbone:
        """The transformer of a folder or hub id; the folder of a transformer alone is enough.

        quantize: None, "int8", "fp8" or "nf4" (see `quantization.py`). allow_download: the only way to the
        network. HywuError, before memory is spent, for a missing or foreign folder, class or weights file.
        """
        folder = cls.open(model, _PARTS, allow_download)
        schedule = cls._schedule(folder)
        transformer = load_transformer(folder, cls.transformer_class, torch.device(device), dtype, quantize)
        backbone = cls(transformer, folder.id, schedule)
        backbone.fingerprint = folder.fingerprint(_PARTS)
        return backbone

    @classmethod
    def _schedule(cls, folder: ModelFolder) -> FlowSchedule:
        config = folder.part(_SCHEDULER) / "scheduler_config.json"
        return FlowSchedule(read_json(config)) if config.is_file() else cls.default_schedule()

    @classmethod
    def open(cls, model: str | Path, parts: Sequence[str], allow_download: bool = False) -> ModelFolder:
        """The folder of a model of this kind; HywuError for another pipeline's."""
        pipeline = open_folder(model, (), allow_download).pipeline
        if pipeline is not None and pipeline not in cls.pipelines:
            raise HywuError(
                f"{model} is a model for {pipeline}; the backbone {cls.kind} needs one for "
                f"{' or '.join(cls.pipelines)}."
            )
        return open_folder(model, parts, allow_download)

    @classmethod
    def default_schedule(cls) -> FlowSchedule:
        """That of the released model, for folders without one."""
        return FlowSchedule({"use_dynamic_shifting": True})

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in, quantised or not."""
        return self.transformer.dtype

    def copies(self, target: str) -> int:
        """For `attach`: how many times a linear of the transformer sees the batch, one after another."""
        return 1

    def backbone_info(self) -> dict[str, str]:
        """What a generator's file says about this backbone."""
        return {"kind": self.kind, "id": self.id}

    def collate(self, samples: Sequence[EditSample]) -> EditInputs:
        """Samples of one layout as a batch; HywuError for controls that differ in number or size."""
        return collate(samples)

    def forward(self, x: Tensor, time: Tensor, inputs: EditInputs, guidance: float = 1.0) -> Tensor:
        """Velocity noise - image (B, Z, h, w) at x (B, Z, h, w) and time (B,), from 1 (noise) to 0 (image).

        guidance: of a model with guidance embedded; 1 in training. Inputs are moved to the transformer's
        device and dtype.
        """
        self.check_controls(len(inputs.controls))
        arguments = self.arguments(x, time, inputs.to(self.device, self.dtype), guidance)
        out = self.transformer(**arguments, return_dict=False)[0]
        return unpatchify(out[:, : count_tokens(x)], *x.shape[-2:])

    @abstractmethod
    def arguments(self, x: Tensor, time: Tensor, inputs: EditInputs, guidance: float) -> dict[str, Any]:
        """The arguments of the transformer's forward, as the model's pipeline gives them."""

    def tokens(self, x: Tensor, inputs: EditInputs) -> Tensor:
        """The noisy tokens, then those of every control (B, N + N_1 + ..., 4Z), in the model's dtype."""
        x = x.to(self.device, self.dtype)
        return torch.cat([patchify(x), *(patchify(control) for control in inputs.controls)], dim=1)

    @classmethod
    def check_controls(cls, n: int, said: str | None = None) -> None:
        """HywuError for a number of pictures that this model cannot edit with; `said`: how it begins."""
        fewest, most = cls.n_controls
        if n < fewest or (most is not None and n > most):
            allowed = (
                str(fewest) if fewest == most else f"{fewest} to {'any number' if most is None else most}"
            )
            said = said or f"This edit has {n} pictures"
            raise HywuError(f"{said}; the backbone {cls.kind} takes {allowed}.")

    @torch.no_grad()
    def sample(
        self,
        inputs: EditInputs,
        noise: Tensor,
        steps: int,
        *,
        guidance: float = 1.0,
        negative: EditInputs | None = None,
        cfg: float = 1.0,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Latents (B, Z, h, w) of the edited pictures from noise of that shape, in float32.

        negative, cfg: classifier-free guidance away from other inputs, where cfg is not 1.
        """
        start = noise.to(self.device, torch.float32)

        def velocity(x: Tensor, now: float) -> Tensor:
            time = torch.full((len(x),), now, device=x.device)
            wanted = self(x, time, inputs, guidance).float()
            if negative is None or cfg == 1:
                return wanted
            return self.guide(wanted, self(x, time, negative, guidance).float(), cfg)

        return euler(velocity, start, self.schedule.sigmas(steps, count_tokens(noise)), on_step)

    def guide(self, wanted: Tensor, unwanted: Tensor, cfg: float) -> Tensor:
        """Two velocities (B, Z, h, w) as one, by classifier-free guidance."""
        return unwanted + cfg * (wanted - unwanted)
