"""`triptych generate`: pictures from a running server, all in flight at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.async_client import AsyncClient, AsyncJob
from triptych.errors import ServerUnavailable, TriptychError
from triptych.files import save_in
from triptych.types import Completed, GeneratedImage
from triptych_contract.families import DEFAULT, family_of
from triptych_contract.parameters import GROUPS

from .connections import patient
from .contract import asked, with_parameters
from .options import LOCAL, OUTPUT, model_option
from .progress import Progress, progress
from .shown import complain, say, say_json

_picture = partial(typer.Option, rich_help_panel=GROUPS["picture"])
_output = partial(typer.Option, rich_help_panel=OUTPUT)


@with_parameters
def generate(
    *,
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    n: Annotated[int, _picture("-n", "--n", min=1, help="Number of pictures, with seeds seed, seed + 1, …")] = 1,
    options: dict[str, Any],
    output: Annotated[
        Path, _output("-o", "--output", "--output-dir", metavar="DIR", help="Folder for the files.")
    ] = Path("."),
    url: Annotated[str, _output(envvar="TRIPTYCH_URL", help="The server's gRPC address.")] = LOCAL,
    model: Annotated[str, model_option(help="The model to ask.", rich_help_panel=OUTPUT)] = DEFAULT.name,
    timeout: Annotated[
        float | None, _output("--timeout", "--deadline", min=0.001, help="Seconds that each picture may take.")
    ] = None,
    as_json: Annotated[bool, _output("--json", help="One JSON object a picture on stdout.")] = False,
    quiet: Annotated[bool, _output("--quiet", help="No progress.")] = False,
) -> None:
    """Draw pictures and save them; prints their paths."""
    parameters = asked(model, prompt, options)
    del parameters["prompt"]
    client = {"url": url, "timeout": timeout, "model": model, "patience": patient(quiet=quiet)}
    output.mkdir(parents=True, exist_ok=True)  # before any work is done for it
    show = _show_json if as_json else _show_path
    failures = asyncio.run(_draw(client, prompt, n, parameters, output, show, quiet))
    if failures:
        for words in dict.fromkeys(map(str, failures)):
            if words != str(failures[0]):
                complain(words)
        raise failures[0]


async def _draw(
    client: dict[str, Any], prompt: str, n: int, parameters: dict[str, Any], output: Path, show: Any, quiet: bool
) -> list[TriptychError]:
    """Draw all; each is saved and shown as it ends, whatever becomes of the others. Returns the failures, worst first."""
    with ExitStack() as stack:
        async with AsyncClient(**client) as connected:
            jobs = connected.submit_many(prompt, n, **parameters)
            bars = stack.enter_context(progress(jobs, quiet, staged=_staged(connected.model, parameters)))
            drawn = [_follow(job, bars, output, show) for job in jobs]
            results = await asyncio.gather(*drawn, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, TriptychError):
            raise result
    failures = [result for result in results if isinstance(result, TriptychError)]
    return sorted(failures, key=lambda error: isinstance(error, ServerUnavailable))


def _staged(model: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the picture is made by more than one denoiser."""
    return family_of(model).staged(parameters)


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
    say(path)


def _show_json(path: Path, image: GeneratedImage) -> None:
    facts = {"seed": image.seed, "cached": image.cached, "timings": image.timings, "receipt": image.receipt}
    say_json({"path": str(path), **facts})
