"""Heat maps on their way to the interface."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ..hywu_core.lora.norm_table import NormTable


def as_shown(tables: Iterable[NormTable]) -> list[str]:
    """What the web extension draws, as text: ComfyUI counts the dicts a node shows as a job's outputs."""
    return [json.dumps(table.payload()) for table in tables]
