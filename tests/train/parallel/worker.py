"""What the processes of `test_parallel.py` do: `torchrun ... worker.py CASES.json OUT`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from hywu_core.train.loop import train
from hywu_core.train.parallel import Parallel, ParallelConfig
from tests.train.parallel.tiny import CONFIG, RUN, Tiny


def gradients(task, parallel, config) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and every gradient of the first step, whole."""
    parallel.apply(task, config)
    generator, losses = torch.Generator().manual_seed(config.seed), []
    for index in range(config.accumulate):
        loss = task.loss(task.batch(config.micro_batch, generator, index), generator)
        (loss / config.accumulate).backward()
        losses.append(loss.detach())
    parallel.average_gradients(task.module.parameters())
    loss = float(parallel.mean(torch.stack(losses).mean()))
    found = {name: p.grad for name, p in task.module.named_parameters()}
    return loss, {n: (g.full_tensor() if hasattr(g, "full_tensor") else g) for n, g in found.items()}


def case(parallel, folder: Path, settings: dict) -> None:
    config = replace(CONFIG, **settings)
    loss, found = gradients(Tiny(), parallel, config)
    out = folder / "run"
    if parallel.main:
        out.mkdir(parents=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in found.items()}, folder / "gradients.safetensors"
        )
    parallel.barrier()
    reports = []

    class Watch:
        def on_step(self, report):
            reports.append([report.step, report.loss, report.grad_norm, report.scalars["rows"]])

    task = Tiny()
    losses = train(task, config, out, {**RUN, "config": config.to_dict()}, parallel=parallel, watch=Watch())
    if parallel.main:
        save_file(
            {n: t.contiguous() for n, t in task.module.state_dict().items()}, folder / "weights.safetensors"
        )
        task.attachment.remove()
        plain = {
            "loss": loss,
            "losses": losses,
            "reports": reports,
            "out": task.model(torch.ones(2, 6)).tolist(),  # alone again: nobody else calls
        }
        (folder / "told.json").write_text(json.dumps(plain))


def main() -> None:
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    with Parallel.joined(ParallelConfig(), "cpu"):
        for name, (arrangement, settings) in cases.items():
            case(Parallel(ParallelConfig(**arrangement)), out / name, settings)


if __name__ == "__main__":
    main()
