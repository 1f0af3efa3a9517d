"""Where Stable Cascade's weights are published: at which commit, what of them the exporter reads."""

from __future__ import annotations

from collections.abc import Mapping

from ..published import HUB, Catalogue, Licence, Model

DECODER = "a89f66d459ae653e3b4d4f992a7c3789d0dc4d16"
NAME, PRIOR = "stable-cascade", "stable-cascade-prior"
# Both repositories hold the same text; that of the decoder's is at a commit that is known.
_LICENCE = Licence(
    "Stability AI Non-Commercial Research Community License",
    f"{HUB}/stabilityai/stable-cascade/blob/{DECODER}/LICENSE",
    "for research; no commercial use",
)


def _exported(folders: Mapping[str, str]) -> str:
    both = PRIOR in folders and NAME in folders
    return f"{folders[PRIOR]} --decoder {folders[NAME]} -o build/{NAME}" if both else ""


CATALOGUE = Catalogue(
    (
        Model(
            name=NAME,
            repo="stabilityai/stable-cascade",
            revision=DECODER,
            components=("text_encoder", "decoder", "vqgan"),
            configs=("tokenizer", "scheduler"),
            licence=_LICENCE,
            prior=PRIOR,
        ),
        Model(
            name=PRIOR,
            repo="stabilityai/stable-cascade-prior",
            revision=None,  # no commit of it could be established from two independent sources
            components=("text_encoder", "prior"),
            configs=("tokenizer", "scheduler"),
            licence=_LICENCE,
        ),
    ),
    _exported,
)
