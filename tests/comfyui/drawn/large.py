"""Workflows for large models: their stock graphs with a generated LoRA; the files are the user's to get."""

from __future__ import annotations

from .embedded import GREEN
from .sheet import Link, Node, Sheet

_FACE = "https://huggingface.co"
_QWEN = f"{_FACE}/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
_EDIT = f"{_FACE}/Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files"
_KONTEXT = f"{_FACE}/Comfy-Org/flux1-kontext-dev_ComfyUI/resolve/main/split_files"
_FLUX_TEXT = f"{_FACE}/comfyanonymous/flux_text_encoders/resolve/main"
_FLUX_VAE = f"{_FACE}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files"


def _model(directory: str, url: str) -> list[dict[str, str]]:
    """What the interface offers to download where the file is missing."""
    return [{"name": url.rsplit("/", 1)[1], "url": url, "directory": directory}]


def _load(sheet: Sheet, kind: str, directory: str, url: str, **inputs: str) -> Link:
    """A loader of one file: its name is that of the address."""
    models = _model(directory, url)
    widget = {"UNETLoader": "unet_name", "CLIPLoader": "clip_name", "VAELoader": "vae_name"}[kind]
    return sheet.add(kind, models=models, **{widget: models[0]["name"]}, **inputs)[0]


def _photograph(sheet: Sheet, instruction: str) -> tuple[Link, Link]:
    """The first column: the links of the photograph and of the words."""
    sheet.column("Photograph and words")
    photo = sheet.add("LoadImage", title="Your photograph", height=330, image="example.png")
    words = sheet.add("PrimitiveStringMultiline", title="What to do with it", height=130, value=instruction)
    return photo[0], words[0]


def _adapter(sheet: Sheet, generator: str, photo: Link, words: Link) -> Node:
    """The HY-WU column."""
    sheet.column("HY-WU", color=GREEN)
    loaded = sheet.add("HYWU_LoadGenerator", generator_name=generator)
    condition = sheet.add("HYWU_Condition", generator=loaded[0], image=photo, prompt=words)
    return sheet.add("HYWU_GenerateLoRA", generator=loaded[0], condition=condition[0])


def _finish(sheet: Sheet, samples: Node, vae: Link, picture: str, note_height: float) -> None:
    """Decode, save, and the note."""
    decoded = sheet.add("VAEDecode", samples=samples[0], vae=vae)
    sheet.column("Look", width=460)
    sheet.add("SaveImage", height=430, images=decoded[0], filename_prefix=picture)
    sheet.note("What you need", height=note_height)


def _qwen(
    sheet: Sheet, release: str, weights: str, shift: float, steps: int, cfg: float, method: str | None = None
) -> None:
    """method: how the model is told of its source images, where its file need not say so."""

    def encode(name: str, **words: Link) -> Link:
        encoded = sheet.add("TextEncodeQwenImageEditPlus", title=name, **words, **parts)[0]
        if method is None:
            return encoded
        settings = {"conditioning": encoded, "reference_latents_method": method}
        title = f"Reference method, {name.lower()}"
        return sheet.add("FluxKontextMultiReferenceLatentMethod", title=title, **settings)[0]

    photo, words = _photograph(sheet, "Give the picture the light of a late afternoon in autumn")
    backbone = _load(sheet, "UNETLoader", "diffusion_models", f"{_EDIT}/diffusion_models/{weights}")
    text = f"{_QWEN}/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors"
    clip = _load(sheet, "CLIPLoader", "text_encoders", text, type="qwen_image")
    vae = _load(sheet, "VAELoader", "vae", f"{_QWEN}/vae/qwen_image_vae.safetensors")
    adapter = _adapter(sheet, f"qwen_image_edit_{release}_generator.safetensors", photo, words)
    sheet.column("Encode")
    scaled = sheet.add("FluxKontextImageScale", image=photo)
    parts = {"clip": clip, "vae": vae, "image1": scaled[0]}
    positive, negative = encode("Positive", prompt=words), encode("Negative")
    latent = sheet.add("VAEEncode", pixels=scaled[0], vae=vae)
    sheet.add("HYWU_SaveAdapter", title="Save Adapter (muted)", muted=True, adapter=adapter[0])
    sheet.column("Sample")
    applied = sheet.add("HYWU_ApplyLoRA", model=backbone, adapter=adapter[0])
    shifted = sheet.add("ModelSamplingAuraFlow", model=applied[0], shift=shift)
    normed = sheet.add("CFGNorm", model=shifted[0], strength=1.0)
    samples = sheet.add(
        "KSampler",
        model=normed[0],
        positive=positive,
        negative=negative,
        latent_image=latent[0],
        steps=steps,
        cfg=cfg,
        sampler_name="euler",
        scheduler="simple",
    )
    _finish(sheet, samples, vae, f"hywu/qwen_image_edit_{release}", note_height=330)


def qwen_image_edit_2509(sheet: Sheet) -> None:
    """Qwen-Image-Edit 2509, as its stock graph without the Lightning LoRA."""
    _qwen(sheet, "2509", "qwen_image_edit_2509_fp8_e4m3fn.safetensors", shift=3.0, steps=20, cfg=4.0)


def qwen_image_edit_2511(sheet: Sheet) -> None:
    """Qwen-Image-Edit 2511, as its stock graph without the Lightning LoRA."""
    weights = "qwen_image_edit_2511_bf16.safetensors"
    _qwen(sheet, "2511", weights, shift=3.1, steps=40, cfg=3.0, method="index_timestep_zero")


def flux1_kontext(sheet: Sheet) -> None:
    """FLUX.1 Kontext, as its stock graph for one source image."""
    photo, words = _photograph(sheet, "Make it look like a hand-tinted postcard, keep the composition")
    weights = f"{_KONTEXT}/diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors"
    backbone = _load(sheet, "UNETLoader", "diffusion_models", weights)
    texts = [f"{_FLUX_TEXT}/{name}.safetensors" for name in ("clip_l", "t5xxl_fp8_e4m3fn_scaled")]
    models = [model for text in texts for model in _model("text_encoders", text)]
    names = {f"clip_name{n}": model["name"] for n, model in enumerate(models, 1)}
    clip = sheet.add("DualCLIPLoader", models=models, type="flux", **names)[0]
    vae = _load(sheet, "VAELoader", "vae", f"{_FLUX_VAE}/vae/ae.safetensors")
    adapter = _adapter(sheet, "flux1_kontext_generator.safetensors", photo, words)
    sheet.column("Encode")
    scaled = sheet.add("FluxKontextImageScale", image=photo)
    latent = sheet.add("VAEEncode", pixels=scaled[0], vae=vae)
    encoded = sheet.add("CLIPTextEncode", clip=clip, text=words)
    referenced = sheet.add("ReferenceLatent", conditioning=encoded[0], latent=latent[0])
    guided = sheet.add("FluxGuidance", conditioning=referenced[0], guidance=2.5)
    negative = sheet.add("ConditioningZeroOut", conditioning=encoded[0])
    sheet.add("HYWU_SaveAdapter", title="Save Adapter (muted)", muted=True, adapter=adapter[0])
    sheet.column("Sample")
    applied = sheet.add("HYWU_ApplyLoRA", model=backbone, adapter=adapter[0])
    samples = sheet.add(
        "KSampler",
        model=applied[0],
        positive=guided[0],
        negative=negative[0],
        latent_image=latent[0],
        steps=20,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
    )
    _finish(sheet, samples, vae, "hywu/flux1_kontext", note_height=310)
