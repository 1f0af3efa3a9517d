"""What docs/extending.md says is so: its recipe for a parameter is followed in a copy of the tree, and its front is run.

Before there was a contract a parameter was in 16 files by hand:

    git grep -l guidance_rescale bed22da -- '*.py' '*.pbtxt' '*.md' | grep -v tests
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from triptych import AsyncClient, ServerUnavailable
from triptych_contract import generated

from ..client.fakes import FakeTransport

ROOT = Path(__file__).parents[2]
ROOMS = ("contract", "model_repository", "client", "server", "web", "page", "api", "lab", "export")
RECIPE = (ROOT / "docs/extending.md").read_text("utf-8")
NAME = "guidance_start"
MOST_FILES = 3  # that people edit for a parameter
# What the copy says of the parameter, and what its page shows, each as one JSON object.
ASK = """
import json, sys
from pathlib import Path

from triptych import InvalidRequest, parameters, request
from triptych.receipts import request_of
from triptych_contract.sdxl.settings import SdxlSettings
from triptych_demo import demo_build, demo_builds
from triptych_serving.assemble import assemble, read_config
from triptych_serving.manifest import Manifest
from triptych_serving.pipelines import pipeline
from triptych_serving.receipt import receipt

name, repository = sys.argv[1], Path(sys.argv[2])
given = {"prompt": "a fox", "num_inference_steps": 10}


def refused(check):
    try:
        check()
    except InvalidRequest as error:
        return str(error)


assemble(demo_builds(), repository)
configs = {model: read_config(repository / model / "config.pbtxt") for model in ("sdxl", "tokenizer", "stable_cascade")}
inputs = {model: [str(one) for one in config.input if one.name == name] for model, config in configs.items()}
made = pipeline(Manifest.load(demo_build()))
settings = made.parse({**given, name: 0.5})
written = receipt(settings, made, {}, {})
print(json.dumps({
    "inputs": inputs,
    "arrow": dict(configs["sdxl"].ensemble_scheduling.step[0].input_map).get(name),
    "sent": request.check("sdxl", {"prompt": "a fox", name: 1})[name],
    "unsendable": refused(lambda: request.check("sdxl", {name: "late"})),
    "refused": refused(lambda: made.parse({**given, name: 1.5})),
    "hinted": [one.__name__ for one in (parameters.Parameters, parameters.CascadeParameters) if name in one.__annotations__],
    "settings": [settings.to_json()[name], SdxlSettings.parse(settings.to_json(), made.card) == settings],
    "receipt": written[name],
    "replayed": request_of(written)[name],
    "guided": made.outline(settings)[0].walk.guided.tolist(),
}))
"""
ASK_PAGE = """
import json, sys

import gradio
from triptych_demo import demo_build
from triptych_page.fields import Fields
from triptych_page.forms import forms_of

name = sys.argv[1]
card = json.loads((demo_build() / "manifest.json").read_text("utf-8"))["model"]
with gradio.Blocks():
    fields = Fields()
    fields.prompts()
    fields.settings()
form = forms_of({"sdxl": {"family": "sdxl", "model": card}})["sdxl"]
field = fields.by_name[name]
ends = [field.minimum, field.maximum]
print(json.dumps({"label": field.label, "ends": ends, "default": form.parameters[name].default}))
"""


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", RECIPE, re.DOTALL | re.MULTILINE)[1]


def steps():
    """The recipe's edits: file, lines to look for, lines to put there."""
    found = re.findall(
        r"^\*\*\d\.\*\* `([^`]+)`.*?^```diff\n(.*?)^```", section("A parameter"), re.DOTALL | re.MULTILINE
    )
    for file, diff in found:
        lines = [(line[:1], line[1:]) for line in diff.splitlines()]
        yield file, *("".join(f"{text}\n" for mark, text in lines if mark in (" ", kept, "")) for kept in "-+")


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z", *ROOMS, "docs"], cwd=ROOT, capture_output=True, check=True)
    return [Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the tree in which the recipe was followed."""
    folder = tmp_path_factory.mktemp("copy")
    for file in tracked():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / file)
    for file, before, after in steps():
        source = (folder / file).read_text("utf-8")
        assert source.count(before) == 1, f"docs/extending.md shows lines that {file} does not have:\n{before}"
        (folder / file).write_text(source.replace(before, after), "utf-8")
    run(folder, "-m", "triptych_contract.generated")
    return folder


def run(folder, *arguments):
    paths = os.pathsep.join(str(folder / room) for room in ROOMS)
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200", "TERM": "dumb"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def said(copy, tmp_path_factory):
    return json.loads(run(copy, "-c", ASK, NAME, tmp_path_factory.mktemp("assembled") / "repository"))


def test_a_new_parameter_takes_three_files_at_most(copy):
    changed = {str(file) for file in tracked() if not filecmp.cmp(ROOT / file, copy / file, shallow=False)}
    made = {str(generated.HINTS), str(generated.PROTOCOL)}
    assert made < changed
    assert len(changed - made) <= MOST_FILES
    assert changed - made == {file for file, *_ in steps()}


def test_it_is_an_input_on_the_wire_of_its_family_alone(said):
    assert said["inputs"]["sdxl"] == said["inputs"]["tokenizer"]
    (written,) = said["inputs"]["sdxl"]
    assert written.split() == ["name:", f'"{NAME}"', "data_type:", "TYPE_FP32", "dims:", "1", "optional:", "true"]
    assert said["inputs"]["stable_cascade"] == []
    assert said["arrow"] == NAME


def test_the_client_sends_it_and_refuses_what_it_is_not(said):
    assert said["sent"] == 1.0
    assert said["unsendable"] == f"{NAME}: 'late' given; legal: a number"
    assert said["hinted"] == ["Parameters"]


def test_the_server_checks_it(said):
    assert said["refused"] == f"{NAME}: 1.5 given; legal: 0 … 1"


def test_the_command_line_has_an_option_for_it(copy):
    told = run(copy, "-c", "from triptych.cli import main; main()", "generate", "--help")
    assert re.search(r"--guidance-start\s+\S+\s+The share of the model calls", told)


def test_the_page_has_a_field_for_it(copy):
    assert json.loads(run(copy, "-c", ASK_PAGE, NAME)) == {
        "label": "Guidance start",
        "ends": [0, 1],
        "default": 0.0,
    }


def test_the_documents_have_a_row_for_it(copy):
    row = f"| `{NAME}` | FP32 | The share of the model calls, rounded down, that guidance is off for at the beginning |"
    assert row in (copy / generated.PROTOCOL).read_text("utf-8")


def test_settings_and_receipts_hold_it(said):
    assert said["settings"] == [0.5, True]
    assert said["receipt"] == said["replayed"] == 0.5


def test_it_does_what_it_says(said):
    assert said["guided"] == [False] * 5 + [True] * 5


@pytest.fixture
def front():
    """Calls the document's front, whose server gives these answers; the answer, and what was sent to the server."""

    async def call(given, *answers):
        namespace = {}
        exec(re.search(r"^```python\n(.*?)^```", section("A front"), re.DOTALL | re.MULTILINE)[1], namespace)
        transport = FakeTransport(*answers)
        async with AsyncClient(transport=transport, timeout=1) as client:
            asgi = httpx.ASGITransport(namespace["front"](client))
            async with httpx.AsyncClient(transport=asgi, base_url="http://front") as caller:
                return await caller.post("/draw", json=given), transport.requests

    return call


async def test_the_documents_front_draws(front):
    answer, sent = await front({"prompt": "a fox", "seed": 2**63 - 1, "guidance_scale": 3})
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"image", "image/png")
    assert answer.headers["x-seed"] == str(2**63 - 1)
    assert (sent[0]["prompt"], sent[0]["guidance_scale"]) == ("a fox", 3.0)


async def test_the_documents_front_gives_problems_back(front):
    answer, sent = await front({"prompt": 7, "colour": "red"})
    assert answer.status_code == 400
    assert [problem["field"] for problem in answer.json()["problems"]] == ["prompt", "colour"]
    assert sent == []


async def test_the_documents_front_tells_when_no_server_is_there(front):
    answer, _ = await front({"prompt": "a fox"}, ServerUnavailable("nobody answers"))
    assert (answer.status_code, answer.json()) == (503, {"message": "nobody answers"})
