"""From a condition to an adapter that is known to be sound and says where it came from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from .conditions import Condition
from .errors import HywuError
from .generation_cache import cache_key
from .generator import ParameterGenerator
from .lora import Adapter
from .lora.limits import Limits

logger = logging.getLogger("hywu")

OnBlock = Callable[[int, int], None]


class Cache(Protocol):
    """Where finished adapters of batch 1 are kept: see `generation_cache.py`."""

    def get(self, key: str) -> Adapter | None:
        """What was put there, bit for bit, if it still is."""
        ...

    def put(self, key: str, adapter: Adapter) -> None:
        """Keep it, if there is room."""
        ...


@torch.no_grad()
def generate(
    generator: ParameterGenerator,
    condition: Condition,
    limits: Limits | None = None,
    on_block: OnBlock | None = None,
    generator_sha256: str | None = None,
) -> Adapter:
    """One adapter for each condition in one forward pass, on the generator's device, with its provenance.

    limits: bounds on the update; what they change is logged.
    on_block: called with (blocks done, blocks in all); an exception in it ends the pass.
    generator_sha256: the generator's fingerprint, for the provenance.

    Raises HywuError when the condition is of another encoder, or when a generated value is not finite.
    """
    _require_own_encoder(generator, condition)
    adapter = generator(condition.to(generator.device), on_block).check()
    adapter = told(adapter, generator, condition, generator_sha256)
    if limits is None:
        return adapter
    adapter, report = limits.apply(adapter)
    for line in report:
        logger.info("%s", line)
    return adapter


@torch.no_grad()
def generate_kept(
    generator: ParameterGenerator,
    condition: Condition,
    generator_sha256: str,
    caches: Sequence[Cache] = (),
    on_block: OnBlock | None = None,
    device: torch.device | str = "cpu",
    *,
    load: Callable[[], object] | None = None,
    load_device: torch.device | str | None = None,
) -> tuple[Adapter, int]:
    """As `generate`, each LoRA from the first cache that has it: the adapter, and how many of it were kept.

    device: where the adapter goes.
    load: brings the generator to `load_device`, and is called only when something has to be generated.

    What is new is generated one by one: a LoRA is then the same bits in whatever batch it was asked for, its
    condition carries no padding and needs no mask, and the memory is that of one. It is put into all caches
    at once, so that a cancelled batch is not lost. Conditions that occur twice are generated once.
    """
    _require_own_encoder(generator, condition)
    digests = condition.digests()
    kind = generator.device.type if load_device is None else torch.device(load_device).type
    keys = [cache_key(generator_sha256, digest, kind) for digest in digests]
    known: dict[str, Adapter] = {}
    for key in dict.fromkeys(keys):
        if (adapter := _find(key, caches)) is not None:
            known[key] = adapter
    n_kept = sum(key in known for key in keys)
    new = [key for key in dict.fromkeys(keys) if key not in known]
    if new and load is not None:
        load()
    for number, key in enumerate(new):
        one = condition.alone(keys.index(key)).to(generator.device)

        def block_done(done: int, total: int, before: int = number) -> None:
            if on_block is not None:
                on_block(before * total + done, len(new) * total)

        adapter = generator(one, block_done).check().to(device)
        known[key] = Adapter(adapter, adapter.scale, _origin(generator, generator_sha256))
        for cache in caches:
            cache.put(key, known[key])
    together = Adapter.stack([known[key] for key in keys]) if len(keys) > 1 else known[keys[0]]
    return told(together.to(device), generator, condition, generator_sha256, digests), n_kept


def told(
    adapter: Adapter,
    generator: ParameterGenerator,
    condition: Condition,
    generator_sha256: str | None = None,
    digests: Sequence[str] | None = None,
) -> Adapter:
    """The adapter with its origin: of the batch the generator, of each LoRA its condition and instruction."""
    rows = [{"condition_sha256": digest} for digest in digests or condition.digests()]
    if condition.prompts is not None:
        rows = [row | {"prompt": prompt} for row, prompt in zip(rows, condition.prompts, strict=True)]
    return Adapter(adapter, adapter.scale, _origin(generator, generator_sha256), rows)


def _require_own_encoder(generator: ParameterGenerator, condition: Condition) -> None:
    """Where both encoders are known: another one as wide would give a LoRA that means nothing."""
    given, own = condition.encoder, generator.encoder_info.get("id")
    # Older files of generators, and folders, name a model without its owner.
    if None not in (given, own) and given.rpartition("/")[2] != own.rpartition("/")[2]:
        raise HywuError(
            f"The condition is of the encoder '{given}', but this generator reads '{own}'; encode it "
            "for this generator."
        )


def _origin(generator: ParameterGenerator, generator_sha256: str | None) -> dict[str, str]:
    known = {
        "base": generator.backbone_info.get("id"),
        "encoder": generator.encoder_info.get("id"),
        "generator_sha256": generator_sha256,
    } | {f"generator_{key}": value for key, value in generator.provenance.items()}
    return {key: str(value) for key, value in known.items() if value is not None}


def _find(key: str, caches: Sequence[Cache]) -> Adapter | None:
    """From the first cache that has it, and for the next time into those asked before it."""
    for number, cache in enumerate(caches):
        if (adapter := cache.get(key)) is not None:
            for faster in caches[:number]:
                faster.put(key, adapter)
            return adapter
    return None
