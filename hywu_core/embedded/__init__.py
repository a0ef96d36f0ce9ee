"""The embedded world: small real models that ship with the project, so that everything runs on a laptop.

Each sub-folder with weights (`diffusion_models`, `vae`, `text`, `hywu`) is laid out so that stock ComfyUI
loaders list what they can open; a model card stands beside every file.
"""

from pathlib import Path

ROOT = Path(__file__).parent
AUTOENCODER = ROOT / "vae" / "hywu_embedded_autoencoder.safetensors"
BACKBONE = ROOT / "diffusion_models" / "hywu_embedded_flux_kontext.safetensors"
GENERATOR = ROOT / "hywu" / "hywu_embedded_generator.safetensors"
