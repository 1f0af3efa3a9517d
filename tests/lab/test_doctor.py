"""`triptych doctor`: every check's bad states through what it is given, and its lines."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.cli import main
from triptych_lab.doctor import Finding, Level, Ports, examination, examine, gpu, machine, probes, software
from triptych_lab.doctor.finding import finding
from triptych_lab.doctor.probes import Output

OK, NOTE, PROBLEM = Level.OK, Level.NOTE, Level.PROBLEM
HERE = Path("/somewhere")
FITTING = {
    "numpy": "1.26.4",
    "onnxruntime": "1.31.1",
    "pillow": "13.0.0",
    "psutil": "7.2.2",
    "tokenizers": "0.23.3",
    "tritonclient": "2.73.0",
    "nvidia-pytriton": "0.7.0",
}
USAGE = Output(1, "Usage: tritonserver [options]\n")
CHECKS = {
    *("system", "python", "packages", "triton", "onnxruntime", "exporter", "gpus", "tensorrt", "cuda"),
    *("disk for builds", "temporary files", "shared memory", "memory", "processors", "ports", "open files", "clock"),
}


def raising(error):
    def raises(*_):
        raise error

    return raises


def always(value):
    return lambda *_: value


def read_from(files):
    return files.get


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (("Linux", "x86_64", "glibc 2.36"), OK),
        (("Linux", "x86_64", "glibc 2.35"), OK),
        (("Linux", "x86_64", "glibc 2.31"), PROBLEM),
        (("Linux", "x86_64", None), PROBLEM),
        (("Linux", "aarch64", "glibc 2.36"), PROBLEM),
        (("Darwin", "arm64", None), PROBLEM),
    ],
)
def test_system(facts, level):
    found = software.system(always(facts))
    assert found.level == level
    assert bool(found.advice) == (level != OK)


@pytest.mark.parametrize(("version", "level"), [((3, 11, 7), OK), ((3, 9, 1), PROBLEM), ((3, 13, 0), PROBLEM)])
def test_python(version, level):
    assert software.python(version).level == level


def test_packages():
    assert software.packages(FITTING.get).level == OK


@pytest.mark.parametrize(
    ("package", "version", "words"),
    [
        ("numpy", "2.1.0", "numpy 2.1.0 (needed: 1.26 or newer, before 2)"),
        ("onnxruntime", "1.22.1", "onnxruntime 1.22.1 (needed: 1.23 or newer)"),
        ("tokenizers", None, "tokenizers is missing (needed: 0.22 or newer)"),
    ],
)
def test_a_package_that_does_not_fit(package, version, words):
    assert software.packages({**FITTING, package: version}.get) == Finding("packages", PROBLEM, words, software.INSTALL)


def test_the_table_of_packages_is_the_projects():
    """What pyproject.toml asks of the installed project."""
    from importlib.metadata import requires

    asked = {line.split(";")[0].strip() for line in requires("triptych")}
    for package, (lowest, too_new) in software.SERVER.items():
        at_least = f"{package}>={'.'.join(map(str, lowest))}"
        assert at_least in {line.replace("[grpc]", "") for line in asked}
        assert too_new is None or f"{package}<{'.'.join(map(str, too_new))}" in asked


def test_without_the_exporters_packages():
    found = software.exporter(always(None))
    assert (found.level, found.advice) == (NOTE, "to export weights of your own: pip install 'triptych[export]'")


def test_triton_starts():
    home = Path("/venv/pytriton/tritonserver")
    found = software.triton(always(home), always(USAGE), FITTING.get)
    assert found.level == OK
    assert found.found == f"{home}/bin/tritonserver starts (nvidia-pytriton 0.7.0)"


def test_another_triton_than_the_wheels_has_not_its_version():
    found = software.triton(always(Path("/opt/tritonserver")), always(USAGE), FITTING.get)
    assert found.found == "/opt/tritonserver/bin/tritonserver starts"


@pytest.mark.parametrize(
    ("find", "output", "words"),
    [
        (raising(ValueError("pytriton is not installed here")), always(USAGE), "pytriton is not installed here"),
        (raising(ImportError("No module named 'psutil'")), always(USAGE), "No module named 'psutil'"),
        (
            always(HERE),
            always(Output(127, "tritonserver: error while loading shared libraries: libb64.so.0d: no such file\n")),
            "/somewhere/bin/tritonserver does not start: tritonserver: error while loading shared libraries: libb64",
        ),
        (always(HERE), always(Output(-11, "")), "/somewhere/bin/tritonserver does not start: exit code -11"),
        (always(HERE), raising(PermissionError(errno.EACCES, "Permission denied")), "cannot be run: Permission denied"),
    ],
)
def test_triton_does_not_start(find, output, words):
    found = software.triton(find, output)
    assert found.level == PROBLEM
    assert words in found.found
    assert found.advice


def test_onnxruntime():
    assert software.onnxruntime(always(("1.31.1", ["CPUExecutionProvider"]))).found == "1.31.1: CPU"
    assert software.onnxruntime(always(("1.31.1", ["CUDAExecutionProvider"]))).level == PROBLEM
    assert software.onnxruntime(raising(ImportError("libgomp.so.1"))).level == PROBLEM


H200 = "NVIDIA H200, 580.95.05, 9.0, 143771"


def seen(*lines, code=0):
    return gpu.gpus(always(Output(code, "".join(f"{line}\n" for line in lines))))


def test_no_gpu_is_no_error():
    assert gpu.gpus(raising(FileNotFoundError())) == Finding("gpus", NOTE, "none: cpu target only")
    assert seen() == Finding("gpus", NOTE, "none: cpu target only")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (H200, "NVIDIA H200, SM 9.0, 140 GiB: tensorrt or cuda; driver 580.95.05"),
        ("NVIDIA GeForce RTX 4090, 580.95.05, 8.9, 24564", "NVIDIA GeForce RTX 4090, SM 8.9, 24 GiB: tensorrt-rtx or"),
    ],
)
def test_a_gpu_has_a_target(line, words):
    found = seen(line)
    assert found.level == OK
    assert found.found.startswith(words)


@pytest.mark.parametrize(
    ("line", "words", "advice"),
    [
        ("Tesla V100, 580.95.05, 7.0, 16384", "SM 7.0, 16 GiB: cpu only", "compute capability 7.5 or newer"),
        ("NVIDIA H200, 535.1, 9.0, 143771", "driver 535.1", "update the driver to 580 or newer"),
        ("NVIDIA X, 580.1, [N/A], [N/A]", "NVIDIA X, SM unknown: cpu only", "compute capability"),
    ],
)
def test_a_gpu_that_is_too_old(line, words, advice):
    found = seen(line)
    assert found.level == NOTE
    assert words in found.found
    assert advice in found.advice


def test_every_gpu_is_listed():
    assert seen(H200, H200).found.count("NVIDIA H200") == 2


def test_a_driver_that_does_not_answer():
    words = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    assert words in seen(words, code=9).found
    slow = gpu.gpus(raising(subprocess.TimeoutExpired("nvidia-smi", 20)))
    assert (slow.level, slow.found) == (NOTE, "nvidia-smi does not answer")


def test_an_answer_that_nobody_expected_is_a_note():
    found = seen("what is this?")
    assert found.level == NOTE
    assert found.found.startswith("could not be looked at (ValueError: ")


def test_tensorrt():
    assert gpu.tensorrt(always(False)).level == NOTE
    there = gpu.tensorrt(lambda module: module in ("tensorrt_rtx_bindings", "cuda"), always(Output(0, "1.7.1\n")))
    assert there == Finding("tensorrt", OK, "tensorrt-rtx 1.7.1")
    broken = gpu.tensorrt(always(True), always(Output(1, "Traceback\nImportError: libcudart.so.13\n")))
    assert broken.level == NOTE
    assert "tensorrt cannot be imported: ImportError: libcudart.so.13" in broken.found
    alone = gpu.tensorrt(lambda module: module == "tensorrt", always(Output(0, "10.1\n")))
    assert (alone.level, alone.advice) == (NOTE, "pip install 'cuda-bindings>=13'")
    assert "cuda-bindings is missing" in alone.found


def test_cuda():
    assert gpu.cuda(always(None)).level == NOTE
    assert gpu.cuda(always("1.31.1"), always(Output(0, "1.31.1\n"))) == Finding("cuda", OK, "onnxruntime-gpu 1.31.1")
    hidden = gpu.cuda(always("1.31.1"), always(Output(1, "…LibraryMissing: has no CUDAExecutionProvider\n")))
    assert (hidden.level, hidden.advice[:13]) == (NOTE, "pip uninstall")
    assert "has no CUDAExecutionProvider" in hidden.found


@pytest.mark.parametrize(("left", "level"), [(100e9, OK), (5e9, NOTE)])
def test_disk(left, level):
    assert machine.disk(HERE, always(left)).level == level


@pytest.mark.parametrize(("left", "level"), [(100e9, OK), (500e6, NOTE), (10e6, PROBLEM)])
def test_temporary_files(left, level):
    assert machine.temporary(always("/tmp"), always(left)).level == level


def test_nowhere_for_temporary_files():
    found = machine.temporary(raising(FileNotFoundError("No usable temporary directory found")))
    assert (found.level, found.advice) == (PROBLEM, "set TMPDIR to a folder that can be written to")


@pytest.mark.parametrize(("left", "level"), [(1e9, OK), (64e6, NOTE), (8e6, PROBLEM)])
def test_shared_memory(left, level):
    found = machine.shared_memory(always(left))
    assert found.level == level
    assert ("--shm-size" in found.advice) == (level != OK)


@pytest.mark.parametrize(
    ("available_kib", "limit", "used", "level"),
    [
        (40_000_000, None, None, OK),
        (40_000_000, "max", "5", OK),
        (8_000_000, None, None, NOTE),
        (500_000, None, None, PROBLEM),
        (40_000_000, str(2 * 10**9), str(15 * 10**8), PROBLEM),
    ],
)
def test_memory(available_kib, limit, used, level):
    files = {
        "/proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {available_kib} kB\n",
        "/sys/fs/cgroup/memory.max": limit,
        "/sys/fs/cgroup/memory.current": used,
    }
    assert machine.memory(read_from(files)).level == level


def test_memory_that_nobody_tells():
    assert machine.memory(always(None)).level == NOTE


@pytest.mark.parametrize(
    ("quota", "level"), [(None, OK), ("max 100000\n", OK), ("800000 100000\n", OK), ("150000 100000\n", NOTE)]
)
def test_processors(quota, level):
    found = machine.processors(always(8), read_from({"/sys/fs/cgroup/cpu.max": quota}))
    assert found.level == level
    assert level == OK or found.found == "8, of which a quota allows 1.5"


def test_ports():
    assert machine.ports("127.0.0.1", Ports().options, always(""), always("")).level == OK
    taken = machine.ports(
        "127.0.0.1",
        Ports().options,
        lambda _, port: "Address already in use" if port == 8001 else "",
        always("tritonserver (process 12)"),
    )
    assert (taken.level, taken.found) == (NOTE, "8001: taken by tritonserver (process 12)")
    assert "serve --grpc-port 0" in taken.advice


@pytest.mark.parametrize("holder", [always(""), raising(PermissionError()), raising(ImportError("psutil"))])
def test_a_port_whose_holder_cannot_be_seen(holder):
    found = machine.ports("127.0.0.1", {"--http-port": 80}, always("Permission denied"), holder)
    assert found.found == "80: Permission denied"


def test_any_port_is_free():
    assert machine.ports("127.0.0.1", {"--http-port": 0}, always("no"), always("")).found == "any free on 127.0.0.1"


def test_a_port_that_is_really_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = machine.ports("127.0.0.1", {"--http-port": port})
        assert found.level == NOTE
        assert str(port) in found.found
    assert probes.refusal("203.0.113.1", port)


@pytest.mark.parametrize(
    ("limits", "level"), [((65536, 65536), OK), ((-1, -1), OK), ((512, 4096), NOTE), ((64, 64), PROBLEM)]
)
def test_open_files(limits, level):
    assert machine.open_files(always(limits)).level == level


def test_clock():
    assert machine.clock(always(2e9), always(1.9e9)).level == OK
    assert machine.clock(always(0.0), always(1.9e9)).level == NOTE


def test_a_check_never_raises():
    @finding("x")
    def broken():
        raise RuntimeError("odd")

    assert broken() == Finding("x", NOTE, "could not be looked at (RuntimeError: odd)")


def test_every_check_survives_a_machine_that_tells_nothing(monkeypatch):
    """Whatever is asked raises: still a finding for each."""
    lost = raising(OSError("lost"))
    names = [name for name, probe in vars(probes).items() if callable(probe) and not isinstance(probe, type)]
    for module in (software, gpu, machine):
        for look in vars(module).values():
            if wrapped := getattr(look, "__wrapped__", None):
                defaults = wrapped.__defaults__ or ()
                changed = [
                    lost if getattr(d, "__name__", "") in {*names, "gettempdir", "time"} else d for d in defaults
                ]
                monkeypatch.setattr(wrapped, "__defaults__", tuple(changed))
    assert {finding.check for finding in examine(HERE, Ports())} == CHECKS


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["triptych", "doctor", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code, capsys.readouterr().out


def fake(monkeypatch, *findings):
    monkeypatch.setattr("triptych_lab.doctor.examine", lambda *_: iter(findings))


def test_lines(monkeypatch, capsys):
    fake(monkeypatch, Finding("python", OK, "3.11.7"), Finding("memory", NOTE, "4 GB", "more [of it]"))
    code, out = command(monkeypatch, capsys)
    assert code == 0
    assert out.splitlines() == [
        "OK      python          3.11.7",
        "note    memory          4 GB",
        "                        → more [of it]",
        "The CPU path works.",
    ]


def test_a_problem_is_exit_1(monkeypatch, capsys):
    fake(monkeypatch, Finding("python", PROBLEM, "3.9.1", "another"))
    code, out = command(monkeypatch, capsys)
    assert code == 1
    assert out.splitlines()[-1] == "To be mended before `triptych serve`: python."
    code, out = command(monkeypatch, capsys, "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)


def test_ports_and_folder_are_the_commands(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("triptych_lab.doctor.examine", lambda *given: asked.append(given) or iter(()))
    command(monkeypatch, capsys, "-o", "there", "--grpc-port", "9001", "--host", "0.0.0.0")
    assert asked == [(Path("there"), examination.Ports("0.0.0.0", 8000, 9001, 8002))]


def test_colour_only_on_a_terminal(monkeypatch, capsys):
    fake(monkeypatch, Finding("python", OK, "3.11.7"))
    assert "\x1b" not in command(monkeypatch, capsys)[1]


def test_help_loads_none_of_it():
    code = "import sys, triptych.cli.app; assert not {'triptych_lab.doctor', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
