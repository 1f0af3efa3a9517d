"""Machines with little room: shared memory of a few megabytes, as containers have, and folders that are full."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap

import pytest

UNSHARE = ["unshare", "--mount", "--map-root-user"]


def in_small_places(code, tmp_path, **sizes):
    """Run code in a process with file systems of its own at these paths; what it prints."""
    mounts = "".join(f"mount -t tmpfs -o size={size} tmpfs {path} && " for path, size in sizes.items())
    command = [*UNSHARE, "sh", "-c", f'{mounts} exec "$0" -c "$1"', sys.executable, textwrap.dedent(code)]
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True, scope="module")
def namespaces():
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("no file systems of its own for this user")


def test_a_picture_too_large_for_the_shared_memory_fails_alone_and_the_stop_is_orderly(tmp_path):
    said = in_small_places(
        """
        import io
        import numpy as np
        from PIL import Image
        from triptych import Client, TriptychError
        from triptych_demo import demo_build
        from triptych_server import Server

        def picture(side):
            pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG", compress_level=0)
            return file.getvalue()

        events = []
        server = Server(demo_build("sdxl"), http_port=0, grpc_port=0, metrics_port=0, on_event=events.append)
        with server, Client(server.addresses.grpc, timeout=60) as client:
            for side in (128, 2200, 128, 2200, 2200, 128):
                sizes = {"height": 128, "width": 128, "num_inference_steps": 4}
                try:
                    client.generate("a fox", init_image=picture(side), **sizes)
                    print(side, "drawn")
                except TriptychError as error:
                    print(side, "shared memory" in str(error))
        print(*(event.state.name for event in events), server.failure)
        """,
        tmp_path,
        **{"/dev/shm": "32m"},
    )
    assert said.splitlines() == [
        "128 drawn",
        "2200 True",
        "128 drawn",
        "2200 True",
        "2200 True",
        "128 drawn",
        "PREPARING LOADING READY DRAINING STOPPED None",
    ]


def test_a_full_folder_for_temporary_files_is_named(tmp_path):
    said = in_small_places(
        """
        from triptych_demo import demo_build
        from triptych_server import CannotServe, Server
        try:
            Server(demo_build("sdxl"), http_port=0, grpc_port=0, metrics_port=0).start()
        except CannotServe as error:
            print(error)
        """,
        tmp_path,
        **{str(tmp_path): "1m"},
    )
    assert said == f"{tmp_path}: No space left on device; TMPDIR names a folder for a run's files\n"
