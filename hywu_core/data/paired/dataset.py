"""A paired data set of any convention, in one normal form: target, controls, prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import HywuError
from .collect import Collector, Sample
from .detect import detect
from .options import Options


@dataclass(frozen=True)
class PairedDataset(Sequence[Sample]):
    """Samples by index, in a fixed order; no image is open.

        data = PairedDataset.load("dataset.toml")
        sample = data[0]
        sample.target.tensor(), [control.tensor() for control in sample.controls], sample.prompt

    A trainer groups samples with `buckets.layout_of`, draws batches of indices with `sampler.Batches`, and
    keeps what encoders make of a sample in `cache.EncodingCache`.
    """

    convention: str
    path: Path  # the file or folder that was recognised
    samples: Collector

    @classmethod
    def load(cls, path: str | Path, options: Options | None = None) -> PairedDataset:
        """Read a data set; only names and captions are read, no images.

        Raises HywuError with one sentence where it is broken: no data set, no samples, a target that is not
        there, or, unless the options allow it, a control that is not there.
        """
        options = options or Options()
        data = cls.read(path, options)
        data.check_complete(options)
        return data

    @classmethod
    def read(cls, path: str | Path, options: Options | None = None) -> PairedDataset:
        """As `load`, but with whatever is missing only noted: for a report of it."""
        options = options or Options()
        found = detect(Path(path), options)
        samples = Collector()
        found.read(found.path, options, samples)
        if not samples and not samples.missing_targets.count:
            raise HywuError(f"{found.path} ({found.convention}) has no samples.")
        return cls(found.convention, found.path, samples)

    @property
    def wordless(self) -> bool:
        """Whether no sample has a caption; looks at all where that is so."""
        return not any(sample.prompt for sample in self)

    def check_complete(self, options: Options) -> None:
        """HywuError where targets or, unless allowed, controls are missing."""
        lost = self.samples.missing_targets
        if lost.count:
            raise HywuError(
                f"{self.path}: {lost.count} of {len(self) + lost.count} edited images are missing, such as "
                f"{lost.examples[0]}; add them, or take their rows out."
            )
        lost = self.samples.missing_controls
        if lost.count and not options.allow_missing_controls:
            raise HywuError(
                f"{self.path}: {lost.count} of {len(self)} samples lack a control image, such as "
                f"{lost.examples[0]}; add them, or allow it with --allow-missing-controls."
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]
