"""Adapters on models: the batched side path and the attachment that installs and removes it."""

from .attach import Attachment, attach
from .linear import low_rank_update

__all__ = ["Attachment", "attach", "low_rank_update"]
