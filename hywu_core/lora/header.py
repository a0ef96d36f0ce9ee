"""What a saved adapter's header says: for model managers (modelspec, ss_*) and for us (`hywu.*`).

Provenance travels as `hywu.*` and comes back on loading. The instruction goes into a file only when asked: a
LoRA is passed on to people who were not meant to read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone

from ..errors import HywuError
from .adapter import Adapter
from .architectures import architecture_for
from .keys import KeyFormat

FORMAT_VERSION = "1"
_PREFIX = "hywu."
_PROMPT = "prompt"
# What describes the file and not the adapter in it; on loading it is read, on saving written anew.
_OF_THE_FILE = ("format_version", "scale")
OF_THE_ROW = ("condition_sha256", _PROMPT)  # what the adapters of one batch may have different ones of


def header_of(
    adapter: Adapter,
    title: str,
    strength: float,
    key_format: KeyFormat | None,
    scale: float = 1.0,
    include_prompt: bool = False,
) -> dict[str, str]:
    """The header of a file that holds the only adapter of a batch.

    strength: baked in now; it multiplies what was baked into the file the adapter came from.
    key_format, scale: how the file names its tensors, and what its reader must still multiply B with.
    """
    base = adapter.provenance.get("base", "")
    architecture = architecture_for(adapter, base)
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title.encode(errors="replace").decode(),  # a file name may have bytes of no text
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modelspec.implementation": "hywu",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.rank),
    }
    if architecture:
        names = architecture.header_of(base)
        header["modelspec.architecture"] = names.modelspec
        header["ss_base_model_version"] = names.base_model_version
    told = provenance_in(adapter.provenance) | dict(adapter.rows[0] if adapter.rows else {})
    told.pop("key_format", None)
    if not include_prompt:
        told.pop(_PROMPT, None)
    told |= {"format_version": FORMAT_VERSION, "strength": repr(float(strength) * _baked(told))}
    if key_format is not None:
        told |= {"key_format": key_format, "scale": repr(float(scale))}
    return header | {f"{_PREFIX}{key}": str(value) for key, value in told.items()}


def told_by(header: Mapping[str, str]) -> dict[str, str]:
    """The `hywu.*` entries of a header, without their prefix."""
    return {key.removeprefix(_PREFIX): value for key, value in header.items() if key.startswith(_PREFIX)}


def provenance_in(told: Mapping[str, str]) -> dict[str, str]:
    """What of a header's entries describes the adapter and not its file."""
    return {key: value for key, value in told.items() if key not in _OF_THE_FILE}


def parted(told: Mapping[str, str]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """A header's entries as an adapter's provenance and its one row."""
    kept = provenance_in(told)
    row = {key: kept.pop(key) for key in OF_THE_ROW if key in kept}
    return kept, [row] if row else []


def number_in(told: Mapping[str, str], key: str) -> float:
    """A number of the header, 1 if it is not there; `HywuError` if it is none."""
    try:
        number = float(told.get(key, "1"))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise HywuError(f"its header says the {key} is {told[key]!r}, which is no number.")
    return number


def _baked(told: Mapping[str, str]) -> float:
    try:
        return float(told.get("strength", "1"))
    except ValueError:
        return 1.0
