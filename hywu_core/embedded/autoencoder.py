"""The embedded autoencoder: the TAESD architecture with 16 latent channels, 8 x 8 pixels to a latent.

Shapes: B batch, 3 colours, H x W pixels, Z = 16 latent channels, h = H/8, w = W/8.

Module names equal those of the TAESD files ComfyUI's "Load VAE" opens (`taesd_encoder.*`, `taesd_decoder.*`).
Such a file also carries `vae_scale` and `vae_shift`, which ComfyUI uses to convert between a VAE's latents
and the ones a diffusion model sees; ours hold FLUX's constants, so that inside a FLUX model the latents are
the encoder's own output.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import HywuError
from ..storage import open_safetensors
from . import AUTOENCODER

LATENT_CHANNELS = 16
DOWNSCALE = 8
# What ComfyUI's latent format of FLUX.1 applies: model latent = (VAE latent - shift) * scale.
FLUX_LATENT_SCALE, FLUX_LATENT_SHIFT = 0.3611, 0.1159
WIDTH = 64


def _conv3(n_in: int, n_out: int, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, **kwargs)


class _SoftClamp(nn.Module):
    """Bounds latents to (-3, 3), as every TAESD decoder does before its first convolution."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z / 3)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convs = [_conv3(WIDTH, WIDTH) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def _encoder() -> nn.Sequential:
    stages = [_conv3(3, WIDTH), _Residual()]
    for _ in range(3):
        stages += [_conv3(WIDTH, WIDTH, stride=2, bias=False), *(_Residual() for _ in range(3))]
    return nn.Sequential(*stages, _conv3(WIDTH, LATENT_CHANNELS))


def _decoder() -> nn.Sequential:
    stages = [_SoftClamp(), _conv3(LATENT_CHANNELS, WIDTH), nn.ReLU()]
    for _ in range(3):
        stages += [
            *(_Residual() for _ in range(3)),
            nn.Upsample(scale_factor=2),
            _conv3(WIDTH, WIDTH, bias=False),
        ]
    return nn.Sequential(*stages, _Residual(), _conv3(WIDTH, 3))


class TinyAutoencoder(nn.Module):
    """Photographs to latents and back; 2.4M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.taesd_encoder = _encoder()
        self.taesd_decoder = _decoder()

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], H and W multiples of 8, to latents (B, Z, h, w), unit variance."""
        height, width = images.shape[-2:]
        if height % DOWNSCALE or width % DOWNSCALE:
            raise HywuError(
                f"The image is {width} x {height}; the autoencoder needs multiples of {DOWNSCALE}."
            )
        return self.taesd_encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, Z, h, w) to images (B, 3, H, W), clamped to [0, 1]."""
        return self.taesd_decoder(latents).clamp(0, 1)

    def comfy_state_dict(self, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """The tensors of a file that "Load VAE" opens, the two conversion constants included."""
        tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in self.state_dict().items()}
        tensors["vae_scale"] = torch.tensor(FLUX_LATENT_SCALE)
        tensors["vae_shift"] = torch.tensor(FLUX_LATENT_SHIFT)
        return tensors

    @classmethod
    def load(cls, path: str | Path = AUTOENCODER, device: str | torch.device = "cpu") -> TinyAutoencoder:
        """Read a `taesd_*` file (any float dtype) as a frozen float32 model.

        Raises HywuError when the file is missing, damaged or of another architecture.
        """
        with open_safetensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for constant in ("vae_scale", "vae_shift"):
            tensors.pop(constant, None)
        model = cls()
        try:
            model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise HywuError(f"{path} is not a 16-channel TAESD autoencoder: {reason}") from error
        return model.to(device).eval().requires_grad_(False)
