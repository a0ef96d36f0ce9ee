"""Looking at every image of a data set, several at a time: sizes, damage, and which pictures are the same."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ...errors import HywuError
from .collect import Findings, Sample
from .dataset import PairedDataset
from .pictures import Picture

_WINDOW = 256  # samples handed out at a time
_BLOCK = 16  # pixels
_ALIKE = 3.0  # of 255: no block of two pictures differs more where only compression does


@dataclass
class Scan:
    """What the images of a data set are like."""

    targets: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height)
    controls: Counter[tuple[int, int]] = field(default_factory=Counter)
    samples: Counter[tuple[tuple[int, int], ...]] = field(default_factory=Counter)  # sizes of all pictures
    unreadable: Findings = field(default_factory=Findings)
    # The rest is known only of a thorough scan.
    duplicates: Findings = field(default_factory=Findings)  # samples that an earlier one equals
    same_targets: Findings = field(default_factory=Findings)  # targets that an earlier sample has too
    identical: Findings = field(default_factory=Findings)  # the target is one of its own controls
    alike: Findings = field(default_factory=Findings)  # nearly so


@dataclass(frozen=True)
class _Look:
    """What a look at one sample finds."""

    sizes: list[tuple[int, int]]  # of the target, then of the controls
    unreadable: list[str]
    digest: bytes = b""  # of the target's pixels
    sample_digest: bytes = b""  # of all pixels and the prompt
    identical: bool = False
    alike: bool = False


def scan(data: PairedDataset, thorough: bool = True, on_sample: Callable[[int], None] | None = None) -> Scan:
    """Look at all images. thorough: decode them whole; else only their headers are read.

    on_sample(samples done): called now and then. Memory: a few images per thread, 32 bytes per sample.
    """
    found = Scan()
    targets, whole = bytearray(), bytearray()
    known: list[int] = []  # the samples behind the digests
    look = _thorough if thorough else _brief
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        try:
            for start in range(0, len(data), _WINDOW):
                window = range(start, min(start + _WINDOW, len(data)))
                for index, seen in zip(window, threads.map(lambda i: look(data[i]), window), strict=True):
                    _note(found, data, index, seen)
                    if seen.digest:
                        targets += seen.digest
                        whole += seen.sample_digest
                        known.append(index)
                if on_sample is not None:
                    on_sample(window.stop)
        except BaseException:  # Ctrl-C: a window of large images would keep the user waiting
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    repeated = _repeated(whole)
    for later, first in repeated.items():
        found.duplicates.add(f"{data[known[later]].target} and {data[known[first]].target}")
    for later, first in _repeated(targets).items():
        if later not in repeated:
            found.same_targets.add(f"{data[known[later]].target} and {data[known[first]].target}")
    return found


def _note(found: Scan, data: PairedDataset, index: int, seen: _Look) -> None:
    for place in seen.unreadable:
        found.unreadable.add(place)
    if not seen.unreadable:
        found.samples[tuple(seen.sizes)] += data.samples.repeats[index]
        found.targets[seen.sizes[0]] += 1
        found.controls.update(seen.sizes[1:])
    if seen.identical:
        found.identical.add(str(data[index].target))
    elif seen.alike:
        found.alike.add(str(data[index].target))


def _brief(sample: Sample) -> _Look:
    sizes, unreadable = [], []
    for picture in (sample.target, *sample.controls):
        try:
            sizes.append(picture.size())
        except HywuError as error:
            unreadable.append(str(error))
    return _Look(sizes, unreadable)


def _thorough(sample: Sample) -> _Look:
    sizes, unreadable, digests = [], [], []
    target, alike = None, False
    for picture in (sample.target, *sample.controls):
        try:
            pixels = _pixels(picture)
        except HywuError as error:
            unreadable.append(str(error))
            continue
        sizes.append((pixels.shape[1], pixels.shape[0]))
        digests.append(_digest(pixels))
        if picture is sample.target:
            target = pixels
        elif target is not None and digests[-1] != digests[0]:
            alike = alike or _nearly_equal(target, pixels)
    if unreadable:
        return _Look(sizes, unreadable)
    text = "\0".join((sample.prompt, *sample.also)).encode("utf-8", "surrogatepass")
    together = hashlib.blake2b(b"".join(digests) + text, digest_size=16).digest()
    return _Look(sizes, [], digests[0], together, digests[0] in digests[1:], alike)


def _pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.rgb())


def _digest(pixels: np.ndarray) -> bytes:
    """Of what is seen: the same picture in another file format has the same."""
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()


def _nearly_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures (H, W, 3) differ nowhere by more than compression makes them differ."""
    if one.shape != other.shape:
        return False
    rows, columns = (range(0, length, _BLOCK) for length in one.shape[:2])

    def blocks(pixels: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=0, dtype=np.float32), columns, axis=1)
        return sums / (
            _sizes(rows, len(pixels))[:, None, None] * _sizes(columns, pixels.shape[1])[None, :, None]
        )

    return bool(np.abs(blocks(one) - blocks(other)).max() < _ALIKE)


def _sizes(starts: range, length: int) -> np.ndarray:
    """Lengths of blocks that begin at `starts`."""
    return np.diff([*starts, length]).astype(np.float32)


def _repeated(digests: bytearray) -> dict[int, int]:
    """{later: first} of equal digests of 16 bytes each."""
    values = np.frombuffer(bytes(digests), dtype=np.dtype("V16"))
    if not len(values):
        return {}
    pairs = values.view(np.uint64).reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: of equal ones the first comes first
    same = (pairs[order][1:] == pairs[order][:-1]).all(axis=1)
    found, first = {}, int(order[0])
    for place, equal in zip(order[1:].tolist(), same.tolist(), strict=True):
        if equal:
            found[place] = first
        else:
            first = place
    return dict(sorted(found.items()))
