"""Where ComfyUI finds this pack's models."""

from pathlib import Path

import folder_paths

from ..hywu_core.embedded import ROOT

GENERATORS = "hywu"


def register_model_folders() -> None:
    """Generators live in `models/hywu`; the embedded models are listed by the loaders of their kind."""
    folder_paths.add_model_folder_path(GENERATORS, str(Path(folder_paths.models_dir) / GENERATORS))
    for kind in (GENERATORS, "diffusion_models", "vae"):
        folder_paths.add_model_folder_path(kind, str(ROOT / kind))
    _paths, extensions = folder_paths.folder_names_and_paths[GENERATORS]
    extensions.add(".safetensors")
