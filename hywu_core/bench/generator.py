"""The generator: time, memory and FLOP/s of one forward pass, beside the authors' code on the same weights.

What is compared runs in turns in one process, without gradients, and ratios are taken round by round; a plain
matrix product runs in the same rounds, so that the share of the machine's ceiling is a ratio too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..conditions import Condition
from ..devices import resolve_device
from ..errors import HywuError
from ..generator import ParameterGenerator
from ..generator.release_config import read_config
from . import official
from .measure import Run, in_turns, matmul_ceiling, peak_extra_bytes
from .report import machine, megabytes, table
from .sizes import SIZES, typical_products, work

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CEILING_ROWS = 4096


def configure(parse: argparse.ArgumentParser) -> None:
    """Add the options of this bench."""
    parse.add_argument("--config", choices=SIZES, default="mid", help="which generator (%(default)s)")
    parse.add_argument("--against", type=Path, metavar="FOLDER", help="a copy of the official repository")
    parse.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (%(default)s)")
    parse.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the weights (%(default)s)")
    parse.add_argument("--rounds", type=int, default=7, help="measured rounds (%(default)s)")
    parse.add_argument("--threads", type=int, help="of the CPU (default: torch's own choice)")
    parse.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time instead of the clock's, for a busy CPU; best with --threads 1",
    )
    parse.add_argument("--batch", type=int, default=1, help="conditions at once (%(default)s)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; plain data."""
    if min(arguments.rounds, arguments.batch, arguments.threads or 1) < 1:
        raise HywuError("The rounds, the batch and the threads must be at least 1.")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device, dtype = resolve_device(arguments.device), _DTYPES[arguments.dtype]
    size = SIZES[arguments.config]
    ours = random_generator(size.config, device, dtype)
    condition = Condition(
        torch.randn(arguments.batch, size.n_condition, size.config["input_dim"], device=device, dtype=dtype)
    )
    contenders: dict[str, Run] = {"ours": lambda: ours(condition)}
    if arguments.against is not None:
        theirs = official.build(arguments.against, size.config, ours)
        contenders["official"] = lambda: theirs(condition.tokens)
    result: dict[str, Any] = {
        "bench": "generator",
        "config": arguments.config,
        "dtype": arguments.dtype,
        "batch": arguments.batch,
        "clock": "processor" if arguments.processor_time else "wall",
        "n_condition": size.n_condition,
        "weights": ours.n_parameters,
        "machine": machine(device),
        "flop": work(ours, arguments.batch, size.n_condition),
    }
    with torch.no_grad():
        result["peak_extra_bytes"] = {name: peak_extra_bytes(one, device) for name, one in contenders.items()}
        if "official" in contenders:
            result["difference"] = official.compare(ours(condition), theirs(condition.tokens))
        result["products"], best = _ceiling(ours, device, dtype)
        product, flop = best.runner(device, dtype, seconds=0.5)
        clock = time.process_time if arguments.processor_time else time.perf_counter
        rounds = in_turns(contenders | {"product": product}, arguments.rounds, device, clock=clock)
    # The product is timed in the same rounds, so the share is free of what the rounds had in common.
    result["ceiling_flops"] = flop / rounds.spread("product").minimum
    result["seconds"] = {name: rounds.spread(name).to_dict() for name in contenders}
    result["share_of_ceiling"] = {}
    for name in contenders:
        done = result["flop"]
        share = rounds.ratio("product", name).scaled(done / flop)
        result["share_of_ceiling"][name] = share.to_dict()
    if "official" in contenders:
        result["time_ratio"] = rounds.ratio("ours", "official").to_dict()
        peaks = result["peak_extra_bytes"]
        if peaks["official"]:
            result["memory_ratio"] = peaks["ours"] / peaks["official"]
    return result


def report(result: Mapping[str, Any]) -> str:
    """The result as text."""
    rows = []
    for name, seconds in result["seconds"].items():
        share = result["share_of_ceiling"][name]
        rows.append(
            [
                name,
                f"{seconds['median']:.3f} [{seconds['minimum']:.3f}, {seconds['maximum']:.3f}]",
                f"{result['flop'] / seconds['median'] / 1e9:,.0f}",
                f"{share['median']:.0%}",
                megabytes(result["peak_extra_bytes"][name]),
            ]
        )
    where = result["machine"]
    lines = [
        f"generator {result['config']}: {result['weights']:,} weights, {result['dtype']}, batch "
        f"{result['batch']}, {result['flop'] / 1e12:.3g} TFLOP on {where['name']} ({where['device']})",
        table(["", f"{result['clock']} seconds", "GFLOP/s", "of ceiling", "peak extra memory"], rows),
        f"ceiling: {result['ceiling_flops'] / 1e9:,.0f} GFLOP/s, the fastest of the products "
        + ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in result["products"].items()),
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


def _ceiling(generator: ParameterGenerator, device: torch.device, dtype: torch.dtype):
    rates = matmul_ceiling(typical_products(generator, _CEILING_ROWS), device, dtype)
    return {str(product): rate for product, rate in rates.items()}, max(rates, key=rates.get)
