"""The part of the apply bench that runs inside ComfyUI: stock's ways of using a LoRA, and ours.

`python -m hywu_core.bench.comfy_apply PLAN RESULT` in a ComfyUI's interpreter and folder; both are JSON.

What is timed:
- change: from the moment another adapter is there until the first step of sampling begins. Each way changes
  its adapter twice in a row and the second time counts, so that none pays for what another one left behind.
- step: one model call, all ways in turns. The ways' wrappers and injections are in place as in sampling.
- batch: one model call for four images with a LoRA each, against four calls with one image.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PLAN = Path(sys.argv[1]) if len(sys.argv) > 2 else None  # ComfyUI reads the command line when it is imported
RESULT = Path(sys.argv[2]) if len(sys.argv) > 2 else None
IMAGES = 4
CONTEXT, POOLED = 4096, 768  # FLUX's own widths, which ComfyUI expects


def flux_shapes(plan: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The linears of a FLUX.1 file, as (d_out, d_in), and the scales of its norms."""
    h = plan["hidden"]
    yield from (("img_in", (h, 64)), ("txt_in", (h, CONTEXT)))
    for name, d_in in (("time_in", 256), ("vector_in", POOLED)):
        yield from ((f"{name}.in_layer", (h, d_in)), (f"{name}.out_layer", (h, h)))
    norms = [(f"norm.{x}_norm.scale", (128,)) for x in ("query", "key")]
    for i in range(plan["double_blocks"]):
        for part in (f"double_blocks.{i}.img", f"double_blocks.{i}.txt"):
            yield from ((f"{part}_mod.lin", (6 * h, h)), (f"{part}_mlp.0", (4 * h, h)))
            yield from ((f"{part}_mlp.2", (h, 4 * h)), (f"{part}_attn.qkv", (3 * h, h)))
            yield f"{part}_attn.proj", (h, h)
            yield from ((f"{part}_attn.{name}", shape) for name, shape in norms)
    for i in range(plan["single_blocks"]):
        block = f"single_blocks.{i}"
        yield from ((f"{block}.linear1", (7 * h, h)), (f"{block}.linear2", (h, 5 * h)))
        yield f"{block}.modulation.lin", (3 * h, h)
        yield from ((f"{block}.{name}", shape) for name, shape in norms)
    yield from (("final_layer.linear", (64, h)), ("final_layer.adaLN_modulation.1", (2 * h, h)))


def open_comfy(cpu: bool) -> None:
    """Let ComfyUI read its options."""
    sys.argv = [sys.argv[0], *(["--cpu"] if cpu else [])]
    import comfy.options

    comfy.options.enable_args_parsing()


class World:
    """The model, its inputs and random adapters."""

    def __init__(self, plan: dict[str, Any]) -> None:
        import comfy.model_management
        import torch

        self.clock = time.process_time if plan["clock"] == "processor" else time.perf_counter
        self.plan, self.random = plan, torch.Generator().manual_seed(0)
        self.device = comfy.model_management.get_torch_device()
        self.model = self._model()
        side = plan["pixels"] // 8
        self.noise = torch.randn(IMAGES, 16, side, side, generator=self.random)
        self.context = torch.randn(IMAGES, plan["text_tokens"], CONTEXT, generator=self.random)
        self.pooled = torch.randn(IMAGES, POOLED, generator=self.random)
        self.linears = {
            name.removeprefix("diffusion_model."): module
            for name, module in self.model.model.named_modules()
            if "_blocks." in name and hasattr(module, "out_features")
        }

    def _model(self) -> Any:
        """ComfyUI's FLUX with random weights, through the loader that its node uses."""
        import comfy.sd
        import torch

        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        state = {}
        for name, shape in flux_shapes(self.plan):
            if name.endswith(".scale"):
                state[name] = torch.ones(shape, dtype=dtype)
                continue
            state[f"{name}.weight"] = (torch.randn(shape, generator=self.random) * 0.02).to(dtype)
            state[f"{name}.bias"] = torch.zeros(shape[0], dtype=dtype)
        return comfy.sd.load_diffusion_model_state_dict(state)

    def lora(self, seed: int) -> dict[str, Any]:
        """A random LoRA for every linear of the blocks, in a file's names."""
        import torch

        random = torch.Generator().manual_seed(seed)
        rank, tensors = self.plan["rank"], {}
        for name, module in self.linears.items():
            A = torch.randn(rank, module.in_features, generator=random) * 0.02
            B = torch.randn(module.out_features, rank, generator=random) * 0.02
            tensors[f"diffusion_model.{name}.lora_A.weight"] = A
            tensors[f"diffusion_model.{name}.lora_B.weight"] = B
        return tensors

    def adapter(self, lora: dict[str, Any]) -> Any:
        """The same as a HYWU_ADAPTER."""
        from ..lora import Adapter

        return Adapter(
            {
                name: tuple(lora[f"diffusion_model.{name}.lora_{x}.weight"][None] for x in "AB")
                for name in self.linears
            }
        )

    def sample(self, patcher: Any) -> float:
        """Sample one step; when it began, on the clock."""
        import comfy.sample

        began: list[float] = []

        def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
            began.append(self.clock())
            return executor(*args, **kwargs)

        patcher = patcher.clone()
        patcher.add_wrapper_with_key("diffusion_model", "bench", look)
        cond = [[self.context[:1], {"pooled_output": self.pooled[:1]}]]
        noise = self.noise[:1]
        settings = (1, 1.0, "euler", "simple", cond, cond, noise * 0)
        comfy.sample.sample(patcher, noise, *settings, disable_pbar=True, seed=1)
        return began[0]

    def call(self, patcher: Any, rows: int = 1, first: int = 0) -> None:
        """One model call as a sampling step makes it, with the patcher's wrappers."""
        mine, device = slice(first, first + rows), self.device
        import torch

        self.model.model.apply_model(
            self.noise[mine].to(device),
            torch.full((rows,), 0.7, device=device),
            c_crossattn=self.context[mine].to(device),
            y=self.pooled[mine].to(device),
            transformer_options={"wrappers": patcher.wrappers, "cond_or_uncond": [0]},
        )


def ways(world: World) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """A LoRA to a patcher, by stock and by us."""
    import comfy.sd

    from ..apply.comfy import apply_adapter

    def ours(lora: dict[str, Any]) -> Any:
        return apply_adapter(world.model, world.adapter(lora)).model

    def stock(name: str) -> Callable[[dict[str, Any]], Any]:
        load = getattr(comfy.sd, name)
        return lambda lora: load(world.model, None, lora, 1.0, 0.0)[0]

    found = {"LoraLoader": "load_lora_for_models", "LoraLoaderBypass": "load_bypass_lora_for_models"}
    return {way: stock(name) for way, name in found.items() if hasattr(comfy.sd, name)} | {"ours": ours}


def changes(world: World) -> dict[str, list[float]]:
    """Seconds from another adapter to the first step, by way."""
    from ..measure import synchronize

    ours_and_stock = ways(world)
    seconds: dict[str, list[float]] = {way: [] for way in ours_and_stock}
    for number in range(world.plan["changes"]):
        for way, use in ours_and_stock.items():
            for turn in range(2):
                lora = world.lora(2 * number + turn)
                synchronize(world.device)
                start = world.clock()
                began = world.sample(use(lora))
                synchronize(world.device)
            seconds[way].append(began - start)
    return seconds


def steps(world: World) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of one model call by way, and of a batch beside single images."""
    import comfy.model_management

    from ..apply.comfy import apply_adapter
    from ..lora import Adapter
    from ..measure import in_turns

    lora = world.lora(1)
    patchers = {way: use(lora) for way, use in ways(world).items() if way != "LoraLoader"}
    patchers["none"] = world.model.clone()
    batch = Adapter.stack([world.adapter(world.lora(i)) for i in range(IMAGES)])
    together = apply_adapter(world.model, batch).model
    singly = [apply_adapter(world.model, batch.select(i)).model for i in range(IMAGES)]
    everyone = [*patchers.values(), together, *singly]
    loaded = [own for patcher in everyone for own in patcher.get_nested_additional_models()]
    comfy.model_management.load_models_gpu([world.model, *loaded])

    def inject(way: str) -> None:
        for name, patcher in patchers.items():
            patcher.eject_model() if name != way else patcher.inject_model()

    calls = {way: lambda patcher=patcher: world.call(patcher) for way, patcher in patchers.items()}
    clock = in_turns(calls, world.plan["rounds"], world.device, before=inject, clock=world.clock)
    inject("none")

    def one_by_one() -> None:
        for i, patcher in enumerate(singly):
            world.call(patcher, 1, i)

    contenders = {"batch of 4": lambda: world.call(together, IMAGES), "4 runs": one_by_one}
    rounds = max(3, world.plan["rounds"] // 4)
    of_batches = in_turns(contenders, rounds, world.device, clock=world.clock)
    return ({way: list(times) for way, times in one.seconds.items()} for one in (clock, of_batches))


def main() -> None:
    """Measure what the plan says."""
    plan = json.loads(PLAN.read_text(encoding="utf-8"))
    open_comfy(plan["cpu"])
    import comfyui_version
    import torch

    from ..report import machine

    if plan["clock"] == "processor":
        torch.set_num_threads(1)
    with torch.inference_mode():
        world = World(plan)
        # Calls first: the stock loader leaves patched weights behind until something else is loaded.
        step, batch = steps(world)
        change = changes(world)
    model = world.model.model
    result = {
        "comfyui": comfyui_version.__version__,
        "machine": machine(world.device),
        "model": {
            "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "dtype": str(model.get_dtype()).removeprefix("torch."),
            "linears": len(world.linears),
            "positions": (plan["pixels"] // 16) ** 2 + plan["text_tokens"],
        },
        "seconds": {"change": change, "step": step, "batch": batch},
    }
    RESULT.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
