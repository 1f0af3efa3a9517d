"""Where SDXL's weights are published: at which commit, what of them the exporter reads."""

from __future__ import annotations

from collections.abc import Mapping

from ..published import HUB, Catalogue, Licence, Model

SDXL_BASE = "462165984030d82259a11f4367a4eed129e94a7b"
SDXL_REFINER = "5d4cfe854c9a9a87939ff3653551c2b3c99a4356"
VAE_FIX = "207b116dae70ace3637169f1ddd2434b91b3a8cd"
NAME, REFINER = "sdxl", "sdxl-refiner"


def _rail(repo: str, revision: str) -> Licence:
    return Licence("CreativeML Open RAIL++-M License", f"{HUB}/{repo}/blob/{revision}/LICENSE.md")


def _exported(folders: Mapping[str, str]) -> str:
    if NAME not in folders:
        return ""
    refiner = f" --refiner {folders[REFINER]}" if REFINER in folders else ""
    return f"{folders[NAME]}{refiner} -o build/{NAME}"


CATALOGUE = Catalogue(
    (
        Model(
            name=NAME,
            repo="stabilityai/stable-diffusion-xl-base-1.0",
            revision=SDXL_BASE,
            components=("text_encoder", "text_encoder_2", "unet", "vae"),
            configs=("tokenizer", "tokenizer_2", "scheduler"),
            licence=_rail("stabilityai/stable-diffusion-xl-base-1.0", SDXL_BASE),
        ),
        Model(
            name=REFINER,
            repo="stabilityai/stable-diffusion-xl-refiner-1.0",
            revision=SDXL_REFINER,
            components=("text_encoder_2", "unet"),  # its VAE is the base's, which the exporter takes
            configs=("tokenizer_2", "scheduler"),
            licence=_rail("stabilityai/stable-diffusion-xl-refiner-1.0", SDXL_REFINER),
        ),
        Model(
            name="sdxl-vae-fp16-fix",
            repo="madebyollin/sdxl-vae-fp16-fix",
            revision=VAE_FIX,
            components=("",),
            configs=(),
            licence=Licence("MIT License", f"{HUB}/madebyollin/sdxl-vae-fp16-fix/blob/{VAE_FIX}/README.md"),
        ),
    ),
    _exported,
)
