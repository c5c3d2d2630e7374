"""Models of timm with random weights and without their classifier: the smallest of every architecture's file, and more.

Chosen among the 1,580 of timm 1.0.31: of every file the smallest, then the next ones whose names begin otherwise.
Those of more than 6 million parameters are made shallower and narrower where their functions take such settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn

from coverage_models import Model

__all__ = ["models"]

SETTINGS: dict[str, dict[str, Any]] = {
    "narrow": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "depth": {"depth": 2},
    "depths": {"depths": (1, 1, 1, 1)},
    "layers": {"layers": (1, 1, 1, 1)},
}

MODELS = """
    adv_inception_v3 96; beit_base_patch16_224 64 sized narrow; cait_xs24_384 64 sized narrow;
    cait_xxs24_224 64 sized narrow; coat_lite_tiny 64 sized; coat_mini 64 sized; coat_tiny 64 sized;
    convit_small 64 sized narrow; convit_tiny 64 sized; convmixer_768_32 64; convnext_zepto_rms 64;
    convnext_zepto_rms_ols 64; cpubone_nano 64; cpubone_s0 64; cpubone_t0 64; crossvit_9_240 64;
    crossvit_tiny_240 64; cs3darknet_focus_s 64; csatv2 64; cspnext_s 64; cspnext_tiny 64; darknet17 64;
    davit_tiny 64 depths; deepseek_vit_412m 224 sized narrow; deit_tiny_distilled_patch16_224 64 sized;
    deit_tiny_patch16_224 64 sized; densenet121 64; densenetblur121d 64; dla46x_c 64; dpn48b 64;
    eca_botnext26ts_256 64 sized; eca_halonext26ts 256; edgenext_small 64; edgenext_x_small 64; edgenext_xx_small 64;
    efficientformer_l1 224 sized depths; efficientformerv2_s0 64 sized; efficientvim_m1 64; efficientvit_b0 64;
    efficientvit_m0 64 sized; ens_adv_inception_resnet_v2 96; ese_vovnet19b_slim_dw 64;
    eva02_tiny_patch14_224 64 sized; fasternet_s 64 depths; fasternet_t0 64; fastvit_s12 64 layers; fastvit_t8 64;
    focalnet_tiny_lrf 64; focalnet_tiny_srf 64; gcvit_xtiny 64 sized; gcvit_xxtiny 64 sized;
    gemma4_vit_167m 64 sized narrow; gernet_s 64 sized; ghostnet_050 64; ghostnetv3_050 64; gluon_inception_v3 96;
    gluon_resnet18_v1b 64 layers; gmixer_12_224 64 sized; gmlp_ti16_224 64 sized; halonet_h1 256; hardcorenas_a 64;
    hardcorenas_b 64; hardcorenas_c 64; hgnet_tiny 64; hgnetv2_b0 64; hiera_small_abswin_256 64 sized;
    hiera_tiny_224 64 sized; hieradet_small 64; hrnet_w18_small 64; iformer_m 64; iformer_s 64; iformer_t 64;
    inception_next_atto 64; inception_next_tiny 64 depths; inception_v4 96; jx_nest_tiny 64 sized; lcnet_035 64;
    lcnetv2_small 64; legacy_seresnet18 64 layers; legacy_seresnext26_32x4d 64 layers; legacy_xception 64;
    levit_128s 64 sized; levit_conv_128s 64 sized; lowformer_b0 64; lowformer_e1 64; mambaout_femto 64 depths;
    mambaout_kobe 64 depths; maxvit_pico_rw_256 64 sized depths; mobilenetv3_small_050 64; mobilenetv5_base 64;
    mobileone_s1 64 sized; mobilevit_xs 64 sized; mobilevit_xxs 64 sized; mobilevitv2_050 64 sized;
    mvitv2_tiny 64 sized; naflexvit_base_patch16_parfac_gap 64 sized narrow; nasnetalarge 64; nest_tiny 64 sized;
    nextvit_small 64; nf_regnet_b0 64 depths; pit_ti_224 64 sized; pit_ti_distilled_224 64 sized; pnasnet5large 64;
    poolformer_s12 64; poolformerv2_s12 64; pvt_v2_b0 64; qwen3_vit_88m 64 sized narrow; rdnet_tiny 64;
    regnetx_002 64; regnety_002 64; regnetz_005 64; repghostnet_050 64; repvit_m1 64 sized; res2next50 64 layers;
    resnest14d 64 layers; resnetv2_18 64 layers; rexnet_100 64; rexnetr_100 64; sam2_hiera_tiny 64;
    samvit_base_patch16_224 64 sized narrow; selecsls42 64; sequencer2d_s 64 sized layers; shvit_s1 64;
    skresnet18 64 layers; skresnext50_32x4d 64 layers; starnet_s050 64; swiftformer_s 64 sized;
    swiftformer_xs 64 sized; swin_s3_tiny_224 64 sized depths; swin_tiny_patch4_window7_224 64 sized depths;
    swinv2_cr_tiny_224 64 sized depths; swinv2_tiny_window16_256 64 sized depths; test_byobnet 64 sized;
    test_coatnet 64 sized; test_convnext 64; test_efficientnet 64; test_efficientnet_gn 64; test_efficientnet_ln 64;
    test_mambaout 64; test_maxvit 64 sized; test_nfnet 64; test_resnet 64; test_vit 64 sized;
    test_vit_relpos 64 sized; tf_mobilenetv3_small_075 64; tiny_vit_5m_224 64;
    tnt_s_legacy_patch16_224 64 sized depth; tnt_s_patch16_224 64 sized depth; tresnet_m 64 layers;
    tresnet_m_miil_in21k 64 layers; tv_densenet121 64; twins_pcpvt_small 64 sized depths;
    twins_svt_small 64 sized depths; vgg11 64; visformer_small 64 sized narrow; visformer_tiny 64 sized narrow;
    vit_pe_spatial_tiny_patch16_512 64 sized; vit_small_r26_s32_224 64 sized narrow;
    vit_srelpos_small_patch16_224 64 sized narrow; vit_tiny_patch16_224 64 sized;
    vit_tiny_patch16_dinov3_qkvb 64 sized; vit_tiny_r_s16_p8_224 64 sized narrow;
    vit_xsmall_patch16_clip_224 64 sized narrow; vitamin_small_224 64 sized depth; volo_d1_224 64 sized;
    vovnet39a 64; xception 64; xception41p 64; xcit_nano_12_p8_224 64 sized; xcit_tiny_12_p8_224 64 sized narrow
"""
"""Names with the side of the image, ``sized`` where the model is built for it, and the name of further settings."""


def models() -> Iterator[Model]:
    """Yield the models."""
    timm = import_module("timm")  # not at the top, where this file might be found under the same name
    for entry in MODELS.split(";"):
        name, side, *said = entry.split()
        size = int(side)
        settings = {key: value for word in said for key, value in SETTINGS.get(word, {}).items()}
        if "sized" in said:
            settings["img_size"] = size

        def build(name: str = name, settings: dict[str, Any] = settings) -> nn.Module:
            return timm.create_model(name, num_classes=0, **settings)

        yield Model(name, "timm", build, lambda size=size: torch.zeros(1, 3, size, size))
