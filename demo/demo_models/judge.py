"""The subject figure: of 100 pictures drawn from wordings that training never saw, how many show what was asked for.

The judge is a nearest neighbour: a picture shows the subject of the training picture (either style, as it is or mirrored)
that it is most like in the SDXL demo's VAE latents, after both were cropped to what is drawn and brought to one size; the
drawn one is also tried turned a little, as the trainings turn them. It counts if that subject's label is the one asked for;
a face that looks like another face does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from demo_models import cascade, data, draw
from demo_models.captions import HELD_OUT, TRAINED, fill, kept_out, normal, trainable
from demo_models.data import Picture, Pixels
from demo_models.libraries import AutoencoderKL
from demo_models.report import say
from demo_models.sheets import sheet

PROMPTS = Path(__file__).with_name("judge_prompts.json")
COUNT = 100
MARGIN = 12
TURNS = (0.0, -7.0, 7.0)  # Degrees; the trainings turn by up to ten.
_BATCH = 64


@dataclass(frozen=True)
class Asked:
    """One prompt of the judge and the label that it asks for."""

    prompt: str
    label: str


def make_prompts(pictures: list[Picture], seed: int, groups: list[int], styles: list[str]) -> list[Asked]:
    """100 subjects by chance, the styles in turn, each in an untrained wording; half of them in trained templates if any.

    Only subjects of the given groups in the given styles, for weights that were trained on no others.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    shown = set(trainable(pictures))
    order = sorted({(pictures[i].label, pictures[i].style) for i in data.among(pictures, groups, styles)})
    rng.shuffle(order)
    asked: list[Asked] = []
    taken: set[str] = set()
    for label, style in order:
        if len(asked) == COUNT:
            break
        if label in taken or style != styles[len(asked) % len(styles)]:
            continue
        trained = [t for t in TRAINED[style] if kept_out(t, label)]
        template = rng.choice(trained if trained and len(asked) % 4 < 2 else HELD_OUT[style])
        prompt = fill(template, label, rng.choice(("a", "a", "the", "")))
        if normal(prompt) not in shown:
            asked.append(Asked(prompt, label))
            taken.add(label)
    return asked


def load_prompts(pictures: list[Picture], path: Path = PROMPTS) -> list[Asked]:
    """The committed prompts; refuses them if training could have shown one."""
    asked = [Asked(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    shown = set(trainable(pictures))
    trained = [entry.prompt for entry in asked if normal(entry.prompt) in shown]
    if trained or len(asked) != COUNT:
        raise ValueError(f"{len(asked)} prompts, of which training shows {trained}")
    return asked


def normalised(pixels: Pixels) -> Pixels:
    """The picture cropped to what is drawn (not near white) and scaled to one size, centred on white: same shape."""
    drawn = (pixels.min(-1) < 236).astype(np.float64)
    rows, columns = drawn.mean(1) > 0.02, drawn.mean(0) > 0.02
    canvas = Image.new("RGB", (data.SIZE, data.SIZE), "white")
    if not (rows.any() and columns.any()):
        return np.asarray(canvas)
    top, bottom = np.flatnonzero(rows)[[0, -1]]
    left, right = np.flatnonzero(columns)[[0, -1]]
    crop = Image.fromarray(pixels[top : bottom + 1, left : right + 1])
    inner = data.SIZE - 2 * MARGIN
    crop = ImageOps.contain(crop, (inner, inner), Image.Resampling.BICUBIC)
    canvas.paste(crop, ((data.SIZE - crop.width) // 2, (data.SIZE - crop.height) // 2))
    return np.asarray(canvas)


def turn(pixels: Pixels, angle: float) -> Pixels:
    """The picture turned by some degrees, on white."""
    if not angle:
        return pixels
    return np.asarray(Image.fromarray(pixels).rotate(angle, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)))


class Judge:
    """The training pictures' latents, and the nearest of them to a given picture."""

    def __init__(self, work: Path, vae_folder: Path, device: str) -> None:
        self.pictures, pixels = data.load(work)
        self._vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).to(device).eval()
        self._device = device
        # The file's name holds what the latents depend on, so that other weights or pictures are not mistaken for these.
        key = hashlib.sha256(pixels.tobytes() + next(self._vae.encoder.parameters()).detach().cpu().numpy().tobytes())
        kept = work / f"judge_{key.hexdigest()[:12]}.npy"
        if not kept.exists():
            ready = [normalised(picture) for picture in pixels]
            mirrored = [np.ascontiguousarray(picture[:, ::-1]) for picture in ready]
            np.save(kept, self._encode([*ready, *mirrored]).cpu().numpy().astype(np.float16))
        self._known = torch.from_numpy(np.load(kept)).float()

    @torch.no_grad()
    def _encode(self, pictures: list[Pixels]) -> Tensor:
        """Latents of normalised pictures less those of white, flat: [B, 1024]; so the empty background weighs nothing."""
        made = []
        white = np.full_like(pictures[0], 255)
        for start in range(0, len(pictures), _BATCH):
            stacked = torch.tensor(np.stack([*pictures[start : start + _BATCH], white]), device=self._device)
            coded = self._vae.encode(stacked.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
            made.append((coded[:-1] - coded[-1:]).flatten(1))
        return torch.cat(made).cpu()

    def nearest(self, pictures: list[Pixels]) -> list[int]:
        """The training picture nearest to each given one, in the turn that fits best, by the latents' Euclidean distance."""
        turned = [normalised(turn(picture, angle)) for angle in TURNS for picture in pictures]
        distances = torch.cdist(self._encode(turned), self._known).view(len(TURNS), len(pictures), -1)
        return [int(index) % len(self.pictures) for index in distances.amin(0).argmin(1)]


def figure(judge: Judge, asked: list[Asked], drawn: list[Pixels], sheet_path: Path | None) -> int:
    """How many of the pictures show what was asked for; the sheet marks each with + or − and what it was taken for."""
    labels = [judge.pictures[index].label for index in judge.nearest(drawn)]
    right = [label == entry.label for label, entry in zip(labels, asked, strict=True)]
    for label, entry, good in zip(labels, asked, right, strict=True):
        if not good:
            say(f"asked for {entry.label!r} by {entry.prompt!r}, looks like {label!r}")
    if sheet_path:
        captions = [f"{'+' if g else '–'} {e.prompt}" for g, e in zip(right, asked, strict=True)]
        sheet(drawn, sheet_path, columns=10, captions=captions)
    return sum(right)


def read_folder(folder: Path, count: int) -> list[Pixels]:
    """The folder's PNGs in the order of their names, at the training size."""
    paths = sorted(folder.glob("*.png"))
    if len(paths) != count:
        raise ValueError(f"{folder} holds {len(paths)} PNGs, not {count}")
    size = (data.SIZE, data.SIZE)
    return [np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.LANCZOS)) for path in paths]


def _drawn(args: argparse.Namespace, asked: list[Asked]) -> list[Pixels]:
    """The pictures to judge: read from a folder or drawn from weights; seed = index."""
    if args.kind == "pictures":
        return read_folder(args.folder, len(asked))
    painter: Any = draw.painter(args)
    pictures: list[Pixels] = draw.draw(painter, [entry.prompt for entry in asked], list(range(len(asked))))
    return pictures


def main() -> None:
    """`python -m demo_models.judge {prompts,list,pictures,sdxl,refined,cascade} …`; the figure goes to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    prompts = kinds.add_parser("prompts", help="make the committed list anew")
    prompts.add_argument("--work", type=Path, required=True)
    prompts.add_argument("--seed", type=int, default=0)
    cascade.subset(prompts)
    kinds.add_parser("list", help="print the prompts, one a line, to draw them elsewhere with seeds 0, 1, …")
    pictures = kinds.add_parser("pictures", help="judge 100 PNGs in the order of their names")
    pictures.add_argument("folder", type=Path)
    for sub in (pictures, *draw.subcommands(kinds)):
        sub.add_argument("--work", type=Path, required=True, help="the folder that `data` wrote")
        sub.add_argument(
            "--vae", type=Path, required=True, help="the SDXL demo's vae folder, which the judge looks through"
        )
        sub.add_argument("--sheet", type=Path, help="contact sheet to draw")
        if sub is pictures:
            draw.machine(sub)
    for sub in kinds.choices.values():
        sub.add_argument("--prompts", type=Path, default=PROMPTS, help="the list of prompts")
    args = parser.parse_args()
    if args.kind == "prompts":
        made = make_prompts(data.load(args.work)[0], args.seed, args.groups, args.styles)
        entries = [asdict(entry) for entry in made]
        args.prompts.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    if args.kind == "list":
        sys.stdout.writelines(f"{entry['prompt']}\n" for entry in json.loads(args.prompts.read_text(encoding="utf-8")))
        return
    torch.set_num_threads(args.threads)
    asked = load_prompts(data.load(args.work)[0], args.prompts)
    right = figure(Judge(args.work, args.vae, args.device), asked, _drawn(args, asked), args.sheet)
    sys.stdout.write(f"{right} of {len(asked)}\n")


if __name__ == "__main__":
    main()
