"""Random-weight models of the real shapes, made in seconds: what ComfyUI opens before anything is trained."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Strip
from tokenizers.pre_tokenizers import Split

from hywu_core import Adapter, GeneratorConfig, LoraSpec, ParameterGenerator
from hywu_core.backbones.embedded import EmbeddedBackbone, EmbeddedBackboneConfig
from hywu_core.conditions.embedded import EmbeddedConditionEncoder
from hywu_core.embedded.autoencoder import TinyAutoencoder
from hywu_core.embedded.text import EmbeddedTextEncoder, TextEncoderConfig
from hywu_core.generator.checkpoint import save_generator

RANK = 4
BACKBONE_ID = "random tiny FLUX Kontext"


def write_backbone(path: Path) -> EmbeddedBackbone:
    """A random FLUX Kontext of the embedded shape in a diffusers-format file, and the model itself."""
    torch.manual_seed(0)
    backbone = EmbeddedBackbone(EmbeddedBackboneConfig()).eval().requires_grad_(False)
    save_file(backbone.transformer.state_dict(), str(path), metadata=backbone.file_metadata())
    return backbone


def write_autoencoder(path: Path) -> TinyAutoencoder:
    """A random TAESD of 16 latent channels in a file for Load VAE, and the model itself."""
    torch.manual_seed(1)
    autoencoder = TinyAutoencoder().eval().requires_grad_(False)
    save_file(autoencoder.comfy_state_dict(torch.float32), str(path))
    return autoencoder


def write_text_encoder(path: Path) -> None:
    """A random text encoder that reads letter by letter."""
    torch.manual_seed(4)
    letters = ["<s>", "</s>", "<unk>", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.normalizer = Strip()
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    config = TextEncoderConfig(vocabulary=len(letters))
    EmbeddedTextEncoder(config, tokenizer).save(path, bits={}, provenance={})


def write_generator(path: Path, spec: LoraSpec, fresh: bool = False, encoder: str = "embedded") -> None:
    """A small generator file; a fresh one's update is zero, the others' is large enough to be seen."""
    torch.manual_seed(3)
    config = GeneratorConfig(condition_dim=EmbeddedConditionEncoder.dim, d_model=64, n_layers=1, n_heads=2)
    generator = ParameterGenerator(config, spec)
    if not fresh:
        torch.nn.init.normal_(generator.proj_out_B.weight, std=0.5)
    info = {"kind": encoder, "id": encoder, "dim": config.condition_dim}
    save_generator(path, generator, encoder=info, backbone={"kind": "embedded", "id": BACKBONE_ID})


def random_adapter(backbone: EmbeddedBackbone, batch: int = 1) -> Adapter:
    """Random updates strong enough to be seen, of the blocks' linears and of the last modulation.

    ComfyUI stores the rows of that one in another order than diffusers.
    """
    where = ["*transformer_blocks.*", "norm_out.linear"]
    spec = LoraSpec.from_module(backbone.transformer, include=where, rank=RANK, alpha=2 * RANK)
    random = torch.Generator().manual_seed(2)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=random) * 0.1

    weights = {t.name: (matrix(RANK, t.d_in), matrix(t.d_out, RANK)) for t in spec.targets}
    return Adapter(weights, spec.scale, {"base": BACKBONE_ID})
