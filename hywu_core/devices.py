"""Where to compute: a device by its name, or a sentence when it is not there."""

from __future__ import annotations

import torch

from .errors import HywuError


def resolve_device(name: str) -> torch.device:
    """The device of a name, "auto" being the best there is; HywuError when it cannot compute here."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        torch.ones(1, device=name).item()  # "meta" has tensors, but no numbers
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:  # some devices' torch is a package apart
        reason = str(error).partition("\n")[0]
        raise HywuError(f"The device '{name}' is not available here: {reason}") from error
