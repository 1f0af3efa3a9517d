"""Diffusers' and transformers' classes as `Any`: their functions are untyped, which a strict type checker refuses to call.

Importing this also lets diffusers read Stable Cascade folders: their `model_index.json` names the VQGAN's class by the module
`wuerstchen` of its pipelines, which diffusers 0.42 has moved.
"""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from diffusers.models.unets import unet_stable_cascade
from diffusers.pipelines.deprecated import wuerstchen

_diffusers: Any = diffusers
_transformers: Any = transformers
_wuerstchen: Any = wuerstchen
_cascade: Any = unet_stable_cascade
_diffusers.pipelines.wuerstchen = wuerstchen

AutoencoderKL: Any = _diffusers.AutoencoderKL
UNet2DConditionModel: Any = _diffusers.UNet2DConditionModel
ControlNetModel: Any = _diffusers.ControlNetModel
StableCascadeUNet: Any = _diffusers.StableCascadeUNet
SDCascadeAttnBlock: Any = _cascade.SDCascadeAttnBlock
SDCascadeResBlock: Any = _cascade.SDCascadeResBlock
SDCascadeTimestepBlock: Any = _cascade.SDCascadeTimestepBlock
PaellaVQModel: Any = _wuerstchen.PaellaVQModel
MixingResidualBlock: Any = _wuerstchen.modeling_paella_vq_model.MixingResidualBlock

DDPMScheduler: Any = _diffusers.DDPMScheduler
DDPMWuerstchenScheduler: Any = _diffusers.DDPMWuerstchenScheduler

StableDiffusionXLPipeline: Any = _diffusers.StableDiffusionXLPipeline
StableDiffusionXLControlNetPipeline: Any = _diffusers.StableDiffusionXLControlNetPipeline
StableDiffusionXLImg2ImgPipeline: Any = _diffusers.StableDiffusionXLImg2ImgPipeline
StableCascadePriorPipeline: Any = _diffusers.StableCascadePriorPipeline
StableCascadeDecoderPipeline: Any = _diffusers.StableCascadeDecoderPipeline

CLIPTextModelWithProjection: Any = _transformers.CLIPTextModelWithProjection
AutoTokenizer: Any = _transformers.AutoTokenizer
