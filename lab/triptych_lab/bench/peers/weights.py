"""Find the weights that peers draw with, or take the demo's out of its ONNX files; and check that they are those served."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych_demo import demo_build
from triptych_serving.manifest import sha256

from ..errors import BenchError
from ..load import pixels
from ..requests import same
from ..target import Setting
from .peer import Peer

REBUILD, CONTROL = "triptych_export.peers.rebuild", "triptych_export.peers.control"
EXPORT = "from triptych.cli import main; main()"
# Two pictures by the same weights differ by no more than this, of 255.
MOST = 1


def weights_of(setting: Setting) -> Path:
    """Return the folder in diffusers layout of what is served: the setting's, or the demo's, which is made once.

    Raises:
        BenchError: the demo's cannot be made.
    """
    if setting.weights is not None:
        return setting.weights
    build = demo_build()
    folder = setting.output / "peers" / f"weights-{sha256(build / 'manifest.json')[:12]}"
    _make_once(folder, f"the demo's weights cannot be had from {build}", REBUILD, build)
    return folder


def exported(weights: Path, output: Path, what: str, *options: str) -> Path:
    """Export the weights with these options of `triptych export`, once; `what` the build is called.

    Raises:
        BenchError: that fails.
    """
    build = output / f"{what}-{sha256(weights / 'unet/config.json')[:6]}-{weights.name}"
    if not (build / "manifest.json").exists():
        _run(f"no build {what}", "-c", EXPORT, "export", str(weights), "-o", str(build), "--quiet", *options)
    return build


def control_of(weights: Path, output: Path) -> Path:
    """Return the folder of a random control (ControlNet) for the weights, which is made once.

    Raises:
        BenchError: it cannot be made.
    """
    folder = output / f"controlnet-{weights.name}"
    _make_once(folder, f"no control for {weights}", CONTROL, weights)
    return folder


def check_same(peer: Peer, url: str, **settings: str) -> None:
    """Draw one picture with both, to see that peer and server have the same weights.

    Raises:
        BenchError: the two pictures differ by more than 1 of 255.
    """
    request = {**same(1)[0], **settings}
    ours, theirs = pixels(url, request), _pixels(peer.picture(request))
    most = np.abs(ours.astype(np.int16) - theirs).max() if ours.shape == theirs.shape else 255
    if most > MOST:
        raise BenchError(f"{peer.name}: its picture differs from ours by {most} of 255; are these the build's weights?")


def _make_once(folder: Path, failed: str, module: str, of: Path) -> None:
    """Have a module write a folder of something else's, whole or not at all."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as unfinished:
        _run(failed, "-m", module, str(of), str(Path(unfinished, "made")))
        Path(unfinished, "made").rename(folder)


def _run(failed: str, *command: str) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        words: list[Any] = done.stderr.strip().splitlines() or [done.returncode]
        raise BenchError(f"{failed}: {words[-1]}")


def _pixels(file: bytes) -> NDArray[np.int16]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"), np.int16)
