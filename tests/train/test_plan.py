"""The plan of a run: its command, and its numbers beside what real steps take."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hywu_core import load_generator
from hywu_core.backbones.embedded import EmbeddedBackbone
from hywu_core.bench.sizes import work
from hywu_core.errors import HywuError
from hywu_core.lora import Adapter, LoraSpec
from hywu_core.measure import peak_extra_bytes
from hywu_core.tokens import TokenLayout
from hywu_core.train import plan_recipes
from hywu_core.train.__main__ import main
from hywu_core.train.average import Average
from hywu_core.train.plan_arrangement import Arrangement, Numbers, Shares
from hywu_core.train.plan_devices import accelerator
from hywu_core.train.plan_measure import RealStep, SmallRun, measure, measured_report
from hywu_core.train.plan_model import plan
from hywu_core.train.plan_moe import MixtureBackbone
from hywu_core.train.plan_names import train_size
from hywu_core.train.plan_report import report, sentence
from hywu_core.train.plan_step import Rehearsal, Weights
from hywu_core.train.recipes import recipe

from ..data import paired_writers as conventions
from .own_data import QUICK, write_data, write_models

CPU = torch.device("cpu")
TINY = SmallRun("tiny", heads=1, double=1, single=4, side=4, d_model=64, n_layers=4, batch=2)


@pytest.fixture(scope="module")
def tiny():
    return TINY.size()


@cache
def rehearsed(shares, numbers):
    """The slow part of a plan, once."""
    return Rehearsal.of(TINY.size(), shares, numbers)


def planned_for(size, how):
    seen = rehearsed(Shares.of(size, how)[0], how.numbers)
    return plan(size, how, accelerator("h100"), rehearsal=seen, reserved=0)


def one_process(checkpointing=False, precision="fp32"):
    return Arrangement(batch_size=2, precision=precision, backbone="fp32", checkpointing=checkpointing)


def attention(q, k, v, *_, out_shape=None, **__):
    (batch, heads, n, channels), keys = q, k[2]
    return 2 * 2 * batch * heads * n * keys * channels


def attention_backward(out, q, k, v, *_, out_shape=None, **__):
    """The scores again, and a product for each of four gradients."""
    return attention(q, k, v) // 2 * 5


def counted(size, how):
    """The work of a real step, by torch."""
    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        RealStep(size, how, CPU)()
    return counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_work_is_what_torch_counts_in_a_real_step(tiny, checkpointing):
    """Four blocks of a kind are planned from two and three."""
    planned = planned_for(tiny, one_process(checkpointing))
    assert sum(planned.flop.values()) == counted(tiny, one_process(checkpointing))


@pytest.mark.parametrize(
    "targets",
    [
        ["single_transformer_blocks.*"],
        ["transformer_blocks.*"],
        ["single_transformer_blocks.[1234].attn.*"],
        ["transformer_blocks.[1-3].*", "single_transformer_blocks.4.*", "single_transformer_blocks.5.proj*"],
        ["proj_out"],
    ],
)
def test_targets_may_leave_out_kinds_of_blocks_and_single_ones(targets):
    """The backward pass ends at the first block that is adapted, and passes through those after it."""
    size = replace(TINY, double=4, single=6).size()
    with torch.device("meta"):
        spec = LoraSpec.from_module(size.backbone.build(), targets, rank=8, alpha=8)
    size = replace(size, spec=spec, layout=TokenLayout.for_spec(spec))
    planned = plan(size, one_process(), accelerator("h100"))
    assert sum(planned.flop.values()) == counted(size, one_process())


def test_the_generators_forward_work_is_the_formulas(tiny):
    planned = planned_for(tiny, one_process())
    expected = work(tiny.build_generator(), 2, tiny.n_condition, starts=1)
    positions = sum(band.n_layers * parameters.n_places for band, parameters in bands(tiny))
    shared = 2 * positions * TINY.d_model**2  # the first queries to the condition are the same for both
    assert planned.flop["generator forward"] == expected - shared


@pytest.mark.parametrize(
    ("checkpointing", "precision", "within"),
    [(False, "fp32", 0.01), (True, "fp32", 0.1), (False, "bf16", 0.03)],
)
def test_the_memory_is_what_a_real_step_allocates(tiny, checkpointing, precision, within):
    how = one_process(checkpointing, precision)
    planned = planned_for(tiny, how)
    step = RealStep(tiny, how, CPU)
    step()
    step.optimizer.zero_grad(set_to_none=True)
    extra = peak_extra_bytes(step)
    assert planned.peak == pytest.approx(step.resident_bytes + extra, rel=within)


@pytest.mark.parametrize(
    ("name", "generator", "backbone", "lora"),
    [("hunyuan_image_3", 8.11e9, 80e9, 0.72e9), ("qwen_image_edit_2b", 2e9, 20e9, 0.147e9)],
)
def test_the_papers_sizes(name, generator, backbone, lora):
    size = train_size(name, {})
    weights = Weights.of(size)
    assert weights.generator == pytest.approx(generator, rel=0.02)
    assert weights.backbone == pytest.approx(backbone, rel=0.03)
    assert size.spec.n_parameters == pytest.approx(lora, rel=0.01)


@pytest.mark.parametrize("kind", ["flux_kontext", "qwen_image_edit", "longcat_image_edit"])
def test_a_recipe_is_planned_as_it_runs(kind, tmp_path, monkeypatch):
    """The same settings, the same backbone: the generator that a run leaves is the one that was planned."""
    models = write_models(tmp_path / "models", [kind])
    data = write_data(tmp_path / "data", conventions.diffsynth_json)
    monkeypatch.chdir(tmp_path)
    settings = [*QUICK, "--set", "mlp_ratio=2", "--set", "noise_levels=2", "--encoder", "backbone"]
    run = ["--recipe", kind, "--data", data, "--backbone", models[kind], "--steps", 1, "--out", "run"]
    assert main([str(each) for each in (*run, *settings)]) == 0
    trained = load_generator(tmp_path / "run" / "hywu_generator.safetensors")

    config = json.loads((models[kind] / "transformer" / "config.json").read_text(encoding="utf-8"))
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    known = plan_recipes.BACKBONES[kind]
    monkeypatch.setitem(plan_recipes.BACKBONES, kind, replace(known, config=config))
    report = tmp_path / "plan.json"
    assert main([str(each) for each in ("--plan", "--recipe", kind, *settings, "--json", report)]) == 0
    (planned,) = json.loads(report.read_text())["plans"]
    assert planned["parameters"]["generator"] == trained.n_parameters
    assert planned["parameters"]["generated LoRA"] == trained.spec.n_parameters
    assert planned["batch_size"] == 2


def test_a_batch_that_the_gpus_cannot_share_is_filled_up():
    size = replace(TINY.size(), batch_size=4)
    assert [Shares.of(size, Arrangement(gpus=n))[1] for n in (1, 3, 8)] == [4, 6, 8]


def test_the_embedded_generator_is_planned_as_its_recipe_trains_it(capsys, tmp_path):
    path = tmp_path / "plan.json"
    of_the_data = ("--set", "crops=64", "--set", "shift=2", "--set", "focus=warm", "--set", "pixels=128")
    plan = ("--plan", "--recipe", "embedded_generator")
    assert main([*plan, *of_the_data]) == 0  # a run can be told, so a plan can
    assert main([*plan, "--set", "ema=0.99", "--json", str(path)]) == 0
    (planned,) = json.loads(path.read_text())["plans"]
    assert "moving average" in capsys.readouterr().out
    assert planned["batch_size"] == recipe("embedded_generator").defaults.batch_size
    frozen = EmbeddedBackbone.load()
    assert planned["memory"]["backbone weights"] == sum(p.nbytes for p in frozen.parameters())


def test_without_a_recipe_the_run_is_planned_that_would_begin(tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "run"
    tiny = ("--set", "size=64", "--set", "noise_levels=1")
    assert main(["--plan", *tiny, "--json", str(plan)]) == 0
    (planned,) = json.loads(plan.read_text())["plans"]
    limits = ("--set", "crops=1", "--set", "photos=1", "--steps", "1", "--batch-size", "1", "--device", "cpu")
    assert main([*tiny, *limits, "--out", str(out)]) == 0
    trained = load_generator(out / "hywu_embedded_generator.safetensors")
    assert planned["parameters"]["generator"] == trained.n_parameters
    assert planned["parameters"]["generated LoRA"] == trained.spec.n_parameters
    assert planned["batch_size"] == recipe("embedded_demo").defaults.batch_size


def test_a_mixture_of_experts_applies_its_adapter():
    """The stand-in is a model: an adapter does to it what its merged weights would."""
    torch.manual_seed(0)
    dims = {
        **{"self_attn.qkv_proj": (16, 32), "self_attn.o_proj": (16, 16)},
        **{"mlp.shared_mlp.gate_and_up_proj": (16, 24), "mlp.shared_mlp.down_proj": (12, 16)},
        **{"mlp.experts.w1": (16, 12), "mlp.experts.w2": (12, 16), "mlp.experts.w3": (16, 12)},
    }
    model = MixtureBackbone(1, dims, head_dim=8, experts=4, top_k=2, channels=4, vocabulary=10)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    words, image = torch.zeros(2, 3, dtype=torch.long), torch.randn(2, 5, 4)
    weights = {}
    for name, (d_in, d_out) in dims.items():
        lead = (1, 4) if "experts." in name else (1,)
        weights[f"model.layers.0.{name}"] = (torch.randn(*lead, 2, d_in), torch.randn(*lead, d_out, 2))
    before = model(words, image)
    merged = {
        f"{name}.weight" if A.dim() == 3 else name: model.get_parameter(
            f"{name}.weight" if A.dim() == 3 else name
        )
        + (B @ A)[0]
        for name, (A, B) in weights.items()
    }
    expected = torch.func.functional_call(model, merged, (words, image))
    model.adapt(Adapter(weights))
    torch.testing.assert_close(model(words, image), expected)
    assert not torch.allclose(before, expected, atol=0.1)


def test_sharing_out_and_what_is_sent(tiny):
    alone = planned_for(tiny, one_process())
    seen = rehearsed(Shares(2, 2, 2), Numbers())

    def arranged(**how):
        how = Arrangement(precision="fp32", backbone="fp32", checkpointing=False, **how)
        return plan(tiny, how, accelerator("h100"), rehearsal=seen)

    assert alone.traffic == {}
    # Two copies of two shards each: a ring sends half, and of a shard that is averaged two halves.
    shared = arranged(gpus=4, batch_size=8, shard=2)
    weights, frozen = 4 * seen.weights.generator, 4 * seen.weights.backbone
    assert shared.memory["generator weights"] == alone.memory["generator weights"] / 2 == weights / 2
    assert shared.memory["AdamW moments"] == weights
    assert shared.traffic == {
        "gather generator (FSDP)": weights,
        "reduce gradients (FSDP)": weights / 2,
        "gather backbone (FSDP)": frozen,
        "average gradients": weights / 2,
    }
    # Two processes write LoRAs together: half of the work each, switching x twice a block and pass.
    split = arranged(gpus=2, batch_size=2, sequence=2)
    assert split.flop["generator forward"] == alone.flop["generator forward"] / 2
    assert split.flop["backbone forward"] == alone.flop["backbone forward"]
    x = 2 * sum(band.n_layers * parameters.n_places for band, parameters in bands(tiny)) * TINY.d_model * 4
    assert split.traffic["generator sequence (DSP)"] == 2 * TINY.n_layers * 2 * (x / 2) / 2
    assert split.traffic["share adapters (DSP)"] == 2 * (2 * tiny.spec.n_parameters * 4) / 2


@pytest.mark.parametrize(("backbone", "parts"), [("bf16", 2), ("int8", 1)])
def test_a_quantised_backbone_stays_whole_on_every_process(tiny, backbone, parts):
    """As `sharding.can_shard` has it: only plain numbers are cut up, and only they are gathered again."""
    seen = rehearsed(Shares(2, 2, 2), Numbers())
    alone, divided = (
        plan(
            tiny,
            Arrangement(gpus=2, batch_size=4, backbone=backbone, shard=n),
            accelerator("h100"),
            rehearsal=seen,
        )
        for n in (1, 2)
    )
    assert divided.memory["backbone weights"] == alone.memory["backbone weights"] / parts
    assert ("gather backbone (FSDP)" in divided.traffic) is (parts == 2)
    assert divided.memory["generator weights"] == alone.memory["generator weights"] / 2


def test_a_moving_average_is_a_copy_of_what_is_trained(tiny):
    """Kept in float32 and cut up as the weights are, whatever these are kept in."""
    seen = rehearsed(Shares(2, 2, 2), Numbers())
    how = Arrangement(gpus=2, batch_size=4, shard=2, weights="bf16")
    without, averaged = (
        plan(tiny, each, accelerator("h100"), rehearsal=seen) for each in (how, replace(how, ema=0.999))
    )
    kept = sum(t.nbytes for t in Average(tiny.build_generator(), 0.999).weights.values())
    assert averaged.memory["moving average"] == kept / 2
    assert averaged.peak - without.peak == kept / 2
    assert averaged.seconds["update"] > without.seconds["update"]


def test_the_sentence_says_whether_it_fits_and_what_to_do(tiny):
    planned = planned_for(tiny, one_process())
    assert sentence(planned) == f"1 GPU: fits, needs {planned.peak / 1e9:.2f} of 80.00 GB."
    many = Arrangement(gpus=64, sequence=2)
    waiting = replace(planned, arrangement=many, seconds={**planned.seconds, "traffic beside it": 1e9})
    assert "waits for traffic; --shard 4 --replicate 8" in sentence(waiting)
    within = replace(waiting, arrangement=Arrangement(gpus=64, sequence=2, shard=8))
    assert "waits" not in sentence(within)
    copies = Arrangement(gpus=16, sequence=2, shard=8)
    assert "  4 x 2 x 1" in report([replace(planned, arrangement=copies)])
    crowded = replace(planned, arrangement=copies, available=sum(planned.memory.values()) / 100)
    assert "Try --shard 8 --replicate 1," in sentence(crowded)
    small = replace(planned, available=planned.peak / 2)
    assert "does not fit" in sentence(small)
    assert "the largest parts are generator activations" in sentence(small)
    assert "--recompute" in sentence(small)


def bands(size):
    return zip(size.spec.bands, size.build_generator().bands, strict=True)


def test_more_gpus_than_conditions_is_a_sentence(tiny):
    with pytest.raises(HywuError, match=r"batch size 3 cannot be dealt out to 2 GPUs; take a multiple of 2"):
        Shares.of(tiny, Arrangement(gpus=2, batch_size=3))


@pytest.mark.parametrize(
    ("levels", "batch", "ulysses", "adapters"), [(4, 4, 1, 1), (4, 12, 1, 6), (4, 4, 2, 1)]
)
def test_a_team_writes_as_many_adapters_as_a_run_does(tiny, levels, batch, ulysses, adapters):
    how = Arrangement(gpus=2, sequence=2, backbone_sequence=ulysses, batch_size=batch)
    assert Shares.of(replace(tiny, noise_levels=levels), how)[0].adapters == adapters


def test_small_runs_are_measured_beside_their_plans():
    result = measure("cpu", (TINY, replace(TINY, name="checked", n_layers=3)), rounds=1)
    first, second = (run["quantities"] for run in result["runs"])
    assert first["step, ms"]["error"] is None
    assert second["step, ms"]["error"] is not None
    for quantities in (first, second):
        assert quantities["weights, MB"]["error"] == 0
        assert abs(quantities["GFLOP"]["error"]) < 1e-6
        assert abs(quantities["peak memory, MB"]["error"]) < 0.02
    assert "checked: peak memory, MB" in measured_report(result)


def test_the_command_prints_a_table_and_writes_json(capsys, tmp_path):
    path = tmp_path / "plan.json"
    command = ["--plan", "--gpus", "1", "2", "--memory", "0.001", "--set", "pixels=64"]
    assert main([*command, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    plans = json.loads(path.read_text())["plans"]
    assert [each["arrangement"]["gpus"] for each in plans] == [1, 2]
    assert "gather generator (FSDP)" in printed
    assert "1 GPU: does not fit, needs" in printed
    assert plans[0]["peak"] == pytest.approx(sum(plans[0]["memory"].values()))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--plan", "--recipe", "nonsense"], "no plan for 'nonsense'"),
        (["--plan", "--gpus", "0"], "gpus is 0"),
        (["--plan", "--gpus", "3", "--shard", "2"], "cannot be 3 processes"),
        (["--plan", "--memory", "0"], "must be positive"),
        (["--plan", "--efficiency", "2"], "at most 1"),
        (["--plan", "--batch-size", "many"], "must be a whole number"),
        (["--plan", "--batch-size", "-4"], "batch_size is -4; it must be at least 1"),
        (["--plan", "--batch-size", "0"], "batch_size is 0; it must be at least 1"),
        (["--plan", "--recipe", "flux_kontext", "--set", "noise_levels=0"], "noise_levels is 0; it must"),
        (["--plan", "--resume", "run"], "--resume is without effect on a plan"),
        (["--plan", "--out", "run"], "--out is without effect on a plan"),
        (["--plan", "--recipe", "flux_kontext", "--resolution", "-512"], "resolution is -512; it must"),
        (["--plan", "--set", "colour=red"], "no setting 'colour'"),
        (["--plan", "--adaptation", "sft"], "for the adaptation hywu, not for sft"),
        (["--plan", "--recipe", "qwen_image_edit_2b", "--quantize", "int3"], "backbone is 'int3'"),
        (["--plan", "--quantize", "int8"], "embedded_demo' has no setting 'quantize'"),
        (["--plan", "--set", "backbone_dtype=bf16"], "no setting 'backbone_dtype'"),
        (["--plan", "--recipe", "embedded_generator", "--set", "rank=0"], "rank is 0"),
        (["--plan", "--set", "ema=1"], "ema is 1.0; it must be at least 0"),
        (["--plan", "--set", "ema=slow"], "ema is 'slow'; it must be a number"),
        (["--plan", "--set", "rank"], "NAME=VALUE"),
        (["--plan", "--recipe", "qwen_image_edit_2b", "--set", "d_model=wide"], "must be a number"),
        (["--plan", "--set", "d_model=64"], "embedded_demo' has no setting 'd_model'"),
        (["--plan", "--resolution", "128"], "embedded_demo' has no setting 'resolution'"),
        (["--plan", "--json", "no/such/folder.json"], "name a file in a folder that exists"),
        (["--gpus", "8"], "--gpus is about a plan"),
        (["--measure"], "--measure is about a plan"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said):
    with pytest.raises(HywuError, match=said):
        main(arguments)
