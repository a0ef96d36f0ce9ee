"""The sizes of the published generator's backbone, HunyuanImage-3.0-Instruct: facts of its config.json."""

from hywu_core.lora import Band, ModuleShape

RELEASED_BAND = Band(
    "model.layers",
    32,
    (
        ModuleShape("self_attn.qkv_proj", 4096, 6144),
        ModuleShape("self_attn.o_proj", 4096, 4096),
        ModuleShape("mlp.shared_mlp.gate_and_up_proj", 4096, 6144),
        ModuleShape("mlp.shared_mlp.down_proj", 3072, 4096),
        ModuleShape("mlp.experts.w1", 4096, 3072, experts=64),
        ModuleShape("mlp.experts.w2", 3072, 4096, experts=64),
        ModuleShape("mlp.experts.w3", 4096, 3072, experts=64),
    ),
)
