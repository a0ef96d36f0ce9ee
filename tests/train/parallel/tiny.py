"""A run of a second on any number of processes: a small generator bends a small frozen model."""

from __future__ import annotations

import torch
from torch import nn

from hywu_core import Condition, GeneratorConfig, LoraSpec, ParameterGenerator, attach
from hywu_core.train.config import TrainConfig
from hywu_core.train.loop import Task
from hywu_core.train.shown import Shown

REPEATS = 3  # noise levels of a condition
CONFIG = TrainConfig(
    steps=4, batch_size=24, lr=0.02, warmup=1, checkpoint_every=2, sample_every=2, device="cpu", grad_clip=0.5
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

    def __init__(self, act=lambda step: 1.0) -> None:
        torch.manual_seed(0)
        self.model = self.make_model().requires_grad_(False)
        spec = LoraSpec.from_module(self.model, rank=2, alpha=4)
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

    def make_model(self) -> nn.Module:
        return Model()

    def predict(self, x):
        return self.model(x)

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
        loss = (self.predict(x) - target[rows]).square().mean()
        self.scalars = {"rows": torch.tensor(float(len(rows)))}
        return loss * self.act(self.seen[-1] + 1)

    @torch.no_grad()
    def show(self):
        """How strong the LoRA of one condition is: a pass without gradients between two with them."""
        adapter = self.module["generator"](Condition(torch.linspace(-1, 1, 20).view(1, 4, 5)))
        power = sum(float(B.square().mean()) for _, B in adapter.values())
        return Shown({"power": power}, (), ())

    def finish(self, out):
        return ""


class TinyFlux(Tiny):
    """The same on a small transformer of diffusers; what the condition says is the mean of all tokens."""

    def make_model(self) -> nn.Module:
        from diffusers import FluxTransformer2DModel

        model = FluxTransformer2DModel(
            patch_size=1,
            in_channels=D,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=4,
            pooled_projection_dim=4,
            guidance_embeds=False,
            axes_dims_rope=(2, 2, 4),
        )
        for parameter in model.parameters():
            parameter.data = 0.3 * torch.randn_like(parameter)
        return model

    def predict(self, x):
        tokens = x[:, None] * torch.linspace(0.5, 1.5, 8)[:, None]
        words = torch.ones(len(x), 4, 4) * torch.arange(4)[:, None]
        out = self.model(
            hidden_states=tokens,
            encoder_hidden_states=words,
            pooled_projections=words[:, 0],
            timestep=torch.full((len(x),), 0.5),
            img_ids=torch.arange(8.0)[:, None].expand(8, 3),
            txt_ids=torch.zeros(4, 3),
            return_dict=False,
        )[0]
        return (out * torch.linspace(1.0, 2.0, 8)[:, None]).mean(1)
