"""The workflows that run anywhere: the embedded models and otherwise stock nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hywu_core.pipeline import DEFAULT_STEPS

from .sheet import Link, Node, Sheet

GREEN = "#8A8"
STEPS, SEED = DEFAULT_STEPS, 0  # as `edit`
PICTURE = 340  # under Generate LoRA, which draws its LoRA there after a run
_MODELS = (
    "All models here come with the pack and are small: they edit at about 256 x 256 pixels and know some "
)
_MODELS += "seventy photographic operations (brighten, age, tint, blur, mirror ...), in English and Chinese."


@dataclass(frozen=True)
class Models:
    """The embedded models, loaded."""

    backbone: Link
    autoencoder: Link
    generator: Link


def load_models(sheet: Sheet) -> Models:
    """The three loaders, one under the other."""
    backbone = sheet.add("UNETLoader", unet_name="hywu_embedded_flux_kontext.safetensors")
    autoencoder = sheet.add("VAELoader", vae_name="hywu_embedded_autoencoder.safetensors")
    generator = sheet.add("HYWU_LoadGenerator", generator_name="hywu_embedded_generator.safetensors")
    return Models(backbone[0], autoencoder[0], generator[0])


def sample(sheet: Sheet, model: Link, encoded: Node, models: Models, title: str | None = None) -> Link:
    """The sampler as `python -m hywu_core.edit` sets it, and the decoded pictures."""
    samples = sheet.add(
        "KSampler",
        title=title,
        model=model,
        positive=encoded[0],
        negative=encoded[0],
        latent_image=encoded[1],
        seed=SEED,
        steps=STEPS,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
    )
    return sheet.add("VAEDecode", samples=samples[0], vae=models.autoencoder)[0]


def quickstart(sheet: Sheet) -> None:
    """One photograph, one instruction."""
    sheet.column("Photograph, words, models")
    photo = sheet.add("LoadImage", title="Your photograph", height=330, image="example.png")
    words = sheet.add(
        "PrimitiveStringMultiline",
        title="What to do with it",
        height=110,
        value="print it as a blue cyanotype",
    )
    models = load_models(sheet)
    sheet.column("HY-WU", color=GREEN)
    shared = {"image": photo[0], "prompt": words[0]}
    encoded = sheet.add("HYWU_EmbeddedEncode", vae=models.autoencoder, **shared)
    condition = sheet.add("HYWU_Condition", generator=models.generator, **shared)
    adapter = sheet.add("HYWU_GenerateLoRA", generator=models.generator, condition=condition[0])
    sheet.column("Sample")
    applied = sheet.add("HYWU_ApplyLoRA", model=models.backbone, adapter=adapter[0])
    edited = sample(sheet, applied[0], encoded, models)
    sheet.add("HYWU_SaveAdapter", title="Save Adapter (muted)", muted=True, adapter=adapter[0])
    sheet.column("Look", width=400)
    sheet.add("SaveImage", title="After", height=330, images=edited, filename_prefix="hywu/edited")
    sheet.add("PreviewImage", title="Before, at working size", height=310, images=encoded[2])
    sheet.note("What happens here", height=240)


def batch_per_instance(sheet: Sheet) -> None:
    """N photographs, N instructions, one batch: each row runs with its own LoRA."""
    sheet.column("Photographs and instructions")
    words = sheet.add(
        "PrimitiveStringMultiline",
        title="An instruction a line, in the same order",
        height=120,
        value="make it look like an old faded photograph\ngive it a green tint\nmake it darker",
    )
    photos = [
        sheet.add("LoadImage", title=f"Photograph {n}", height=320, image="example.png")[0] for n in (1, 2, 3)
    ]
    sheet.column("Models, and the batch")
    models = load_models(sheet)
    pair = sheet.add("ImageBatch", title="Two photographs", image1=photos[0], image2=photos[1])
    batch = sheet.add("ImageBatch", title="All three", image1=pair[0], image2=photos[2])
    sheet.note("One batch, three LoRAs", height=340)
    sheet.column("HY-WU", color=GREEN)
    shared = {"image": batch[0], "prompt": words[0], "one_prompt_per_line": True}
    encoded = sheet.add("HYWU_EmbeddedEncode", vae=models.autoencoder, **shared)
    condition = sheet.add("HYWU_Condition", generator=models.generator, **shared)
    adapter = sheet.add("HYWU_GenerateLoRA", generator=models.generator, condition=condition[0])
    sheet.column("Sample")
    applied = sheet.add("HYWU_ApplyLoRA", model=models.backbone, adapter=adapter[0])
    edited = sample(sheet, applied[0], encoded, models)
    sheet.add("HYWU_SaveAdapter", title="Save all three (muted)", muted=True, adapter=adapter[0], index=-1)
    sheet.column("Look", width=400)
    sheet.add("SaveImage", title="After", height=400, images=edited, filename_prefix="hywu/batch")
    sheet.add("PreviewImage", title="Before, at working size", height=400, images=encoded[2])


FIRST, SECOND = (f"hywu/workflow_0000{n}_.safetensors" for n in (1, 2))


def save_and_reload(sheet: Sheet) -> None:
    """Two LoRAs saved; loaded, combined and applied, beside the stock loader of the same file."""
    sheet.column("Photograph, words, models")
    photo = sheet.add("LoadImage", title="Your photograph", height=320, image="example.png")
    words = sheet.add(
        "PrimitiveStringMultiline",
        title="A LoRA for each line",
        height=100,
        value="give it a green tint\nmake it look like an old faded photograph",
    )
    models = load_models(sheet)
    sheet.column("1. Generate and save", color=GREEN)
    condition = sheet.add(
        "HYWU_Condition",
        generator=models.generator,
        image=photo[0],
        prompt=words[0],
        one_prompt_per_line=True,
    )
    adapter = sheet.add("HYWU_GenerateLoRA", generator=models.generator, condition=condition[0])
    sheet.add(
        "HYWU_SaveAdapter",
        title="Save both",
        adapter=adapter[0],
        filename_prefix="hywu/workflow",
        index=-1,
    )
    sheet.column("2. Load and combine (muted)", color=GREEN)
    later: dict[str, Any] = {"muted": True}
    loaded = [sheet.add("HYWU_LoadAdapter", adapter_name=name, **later) for name in (FIRST, SECOND)]
    half = sheet.add(
        "HYWU_CombineAdapters",
        title="Half of each",
        adapter_a=loaded[0][0],
        adapter_b=loaded[1][0],
        operation="interpolate",
        amount=0.5,
        **later,
    )
    sheet.note("How to use it", height=420)
    sheet.column("3. Our loader (muted)")
    encoded = sheet.add(
        "HYWU_EmbeddedEncode",
        title="The first line",
        image=photo[0],
        vae=models.autoencoder,
        prompt="give it a green tint",
        **later,
    )
    ways = {
        "Load Adapter": sheet.add(
            "HYWU_ApplyLoRA", title="The saved file", model=models.backbone, adapter=loaded[0][0], **later
        )
    }
    pictures = {"Load Adapter": _sample_muted(sheet, ways["Load Adapter"][0], encoded, models)}
    sheet.column("4. The stock loader (muted)")
    stock = sheet.add("LoraLoaderModelOnly", model=models.backbone, lora_name=FIRST, **later)
    pictures["Load LoRA"] = _sample_muted(sheet, stock[0], encoded, models)
    sheet.column("5. Half of each (muted)")
    mixed = sheet.add("HYWU_ApplyLoRA", title="Half of each", model=models.backbone, adapter=half[0], **later)
    pictures["half of each"] = _sample_muted(sheet, mixed[0], encoded, models)
    sheet.column("Look (muted)", width=360)
    for title, picture in pictures.items():
        sheet.add("PreviewImage", title=title, height=330, images=picture, **later)


def _sample_muted(sheet: Sheet, model: Link, encoded: Node, models: Models) -> Link:
    """As `sample`, for a part that waits for its files."""
    samples = sheet.add(
        "KSampler",
        muted=True,
        model=model,
        positive=encoded[0],
        negative=encoded[0],
        latent_image=encoded[1],
        seed=SEED,
        steps=STEPS,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
    )
    return sheet.add("VAEDecode", muted=True, samples=samples[0], vae=models.autoencoder)[0]


def conflict(sheet: Sheet) -> None:
    """Opposite instructions for one photograph; and what one LoRA for both does."""
    sheet.column("Photograph, words, models")
    photo = sheet.add("LoadImage", title="Your photograph", height=320, image="example.png")
    words = sheet.add(
        "PrimitiveStringMultiline",
        title="Two instructions that contradict each other",
        height=100,
        value="give it a green tint\ngive it a magenta tint",
    )
    models = load_models(sheet)
    sheet.column("HY-WU", color=GREEN)
    shared = {"image": photo[0], "prompt": words[0], "one_prompt_per_line": True}
    encoded = sheet.add("HYWU_EmbeddedEncode", vae=models.autoencoder, **shared)
    condition = sheet.add("HYWU_Condition", generator=models.generator, **shared)
    adapter = sheet.add("HYWU_GenerateLoRA", generator=models.generator, condition=condition[0])
    sheet.column("A LoRA for each", color=GREEN)
    each = sheet.add("HYWU_ApplyLoRA", title="Its own LoRA", model=models.backbone, adapter=adapter[0])
    own = sample(sheet, each[0], encoded, models)
    sheet.column("One LoRA for both", color=GREEN)
    average = sheet.add(
        "HYWU_CombineAdapters", title="The average of both", adapter_a=adapter[0], operation="average"
    )
    one = sheet.add("HYWU_ApplyLoRA", title="The same LoRA", model=models.backbone, adapter=average[0])
    alike = sample(sheet, one[0], encoded, models)
    sheet.column("Look", width=420)
    for title, pictures in (("A LoRA for each", own), ("One LoRA for both", alike)):
        prefix = f"hywu/{title.replace(' ', '_').lower()}"
        sheet.add("SaveImage", title=title, height=330, images=pictures, filename_prefix=prefix)
    sheet.add("PreviewImage", title="Before, at working size", height=330, images=encoded[2])
    sheet.column("Compare", width=420)
    sheet.add("HYWU_InspectAdapter", title="The first, and the average", adapter=adapter[0], other=average[0])
    sheet.note("Opposite tasks", height=320)
