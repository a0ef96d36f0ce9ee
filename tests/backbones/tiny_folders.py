"""Editing models with few random weights, in diffusers' layout on disk; the real pipelines open and run them.

Tokenizers are trained in seconds on the pipelines' own templates, so that prompts have a normal length.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    LongCatImageTransformer2DModel,
    QwenImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from hywu_core.backbones.folders import ModelFolder
from hywu_core.backbones.qwen_vl import load_processor

LATENT_CHANNELS = 16
HEAD = 128  # width of an attention head, as all three models have it
SENTENCES = (
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then "
    "explain how the user's text instruction should alter or modify the image. Generate a new image that "
    "meets the user's requirements while maintaining consistency with the original input where appropriate.",
    "As an image editing expert, first analyze the content and attributes of the input image(s). Then, based "
    "on the user's editing instructions, clearly and precisely determine how to modify the given image(s).",
    "system user assistant Picture 1: make it an old faded photograph, make the cat a dog, add snow",
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
                "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")  # fmt: skip


def write_flux_kontext(
    folder: Path,
    *,
    heads: int = 1,
    n_double: int = 1,
    n_single: int = 1,
    text_dim: int = 32,
    pooled_dim: int = 32,
    guidance: bool = True,
    seed: int = 0,
) -> Path:
    """FLUX.1-Kontext: CLIP and T5 read, heads * 128 channels wide."""
    torch.manual_seed(seed)
    clip, t5 = _clip_tokenizer(), _t5_tokenizer()
    return _write(
        folder,
        "FluxKontextPipeline",
        scheduler=_scheduler(),
        transformer=_spread(
            FluxTransformer2DModel(
                in_channels=4 * LATENT_CHANNELS,
                num_layers=n_double,
                num_single_layers=n_single,
                attention_head_dim=HEAD,
                num_attention_heads=heads,
                joint_attention_dim=text_dim,
                pooled_projection_dim=pooled_dim,
                guidance_embeds=guidance,
            )
        ),
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip),
                hidden_size=pooled_dim,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=clip.bos_token_id,
                eos_token_id=clip.eos_token_id,
                pad_token_id=clip.pad_token_id,
            )
        ),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=len(t5),
                d_model=text_dim,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=2,
                feed_forward_proj="gated-gelu",
            )
        ),
        tokenizer_2=t5,
    )


def write_qwen_image_edit(
    folder: Path,
    *,
    heads: int = 1,
    n_layers: int = 1,
    text_dim: int = 32,
    zero_cond_t: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Qwen-Image-Edit-2509, or -2511 with zero_cond_t; heads * 128 channels wide.

    ComfyUI opens its transformer only with the true widths: 24 heads, text_dim 3584.
    """
    torch.manual_seed(seed)
    tokenizer = _qwen_tokenizer()
    return _write(
        folder,
        "QwenImageEditPlusPipeline",
        scheduler=_scheduler(max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02),
        transformer=_spread(
            QwenImageTransformer2DModel(
                in_channels=4 * LATENT_CHANNELS,
                out_channels=LATENT_CHANNELS,
                num_layers=n_layers,
                attention_head_dim=HEAD,
                num_attention_heads=heads,
                joint_attention_dim=text_dim,
                zero_cond_t=zero_cond_t,
            ),
            dtype,
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=LATENT_CHANNELS,
            num_res_blocks=1,
            latents_mean=torch.linspace(-0.5, 0.5, LATENT_CHANNELS).tolist(),
            latents_std=torch.linspace(0.5, 2, LATENT_CHANNELS).tolist(),
        ),
        text_encoder=_vision_language_model(tokenizer, text_dim),
        tokenizer=tokenizer,
        processor=_Processor(tokenizer),
    )


def write_longcat_image_edit(
    folder: Path, *, heads: int = 1, n_double: int = 1, n_single: int = 1, text_dim: int = 32, seed: int = 0
) -> Path:
    """LongCat-Image-Edit: FLUX's autoencoder, Qwen2.5-VL reads."""
    torch.manual_seed(seed)
    tokenizer = _qwen_tokenizer()
    return _write(
        folder,
        "LongCatImageEditPipeline",
        scheduler=_scheduler(),
        transformer=_spread(
            LongCatImageTransformer2DModel(
                in_channels=4 * LATENT_CHANNELS,
                num_layers=n_double,
                num_single_layers=n_single,
                attention_head_dim=HEAD,
                num_attention_heads=heads,
                joint_attention_dim=text_dim,
            )
        ),
        vae=_autoencoder(),
        text_encoder=_vision_language_model(tokenizer, text_dim),
        tokenizer=tokenizer,
        text_processor=_Processor(tokenizer),
    )


WRITERS: dict[str, Callable[..., Path]] = {
    "flux_kontext": write_flux_kontext,
    "qwen_image_edit": write_qwen_image_edit,
    "longcat_image_edit": write_longcat_image_edit,
}


def open_pipeline(folder: Path) -> DiffusionPipeline:
    """The real pipeline of a folder, in float32; processors are given to it where torchvision is missing."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    names = (name for name, entry in index.items() if entry[1:] == ["Qwen2VLProcessor"])
    processors = {name: load_processor(ModelFolder(folder, folder.name), name) for name in names}
    pipeline_class = getattr(diffusers, index["_class_name"])
    pipeline = pipeline_class.from_pretrained(folder, local_files_only=True, **processors)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class _Processor:
    """The files of a Qwen2VLProcessor: its class can only be made where torchvision is installed."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self.tokenizer = tokenizer

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        settings = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _write(folder: Path, pipeline: str, **parts: Any) -> Path:
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.0"}
    for name, part in parts.items():
        library = "diffusers" if type(part).__module__.startswith("diffusers.") else "transformers"
        class_name = "Qwen2VLProcessor" if isinstance(part, _Processor) else type(part).__name__
        index[name] = [library, class_name]
        (folder / name).mkdir(parents=True)
        part.save_pretrained(folder / name)
    if pipeline == "FluxKontextPipeline":
        index |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


def _spread(transformer: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Random weights where diffusers begins with zeros, so that every input has an effect."""
    for parameter in transformer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
        parameter.data = parameter.data.to(dtype)
    return transformer


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def _scheduler(**settings: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        **{"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15} | settings
    )


def _vision_language_model(tokenizer: Qwen2Tokenizer, width: int) -> Qwen2_5_VLForConditionalGeneration:
    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": width,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 4096,
                "rope_scaling": {"type": "mrope", "mrope_section": [width // 8, width // 16, width // 16]},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": width,
                "fullatt_block_indexes": [0],
            },
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
            vision_token_id=token("<|vision_pad|>"),
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
        )
    )


def _byte_pairs(special: tuple[str, ...], word_end: str = "") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE that knows whole words of SENTENCES."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    ends = {"end_of_word_suffix": word_end} if word_end else {}
    tokenizer = Tokenizer(models.BPE(**ends))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        show_progress=False,
        initial_alphabet=alphabet,
        special_tokens=[letter + word_end for letter in alphabet] if word_end else [],
        **ends,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in special:
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary, [tuple(pair) for pair in model["merges"]]


def _qwen_tokenizer() -> Qwen2Tokenizer:
    vocabulary, merges = _byte_pairs(())
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_SPECIAL[1:])})
    return tokenizer


def _clip_tokenizer() -> CLIPTokenizer:
    vocabulary, merges = _byte_pairs(("<|startoftext|>", "<|endoftext|>"), word_end="</w>")
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _t5_tokenizer() -> T5TokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, show_progress=False, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    vocabulary = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)
