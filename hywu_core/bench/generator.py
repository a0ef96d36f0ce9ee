"""The generator: time, memory and FLOP/s of one forward pass, beside the authors' code on the same weights.

What is compared runs in turns in one process, without gradients, and ratios are taken round by round; a plain
matrix product runs in the same rounds, so that the share of the machine's ceiling is a ratio too. Work that
an implementation does not do is not counted for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..conditions import Condition
from ..devices import resolve_device
from ..errors import HywuError, require_positive
from ..generator import ParameterGenerator
from ..generator.model import KEEP_START_BYTES
from ..generator.release_config import read_config
from ..measure import Run, in_turns, matmul_ceiling, peak_extra_bytes, threads
from ..report import machine, megabytes, table
from . import official, parity
from . import plan as planning
from .sizes import SIZES, Size, typical_products, work

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CEILING_ROWS = 4096
_MB = 1_000_000
_MOST_MB = sys.float_info.max / _MB  # which has a number of bytes


def configure(parse: argparse.ArgumentParser) -> None:
    """Add the options of this bench."""
    parse.add_argument("--config", choices=SIZES, default="mid", help="which generator (%(default)s)")
    parse.add_argument("--against", type=Path, metavar="FOLDER", help="a copy of the official repository")
    parse.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (%(default)s)")
    parse.add_argument("--dtype", choices=_DTYPES, help="of the weights (float32 on a CPU, else bfloat16)")
    parse.add_argument("--rounds", type=int, default=7, help="measured rounds (%(default)s)")
    parse.add_argument("--batch", type=int, default=1, help="conditions at once (%(default)s)")
    parse.add_argument("--threads", type=int, help="of the CPU (default: torch's own choice)")
    parse.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time instead of the clock's, for a busy CPU; best with --threads 1",
    )
    parse.add_argument("--activation-mb", type=float, metavar="MB", help="bound on ours in work at a time")
    parse.add_argument(
        "--keep-start-mb",
        type=float,
        metavar="MB",
        default=KEEP_START_BYTES / _MB,
        help="what ours may keep between calls (%(default).0f)",
    )
    parse.add_argument("--compile", action="store_true", help="let torch compile our blocks' parts")
    parse.add_argument("--plan", action="store_true", help="print what it would take and measure nothing")
    parse.add_argument(
        "--parity", type=int, metavar="N", help="compare N random small generators with --against instead"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; plain data."""
    require_positive(arguments, "rounds", "batch", "threads", "parity")
    if arguments.activation_mb is not None and not 0 < arguments.activation_mb <= _MOST_MB:
        raise HywuError(f"activation_mb is {arguments.activation_mb:g}; it must be positive and finite.")
    if not 0 <= arguments.keep_start_mb <= _MOST_MB:
        raise HywuError(f"keep_start_mb is {arguments.keep_start_mb:g}; it must not be negative or infinite.")
    if arguments.parity is not None:
        if arguments.against is None:
            raise HywuError("--parity compares with the official code: name a copy of it with --against.")
        return parity.run(arguments.against, arguments.parity)
    size, settings = SIZES[arguments.config], _settings(arguments)
    # A plan is made for a device that need not be here.
    device = _kind(arguments.device) if arguments.plan else resolve_device(arguments.device)
    plan = planning.plans(size, batch=arguments.batch, device=device, **settings)
    if arguments.plan:
        return {"bench": "plan", "config": arguments.config, "batch": arguments.batch, "plans": plan}
    dtype = arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    _require_memory(arguments.config, plan, dtype, device)
    with threads(arguments.threads):
        return _measure(arguments, size, settings, device, dtype)


def report(result: Mapping[str, Any]) -> str:
    """The result as text."""
    if result["bench"] == "parity":
        return parity.report(result)
    if result["bench"] == "plan":
        return planning.report(result["plans"])
    rows = []
    for name, seconds in result["seconds"].items():
        rows.append(
            [
                name,
                f"{seconds['median']:.3f} [{seconds['minimum']:.3f}, {seconds['maximum']:.3f}]",
                f"{result['flop'][name] / seconds['median'] / 1e9:,.0f}",
                f"{result['share_of_ceiling'][name]['median']:.0%}",
                megabytes(result["peak_extra_bytes"][name]),
            ]
        )
    where = result["machine"]
    work_done = ", ".join(f"{name} {flop / 1e12:.3g}" for name, flop in result["flop"].items())
    rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in result["products"].items())
    lines = [
        f"generator {result['config']}: {result['weights']:,} weights, {result['dtype']}, batch "
        f"{result['batch']} on {where['name']} ({where['device']}); TFLOP: {work_done}",
        table(["", f"{result['clock']} seconds", "GFLOP/s", "of ceiling", "peak extra memory"], rows),
        f"ceiling: {result['ceiling_flops'] / 1e9:,.0f} GFLOP/s, the fastest of the products {rates}",
    ]
    if "time_ratio" in result:
        ratio = result["time_ratio"]
        lines.append(
            f"ours / official: time {ratio['median']:.2f} [{ratio['minimum']:.2f}, {ratio['maximum']:.2f}]"
            + (f", memory {result['memory_ratio']:.2f}" if "memory_ratio" in result else "")
            + f"; largest difference {result['difference']:.1e} of the largest value"
        )
    return "\n".join(lines)


def random_generator(
    config: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> ParameterGenerator:
    """A generator of a release's config with seeded random weights, made on the device, every part active."""
    torch.manual_seed(0)
    with torch.device("meta"):
        generator = ParameterGenerator(*read_config(config))
    generator = generator.to(dtype).to_empty(device=device)
    generator.reset_parameters()
    torch.nn.init.normal_(generator.proj_out_B.weight, std=generator.config.d_row**-0.5)
    return generator.eval()


def _kind(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise HywuError(f"There is no kind of device {name!r}; say cpu, cuda or mps.") from error


def _settings(arguments: argparse.Namespace) -> dict[str, int | None]:
    bound = arguments.activation_mb
    return {
        "activation_bytes": None if bound is None else max(1, round(bound * _MB)),
        "keep_start_bytes": round(arguments.keep_start_mb * _MB),
    }


def _measure(
    arguments: argparse.Namespace, size: Size, settings: Mapping[str, Any], device: torch.device, dtype: str
) -> dict[str, Any]:
    ours = random_generator(size.config, device, _DTYPES[dtype])
    for name, value in settings.items():
        setattr(ours, name, value)
    tokens = torch.randn(arguments.batch, size.n_condition, size.config["input_dim"], device=device)
    condition = Condition(tokens.to(_DTYPES[dtype]))
    contenders: dict[str, Run] = {"ours": lambda: ours(condition)}
    if arguments.against is not None:
        theirs = official.build(arguments.against, size.config, ours)
        contenders["official"] = lambda: theirs(condition.tokens)
    result: dict[str, Any] = {
        "bench": "generator",
        "config": arguments.config,
        "dtype": dtype,
        "batch": arguments.batch,
        "clock": "processor" if arguments.processor_time else "wall",
        "compiled": arguments.compile,
        "n_condition": size.n_condition,
        "weights": ours.n_parameters,
        "machine": machine(device),
        "settings": dict(settings),
    }
    with torch.no_grad():
        # First of all calls, so that what ours keeps between calls is in its peak.
        result["peak_extra_bytes"] = {name: peak_extra_bytes(one, device) for name, one in contenders.items()}
        if "official" in contenders:
            result["difference"] = official.compare(ours(condition), theirs(condition.tokens))
        if arguments.compile:
            ours.compile_blocks()
        products = typical_products(ours, _CEILING_ROWS)
        rates = matmul_ceiling(products, device, _DTYPES[dtype])
        product, flop = max(rates, key=rates.__getitem__).runner(device, _DTYPES[dtype], seconds=0.5)
        clock = time.process_time if arguments.processor_time else time.perf_counter
        rounds = in_turns(contenders | {"product": product}, arguments.rounds, device, clock=clock)
    starts = {"ours": 0 if ours.keeps_start else 1, "official": arguments.batch}
    result["flop"] = {
        name: work(ours, arguments.batch, size.n_condition, starts[name]) for name in contenders
    }
    result["products"] = {str(one): rate for one, rate in rates.items()}
    # The product is timed in the same rounds, so the share is free of what the rounds had in common.
    result["ceiling_flops"] = flop / rounds.spread("product").minimum
    result["seconds"] = {name: rounds.spread(name).to_dict() for name in contenders}
    result["share_of_ceiling"] = {
        name: rounds.ratio("product", name).scaled(result["flop"][name] / flop).to_dict()
        for name in contenders
    }
    if "official" in contenders:
        result["time_ratio"] = rounds.ratio("ours", "official").to_dict()
        peaks = result["peak_extra_bytes"]
        if peaks["official"]:
            result["memory_ratio"] = peaks["ours"] / peaks["official"]
    return result


def _require_memory(config: str, plans: list[dict[str, Any]], dtype: str, device: torch.device) -> None:
    """HywuError for the full release where it would not fit, or would take a CPU hours."""
    if config != "release":
        return
    peak = next((row["peak"] for row in plans if row["weights_as"] == dtype), plans[0]["peak"])
    if device.type == "cpu":
        raise HywuError(
            f"The released generator needs {megabytes(peak)} and 3.0 PFLOP, hours on a CPU; measure it with "
            "--device cuda on a GPU that has the memory, or see --plan."
        )
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if free < peak:
            raise HywuError(
                f"The released generator needs {megabytes(peak)} in {dtype}; of this GPU's "
                f"{megabytes(total)}, {megabytes(free)} are free."
            )
