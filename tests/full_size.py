"""Export a full-size SDXL with random fp16 weights; prints seconds and peak memory. By hand: needs 20 GB of disk and an hour.

python -m tests.full_size FOLDER TOKENIZER
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from triptych_export.build import Options, export

UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}


def make(folder: Path, tokenizer: Path) -> None:
    """A folder in diffusers layout, one component in memory at a time."""
    parts = {
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L, projection_dim=768)),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280)),
        "unet": lambda: UNet2DConditionModel(**UNET),
        "vae": lambda: AutoencoderKL(**VAE),
    }
    for name, build in parts.items():
        with init_empty_weights():
            module = build()
        module = module.to(torch.float16).to_empty(device="cpu")
        fill(module)
        module.save_pretrained(folder / name, safe_serialization=True)
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tokenizer, folder / name, dirs_exist_ok=True)
        config = folder / name / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 77}))
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    libraries = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    index |= {name: ["transformers", cls] for name, cls in libraries.items()}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {name: ["transformers", "TokenizersBackend"] for name in ("tokenizer", "tokenizer_2")}
    index |= {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))


def fill(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(float("norm" in name and name.endswith("weight")))
    for buffer in module.buffers():
        if buffer.dtype == torch.int64:
            buffer.copy_(torch.arange(buffer.numel()).reshape(buffer.shape))


def main() -> None:
    folder, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    if not (folder / "weights/model_index.json").exists():
        make(folder / "weights", tokenizer)
    started = time.monotonic()

    def report(what: str, share: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        sys.stdout.write(f"{time.monotonic() - started:7.0f} s  peak {peak:5.1f} GB  {share:4.0%} {what}\n")
        sys.stdout.flush()

    manifest = export(folder / "weights", folder / "build", Options(samplers=["euler:default"]), report)
    for name, stage in manifest.stages.items():
        size = sum(manifest.artifacts[file]["bytes"] for file in stage["files"])
        sys.stdout.write(f"{name}: {size / 1e9:.2f} GB, max difference {stage['max_difference']:.1e}\n")


if __name__ == "__main__":
    main()
