"""Builds in folders of any name, in any locale."""

from __future__ import annotations

import os
import shutil

from triptych import Client
from triptych_demo import demo_build
from triptych_server import Server

NAMES = "Modèle 模型", 'quote"d', "back\\slash", os.fsdecode(b"latin-\xe9")


def test_builds_at_odd_paths_are_served_in_an_ascii_locale(tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    build = shutil.copytree(demo_build("sdxl"), tmp_path.joinpath(*NAMES, "sdxl"))
    with (
        Server([build], http_port=0, grpc_port=0, metrics_port=0) as server,
        Client(server.addresses.grpc, timeout=120) as client,
    ):
        assert client.generate("a cat", num_inference_steps=2).image.size == (128, 128)
