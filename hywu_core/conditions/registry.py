"""Which encoder a generator learned with, by the kind its file names, and where its weights are found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import HywuError
from .backbone_hidden import BackboneHiddenEncoder
from .embedded import EmbeddedConditionEncoder
from .encoder import MODEL_NAME, ConditionEncoder
from .siglip2 import DEFAULT_PATCHES, SigLIP2Encoder

Info = Mapping[str, Any]

log = logging.getLogger("hywu")

_HUB_OWNER = "google"  # of SigLIP2, where an id does not say whose model it is


def load_encoder(info: Info, folders: Sequence[Path] = (), download: bool = False) -> ConditionEncoder:
    """The encoder that a generator's file describes (`encoder_info`), on the CPU.

    folders: where models are kept; one is a folder with config.json, by the last part of its id or all of it.
    download: allow the network, where it is neither there nor in the Hugging Face cache.

    Raises HywuError for a kind this version does not have, one that is no model of its own, a model that is
    not found (saying where it was looked for and how to get it), and one that is not as described. Other
    weights than it learned with are a warning: what it writes may still be good.
    """
    kind = str(info.get("kind"))
    if kind not in _LOADERS:
        raise HywuError(
            f"This generator reads conditions of the encoder '{kind}', which this version does not have; it "
            f"has {', '.join(sorted(_LOADERS))}. Update HY-WU or load another generator."
        )
    return _LOADERS[kind](info, folders, download)


def find_model(id: str, folders: Sequence[Path]) -> Path | None:
    """The folder of a model: `google/name` as that or as `name`, in the first of the folders that has it."""
    if not MODEL_NAME.fullmatch(id):
        raise HywuError(
            f"The encoder's id {id!r} is not the name of a model; the generator's file is damaged."
        )
    for name in dict.fromkeys((id, id.rpartition("/")[2])):
        for folder in folders:
            if (folder / name / "config.json").is_file():
                return folder / name
    return None


def _siglip2(info: Info, folders: Sequence[Path], download: bool) -> ConditionEncoder:
    id = str(info.get("id"))
    name = id.rpartition("/")[2]
    found = find_model(id, folders)
    hub = id if "/" in id else f"{_HUB_OWNER}/{id}"
    patches = int(info.get("max_patches", DEFAULT_PATCHES))
    try:
        encoder = SigLIP2Encoder.load(found or hub, max_patches=patches, allow_download=download)
    except HywuError as error:
        if found is not None or (cause := error.__cause__) is None:
            raise
        looked = " and ".join(map(str, folders)) or "no folder"
        reason = str(cause).strip().partition("\n")[0]
        hint = "the download failed" if download else "or switch on the download"
        raise HywuError(
            f"The condition encoder {name} was not found: looked for a folder {name} in {looked}, and for "
            f"{hub} in the Hugging Face cache. Put its files (https://huggingface.co/{hub}) into such a "
            f"folder, {hint} ({reason})."
        ) from error
    if encoder.dim != info.get("dim", encoder.dim):
        raise HywuError(
            f"The encoder {found or hub} gives {encoder.dim} channels, but the generator learned with {name} "
            f"of {info['dim']}; it is another model under the same name."
        )
    if "sha256" in info and info["sha256"] != encoder.sha256:
        log.warning(
            "This generator learned with other weights of the encoder %s (sha256 %.8s) than %s has (%.8s): "
            "what it makes of a picture and an instruction may be off.",
            id,
            info["sha256"],
            found or hub,
            encoder.sha256,
        )
    return encoder


def _embedded(info: Info, folders: Sequence[Path], download: bool) -> ConditionEncoder:
    EmbeddedConditionEncoder.recognise(info)
    return EmbeddedConditionEncoder.load()


def _backbone_hidden(info: Info, folders: Sequence[Path], download: bool) -> ConditionEncoder:
    raise HywuError(
        f"This generator reads the last hidden states of its backbone, {info.get('id')}, and no encoder of "
        "its own: connect hidden_states."
    )


_LOADERS: dict[str, Callable[[Info, Sequence[Path], bool], ConditionEncoder]] = {
    SigLIP2Encoder.kind: _siglip2,
    EmbeddedConditionEncoder.kind: _embedded,
    BackboneHiddenEncoder.kind: _backbone_hidden,
}
