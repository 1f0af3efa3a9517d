"""A hub that a test plays, over real HTTP on loopback, and what is fetched from it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from triptych_export.fetching import MODELS, fetch
from triptych_export.fetching.hub import Hub

SDXL, CASCADE, PRIOR, VAE = (
    MODELS[name] for name in ("sdxl", "stable-cascade", "stable-cascade-prior", "sdxl-vae-fp16-fix")
)
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
LFS = (".safetensors", ".bin", ".onnx", ".msgpack", ".onnx_data")
MAIN = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"


def content(path: str, size: int = 300) -> bytes:
    """Bytes that no other path has."""
    return (hashlib.sha256(path.encode()).hexdigest() * (size // 64 + 1)).encode()[:size]


def sdxl_files() -> dict[str, bytes]:
    """What the repository of SDXL base has, in small: everything that the exporter does not read as well."""
    paths = [
        "model_index.json",
        "README.md",
        "LICENSE.md",
        "01.png",
        "sd_xl_base_1.0.safetensors",
        "vae_decoder/config.json",
    ]
    for part in ("text_encoder", "text_encoder_2", "unet", "vae", "vae_1_0"):
        stem = f"{part}/{'model' if 'text' in part else 'diffusion_pytorch_model'}"
        paths += [f"{part}/config.json", f"{stem}.safetensors", f"{stem}.fp16.safetensors", f"{stem}.bin"]
        paths += [f"{part}/model.onnx", f"{part}/flax_model.msgpack", f"{stem}.safetensors.index.json"]
    for part in ("tokenizer", "tokenizer_2"):
        paths += [f"{part}/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "run.py")]
    paths += ["scheduler/scheduler_config.json", "unet/lora.safetensors", "vae_decoder/model.onnx"]
    return {path: content(path) for path in paths} | {UNET: content(UNET, 200_000)}


def cascade_files(part: str) -> dict[str, bytes]:
    """A repository of one of Stable Cascade's pipelines."""
    stems = {"text_encoder": "model", part: "diffusion_pytorch_model", f"{part}_lite": "diffusion_pytorch_model"}
    stems |= {"vqgan": "diffusion_pytorch_model"} if part == "decoder" else {"image_encoder": "model"}
    paths = ["model_index.json", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "stage_a.safetensors"]
    for folder, stem in stems.items():
        paths += [f"{folder}/config.json", f"{folder}/{stem}.safetensors", f"{folder}/{stem}.bf16.safetensors"]
    return {path: content(part + path) for path in paths}


@dataclass
class FakeHub:
    """What the hub has and how it fails; `asked` is what it was asked, as (method, path, Range, Authorization)."""

    files: dict[str, dict[str, bytes]]  # repo → path → bytes
    main: str = MAIN
    status: dict[str, list[int]] = field(default_factory=dict)  # path's end → answers before the right one
    cut_after: dict[str, int] = field(default_factory=dict)  # path → bytes before the connection is closed, once
    sent: dict[str, bytes] = field(default_factory=dict)  # path → other bytes than stated
    stated: list[dict[str, object]] = field(default_factory=list)  # more entries in the listing
    stalls: threading.Event | None = None  # a cut connection stays open until then
    ignores_range: bool = False
    elsewhere: str = ""  # where files are redirected to
    asked: list[tuple[str, str, str, str]] = field(default_factory=list)
    url: str = ""

    def downloads(self) -> list[tuple[str, str]]:
        """(path, Range) of every request for a file."""
        return [(path.split("/", 5)[5], span) for _, path, span, _ in self.asked if "/resolve/" in path]

    def listing(self, repo: str, revision: str) -> dict[str, object]:
        siblings = [self._sibling(path, data) for path, data in self.files[repo].items()]
        return {"id": repo, "sha": revision, "siblings": siblings + self.stated}

    def _sibling(self, path: str, data: bytes) -> dict[str, object]:
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        lfs = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
        return {"rfilename": path, "size": len(data), "blobId": git} | ({"lfs": lfs} if path.endswith(LFS) else {})


class Handler(BaseHTTPRequestHandler):
    """The hub's HTTP: model info at a revision, and files with ETag, X-Repo-Commit and Range."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(("GET", path, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
        for end, answers in self.hub.status.items():
            if path.endswith(end) and answers:
                return self.answer(answers.pop(0), b"no")
        if path.startswith("/api/models/"):
            return self.info(path.removeprefix("/api/models/"))
        if "/resolve/" not in path:
            return self.answer(404, b"")
        repo, _, rest = path[1:].partition("/resolve/")
        return self.file(repo, rest.partition("/")[2])

    def info(self, path):
        repo, _, revision = path.partition("/revision/")
        if repo not in self.hub.files:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        return self.answer(200, json.dumps(self.hub.listing(repo, revision or self.hub.main)).encode())

    def file(self, repo, path):
        if self.hub.elsewhere:
            return self.answer(302, b"", {"Location": f"{self.hub.elsewhere}{self.path}"})
        data = self.hub.sent.get(path, self.hub.files[repo][path])
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": self.hub.main}
        begin, status = 0, 200
        if (span := self.headers.get("Range")) and not self.hub.ignores_range:
            begin, status = int(span.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        return self.answer(status, data[begin:], headers, self.hub.cut_after.pop(path, None))

    def answer(self, status, body, headers=None, cut=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            if self.hub.stalls:
                self.hub.stalls.wait(30)
            self.close_connection = True


def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub on a port of its own."""
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    server.server_close()


def small_hub() -> FakeHub:
    """Repositories of the real names, in small."""
    repos = {
        SDXL.repo: sdxl_files(),
        CASCADE.repo: cascade_files("decoder"),
        PRIOR.repo: cascade_files("prior"),
        VAE.repo: {
            path: content(path)
            for path in ("config.json", "diffusion_pytorch_model.safetensors", "sdxl_vae.safetensors", "x.bin")
        },
    }
    return FakeHub(repos)


class Told:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.bytes: dict[str, int] = {}

    def say(self, text):
        self.said.append(text)

    def task(self, what, total, done=0):  # noqa: ARG002 - the protocol's
        self.bytes[what] = done

        def told(amount):
            self.bytes[what] += amount

        return told


def bring(hub, output, model=SDXL, *, waits_s=(), told=None, consent=lambda _: None, **options):
    source = Hub(hub.url, waits_s=waits_s, sleep=lambda _: None)
    return fetch([model], output, source, consent, told or Told(), **options)[0]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
