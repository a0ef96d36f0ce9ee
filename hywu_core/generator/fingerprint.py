"""One name for everything that decides what a generator writes: the key of caches, and provenance."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .model import ParameterGenerator

_PIECE = 64 * 2**20  # bytes hashed, and brought from another device, at a time


def fingerprint(generator: ParameterGenerator) -> str:
    """SHA-256 of every weight's bits and of config, spec, layout and encoder, as hex.

    The same on every device; another dtype or quantisation of the same weights is another generator, because
    it writes other numbers. Every byte is read once, several tensors at a time (hashing leaves Python's
    lock): a fraction of what reading the file took. Compute it once for a loaded generator and keep it.
    """
    described = {
        "config": generator.config.to_dict(),
        "spec": generator.spec.to_dict(),
        "layout": generator.layout.to_dict(),
        "encoder": generator.encoder_info,
    }
    total = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    tensors = sorted(generator.state_dict().items())
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        digests = pool.map(_digest, (tensor for _, tensor in tensors))
        for (name, tensor), digest in zip(tensors, digests, strict=True):
            total.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + digest)
    return total.hexdigest()


def _digest(tensor: Tensor) -> bytes:
    digest = hashlib.sha256()
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for piece in flat.split(_PIECE):
        digest.update(piece.cpu().numpy().data)
    return digest.digest()
