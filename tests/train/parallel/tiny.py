"""A run of a second on any number of processes: a small generator bends a small frozen model."""

from __future__ import annotations

import torch
from torch import nn

from hywu_core import Condition, GeneratorConfig, LoraSpec, ParameterGenerator, attach
from hywu_core.train.config import TrainConfig
from hywu_core.train.loop import Task

REPEATS = 3  # noise levels of a condition
CONFIG = TrainConfig(
    steps=4, batch_size=24, lr=0.02, warmup=1, checkpoint_every=2, device="cpu", grad_clip=0.5
)
RUN = {"recipe": "tiny", "config": CONFIG.to_dict(), "settings": {}}
D = 6


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)

    def forward(self, x):
        return x + self.down(self.up(x).tanh())


class Model(nn.Module):
    """Five blocks, which two processes cannot share evenly, and three."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(Layer() for _ in range(5))
        self.second = nn.ModuleList(Layer() for _ in range(3))
        self.out = nn.Linear(D, D)

    def forward(self, x):
        for block in (*self.first, *self.second):
            x = block(x)
        return self.out(x)


class Tiny(Task):
    """Learn to map noise to what a condition says. `act(step)` may spoil a step, whose loss it multiplies."""

    name = "tiny"

    def __init__(self, act=lambda step: 1.0, extra: bool = True) -> None:
        torch.manual_seed(0)
        self.model = Model().requires_grad_(False)
        spec = LoraSpec.from_module(self.model, rank=2, alpha=4, include=("first.*", "second.*"))
        config = GeneratorConfig(condition_dim=5, d_model=16, n_layers=2, n_heads=2)
        self.generator = ParameterGenerator(config, spec)
        for (
            parameter
        ) in self.generator.parameters():  # far from the zero start, where most gradients are zero
            parameter.data += 0.05 * torch.randn_like(parameter)
        # A part that is no generator: each process keeps it whole.
        self.module = nn.ModuleDict({"generator": self.generator, "project": nn.Linear(5, 5)})
        self.frozen = (self.model,)
        self.attachment, self.act, self.seen = None, act, []

    def batch(self, size, generator, index):
        self.seen.append(index)
        n = size // REPEATS
        tokens, target = torch.randn(n, 4, 5, generator=generator), torch.randn(n, D, generator=generator)
        own = self.share.conditions.rows(n)
        return tokens[own], target[own]

    def loss(self, batch, generator):
        tokens, target = batch
        adapter = self.module["generator"](Condition(self.module["project"](tokens)))
        adapters, rows = self.share.pairs(len(target), REPEATS)
        if self.attachment is None:
            self.attachment = attach(self.model, adapter.select(adapters))
        else:
            self.attachment.swap(adapter.select(adapters))
        whole = len(rows) * self.share.world
        x = torch.randn(whole, D, generator=generator)[self.share.rows(whole)]
        loss = (self.model(x) - target[rows]).square().mean()
        self.scalars = {"rows": torch.tensor(float(len(rows)))}
        return loss * self.act(self.seen[-1] + 1)

    def finish(self, out):
        return ""
