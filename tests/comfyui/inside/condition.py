"""HY-WU Condition and Generate LoRA in ComfyUI's own process: batches, memory, progress, cancelling."""

from __future__ import annotations

import gc
import json
import os
import weakref

from open_comfy import open_comfy

work = open_comfy()

import comfy.model_management as management  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from pack.nodes import encoders, kept  # noqa: E402
from pack.nodes.condition import EncodeCondition  # noqa: E402
from pack.nodes.generate import GenerateLoRA  # noqa: E402
from pack.nodes.loader import LoadGenerator  # noqa: E402

folder_paths.add_model_folder_path("hywu", str(work), is_default=True)
folder_paths.set_user_directory(str(work / "user"))
measured: dict[str, object] = {}


def results(output):
    return output.result if hasattr(output, "result") else output.args


def opened(name: str):
    return results(LoadGenerator.execute(generator_name=name))[0]


def condition_of(generator, prompts, images, **more):
    output = EncodeCondition.execute(generator=[generator], prompt=prompts, image=images, **more)
    return results(output)[0]


def generated(generator, condition, **settings):
    output = GenerateLoRA.execute(generator=generator, condition=condition, **settings)
    return results(output)[0], output.ui["hywu_report"][0]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def managed() -> list[str]:
    """What ComfyUI counts among its loaded models, by the class inside our holders."""
    models = [loaded.model.model for loaded in management.current_loaded_models if loaded.model is not None]
    return [type(model[0]).__name__ for model in models if isinstance(model, torch.nn.ModuleList)]


embedded, siglip = opened("embedded.safetensors"), opened("siglip2.safetensors")

# Lists of pictures of different sizes, a batch and several references.
images = [picture(40, 60), torch.cat([picture(50, 30, 1), picture(50, 30, 2)])]
prompts = ["make it dark", "a cat", "make it bright"]
rows = [image[None] for batch in images for image in batch]
for name, generator in (("embedded", embedded), ("siglip2", siglip)):
    together = condition_of(generator, prompts, images)
    alone = [condition_of(generator, [p], [i]).digests()[0] for p, i in zip(prompts, rows, strict=True)]
    measured[f"{name} same digests"] = list(together.digests()) == alone
    measured[f"{name} prompts"] = together.prompts
several = condition_of(siglip, ["a cat"], images, image_2=[picture(9, 9)], image_3=images)
measured["three references"] = [several.batch, several.alone(0).tokens.shape[1]]
measured["one reference"] = condition_of(siglip, ["a cat"], images[:1]).tokens.shape[1]

# The encoder is a model of ComfyUI's: counted, taken off, put back, and gone with its generators.
measured["counted"] = managed().count("SiglipModel")
before = condition_of(siglip, ["a cat"], images).digests()
other = opened("siglip2.safetensors")
condition_of(other, ["a cat"], images)
(loaded,) = siglip.encoders.values()
measured["shared"] = other.encoders == siglip.encoders
management.unload_all_models()
measured["counted after unloading"] = managed().count("SiglipModel")
measured["same after unloading"] = condition_of(siglip, ["a cat"], images).digests() == before
gone = weakref.ref(loaded.encoder.model)
del loaded, other
gc.collect()
measured["stays with its generator"] = gone() is not None
del siglip, generator
management.unload_all_models()
gc.collect()
left = list(encoders._shared.values())  # the other generator's lives on
measured["gone with its generator"] = gone() is None and left == list(embedded.encoders.values())

# Progress, and a cancel in the second LoRA. (What reaches the interface is throttled by the clock.)
shown: list[tuple[int, int]] = []
update_absolute = comfy.utils.ProgressBar.update_absolute


def watch(bar, value: int, *args) -> None:
    shown.append((value, bar.total))
    update_absolute(bar, value, *args)


comfy.utils.ProgressBar.update_absolute = watch
condition = condition_of(embedded, prompts, images)
fresh, _ = generated(embedded, condition, cache="off")
measured["progress"] = shown[:]
shown.clear()


def cancel(bar, value: int, *args) -> None:
    if value == bar.total // 3 + 1:
        management.interrupt_current_processing()


comfy.utils.ProgressBar.update_absolute = cancel
try:
    generated(embedded, condition)
    measured["cancelled"] = "no"
except management.InterruptProcessingException:
    measured["cancelled"] = "yes"
comfy.utils.ProgressBar.update_absolute = update_absolute
again, measured["after the cancel"] = generated(embedded, condition)
cached, measured["repeated"] = generated(embedded, condition, max_rank=1)
cached, _ = generated(embedded, condition)
measured["same bits"] = all(
    torch.equal(a, b) and torch.equal(a, c)
    for name in fresh
    for a, b, c in zip(fresh[name], again[name], cached[name], strict=True)
)

# Memory has a bound, disk outlives the generator.
os.environ["HYWU_CACHE_MEMORY_MB"] = "1"
bounded = opened("embedded.safetensors")
for number in range(30):
    generated(bounded, condition_of(bounded, [f"words {number}"], rows[:1]))
measured["memory"] = [len(bounded.kept), bounded.kept.n_bytes]
one = condition_of(bounded, ["on disk"], rows[:1])
first, measured["disk first"] = generated(bounded, one, cache="memory and disk")
del bounded
second, measured["disk second"] = generated(opened("embedded.safetensors"), one, cache="memory and disk")
measured["disk same bits"] = all(
    torch.equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True)
)
measured["files"] = len(list((work / "user" / kept.FOLDER).iterdir()))
os.environ["HYWU_CACHE_MEMORY_MB"] = "much"
try:
    generated(opened("embedded.safetensors"), one)
except ValueError as error:
    measured["bad setting"] = str(error)
print(json.dumps(measured))
