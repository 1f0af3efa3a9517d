"""`triptych replay`: make pictures again from their own receipts, and say whether the bytes match."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.async_client import AsyncClient
from triptych.errors import InvalidRequest, ServerUnavailable, TriptychError
from triptych.pictures import file_bytes
from triptych.receipts import differences, family_of, pictures_of, read_receipt, reasons, request_of
from triptych.types import GeneratedImage

from .connections import connected
from .options import LOCAL, Url, spelled
from .shown import say, say_json

Pictures = list[Path] | None


def replay(
    files: Annotated[list[Path], typer.Argument(help="Pictures that Triptych made.", exists=True, dir_okay=False)],
    url: Url = LOCAL,
    init_image: Annotated[
        Pictures,
        typer.Option("--init-image", "--image", metavar="FILE", help="A picture that one began from; may be repeated."),
    ] = None,
    mask: Annotated[Pictures, typer.Option(metavar="FILE", help="A mask that one had; may be repeated.")] = None,
    ip_adapter_image: Annotated[
        Pictures, typer.Option(metavar="FILE", help="A picture that one was drawn like; may be repeated.")
    ] = None,
    control_image: Annotated[
        Pictures, typer.Option(metavar="FILE", help="A picture that a control followed; may be repeated.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds that each picture may take.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a picture on stdout.")] = False,
) -> None:
    """Make pictures again and compare the bytes; exit 1 where any differs."""
    given = {
        "init_image": init_image or (),
        "mask": mask or (),
        "ip_adapter_image": ip_adapter_image or (),
        "control_images": control_image or (),
    }
    verdicts = asyncio.run(_replay(files, _by_sha256(given), {"url": url, "timeout": timeout}))
    for verdict in verdicts:
        if as_json:
            say_json(verdict.to_json())
        else:
            say(verdict)
    errors = [verdict.error for verdict in verdicts if verdict.error]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, ServerUnavailable))
    raise typer.Exit(0 if all(verdict.equal for verdict in verdicts) else 1)


def _by_sha256(given: Mapping[str, Sequence[Path]]) -> dict[str, bytes]:
    contents = [file_bytes(name, path) for name, paths in given.items() for path in paths]
    return {hashlib.sha256(data).hexdigest(): data for data in contents}


@dataclass(frozen=True)
class Verdict:
    """What became of one file: the two receipts and whether the bytes match, or why there is no picture."""

    file: Path
    equal: bool = False
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    error: TriptychError | None = None

    def to_json(self) -> dict[str, Any]:
        named = differences(self.before, self.after) if self.before and self.after else []
        failed = {"error": str(self.error)} if self.error else {}
        return {"file": str(self.file), "equal": self.equal, "differences": named, **failed}

    def __str__(self) -> str:
        if self.error:
            return f"FAILED   {self.file}: {str(self.error).removeprefix(f'{self.file}: ')}"
        if self.equal:
            return f"equal    {self.file}"
        named = reasons(self.before, self.after) if self.before and self.after else []
        because = "; ".join(named) or "the receipts agree: the file was changed after it was made"
        return f"DIFFERS  {self.file}: {because}"


async def _replay(files: Sequence[Path], pictures: Mapping[str, bytes], client: dict[str, Any]) -> list[Verdict]:
    # A tenant that nobody has had: from the cache the server would answer with the very file that is in question.
    async with connected(**client, tenant=f"replay-{secrets.token_hex(8)}") as clients:
        return await asyncio.gather(*(_verdict(clients, file, pictures) for file in files))


async def _verdict(clients: Mapping[str, AsyncClient], file: Path, pictures: Mapping[str, bytes]) -> Verdict:
    try:
        receipt = read_receipt(file)
        _need_pictures(file, receipt, pictures)
        image: GeneratedImage = await clients[family_of(receipt).name].generate(**request_of(receipt, pictures))
    except TriptychError as error:
        return Verdict(file, error=error)
    return Verdict(file, image.data == file.read_bytes(), receipt, image.receipt)


def _need_pictures(file: Path, receipt: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    needed = [(name, sha256) for name, hashes in pictures_of(receipt).items() for sha256 in dict.fromkeys(hashes)]
    missing = [(name, sha256) for name, sha256 in needed if sha256 not in pictures]
    if missing:
        # An option is for one file, as `--control-image` of `control_images`.
        options = ", ".join(
            f"--{spelled(name.removesuffix('s'))} FILE with SHA-256 {sha256}" for name, sha256 in missing
        )
        what = "picture it was" if len(missing) == 1 else "pictures it was"
        raise InvalidRequest(message=f"{file}: needs the {what} made from: {options}")
