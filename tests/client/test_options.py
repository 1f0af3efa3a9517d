"""The options of `triptych generate`: each parameter that the contract declares, and no other."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import typer
from typer.testing import CliRunner

from triptych import InvalidRequest
from triptych.cli import contract
from triptych_contract import families
from triptych_contract.families import FAMILIES
from triptych_contract.parameters import Choice, File, Flag, LongInteger, Number, Pair, parameter
from triptych_contract.sdxl.settings import SdxlSettings
from triptych_contract.stable_cascade.settings import CascadeSettings


@dataclass(frozen=True)
class Sharper(SdxlSettings):
    """SDXL with what nobody has declared yet."""

    sharpness: float = parameter(Number(0, 3), "How sharp.", default=1.5, group="sharpening", options=("--sharp",))
    grain: str = parameter(Choice(("fine", "coarse")), "The grain.", default="fine", group="picture")
    tile: tuple[int, int] = parameter(Pair(1, 9, ("row", "column")), "Which tile.", group="picture")
    depth: object = parameter(File(), "A depth map.", group="start")
    upright: bool = parameter(Flag(), "Turn it upright.", default=False, delivery=True)
    salt: int = parameter(LongInteger(0, 9), "SDXL's salt.")


@dataclass(frozen=True)
class Salted(CascadeSettings):
    salt: int = parameter(LongInteger(0, 9), "Stable Cascade's salt.")


@pytest.fixture
def command(monkeypatch):
    """Runs a command that has the contract's options; gives its exit code, what it printed and what it was asked."""
    changed = {
        "sdxl": replace(FAMILIES["sdxl"], load_settings=lambda: Sharper),
        "stable_cascade": replace(FAMILIES["stable_cascade"], load_settings=lambda: Salted),
    }
    for module in (contract, families):
        monkeypatch.setattr(module, "FAMILIES", changed)
    asked = {}

    @contract.with_parameters
    def draw(*, prompt: str, options: dict, model: str = "sdxl"):
        """Draw."""
        asked.clear()
        asked.update(contract.asked(model, prompt, options))

    app = typer.Typer()
    app.command()(draw)

    def run(*words):
        done = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, words)
        if isinstance(done.exception, InvalidRequest):
            raise done.exception
        return done.exit_code, done.output, asked

    return run


def test_what_is_declared_in_the_contract_is_an_option(command, tmp_path):
    (tmp_path / "depth.png").write_bytes(b"depth")
    words = ["--sharp", "2", "--grain", "coarse", "--tile", "3,4", "--depth", str(tmp_path / "depth.png"), "--upright"]
    assert command("a fox", *words)[2] == {
        "prompt": "a fox",
        "sharpness": 2.0,
        "grain": "coarse",
        "tile": (3, 4),
        "depth": b"depth",
        "upright": True,
    }
    assert command("a fox", "--no-upright")[2] == {"prompt": "a fox", "upright": False}


def test_help_has_words_limits_default_other_spellings_and_group(command):
    _, text, _ = command("--help")
    (line,) = [line for line in text.splitlines() if "--sharpness" in line]
    assert "--sharpness,--sharp" in line
    assert "How sharp. 0 … 3. Default: 1.5." in line
    assert "Sharpening" in text
    assert "<fine|coarse>" in text
    assert "ROW,COLUMN" in text


def test_a_name_that_two_families_have_is_one_option_with_the_words_of_both(command):
    _, text, _ = command("--help")
    assert len(re.findall("--salt", text)) == 1
    words = " ".join(text.replace("│", " ").split())
    assert (
        "SDXL: SDXL's salt. 0 … 9. Default: none. Stable Cascade: Stable Cascade's salt. 0 … 9. Default: none." in words
    )
    assert command("a fox", "--salt", "3", "--model", "stable_cascade")[2]["salt"] == 3


def test_a_choice_and_a_pair_are_refused_by_name(command):
    code, text, _ = command("a fox", "--grain", "rough")
    assert code == 2
    assert "'fine', 'coarse'" in text
    with pytest.raises(InvalidRequest, match="tile: '3' given; legal: ROW,COLUMN in pixels, as 0,64"):
        command("a fox", "--tile", "3")


def test_all_that_is_wrong_is_raised_at_once(command):
    with pytest.raises(InvalidRequest) as error:
        command("a \udcff", "--tile", "3", "--prior-steps", "4", "--depth", "none.png", "--sharp", "1e39")
    assert {problem.field for problem in error.value.problems} == {
        "prompt",
        "tile",
        "--prior-num-inference-steps",
        "depth",
        "sharpness",
    }


@pytest.mark.parametrize("model", FAMILIES)
def test_every_parameter_of_a_family_has_its_option(model):
    text = CliRunner(env={"COLUMNS": "250", "TERM": "dumb"}).invoke(_app(), ["--help"]).output
    names = {"size" if name in contract.SIDES else name for name in FAMILIES[model].parameters}
    for name in names - set(contract.BESIDE):
        assert f"--{name.replace('_', '-')}" in text
    for one in FAMILIES[model].parameters.values():
        for spelling in one.options:
            assert spelling.split("/")[0] in text


def _app():
    from triptych.cli.generate import generate

    app = typer.Typer()
    app.command()(generate)
    return app
