"""Where ComfyUI finds this pack's models, and whether they are still the same."""

from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ..hywu_core.embedded import ROOT

GENERATORS = "hywu"
FileStates = tuple[tuple[str, int, int], ...]


def register_model_folders() -> None:
    """Generators live in `models/hywu`; the embedded models are listed by the loaders of their kind."""
    folder_paths.add_model_folder_path(GENERATORS, str(Path(folder_paths.models_dir) / GENERATORS))
    for kind in (GENERATORS, "diffusion_models", "vae"):
        folder_paths.add_model_folder_path(kind, str(ROOT / kind))
    _paths, extensions = folder_paths.folder_names_and_paths[GENERATORS]
    extensions.add(".safetensors")


def states(files: Iterable[Path]) -> FileStates:
    """Name, date and size of the files that are there: other values when one is replaced by any other."""
    found = ((file.name, file.stat()) for file in sorted(files) if file.is_file())
    return tuple((name, state.st_mtime_ns, state.st_size) for name, state in found)
