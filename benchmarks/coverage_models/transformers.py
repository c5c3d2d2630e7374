"""Architectures of ``transformers`` with tiny random configurations: text, pictures and sound.

Every configuration gets the small sizes below, as far as it knows them, and what its entry says besides.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coverage_models import Model

__all__ = ["models"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import transformers

TOKENS, CLASSES = 12, 60

WIDTHS = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "emb_dim", "encoder_hidden_dim", "embedding_size"], 32),
    **dict.fromkeys(["num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "num_key_value_heads"], 4),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "d_inner", "hidden_dim", "encoder_ffn_dim"], 48),
    **dict.fromkeys(["decoder_ffn_dim", "ffn_hidden_size"], 48),
    **dict.fromkeys(["vocab_size", "entity_vocab_size"], CLASSES),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_source_positions"], 64),
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "cls_token_id": 1},
    **{"head_dim": 8, "use_cache": False, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 24},
}
PICTURES = {"image_size": 32, "patch_size": 8, "num_channels": 3}


def pooled(output: Any) -> Tensor:
    """Return features ``(N, F)`` of a model's result: the mean over tokens or pixels."""
    for name in ("last_hidden_state", "hidden_states", "logits", "audio_codes"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            break
    else:
        value = output[0]
    value = value[-1] if isinstance(value, tuple) else value
    if value.dim() == 4:
        return value.mean((2, 3))
    if value.dim() == 5:
        return value.mean((2, 3, 4))
    return value.mean(1) if value.dim() == 3 else value


class Pooled(nn.Module):
    """Model of the library whose result is turned into features.

    Args:
        model: the model.
        argument: name of the argument that takes the input.
        more: further arguments.
        masked: whether to say that all tokens count; else the library reads the input to find padding.
    """

    def __init__(self, model: nn.Module, argument: str, more: dict[str, Any], masked: bool) -> None:
        super().__init__()
        self.model, self.argument, self.more, self.masked = model, argument, more, masked

    def forward(self, x: Tensor) -> Tensor:
        mask = {"attention_mask": torch.ones_like(x)} if self.masked else {}
        return pooled(self.model(**{self.argument: x}, **mask, **self.more))


def configured(kind: str, settings: dict[str, Any]) -> Any:
    """Make a configuration with small sizes."""
    config = getattr(transformers, f"{kind}Config")
    known = known_settings(config)
    own = {**WIDTHS, **settings}
    attributes = getattr(config, "attribute_map", {})
    taken = {name: value for name, value in own.items() if name in known or name in settings}
    taken = {name: value for name, value in taken.items() if attributes.get(name) not in taken}
    return config(**taken)


def known_settings(config: Any) -> set[str]:
    names = {name for kind in config.__mro__ for name in getattr(kind, "__annotations__", {})}
    return names | set(inspect.signature(config.__init__).parameters)


def built(config: str, model: str, argument: str, settings: dict[str, Any], part: str) -> nn.Module:
    """Build a model, or a part of it such as an encoder."""
    kind = getattr(transformers, model)
    whole = kind(configured(config, settings))
    if part:
        whole = getattr(whole, part)
    forward = inspect.signature(whole.forward).parameters
    more = {"use_cache": False} if "use_cache" in forward else {}
    return Pooled(whole, argument, more, argument == "input_ids" and "attention_mask" in forward)


# Each entry: name: (configuration, model, settings, part)
Entry = tuple[str, str, dict[str, Any], str]


def entries(text: str) -> dict[str, Entry]:
    """Read a line per model: its name in the library, and its settings."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, settings = line.partition(" ")
        kind, _, part = name.partition(".")
        config, _, model = kind.partition(":")
        own = eval(f"dict({settings})")
        found[(model or config) + (f".{part}" if part else "")] = (config, model or f"{config}Model", own, part)
    return found


TEXT = entries(
    """
    Albert
    Bert
    BertGeneration:BertGenerationEncoder
    BigBird attention_type="original_full"
    Camembert
    Canine num_hash_functions=4, num_hash_buckets=64, downsampling_rate=2, local_transformer_stride=4, \
        type_vocab_size=2
    ConvBert
    Data2VecText
    Deberta relative_attention=True, pos_att_type=["c2p", "p2c"]
    DebertaV2 relative_attention=True, pos_att_type=["c2p", "p2c"]
    DistilBert
    Electra
    Ernie
    Esm position_embedding_type="rotary", mask_token_id=3
    Flaubert
    FNet
    Funnel:FunnelBaseModel block_sizes=[1, 1], num_decoder_layers=0, d_head=8
    IBert
    LayoutLM
    Lilt hidden_size=48
    Longformer attention_window=4
    Luke entity_emb_size=8
    MegatronBert
    MobileBert true_hidden_size=16, intra_bottleneck_size=16, embedding_size=32
    ModernBert
    MPNet
    Mra
    Nystromformer num_landmarks=4, segment_means_seq_len=12
    RemBert input_embedding_size=16
    Roberta
    RobertaPreLayerNorm
    RoCBert shape_vocab_size=20, pronunciation_vocab_size=20
    RoFormer
    SqueezeBert q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1, intermediate_groups=1, output_groups=1
    XLM
    XLMRoberta
    XLMRobertaXL
    XLNet
    Xmod default_language="en_XX", languages=["en_XX"]
    Yoso
    Apertus
    Arcee
    Bamba attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8
    BioGpt
    BitNet
    Bloom
    CodeGen rotary_dim=4
    Cohere
    Cohere2
    CTRL dff=48
    DeepseekV2 kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, \
        n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1
    DeepseekV3 kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, \
        n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1
    DiffLlama num_attention_heads=8, num_key_value_heads=8, head_dim=4
    Ernie4_5
    Exaone4
    Falcon
    FalconH1 mamba_n_heads=8, mamba_d_head=8, mamba_d_ssm=64, mamba_n_groups=1, mamba_d_state=8
    FalconMamba state_size=4
    Gemma
    Gemma2
    Gemma3Text
    Glm
    Glm4
    GPT2
    GPTBigCode
    GPTJ rotary_dim=4
    GPTNeo attention_types=[[["global", "local"], 1]], window_size=4
    GPTNeoX
    GptOss
    Granite
    GraniteMoe
    Helium
    HunYuanDenseV1
    Jamba attn_layer_offset=1, attn_layer_period=2, expert_layer_offset=1, expert_layer_period=2, \
        mamba_d_state=4, use_mamba_kernels=False
    JetMoe kv_channels=8, num_key_value_heads=2
    Lfm2 layer_types=["conv", "full_attention"]
    Llama
    Mamba state_size=4
    Mamba2 num_heads=8, head_dim=8, n_groups=1, state_size=8, chunk_size=4
    MiniMax layer_types=["full_attention", "linear_attention"], block_size=4
    Ministral
    Mistral
    Mixtral
    Mpt
    Nemotron
    Olmo
    Olmo2
    Olmo3
    Olmoe num_experts_per_tok=2
    OpenAIGPT
    OPT word_embed_proj_dim=32
    Persimmon
    Phi
    Phi3
    Phimoe
    Qwen2
    Qwen2Moe shared_expert_intermediate_size=24
    Qwen3
    Qwen3Moe num_experts_per_tok=2
    Qwen3Next layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4, \
        linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, num_experts_per_tok=2, \
        shared_expert_intermediate_size=24
    RecurrentGemma lru_width=32, block_types=["recurrent", "attention"]
    Rwkv attention_hidden_size=32
    SeedOss
    SmolLM3
    StableLm
    Starcoder2
    VaultGemma
    XGLM attention_heads=4
    Zamba2 mamba_d_state=8, n_mamba_heads=8, mamba_ngroups=1, layers_block_type=["mamba", "hybrid"], \
        num_mem_blocks=1, use_mamba_kernels=False
    Bart.encoder
    BigBirdPegasus.encoder attention_type="original_full"
    Blenderbot.encoder
    BlenderbotSmall.encoder
    CLIPText:CLIPTextModel
    FSMT.encoder src_vocab_size=60, tgt_vocab_size=60
    LED.encoder attention_window=4, max_encoder_position_embeddings=64
    LongT5:LongT5EncoderModel d_kv=8, local_radius=4
    M2M100.encoder
    Marian.encoder
    MBart.encoder
    MT5:MT5EncoderModel d_kv=8
    Mvp.encoder
    NllbMoe.encoder
    Pegasus.encoder
    PLBart.encoder
    ProphetNet:ProphetNetEncoder num_encoder_layers=2, num_encoder_attention_heads=4
    SiglipText:SiglipTextModel projection_size=32
    SwitchTransformers:SwitchTransformersEncoderModel d_kv=8, num_sparse_encoder_layers=1
    T5:T5EncoderModel d_kv=8
    UMT5:UMT5EncoderModel d_kv=8
    """
)
IMAGES = entries(
    """
    Aimv2Vision:Aimv2VisionModel image_size=32, patch_size=8
    Beit image_size=32, patch_size=8
    Bit embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4
    BlipVision:BlipVisionModel image_size=32, patch_size=8
    CLIPVision:CLIPVisionModel image_size=32, patch_size=8
    ConvNext hidden_sizes=[8, 16], depths=[1, 1], num_stages=2
    ConvNextV2 hidden_sizes=[8, 16], depths=[1, 1], num_stages=2
    Data2VecVision image_size=32, patch_size=8
    DeiT image_size=32, patch_size=8
    Dinov2 image_size=32, patch_size=8
    Dinov2WithRegisters image_size=32, patch_size=8
    DINOv3ConvNext hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]
    DINOv3ViT image_size=32, patch_size=8
    DPT image_size=32, patch_size=8, is_hybrid=False, backbone_out_indices=[0, 1, 1, 1]
    EfficientNet width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320
    FocalNet image_size=32, embed_dim=8, depths=[1, 1], focal_levels=[1, 1], focal_windows=[3, 3]
    GLPN hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    HGNetV2:HGNetV2Backbone stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 16, 16], stage_mid_channels=[4, \
        4, 8, 8], stage_out_channels=[8, 16, 16, 32], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[2, \
        2, 2, 2], hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], embedding_size=8
    Hiera image_size=[32, 32], patch_size=[7, 7], patch_stride=[4, 4], patch_padding=[3, 3], embed_dim=8, \
        depths=[1, 1], num_heads=[1, 2], masked_unit_size=[2, 2], query_stride=[2, 2], num_query_pool=1
    IJepa image_size=32, patch_size=8
    Levit image_size=64, hidden_sizes=[16, 16, 16], num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8]
    MobileNetV1 depth_multiplier=0.25
    MobileNetV2 depth_multiplier=0.25
    MobileViT image_size=32, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 16]
    MobileViTV2 image_size=64, width_multiplier=0.25
    PoolFormer hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]
    Pvt image_size=64, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    PvtV2 image_size=64, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    RegNet embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], groups_width=4
    ResNet embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]
    Segformer hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    SiglipVision:SiglipVisionModel image_size=32, patch_size=8
    Swin image_size=32, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4
    Swinv2 image_size=32, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4
    SwiftFormer embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1]
    TextNet stem_out_channels=8, hidden_sizes=[8, 8, 16, 16, 16]
    ViT image_size=32, patch_size=8
    ViTMSN image_size=32, patch_size=8
    VitDet image_size=32, patch_size=8, pretrain_image_size=32
    Yolos image_size=[32, 32], patch_size=8, num_detection_tokens=4
    """
)
CLIPS = entries(
    """
    Timesformer image_size=32, patch_size=8, num_frames=4
    VideoMAE image_size=32, patch_size=8, num_frames=4, tubelet_size=2
    Vivit image_size=32, num_frames=4, tubelet_size=[2, 8, 8]
    """
)
SPEECH = {
    **{"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0},
    **{"mask_feature_prob": 0.0, "layerdrop": 0.0, "num_adapter_layers": 1},
}
SOUND = {
    name: (config, model, {**SPEECH, **own}, part)
    for name, (config, model, own, part) in entries(
        """
        Data2VecAudio
        Hubert
        SEW conv_dim=[16, 16], squeeze_factor=2
        SEWD squeeze_factor=2
        UniSpeech
        UniSpeechSat
        Wav2Vec2
        Wav2Vec2Conformer position_embeddings_type="relative"
        WavLM
        """
    ).items()
}
SPECTRA: dict[str, tuple[Entry, tuple[int, ...]]] = {
    "AST": (("AST", "ASTModel", {"patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32,
                                 "num_mel_bins": 16}, ""), (32, 16)),
    "Whisper.encoder": (("Whisper", "WhisperModel", {"num_mel_bins": 16, "max_source_positions": 16}, "encoder"),
                        (16, 32)),
    "Speech2Text.encoder": (("Speech2Text", "Speech2TextModel", {"input_feat_per_channel": 16, "conv_channels": 16,
                                                                "num_conv_layers": 2}, "encoder"), (32, 16)),
    "Wav2Vec2Bert": (("Wav2Vec2Bert", "Wav2Vec2BertModel", {"feature_projection_input_dim": 16, "layerdrop": 0.0,
                                                            "mask_time_prob": 0.0}, ""), (16, 16)),
    "PatchTST": (("PatchTST", "PatchTSTModel", {"num_input_channels": 3, "context_length": 32, "patch_length": 4,
                                                "patch_stride": 4}, ""), (32, 3)),
    "PatchTSMixer": (("PatchTSMixer", "PatchTSMixerModel", {"num_input_channels": 3, "context_length": 32,
                                                            "patch_length": 4, "patch_stride": 4}, ""), (32, 3)),
}  # fmt: skip
ARGUMENTS = {
    **{"AST": "input_values", "Whisper.encoder": "input_features", "Speech2Text.encoder": "input_features"},
    **{"Wav2Vec2Bert": "input_features", "PatchTST": "past_values", "PatchTSMixer": "past_values"},
}


def models() -> Iterator[Model]:
    """Yield the models; those that this version of the library does not have are left out."""
    tables: list[tuple[dict[str, Entry], str, Callable[[], Tensor]]] = [
        (TEXT, "input_ids", lambda: torch.arange(3, 3 + TOKENS).view(1, -1)),
        (IMAGES, "pixel_values", lambda: torch.zeros(1, 3, 64, 64)),
        (CLIPS, "pixel_values", lambda: torch.zeros(1, 4, 3, 32, 32)),
        (SOUND, "input_values", lambda: torch.zeros(1, 400)),
    ]
    tables += [({name: entry}, ARGUMENTS[name], partial(torch.zeros, 1, *s)) for name, (entry, s) in SPECTRA.items()]
    for table, argument, example in tables:
        for name, (config, model, settings, part) in table.items():
            if not hasattr(transformers, model):
                continue
            size = settings.get("image_size", 64)
            size = size[0] if isinstance(size, list) else size
            own = partial(torch.zeros, 1, 3, size, size) if table is IMAGES else example
            build = partial(built, config, model, argument, settings, part)
            yield Model(name, "transformers", build, own, CLASSES)
