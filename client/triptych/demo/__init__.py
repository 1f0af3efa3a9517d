"""The demo models that ship with the package."""

from __future__ import annotations

from pathlib import Path


def demo_build(name: str = "sdxl") -> Path:
    """The folder of a shipped demo model.

    Raises:
        FileNotFoundError: this installation has none of that name.
    """
    build = Path(__file__).parent / name
    if not (build / "manifest.json").is_file():
        raise FileNotFoundError(
            f"no demo model {name!r} in {build}; reinstall triptych, or give a folder that was exported"
        )
    return build
