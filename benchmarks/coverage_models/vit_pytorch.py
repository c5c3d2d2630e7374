"""Vision transformers of vit-pytorch in small; their class scores serve as features."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from coverage_models import Features, Model, without_unknown

__all__ = ["models"]

SIZE = 64
COMMON: dict[str, Any] = {
    **{"image_size": SIZE, "patch_size": 8, "image_patch_size": 8, "num_classes": 20, "dim": 48, "depth": 2},
    **{"heads": 4, "mlp_dim": 64, "dim_head": 12, "frames": 4, "frame_patch_size": 2, "seq_len": SIZE},
}
"""Settings of every model that has them; there are more patches than channels."""

VIDEO, SERIES = (3, 4, SIZE, SIZE), (3, SIZE)

MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "ats_vit": ("ViT", {"max_tokens_per_depth": (32, 16)}, ()),
    "attn_residual_with_dca_simple_vit": ("SimpleViT", {}, ()),
    "cait": ("CaiT", {"cls_depth": 1}, ()),
    "cct": ("CCT", {"img_size": SIZE, "embedding_dim": 48, "num_layers": 2, "num_heads": 4, "mlp_ratio": 1}, ()),
    "cct_3d": (
        "CCT",
        {
            **{"img_size": SIZE, "num_frames": 4, "embedding_dim": 48, "num_layers": 2, "num_heads": 4},
            **{"mlp_ratio": 1, "n_conv_layers": 1, "frame_kernel_size": 3},
        },
        VIDEO,
    ),
    "cross_vit": (
        "CrossViT",
        {
            **{"sm_dim": 24, "lg_dim": 48, "sm_patch_size": 8, "lg_patch_size": 16, "sm_enc_mlp_dim": 32},
            **{"lg_enc_mlp_dim": 64, "lg_enc_depth": 1, "cross_attn_depth": 1, "depth": 1},
        },
        (),
    ),
    "crossformer": (
        "CrossFormer",
        {
            **{"dim": (32, 64, 64, 96), "depth": (1, 1, 1, 1), "global_window_size": (2, 2, 2, 1)},
            "local_window_size": 2,
        },
        (),
    ),
    "cvt": ("CvT", {"s1_emb_dim": 16, "s2_emb_dim": 32, "s3_emb_dim": 48, "s2_depth": 1, "s3_depth": 1}, ()),
    "deepvit": ("DeepViT", {}, ()),
    "jet_vit": ("JetViT", {"window_size": 3}, ()),
    "jumbo_vit": ("JumboViT", {"jumbo_cls_k": 2}, ()),
    "learnable_memory_vit": ("ViT", {}, ()),
    "levit": ("LeViT", {"dim": (32, 48, 64), "depth": 1, "heads": (2, 3, 4), "mlp_mult": 2}, ()),
    "look_vit": ("LookViT", {"depth": 1, "mlp_factor": 1, "highres_patch_size": 8, "patch_size": 16}, ()),
    "looped_vit": (
        "LoopedViT",
        {"pre_loop_depth": 1, "num_looped_blocks": 1, "post_loop_depth": 1, "loop_depth": 2},
        (),
    ),
    "max_vit": ("MaxViT", {"dim": 32, "depth": (1, 1), "window_size": 4, "dim_head": 16}, ()),
    "max_vit_with_registers": ("MaxViT", {"dim": 32, "depth": (1, 1), "window_size": 4, "dim_head": 16}, ()),
    "mobile_vit": (
        "MobileViT",
        {
            "image_size": (SIZE, SIZE),
            "patch_size": (2, 2),
            "dims": [32, 48, 64],
            "channels": [8, 8, 16, 16, 24, 24, 32, 32, 32, 32, 64],
        },
        (),
    ),
    "mp3": ("ViT", {}, ()),
    "na_vit": ("NaViT", {}, ()),
    "nest": ("NesT", {"num_hierarchies": 2, "block_repeats": (1, 1), "patch_size": 4}, ()),
    "normalized_vit": ("nViT", {}, ()),
    "parallel_vit": ("ViT", {}, ()),
    "pit": ("PiT", {"depth": (1, 1)}, ()),
    "regionvit": ("RegionViT", {"dim": (16, 32, 48, 64), "depth": (1, 1, 1, 1), "window_size": 2}, ()),
    "rvt": ("RvT", {}, ()),
    "scalable_vit": (
        "ScalableViT",
        {
            **{"dim": 16, "heads": (1, 2), "depth": (1, 1), "reduction_factor": (4, 2), "window_size": (4, None)},
            **{"iwsa_dim_key": 8, "iwsa_dim_value": 8, "ssa_dim_key": 8, "ssa_dim_value": 8},
        },
        (),
    ),
    "sep_vit": ("SepViT", {"dim": 32, "heads": (2, 4), "depth": (1, 1), "dim_head": 16}, (3, 112, 112)),
    "simple_flash_attn_vit": ("SimpleViT", {"use_flash": True}, ()),
    "simple_flash_attn_vit_3d": ("SimpleViT", {}, VIDEO),
    "simple_uvit": ("SimpleUViT", {}, ()),
    "simple_vit": ("SimpleViT", {}, ()),
    "simple_vit_1d": ("SimpleViT", {}, SERIES),
    "simple_vit_3d": ("SimpleViT", {}, VIDEO),
    "simple_vit_attn_residual": ("SimpleViTAttnResidual", {}, ()),
    "simple_vit_orthog_residual_update": ("SimpleViT", {}, ()),
    "simple_vit_with_fft": ("SimpleViT", {"freq_patch_size": 8}, ()),
    "simple_vit_with_hyper_connections": ("SimpleViT", {"num_residual_streams": 2}, ()),
    "simple_vit_with_patch_dropout": ("SimpleViT", {}, ()),
    "simple_vit_with_qk_norm": ("SimpleViT", {}, ()),
    "simple_vit_with_register_tokens": ("SimpleViT", {}, ()),
    "simple_vit_with_relative_proj_pos_bias": ("SimpleViT", {}, ()),
    "simple_vit_with_sparse_gating": ("SimpleViTWithSparseGating", {}, ()),
    "simple_vit_with_specialized_cls": ("SimpleViT", {}, ()),
    "simple_vit_with_value_residual": ("SimpleViT", {}, ()),
    "t2t": ("T2TViT", {"t2t_layers": ((7, 4), (3, 2))}, ()),
    "twins_svt": (
        "TwinsSVT",
        {
            **{"s1_emb_dim": 16, "s2_emb_dim": 24, "s3_emb_dim": 32, "s4_emb_dim": 48, "s3_depth": 1, "s4_depth": 1},
            **{"s1_local_patch_size": 4, "s2_local_patch_size": 4, "s3_local_patch_size": 2, "s4_local_patch_size": 2},
            **{"s1_global_k": 2, "s2_global_k": 2, "s3_global_k": 2, "s4_global_k": 2},
        },
        (),
    ),
    "vit": ("ViT", {}, ()),
    "vit_1d": ("ViT", {}, SERIES),
    "vit_3d": ("ViT", {}, VIDEO),
    "vit_5": ("ViT", {}, ()),
    "vit_detpool": ("ViTDetPool", {}, ()),
    "vit_for_small_dataset": ("ViT", {}, ()),
    "vit_nd": ("ViTND", {"ndim": 2, "input_shape": (SIZE, SIZE)}, ()),
    "vit_nd_pope": ("ViTND", {"ndim": 2, "input_shape": (SIZE, SIZE)}, ()),
    "vit_nd_rotary": ("ViTND", {"ndim": 2, "input_shape": (SIZE, SIZE)}, ()),
    "vit_with_decorr": ("ViT", {}, ()),
    "vit_with_keel_post_ln": ("ViT", {}, ()),
    "vit_with_patch_dropout": ("ViT", {}, ()),
    "vit_with_patch_merger": ("ViT", {"patch_merge_num_tokens": 8}, ()),
    "vivit": ("ViViT", {"spatial_depth": 1, "temporal_depth": 1}, VIDEO),
    "vivit_with_moss": ("ViViT", {"spatial_depth": 1, "temporal_depth": 1, "moss_hidden_dim": 16}, VIDEO),
    "xcit": ("XCiT", {"cls_depth": 1}, ()),
}
"""By file: the class, settings beside the common ones, and the shape of a sample (that of an image if empty)."""


def models() -> Iterator[Model]:
    """Yield the models."""
    import_module("vit_pytorch")
    # On CPUs torch's flex attention has no backward pass: those that use it fall back on attention written out.
    import_module("vit_pytorch.vit_nd_masking").flex_attention_supported = lambda device: False
    for name, (kind, settings, shape) in MODELS.items():

        def build(name: str = name, kind: str = kind, settings: dict[str, Any] = settings) -> nn.Module:
            made = getattr(import_module(f"vit_pytorch.{name}"), kind)
            extra = without_unknown(made.__init__, COMMON)
            return Features(made(**{**extra, **settings}), _first)

        yield Model(name, "vit_pytorch", build, lambda shape=shape: torch.zeros(1, *(shape or (3, SIZE, SIZE))))


def _first(output: Any) -> Tensor:
    """Return class scores of a model that returns further results beside them, and others as they are."""
    return output if isinstance(output, Tensor) else output[0]
