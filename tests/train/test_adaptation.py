"""What learns: a generator, one LoRA, a LoRA for each task, or the backbone; and the files it leaves."""

import pytest
import torch
from torch import nn

from hywu_core import Condition, GeneratorConfig, LoraSpec, attach, load_adapter, load_generator
from hywu_core.errors import HywuError
from hywu_core.lora.algebra import total_norm
from hywu_core.train.adaptation import KINDS, export, make_adaptation
from hywu_core.train.objective import update_power

TASKS = ("darken", "brighten", "blur")


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.fixture
def world():
    torch.manual_seed(0)
    model = Blocks().requires_grad_(False)
    spec = LoraSpec.from_module(model, rank=2, alpha=4)
    config = GeneratorConfig(condition_dim=5, d_model=16, n_layers=1, n_heads=2)
    return model, lambda kind: make_adaptation(kind, model, spec, config, len(TASKS))


CONDITION = Condition(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)))
WHICH = torch.tensor([2, 0, 2])
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))


def run(model, adaptation):
    adapter = adaptation.adapter(CONDITION, WHICH)
    if adapter is None:
        return model(X)
    with attach(model, adapter):
        return model(X)


def learn(model, adaptation, steps=3):
    optimizer = torch.optim.Adam([p for p in adaptation.module.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (run(model, adaptation) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_one_changes_nothing_and_learning_moves_it(world, kind):
    model, make = world
    before = model(X).clone()
    adaptation = make(kind)
    assert torch.equal(run(model, adaptation), before)
    learn(model, adaptation)
    assert not torch.allclose(run(model, adaptation), before)
    if kind != "sft":  # what is frozen stays frozen
        assert torch.equal(model(X), before)


def test_a_lora_for_each_task_learns_only_from_its_own_samples(world):
    model, make = world
    adaptation = make("single_lora")
    learn(model, adaptation)
    moved = [total_norm(adaptation.module(torch.tensor([n]))).item() for n in range(len(TASKS))]
    assert moved[1] == 0  # no sample was of task 1
    assert min(moved[0], moved[2]) > 0
    one, two = (adaptation.adapter(CONDITION, WHICH).select(row) for row in (0, 2))
    assert all(torch.equal(one[name][1], two[name][1]) for name in one)


def test_one_lora_serves_every_row(world):
    make = world[1]
    adaptation = make("shared_lora")
    assert adaptation.adapter(CONDITION, WHICH).batch == 1
    counts = {kind: make(kind).n_parameters for kind in ("shared_lora", "single_lora")}
    assert counts["single_lora"] == len(TASKS) * counts["shared_lora"]


@pytest.mark.parametrize("kind", ["hywu", "shared_lora", "single_lora"])
def test_what_was_learned_is_a_file_that_gives_the_same_update(world, kind, tmp_path):
    model, make = world
    adaptation = make(kind)
    learn(model, adaptation)
    paths = export(
        adaptation, tmp_path, "learned", TASKS, encoder={"kind": "x"}, backbone={"kind": "y"}, provenance={},
        dtype=torch.float32,
    )  # fmt: skip
    ours = adaptation.adapter(CONDITION, WHICH)
    if kind == "hywu":
        theirs = load_generator(paths[0])(CONDITION)
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name])
        return
    files = [load_adapter(path) for path in paths]
    assert len(files) == (1 if kind == "shared_lora" else len(TASKS))
    for row, task in enumerate(WHICH[: ours.batch]):
        stored, one = files[0 if kind == "shared_lora" else int(task)], ours.select(row)
        for name, (A, B) in stored.items():
            torch.testing.assert_close(B @ A * stored.scale, one[name][1] @ one[name][0] * one.scale)
    if kind == "single_lora":
        assert [file.provenance["task"] for file in files] == list(TASKS)


def test_a_kind_there_is_not_is_a_sentence(world):
    with pytest.raises(HywuError, match=r"no adaptation 'lora'; choose from hywu, shared"):
        world[1]("lora")


def test_the_power_of_an_update_is_what_it_adds_for_unit_inputs(world):
    model, make = world
    adaptation = make("shared_lora")
    learn(model, adaptation)
    adapter = adaptation.adapter(CONDITION, WHICH)
    x = {name: torch.randn(200_000, A.shape[-1]) for name, (A, _) in adapter.items()}
    added = [(x[name] @ (B[0] @ A[0] * adapter.scale).T).square().mean() for name, (A, B) in adapter.items()]
    torch.testing.assert_close(update_power(adapter), torch.stack(added).mean(), rtol=0.02, atol=0)
