"""Settings as a command line and as Python that really ask for the same; differences; grids."""

from __future__ import annotations

import ast
import shlex

import pytest

from triptych import InvalidRequest
from triptych.cli import generate as command
from triptych_page.grid import axis, plan, sweepable
from triptych_page.words import command_line, differences, python_code

from .described import all_forms

FORMS = all_forms()
NASTY = "-rf 'a' \"b\" $(touch x) `y`\n; <script>"
SETTINGS = {
    "prompt": NASTY,
    "negative_prompt": "--seed 9",
    "seed": 2**63 - 1,
    "height": 96,
    "width": 128,
    "guidance_scale": 7.300000190734863,
    "sampler": "euler",
    "original_size": (96, 160),
    "crops_coords_top_left": (0, 64),
    "strength": None,
}


def test_the_command_line_is_what_the_command_reads(monkeypatch):
    from typer.testing import CliRunner

    from triptych.cli.app import app

    asked = {}

    async def draw(client, prompt, n, parameters, *_):
        asked.update(parameters, prompt=prompt, n=n, model=client["model"])
        return []

    monkeypatch.setattr(command, "_draw", draw)
    words = shlex.split(command_line("sdxl", SETTINGS, 4))
    assert words[0] == "triptych"
    result = CliRunner().invoke(app(), words[1:])
    assert result.exit_code == 0, result.output
    expected = {name: value for name, value in SETTINGS.items() if value is not None}
    assert asked == {**expected, "guidance_scale": 7.3, "n": 4, "model": "sdxl"}


def test_another_model_is_named():
    assert "--model stable-cascade" in command_line("stable_cascade", {"prompt": "a fox"})


def test_adapters_are_asked_for_one_by_one():
    worn = [{"name": "ink", "scale": 0.5, "sha256": "00"}, {"name": "it's", "scale": 1.0, "sha256": "01"}]
    settings = {"prompt": "a fox", "lora": worn}  # as receipts have them
    assert "--lora=ink:0.5" in shlex.split(command_line("sdxl", settings))
    assert "--lora=it's:1" in shlex.split(command_line("sdxl", settings))
    assert """lora=[{'name': 'ink', 'scale': 0.5}, {'name': "it's", 'scale': 1.0}],""" in python_code("sdxl", settings)
    assert differences(settings, {"prompt": "a fox"}) == [("lora", "ink:0.5, it's:1", "–")]


def test_pictures_are_named_not_sent():
    settings = {"prompt": "a fox", "init_image": {"sha256": "ab"}, "strength": 0.5}
    assert "--init-image=init_image.png" in command_line("sdxl", settings)
    assert "init_image='init_image.png'" in python_code("sdxl", settings)


@pytest.mark.parametrize(("ensemble", "n", "method"), [("sdxl", 1, "generate"), ("stable_cascade", 3, "generate_many")])
def test_the_python_code_asks_for_the_same(ensemble, n, method):
    code = ast.parse(python_code(ensemble, SETTINGS, n))
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    (call,) = [call for call in calls if call.func.attr == method]
    arguments = [ast.literal_eval(argument) for argument in call.args]
    keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert arguments == ([NASTY] if n == 1 else [NASTY, n])
    assert keywords == {
        "negative_prompt": "--seed 9",
        "seed": 2**63 - 1,
        "height": 96,
        "width": 128,
        "guidance_scale": 7.3,
        "sampler": "euler",
        "original_size": (96, 160),
        "crops_coords_top_left": (0, 64),
    }


def test_differences_name_what_is_not_shared():
    one = {"seed": 7, "guidance_scale": 7.300000190734863, "sampler": "euler"}
    assert differences(one, {"seed": 8, "guidance_scale": 7.3, "clip_skip": 1}) == [
        ("seed", "7", "8"),
        ("sampler", "euler", "–"),
        ("clip_skip", "–", "1"),
    ]
    assert differences(one, one) == []


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("guidance_scale", "4, 6.5,8", (4, 6.5, 8)),
        ("guidance_scale", "1-2 (+0.5)", (1, 1.5, 2)),
        ("guidance_scale", "0-0.3 (+0.1)", (0, 0.1, 0.2, 0.3)),
        ("guidance_scale", "1-4 [3]", (1, 2.5, 4)),
        ("num_inference_steps", "4-6, 20", (4, 5, 6, 20)),
        ("num_inference_steps", "10-20 [3]", (10, 15, 20)),
        ("seed", f"{2**53 + 1}", (2**53 + 1,)),
        ("sampler", "euler, dpmpp_2m, euler", ("euler", "dpmpp_2m")),
    ],
)
def test_axes_are_read_as_a1111_writes_them(name, text, values):
    found = axis(FORMS["sdxl"], name, text).values
    assert found == values


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("guidance_scale", ""),
        ("guidance_scale", "a, b"),
        ("guidance_scale", "8-4"),
        ("guidance_scale", "1-2 (+0)"),
        ("num_inference_steps", "1-100"),
        ("num_inference_steps", "1-5 [1]"),
        ("guidance_scale", ",".join(map(str, range(17)))),
        ("guidance_scale", "9" * 30),
    ],
)
def test_what_is_no_axis_is_refused_by_name(name, text):
    with pytest.raises(InvalidRequest, match=f"^{name}: .* given; legal: "):
        axis(FORMS["sdxl"], name, text)


def test_only_settings_of_the_model_can_be_swept():
    assert "sampler" not in sweepable(FORMS["stable_cascade"])
    with pytest.raises(InvalidRequest, match=r"^axis: 'prompt'"):
        axis(FORMS["sdxl"], "prompt", "a, b")


def test_a_grid_is_row_by_row_with_one_seed():
    form = FORMS["sdxl"]
    x, y = axis(form, "num_inference_steps", "2, 3, 4"), axis(form, "sampler", "euler, heun")
    grid, problems = plan(form, {"prompt": "a fox", "seed": "7", "num_inference_steps": 9}, x, y)
    assert problems == []
    assert grid.columns == 3
    assert [(cell["sampler"], cell["num_inference_steps"]) for cell in grid.cells] == [
        (sampler, steps) for sampler in ("euler", "heun") for steps in (2, 3, 4)
    ]
    assert {cell["seed"] for cell in grid.cells} == {7}
    assert grid.label(4) == "num_inference_steps 3, sampler heun"
    assert all(form.check(cell)[1] == [] for cell in grid.cells)


def test_a_grid_tells_each_problem_once():
    form = FORMS["sdxl"]
    x, y = axis(form, "sampler", "euler, nobodys"), axis(form, "guidance_scale", "4, 60")
    _, problems = plan(form, {"prompt": "a fox", "seed": "7"}, x, y)
    assert sorted(str(problem).split(";")[0] for problem in problems) == [
        "guidance_scale: 60 given",
        "sampler: 'nobodys' given",
    ]


def test_a_grid_has_its_limits():
    form = FORMS["sdxl"]
    x, y = axis(form, "seed", "1-16"), axis(form, "guidance_scale", "1-5")
    with pytest.raises(InvalidRequest, match=r"^grid: 80 pictures given; legal: at most 64"):
        plan(form, {"prompt": "a fox"}, x, y)
    with pytest.raises(InvalidRequest, match=r"^axis: seed twice"):
        plan(form, {"prompt": "a fox"}, x, x)
