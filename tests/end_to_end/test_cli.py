"""The command line as people use it: real processes, real server."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from triptych_demo import demo_build, demo_builds
from triptych_serving.manifest import Manifest

from .. import plain

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
FAST = ["--num-inference-steps", "3", "--seed", "5"]


def triptych(*arguments, **options):
    return subprocess.run(
        [TRIPTYCH, *arguments], capture_output=True, text=True, timeout=120, errors="surrogateescape", **options
    )


def test_four_pictures_with_consecutive_seeds(url, tmp_path):
    done = triptych("generate", "a 3d rocket", "-n", "4", *FAST, "--url", url, "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert len(set(paths)) == 4
    seeds = {json.loads(Image.open(path).text["triptych"])["seed"]: path for path in paths}
    assert sorted(seeds) == [5, 6, 7, 8]
    alone = plain.grpc(url, prompt="a 3d rocket", num_inference_steps=3, seed=7)
    assert seeds[7].read_bytes() == alone["image"]
    assert "step" in done.stderr
    assert "done in" in done.stderr


def test_json_and_quiet(url, tmp_path):
    done = triptych(
        "generate", "a fox", *FAST, "--json", "--quiet", "--size", "96x128", "--url", url, "-o", str(tmp_path)
    )
    facts = json.loads(done.stdout)
    assert done.stderr == ""
    assert facts["seed"] == 5
    assert (facts["receipt"]["width"], facts["receipt"]["height"]) == (96, 128)
    assert Image.open(facts["path"]).size == (96, 128)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a fox", "--num-inference-steps", "0"], 2, "error: num_inference_steps: 0 given; legal: 1 … 100"),
        (["a fox", "--guidance-scale", "nan"], 2, "error: guidance_scale: nan given; legal: 0 … 50"),
        (["a fox", "--guidance-scale", "-1"], 2, "error: guidance_scale: -1 given; legal: 0 … 50"),
        (["a fox", "--seed", "-1"], 2, "error: seed: -1 given; legal: 0 …"),
        (["a fox", "--seed", str(2**64)], 2, f"error: seed: {2**64} given; legal: a whole number below 2^63"),
        (
            ["a fox", "--size", "100x128"],
            2,
            "error: width: 100 given; legal: multiples of 32",
        ),
        (["a fox", "--size", "big"], 2, "error: size: 'big' given; legal: WIDTHxHEIGHT"),
        (["a fox", "--sampler", "nope"], 2, "error: sampler: 'nope' given; legal: ddim, "),
        ([""], 2, "error: prompt: an empty text given"),
        (["  "], 2, "error: prompt: a blank text given"),
        (["a \udcff fox"], 2, "error: prompt: a character that is not Unicode at 2"),
        (["a fox", "--model", "dall-e"], 2, "sdxl"),
        (["a fox", "--timeout", "0.2", "--num-inference-steps", "100", "--size", "256x256"], 1, "error: deadline_ms: "),
    ],
)
def test_errors_are_one_line_with_field_and_range(url, tmp_path, arguments, code, message):
    done = triptych("generate", *arguments, "--url", url, "-o", str(tmp_path), "--quiet")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_all_is_said_once(url, tmp_path):
    done = triptych(
        "generate", "a fox", "-n", "4", "--num-inference-steps", "0", "--url", url, "-o", str(tmp_path), "--quiet"
    )
    assert done.returncode == 2
    assert done.stderr.count("error: num_inference_steps: 0 given") == 1


def test_a_prompt_of_5_mb_is_refused(url, tmp_path):
    code = f"from triptych import Client; Client({url!r}).generate('x' * 5_000_000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "InvalidRequest: prompt: 5000000 bytes given" in done.stderr


def test_no_server_is_exit_69(tmp_path):
    done = triptych("generate", "a fox", "--url", "127.0.0.1:1", "--timeout", "1", "-o", str(tmp_path))
    assert done.returncode == 69
    assert "no server is ready there" in done.stderr


def test_ctrl_c_stops_the_work_on_the_server(url, tmp_path):
    before = plain.verb(url, "stats")["cancelled_total"]
    command = [TRIPTYCH, "generate", "a 3d rocket", "-n", "2", "--num-inference-steps", "100", "--size", "256x256"]
    command += ["--url", url, "-o", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts) as process:
        while "step" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    stats = plain.verb(url, "stats")
    assert stats["cancelled_total"] == before + 2
    assert stats["running"] == stats["waiting"] == 0


def test_a_terminal_sees_a_bar_a_picture(url, tmp_path):
    ours, theirs = pty.openpty()
    command = [TRIPTYCH, "generate", "a fox", "-n", "2", *FAST, "--url", url, "-o", str(tmp_path)]
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "100"})
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
    assert process.wait(60) == 0
    assert b"seed 5" in seen
    assert b"seed 6" in seen
    assert b"done" in seen


@pytest.mark.serial
def test_demo_draws_a_picture_of_each_family_and_leaves_nothing(tmp_path):
    before = set(Path("/dev/shm").iterdir())
    done = triptych("demo", "a 3d render of a red apple", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    images = [Image.open(path) for path in done.stdout.split()]
    assert {image.size for image in images} == {(128, 128)}
    assert [json.loads(image.text["triptych"])["family"] for image in images] == [b.name for b in demo_builds()]
    assert "generate sdxl" in done.stderr
    assert not [region for region in set(Path("/dev/shm").iterdir()) - before if "triptych" in region.name]
    assert not [p for p in psutil.Process().children(recursive=True) if "tritonserver" in p.name() and p.ppid() == 1]


@pytest.mark.serial
def test_a_killed_loop_is_noticed_by_its_callers_and_by_serve(tmp_path):
    """kill -9 mid-step: the callers have an error, and service comes back; `make chaos` tells after how long."""
    command = [TRIPTYCH, "serve", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serve:
        try:
            url = serve.stdout.readline().split()[1]
            long = [TRIPTYCH, "generate", "x", "--num-inference-steps", "100", "--size", "256x256", "--url", url]
            with subprocess.Popen(long, stderr=subprocess.PIPE, text=True) as caller:
                assert "step" in caller.stderr.readline()
                loop = next(p for p in psutil.process_iter() if _is_loop_of(p, serve.pid))
                loop.kill()
                assert caller.wait(60) == 69
            _until_served(url, tmp_path)
        finally:
            serve.send_signal(signal.SIGTERM)
            said = serve.communicate(timeout=60)[1]
    assert "the process of model 'denoise' died" in said
    assert serve.returncode == 0


def _heed_interrupts():
    """A shell starts its background jobs deaf to Ctrl-C, and these tests may be part of one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _is_loop_of(process, supervisor):
    try:
        return "denoise" in " ".join(process.cmdline()) and supervisor in [p.pid for p in process.parents()]
    except psutil.Error:
        return False


def _until_served(url, folder):
    while triptych("generate", "a fox", *FAST, "--url", url, "-o", str(folder), "--quiet").returncode:
        pass


def test_samplers_lists_what_the_server_takes(url):
    done = triptych("samplers", "--url", url)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "DPM++ 2M SDE" in lines["dpmpp_2m_sde"]
    assert "karras" in lines["dpmpp_2m_sde"]
    assert "EulerDiscreteScheduler" in lines["euler"]
    assert " 50 " in lines["lcm"]
    assert triptych("samplers", "--build", str(demo_build())).stdout == done.stdout


def test_verify_says_that_the_served_engines_keep_their_promise(url):
    done = triptych("verify", "--url", url)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = [set(Manifest.load(build).stages) for build in demo_builds()]
    loop = [name for name in ("unet", "refiner_unet", "prior", "decoder") if name in set.union(*stages)]
    verdicts = [line.split()[:2] for line in done.stdout.splitlines()]
    assert verdicts[: len(loop) + 1] == [["equal", f"{name}:"] for name in (*loop, "pipeline")]


def test_a_picture_and_a_mask_from_the_command_line(url, tmp_path):
    start, mask = tmp_path / "start.png", tmp_path / "mask.png"
    start.write_bytes(plain.grpc(url, prompt="a 3d render of a red apple", seed=3)["image"])
    half = Image.new("L", (128, 128))
    half.paste(255, (64, 0, 128, 128))
    half.save(mask)
    asked = ["--init-image", str(start), "--mask", str(mask), "--strength", "1", "--seed", "3", "--url", url, "--json"]
    done = triptych("generate", "a flat icon of a penguin", *asked, "-o", str(tmp_path / "made"))
    facts = json.loads(done.stdout)
    named = facts["receipt"]["init_image"]
    assert named == {"sha256": hashlib.sha256(start.read_bytes()).hexdigest(), "height": 128, "width": 128}
    images = (np.asarray(Image.open(path).convert("RGB"), float) for path in (start, facts["path"]))
    changed = np.abs(np.subtract(*images)).mean(axis=(0, 2))
    kept, painted = changed[:56].mean(), changed[72:].mean()
    assert kept < painted / 4
    assert painted > 20
