"""The models that `triptych fetch` knows: where each is, at which commit, what of it the exporter reads."""

from __future__ import annotations

from dataclasses import dataclass

HUB = "https://huggingface.co"
SDXL_BASE = "462165984030d82259a11f4367a4eed129e94a7b"
SDXL_REFINER = "5d4cfe854c9a9a87939ff3653551c2b3c99a4356"
VAE_FIX = "207b116dae70ace3637169f1ddd2434b91b3a8cd"
CASCADE = "a89f66d459ae653e3b4d4f992a7c3789d0dc4d16"


@dataclass(frozen=True)
class Licence:
    """What a user has to accept once: its name, where it is, and what surprises people who serve."""

    name: str
    url: str
    note: str = ""


@dataclass(frozen=True)
class Model:
    """One repository of the hub.

    Attributes:
        name: what the command line calls it, and its folder.
        repo: owner/name on the hub.
        revision: the commit; None where no commit is pinned: the one that `main` has at the first fetch is kept.
        components: folders with weights; "" is the repository's root.
        configs: folders with text files only.
        licence: to be accepted before the first byte of weights.
    """

    name: str
    repo: str
    revision: str | None
    components: tuple[str, ...]
    configs: tuple[str, ...]
    licence: Licence

    @property
    def page(self) -> str:
        """The repository's page, where the terms of a gated one are accepted."""
        return f"{HUB}/{self.repo}"


def _rail(repo: str, revision: str) -> Licence:
    return Licence("CreativeML Open RAIL++-M License", f"{HUB}/{repo}/blob/{revision}/LICENSE.md")


# Both repositories hold the same text; that of the decoder's is at a commit that is known.
_CASCADE_LICENCE = Licence(
    "Stability AI Non-Commercial Research Community License",
    f"{HUB}/stabilityai/stable-cascade/blob/{CASCADE}/LICENSE",
    "for research; no commercial use",
)

_TABLE = (
    Model(
        name="sdxl",
        repo="stabilityai/stable-diffusion-xl-base-1.0",
        revision=SDXL_BASE,
        components=("text_encoder", "text_encoder_2", "unet", "vae"),
        configs=("tokenizer", "tokenizer_2", "scheduler"),
        licence=_rail("stabilityai/stable-diffusion-xl-base-1.0", SDXL_BASE),
    ),
    Model(
        name="sdxl-refiner",
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
    Model(
        name="stable-cascade",
        repo="stabilityai/stable-cascade",
        revision=CASCADE,
        components=("text_encoder", "decoder", "vqgan"),
        configs=("tokenizer", "scheduler"),
        licence=_CASCADE_LICENCE,
    ),
    Model(
        name="stable-cascade-prior",
        repo="stabilityai/stable-cascade-prior",
        revision=None,  # no commit of it could be established from two independent sources
        components=("text_encoder", "prior"),
        configs=("tokenizer", "scheduler"),
        licence=_CASCADE_LICENCE,
    ),
)
MODELS = {model.name: model for model in _TABLE}
