"""Tone: what happens to light and dark. x is (B, 3, H, W) in [0, 1]."""

from torch import Tensor

from .kernels import blurred, luma, smoothstep


def brighten(x: Tensor) -> Tensor:
    """Gamma 1/2: brighter everywhere, black and white stay."""
    return x.sqrt()


def darken(x: Tensor) -> Tensor:
    """Gamma 2.2: darker everywhere, black and white stay."""
    return x**2.2


def more_contrast(x: Tensor) -> Tensor:
    """Contrast times 2.6 about the middle grey, clipped."""
    return ((x - 0.5) * 2.6 + 0.5).clamp(0, 1)


def less_contrast(x: Tensor) -> Tensor:
    """Contrast times 0.25 about the middle grey."""
    return (x - 0.5) * 0.25 + 0.5


def lift_shadows(x: Tensor) -> Tensor:
    """Fill light: the cubic norm of (luma, 0.45) lifts the shadows and leaves the highlights alone."""
    light = luma(x)
    lifted = (light**3 + 0.45**3) ** (1 / 3)
    return (x + lifted - light).clamp(0, 1)


def crush_blacks(x: Tensor) -> Tensor:
    """All below luma 0.35 becomes black, all above 0.65 stays as it is."""
    return x * smoothstep(0.35, 0.65, luma(x))


def negative(x: Tensor) -> Tensor:
    """1 - x."""
    return 1 - x


def negative_luma(x: Tensor) -> Tensor:
    """Invert the lightness of HSL, (max + min) / 2, and keep hue and saturation."""
    return (1 - x.amax(1, keepdim=True) - x.amin(1, keepdim=True) + x).clamp(0, 1)


def posterize(x: Tensor) -> Tensor:
    """Three levels per channel, 0, 0.5 and 1, of the picture without its finest texture."""
    return (blurred(x, 1 / 160) * 2).round().clamp(0, 2) / 2


def threshold(x: Tensor) -> Tensor:
    """Black below the picture's own mean luma, white above it, with an edge a few grey levels soft."""
    light = blurred(luma(x), 1 / 160)
    return ((light - light.mean((2, 3), keepdim=True)) * 24 + 0.5).clamp(0, 1).expand_as(x)


def solarize(x: Tensor) -> Tensor:
    """The bright half of each channel is inverted (Sabattier)."""
    return x.minimum(1 - x)
