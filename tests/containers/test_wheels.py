"""What the distributions hold, read from real wheels: a caller's is small, and nothing is missing from the others."""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import PurePosixPath
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from triptych.cli.app import EXTRAS, GROUP

from .test_containers import DOCKERFILES, PROJECT, ROOT, of, run, tomllib

CLIENT, SERVER = "triptych", "triptych_server"
SERVER_PROJECT = tomllib.loads((ROOT / "server/pyproject.toml").read_text())["project"]
DEMO_PROJECT = tomllib.loads((ROOT / "demo/pyproject.toml").read_text())["project"]
ROOMS = ("api", "client", "cluster", "contract", "export", "lab", "model_repository", "page", "server", "web")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Distribution → its wheel; the demo's, of 71 MB, takes too long."""
    folder = tmp_path_factory.mktemp("wheels")
    built = run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", folder),
        *(ROOT, ROOT / "server"),
    )
    assert built.returncode == 0, built.stderr
    return {path.name.split("-")[0]: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def held(wheels):
    """Distribution → the files in its wheel, without those that describe it."""
    names = {name: map(PurePosixPath, ZipFile(path).namelist()) for name, path in wheels.items()}
    return {name: {file for file in files if ".dist-info" not in file.parts[0]} for name, files in names.items()}


def test_a_caller_installs_two_packages_and_little_else(wheels, held):
    assert {file.parts[0] for file in held[CLIENT]} == {"triptych", "triptych_contract"}
    assert {file.suffix for file in held[CLIENT]} == {".py", ".typed"}
    assert wheels[CLIENT].stat().st_size < 300_000


def test_every_file_of_a_room_is_in_one_wheel(held):
    files = [
        path.relative_to(ROOT / room)
        for room in ROOMS
        for path in (ROOT / room).glob("*/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    wanted = [
        PurePosixPath(file if file.parts[0].startswith("triptych") else f"triptych_serving/models/{file}")
        for file in files
    ]
    assert sorted(wanted) == sorted([*held[CLIENT], *held[SERVER]])


@pytest.mark.parametrize("wheel", [CLIENT, SERVER])
def test_the_licence_comes_along(wheels, wheel):
    licences = {file: text for file, text in _texts(wheels[wheel]) if "/licenses/" in file}
    assert {file.split("/")[-1]: text for file, text in licences.items()} == {
        name: (ROOT / name).read_text() for name in ("LICENSE", "NOTICE")
    }


def _texts(wheel):
    with ZipFile(wheel) as archive:
        yield from ((file, archive.read(file).decode()) for file in archive.namelist() if ".dist-info/" in file)


def test_the_commands_of_the_server_are_those_that_the_client_names_when_they_are_missing():
    assert SERVER_PROJECT["entry-points"][GROUP].keys() == EXTRAS.keys()
    assert not EXTRAS.keys() & PROJECT["entry-points"][GROUP].keys()


@pytest.mark.parametrize("extra", sorted({*EXTRAS.values()}))
def test_an_extra_that_brings_commands_brings_the_server(extra):
    assert f"triptych-server=={PROJECT['version']}" in brought(extra)


def brought(extra):
    """The requirements of an extra, and of those that it names."""
    for line in PROJECT["optional-dependencies"][extra]:
        yield line
        for other in re.findall(r"^triptych\[(.*)\]$", line):
            for name in other.split(","):
                yield from brought(name)


def test_the_distributions_are_of_one_version():
    assert SERVER_PROJECT["version"] == DEMO_PROJECT["version"] == PROJECT["version"]
    assert SERVER_PROJECT["dependencies"] == [f"triptych=={PROJECT['version']}"]
    assert SERVER_PROJECT["requires-python"] == PROJECT["requires-python"]
    ours = [line for lines in PROJECT["optional-dependencies"].values() for line in lines if "triptych-" in line]
    assert {*ours} == {f"triptych-{name}=={PROJECT['version']}" for name in ("demo", "server")}


def test_where_the_server_is_installed_from_a_checkout_the_client_comes_first():
    """Older pips look on an index for the `triptych` that triptych-server asks for, unless they have seen the checkout's."""
    places = [ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    lines = [
        line for place in places for line in place.read_text().splitlines() if re.search("pip install|[(]PIP[)]", line)
    ]
    ours = [line for line in lines if re.search(r"BESIDE|(\./|-e )(server|demo)", line)]
    assert len(ours) > 8
    assert [line for line in ours if not re.search(r" '?\.(\[[\w,-]+\]')? .*(BESIDE|server)", line)] == []


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_builds_all_of_ours_that_it_needs(dockerfile):
    (built,) = re.findall(r"-w /wheels (.*?) *&&", " ".join(of(dockerfile, "RUN")))
    assert built.split() == [".", "./server", *(["./demo"] if dockerfile.stem.startswith("server") else [])]


# The client's wheel with what it asks for, and nothing else that is installed here.


@pytest.fixture(scope="module")
def alone(wheels, tmp_path_factory):
    """Runs Python where only the client's wheel is installed, without extras."""
    site = tmp_path_factory.mktemp("site")
    ZipFile(wheels[CLIENT]).extractall(site)
    (described,) = site.glob("*.dist-info")
    for needed in requirements(PathDistribution(described)):
        for name in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(needed.locate_file(name))

    def run_alone(code):
        return run(sys.executable, "-S", "-c", code, cwd=site, env={"PYTHONPATH": str(site), "COLUMNS": "200"})

    return run_alone


def requirements(of: Distribution, extras=()):
    """Give the distributions that one needs, and what they need."""
    for line in map(Requirement, of.requires or ()):
        if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            needed = distribution(line.name)
            yield needed
            yield from requirements(needed, line.extras)


def command(*words):
    return f"import sys; sys.argv = {['triptych', *words]}\nfrom triptych.cli import main\nmain()"


def test_the_client_alone_imports_whole_and_knows_its_version(alone):
    done = alone("import triptych; [getattr(triptych, name) for name in triptych.__all__]; print(triptych.__version__)")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{PROJECT['version']}\n", "")


def test_the_client_alone_tells_its_commands_and_what_brings_the_others(alone):
    done = alone(command("--help"))
    assert (done.returncode, done.stderr) == (0, "")
    assert {*re.findall(r"^│ (\w+) ", done.stdout, re.M)} == {*PROJECT["entry-points"][GROUP]}
    said = " ".join(done.stdout.partition("Not installed here: ")[2].split())
    assert re.findall(r"(\w+)[,:]", said.replace("triptych[", "")) == [
        *(
            "ui",
            "api",
            "serve",
            "demo",
            "doctor",
            "workload",
            "simulate",
            "cluster",
            "export",
            "prune",
            "fetch",
            "bench",
        )
    ]
    assert "serve, demo, doctor, workload, simulate: triptych[server]" in said


@pytest.mark.parametrize("name", PROJECT["entry-points"][GROUP])
def test_the_clients_commands_need_no_extra(alone, name):
    done = alone(command(name, "--help"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: triptych {name}" in done.stdout


@pytest.mark.parametrize(("name", "extra"), EXTRAS.items())
def test_a_command_that_is_not_installed_says_what_brings_it(alone, name, extra):
    done = alone(command(name, "--help"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: triptych-server is missing; pip install 'triptych[{extra}]'\n"
