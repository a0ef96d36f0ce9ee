"""A user's data set as the trainer reads it: every picture, prompt and condition encoded once, kept on disk.

Shapes: B edits, Z latent channels, h x w latents, S condition tokens, D channels of one.

Encoders and backbone need not be in memory together: all samples are encoded first, by all processes
together, and training reads nothing but tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..backbones.base import EditEncoders
from ..backbones.inputs import EditInputs, EditSample, collate
from ..conditions import Condition, ConditionEncoder, hidden_condition
from ..conditions.encoder import weights_hash
from ..data.paired import Encodings, PairedDataset, Picture, Sample
from ..data.paired.buckets import Buckets, Layout, Size, group, layout_of
from ..errors import HywuError
from .share import Share

OnSample = Callable[[int], None]


@dataclass(frozen=True)
class Encoders:
    """Who encodes: the backbone's own half for latents and text; for conditions an encoder, or that text.

    condition: None where the backbone's text is the condition (`conditions.backbone_hidden`).
    """

    backbone: EditEncoders
    condition: ConditionEncoder | None


@dataclass(frozen=True)
class Encoded:
    """One edit as tensors."""

    target: Tensor  # (1, Z, h, w)
    sample: EditSample
    condition: Condition  # batch 1


class EncodedEdits:
    """A data set's samples as tensors, from a cache; made by `encode`, which must come first."""

    def __init__(
        self, data: PairedDataset, encodings: Encodings, buckets: Buckets, control_buckets: Buckets | None
    ) -> None:
        """Look at the headers of all pictures. HywuError for one that cannot be read."""
        self.data, self.encodings = data, encodings
        self.layouts, self.groups = group(layout_of(sample, buckets, control_buckets) for sample in data)
        # A backbone whose controls have the target's size reads its text with them at that size: then all
        # texts of a layout are equally long.
        self._text_sees_layout = control_buckets is None

    def __len__(self) -> int:
        return len(self.data)

    def layout(self, index: int) -> Layout:
        """The sizes of a sample's pictures."""
        return self.layouts[self.groups[index]]

    @cached_property
    def tasks(self) -> dict[str, int]:
        """The different instructions, each with its number: what a baseline may learn a LoRA for."""
        return {prompt: n for n, prompt in enumerate(dict.fromkeys(sample.prompt for sample in self.data))}

    @cached_property
    def sha256(self) -> str:
        """A hash of all that is learned from: the bytes of every picture, the prompts, repeats; in order."""
        digest = hashlib.sha256()
        for sample in self.data:
            for picture in (sample.target, *sample.controls):
                digest.update(bytes.fromhex(self.encodings.hashes.of(picture)))
            digest.update("\0".join((sample.prompt, *sample.also, "")).encode("utf-8", "surrogatepass"))
        repeats = list(self.data.samples.repeats)
        if set(repeats) != {1}:  # where nothing is repeated the hash is what it always was
            digest.update(repr(repeats).encode())
        return digest.hexdigest()

    def encode(
        self, names: Names, encoders: Encoders, dropout: bool, share: Share, on_sample: OnSample
    ) -> None:
        """Encode what the cache does not have yet, of this process's part of the samples.

        names: those of the encoders. dropout: also every sample with an empty prompt. `on_sample(done)` after
        each sample.
        """
        for done, index in enumerate(share.turns(len(self)), start=1):
            sample = self.data[index]
            for prompt in (sample.prompt, *sample.also, *([""] if dropout else [])):
                if not self._is_there(index, prompt, names):
                    self.read(index, prompt, names, encoders)
            on_sample(done)

    def read(self, index: int, prompt: str, names: Names, encoders: Encoders | None = None) -> Encoded:
        """A sample under a prompt. Encoders of these names make what is not in the cache; without them that
        is a HywuError.
        """
        make = _Making(encoders)
        target, *controls = (
            self.encodings.image(*picture, names.backbone, make.latent) for picture in self._pictures(index)
        )
        text = self.encodings.condition(prompt, *self._seen_by_text(index, names), make.text)
        if names.condition is None:
            hidden, mask = collate([EditSample(text)]).hidden()
            condition = hidden_condition(hidden.float(), mask)
        else:
            found = self.encodings.condition(prompt, *self._seen_by_condition(index, names), make.condition)
            condition = Condition(found["tokens"].float(), found.get("mask"))
        return Encoded(target, EditSample(text, tuple(controls)), condition)

    def _is_there(self, index: int, prompt: str, names: Names) -> bool:
        """Whether the cache has all that `read` reads; none of it is opened."""
        encodings = self.encodings
        keys = [encodings.image_key(*picture, names.backbone) for picture in self._pictures(index)]
        keys.append(encodings.condition_key(prompt, *self._seen_by_text(index, names)))
        if names.condition is not None:
            keys.append(encodings.condition_key(prompt, *self._seen_by_condition(index, names)))
        return all(key in encodings.cache for key in keys)

    def _pictures(self, index: int) -> list[tuple[Picture, Size]]:
        """The target, then the controls, each with the size it is encoded at."""
        sample, layout = self.data[index], self.layout(index)
        pictures, sizes = (sample.target, *sample.controls), (layout.target, *layout.controls)
        return list(zip(pictures, sizes, strict=True))

    def _seen_by_text(self, index: int, names: Names) -> tuple[Sequence[Picture], Sequence[Size], str]:
        """What the backbone's text encoder sees beside a prompt, at which sizes; the encoder's name."""
        sample, name = self.data[index], f"{names.backbone} text"
        if not names.text_sees_pictures:
            return (), (), name
        seen = self.layout(index).controls if self._text_sees_layout else own_sizes(sample)
        return sample.controls, seen, name

    def _seen_by_condition(self, index: int, names: Names) -> tuple[Sequence[Picture], Sequence[Size], str]:
        """As `_seen_by_text`, of the condition encoder."""
        sample = self.data[index]
        return sample.controls, own_sizes(sample), names.condition


@dataclass(frozen=True)
class Names:
    """What encodings are found by once the encoders themselves are gone."""

    backbone: str
    condition: str | None
    text_sees_pictures: bool

    @classmethod
    def of(cls, encoders: Encoders) -> Names:
        """Of encoders; looks at every weight of the condition encoder."""
        condition, backbone = encoders.condition, encoders.backbone
        name = None if condition is None else cls._of_condition(condition)
        return cls(backbone.encoder_id, name, backbone.text_sees_pictures)

    @staticmethod
    def _of_condition(encoder: ConditionEncoder) -> str:
        """By its weights: a folder and the hub share what was encoded, whoever is said to own the model."""
        told = {key: value for key, value in encoder.info().items() if key != "sha256"}
        told["id"] = encoder.id.rpartition("/")[2]
        return f"{sorted(told.items())} {weights_hash(encoder)[:16]}"


@dataclass(frozen=True)
class _Making:
    """Makes encodings with encoders; without, says that what is asked for is gone."""

    encoders: Encoders | None

    def latent(self, picture: Tensor) -> Tensor:
        return self._there.backbone.encode_image(picture).cpu()

    def text(self, prompt: str, pictures: list[Tensor]) -> Mapping[str, Tensor]:
        return {n: t.cpu() for n, t in self._there.backbone.encode_text(prompt, pictures).items()}

    def condition(self, prompt: str, pictures: list[Tensor]) -> Mapping[str, Tensor]:
        if not pictures:
            raise HywuError(
                "A sample has no control picture, and the condition encoder looks at one; add it, or let the "
                "generator read the backbone's own text with --encoder backbone."
            )
        condition = self._there.condition.encode([[p[0] for p in pictures]], [prompt])
        return {"tokens": condition.tokens.cpu()} | (
            {} if condition.mask is None else {"mask": condition.mask.cpu()}
        )

    @property
    def _there(self) -> Encoders:
        if self.encoders is None:
            raise HywuError(
                "An encoding that was in the cache is gone, or its picture was changed meanwhile; start the "
                "run again with --resume, and it is made anew."
            )
        return self.encoders


def own_sizes(sample: Sample) -> list[Size]:
    """The (height, width) of a sample's controls as they are: who looks at them resizes them as it needs."""
    return [(height, width) for width, height in (control.size() for control in sample.controls)]


def together(
    edits: Sequence[Encoded], collate: Callable[[Sequence[EditSample]], EditInputs]
) -> tuple[Tensor, EditInputs, Condition]:
    """Edits of one layout as a batch: targets (B, Z, h, w), inputs, conditions (B, S, D).

    collate: the backbone's own.
    """
    return (
        torch.cat([edit.target for edit in edits]),
        collate([edit.sample for edit in edits]),
        Condition.stack([edit.condition for edit in edits]),
    )
