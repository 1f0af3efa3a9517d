"""Reads the three npm packages into one array of 128×128 pictures and one list that says what each shows.

Sources (all MIT; unpack each with `npm pack NAME@VERSION`):
`@lobehub/fluent-emoji-3d` 1.1.0 (Microsoft's 3-D renders, WebP), `@iconify-json/fluent-emoji-flat` 1.2.6 (Microsoft's flat
drawings, SVG) and `emojibase-data` 17.0.0 (names, tags and groups).
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from demo_models.report import say

SIZE = 128
# Emojibase's groups: smileys, animals, food, travel, activities, objects. People, symbols and flags are left out: their
# pictures differ by details (skin, gender, glyphs) that 128 pixels and a few million parameters cannot carry.
GROUPS = (0, 3, 4, 5, 6, 7)
Style = Literal["3d", "flat"]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One training picture: its subject's label and other names (lower case), the style it is drawn in, its emoji's group."""

    label: str
    names: tuple[str, ...]
    style: Style
    hexcode: str
    group: int


def _slug(label: str) -> str:
    """The name under which the flat set files a label: 'Mrs. Claus’s hat' is 'mrs-clauss-hat'."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("[’“”]", "", label.lower())).strip("-")


def _on_white(picture: Image.Image) -> Pixels:
    """The picture at the training size on white: uint8 [128, 128, 3]."""
    picture = picture.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB"))


def _draw(body: str) -> Image.Image:
    """A flat icon's SVG body, drawn at twice the training size so that thin lines are averaged and not lost."""
    import cairosvg  # type: ignore[import-not-found]  # Here: only this function needs it, and the product never does.

    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="256" height="256">{body}</svg>'
    return Image.open(io.BytesIO(cairosvg.svg2png(svg.encode())))


def _wanted(entry: dict[str, Any]) -> bool:
    """Whether an emoji is in the set; the 24 clock faces are left out because they differ by two hands only."""
    label = entry["label"]
    return entry.get("group") in GROUPS and "o’clock" not in label and "thirty" not in label


def _names(entries: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Label → label and synonyms; a synonym is a tag that no other emoji of the set carries and that is no label."""
    shared = Counter(tag.lower() for entry in entries for tag in set(entry.get("tags", [])))
    labels = {entry["label"].lower() for entry in entries}
    return {
        entry["label"].lower(): (
            entry["label"].lower(),
            *(tag for tag in map(str.lower, entry.get("tags", [])) if shared[tag] == 1 and tag not in labels),
        )
        for entry in entries
    }


def _read(emoji_3d: Path, emoji_flat: Path, emojibase: Path) -> Iterator[tuple[Picture, Pixels]]:
    """Every picture of the set, the 3-D one of an emoji before its flat one."""
    entries = [e for e in json.loads((emojibase / "en/data.json").read_text(encoding="utf-8")) if _wanted(e)]
    flat = json.loads((emoji_flat / "icons.json").read_text(encoding="utf-8"))["icons"]
    names = _names(entries)
    for entry in entries:
        label, code = entry["label"].lower(), entry["hexcode"].lower()
        render = emoji_3d / "assets" / f"{code}.webp"
        if render.exists():
            yield Picture(label, names[label], "3d", code, entry["group"]), _on_white(Image.open(render))
        if (name := _slug(label)) in flat:
            yield Picture(label, names[label], "flat", code, entry["group"]), _on_white(_draw(flat[name]["body"]))


def write(work: Path, emoji_3d: Path, emoji_flat: Path, emojibase: Path) -> None:
    """Write `pictures.npy` (uint8 [N, 128, 128, 3]) and `pictures.json` (N entries) into the work folder."""
    found = list(_read(emoji_3d, emoji_flat, emojibase))
    work.mkdir(parents=True, exist_ok=True)
    np.save(work / "pictures.npy", np.stack([pixels for _, pixels in found]))
    (work / "pictures.json").write_text(json.dumps([asdict(picture) for picture, _ in found]), encoding="utf-8")
    say(f"{len(found)} pictures of {len({picture.label for picture, _ in found})} subjects")


def load(work: Path) -> tuple[list[Picture], Pixels]:
    """What `write` wrote."""
    entries = json.loads((work / "pictures.json").read_text(encoding="utf-8"))
    pictures = [Picture(e["label"], tuple(e["names"]), e["style"], e["hexcode"], e["group"]) for e in entries]
    return pictures, np.load(work / "pictures.npy")


def among(pictures: list[Picture], groups: list[int], styles: list[str]) -> list[int]:
    """The indices of the pictures of some groups in some styles."""
    return [i for i, picture in enumerate(pictures) if picture.group in groups and picture.style in styles]


def main() -> None:
    """`python -m demo_models.data --work DIR --emoji-3d DIR --emoji-flat DIR --emojibase DIR`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the recipe makes")
    parser.add_argument("--emoji-3d", type=Path, required=True, help="unpacked @lobehub/fluent-emoji-3d")
    parser.add_argument("--emoji-flat", type=Path, required=True, help="unpacked @iconify-json/fluent-emoji-flat")
    parser.add_argument("--emojibase", type=Path, required=True, help="unpacked emojibase-data")
    args = parser.parse_args()
    write(args.work, args.emoji_3d, args.emoji_flat, args.emojibase)


if __name__ == "__main__":
    main()
