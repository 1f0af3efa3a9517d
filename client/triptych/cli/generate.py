"""`triptych generate`: pictures from a running server, all in flight at once."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.async_client import AsyncClient, AsyncJob
from triptych.errors import ServerUnavailable, TriptychError, invalid
from triptych.files import save_in
from triptych.types import Completed, GeneratedImage

from .progress import Progress, progress


class Model(str, Enum):
    SDXL = "sdxl"


class Format(str, Enum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    model: Annotated[Model, typer.Option(help="The model to ask.")] = Model.SDXL,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Number of pictures, with seeds seed, seed + 1, …")] = 1,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same picture; default: any.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Steps; default: the model's.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 or less turns guidance off.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, as 128x96; default: the model's.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler, as euler or dpmpp_2m.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Noise schedule, as karras.")] = None,
    output_format: Annotated[Format | None, typer.Option(help="File format.")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", "--output-dir", metavar="DIR", help="Folder for the files.")
    ] = Path("."),
    url: Annotated[str, typer.Option(envvar="TRIPTYCH_URL", help="The server's gRPC address.")] = "localhost:8001",
    timeout: Annotated[
        float | None, typer.Option("--timeout", "--deadline", min=0.001, help="Seconds that each picture may take.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whom the requests belong to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a picture on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Draw pictures and save them; prints their paths."""
    parameters = {
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "sampler": sampler,
        "schedule": schedule,
        "output_format": output_format and output_format.value,
        **_size(size),
    }
    client = {"url": url, "timeout": timeout, "tenant": tenant, "model": model.value}
    output.mkdir(parents=True, exist_ok=True)  # before any work is done for it
    show = _show_json if as_json else _show_path
    failures = asyncio.run(_draw(client, prompt, n, parameters, output, show, quiet))
    if failures:
        for words in dict.fromkeys(map(str, failures[1:])).keys() - {str(failures[0])}:
            sys.stderr.write(f"error: {words}\n")
        raise failures[0]


def _size(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    if not (match := re.fullmatch(r"(\d{1,9})[x×](\d{1,9})", text)):
        raise invalid("size", repr(text), "WIDTHxHEIGHT in pixels, as 128x96")
    return {"width": int(match[1]), "height": int(match[2])}


async def _draw(
    client: dict[str, Any], prompt: str, n: int, parameters: dict[str, Any], output: Path, show: Any, quiet: bool
) -> list[TriptychError]:
    """Draw all; each is saved and shown as it ends, whatever becomes of the others. Returns the failures, worst first."""
    with ExitStack() as stack:
        async with AsyncClient(**client) as connected:
            jobs = connected.submit_many(prompt, n, **parameters)
            bars = stack.enter_context(progress(jobs, quiet))
            drawn = [_follow(job, bars, output, show) for job in jobs]
            results = await asyncio.gather(*drawn, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, TriptychError):
            raise result
    failures = [result for result in results if isinstance(result, TriptychError)]
    return sorted(failures, key=lambda error: isinstance(error, ServerUnavailable))


async def _follow(job: AsyncJob, bars: Progress, output: Path, show: Any) -> None:
    try:
        async for event in job.iter_events():
            bars.tell(job, event)
            if isinstance(event, Completed):
                show(save_in(output, event.image.format, event.image.data), event.image)
    except TriptychError:
        bars.fail(job)
        raise


def _show_path(path: Path, _image: GeneratedImage) -> None:
    sys.stdout.write(f"{path}\n")
    sys.stdout.flush()


def _show_json(path: Path, image: GeneratedImage) -> None:
    facts = {"path": str(path), "seed": image.seed, "timings": image.timings, "receipt": image.receipt}
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
