"""`triptych fetch` against a hub that the test plays, over real HTTP on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from triptych.cli import main
from triptych.errors import InvalidRequest
from triptych_export.fetching import MODELS, FetchError, fetch, verify
from triptych_export.fetching.files import HubFile, is_inside
from triptych_export.fetching.hub import Hub
from triptych_export.fetching.record import NAME

from .hub import (
    CASCADE,
    LATER,
    MAIN,
    PRIOR,
    SDXL,
    UNET,
    VAE,
    FakeHub,
    Told,
    bring,
    content,
    files_of,
    sdxl_files,
    serving,
    small_hub,
)

TRIPTYCH = [sys.executable, "-c", "from triptych.cli import main; main()"]
TOKEN = "hf_a-secret"  # only the test's
WANTED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in ("text_encoder", "text_encoder_2", "unet", "vae")),
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/model.fp16.safetensors",
    UNET,
    "vae/diffusion_pytorch_model.fp16.safetensors",
    *(f"tokenizer{two}/{n}" for two in ("", "_2") for n in ("vocab.json", "merges.txt", "tokenizer_config.json")),
}


@pytest.fixture
def hub():
    yield from serving(small_hub())


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """The user's folders and token are the test's."""
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def run(monkeypatch, hub, *arguments):
    """The command in this process; its exit code."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(sys, "argv", ["triptych", "fetch", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def test_the_exporters_files_and_no_others(hub, tmp_path):
    fetched = bring(hub, tmp_path)
    assert fetched.folder == tmp_path / "sdxl"
    assert files_of(fetched.folder) == WANTED | {NAME}
    assert all((fetched.folder / path).read_bytes() == hub.files[SDXL.repo][path] for path in WANTED)
    assert set(fetched.fetched) == WANTED


def test_the_files_are_of_the_pinned_commit(hub, tmp_path):
    bring(hub, tmp_path)
    assert hub.asked[0][1] == f"/api/models/{SDXL.repo}/revision/{SDXL.revision}"
    assert all(f"/resolve/{SDXL.revision}/" in path for _, path, _, _ in hub.asked[1:])


def test_the_record_has_the_hubs_sha256(hub, tmp_path):
    folder = bring(hub, tmp_path).folder
    record = json.loads((folder / NAME).read_text())
    stated = {file["path"]: file["sha256"] for file in record["files"]}
    assert (record["repo"], record["revision"]) == (SDXL.repo, SDXL.revision)
    assert stated[UNET] == hashlib.sha256((folder / UNET).read_bytes()).hexdigest()


def test_a_vae_alone_lies_in_its_root(hub, tmp_path):
    folder = bring(hub, tmp_path, VAE).folder
    assert files_of(folder) == {NAME, "config.json", "diffusion_pytorch_model.safetensors"}


def test_cascades_bfloat16_is_taken(hub, tmp_path):
    folder = bring(hub, tmp_path, CASCADE).folder
    weights = {path for path in files_of(folder) if path.endswith(".safetensors")}
    assert weights == {
        "text_encoder/model.bf16.safetensors",
        "decoder/diffusion_pytorch_model.bf16.safetensors",
        "vqgan/diffusion_pytorch_model.bf16.safetensors",
    }


def test_shards_come_with_the_index_of_their_variant(hub, tmp_path):
    files = hub.files[SDXL.repo]
    shards = {f"unet/diffusion_pytorch_model.fp16-0000{k}-of-00002.safetensors": content(str(k)) for k in (1, 2)}
    index = {"unet/diffusion_pytorch_model.safetensors.index.fp16.json": b"{}"}
    hub.files[SDXL.repo] = {path: data for path, data in files.items() if path != UNET} | shards | index
    found = {path for path in files_of(bring(hub, tmp_path).folder) if path.startswith("unet/")}
    assert found == {*shards, *index, "unet/config.json"}


def test_a_second_run_asks_nothing(hub, tmp_path):
    bring(hub, tmp_path)
    hub.asked.clear()
    assert bring(hub, tmp_path).fetched == ()
    assert hub.asked == []


def test_a_cut_download_goes_on_in_the_next_run(hub, tmp_path):
    hub.cut_after[UNET] = 150_000
    with pytest.raises(FetchError, match=r"no connection to 127\.0\.0\.1"):
        bring(hub, tmp_path)
    folder = tmp_path / "sdxl"
    assert not (folder / UNET).exists()
    bring(hub, tmp_path)
    assert [span for path, span in hub.downloads() if path == UNET] == ["", "bytes=150000-"]
    assert files_of(folder) == WANTED | {NAME}


def test_a_cut_download_goes_on_within_a_run(hub, tmp_path):
    hub.cut_after[UNET] = 150_000
    told = Told()
    bring(hub, tmp_path, waits_s=(1,), told=told)
    assert [span for path, span in hub.downloads() if path == UNET] == ["", "bytes=150000-"]
    assert told.bytes[f"sdxl/{UNET}"] == 200_000


def test_a_hub_that_ignores_a_range_is_read_from_the_beginning(hub, tmp_path):
    hub.cut_after[UNET], hub.ignores_range = 150_000, True
    told = Told()
    folder = bring(hub, tmp_path, waits_s=(1,), told=told).folder
    assert (folder / UNET).read_bytes() == hub.files[SDXL.repo][UNET]
    assert told.bytes[f"sdxl/{UNET}"] == 200_000


def test_a_harmed_beginning_is_not_gone_on_with(hub, tmp_path):
    hub.cut_after[UNET] = 150_000
    with pytest.raises(FetchError):
        bring(hub, tmp_path)
    (partial,) = (path for path in (tmp_path / "sdxl/.incomplete").iterdir())
    partial.write_bytes(b"x" * 100_000)
    folder = bring(hub, tmp_path).folder
    assert (folder / UNET).read_bytes() == hub.files[SDXL.repo][UNET]


def test_an_interrupted_run_leaves_no_file_under_its_final_name(hub, tmp_path):
    class Interrupted(Told):
        def task(self, what, total, done=0):  # noqa: ARG002 - the protocol's
            def told(_):
                if what.endswith(UNET):
                    raise KeyboardInterrupt

            return told

    with pytest.raises(KeyboardInterrupt):
        bring(hub, tmp_path, told=Interrupted())
    present = files_of(tmp_path / "sdxl")
    assert UNET not in present
    assert all((tmp_path / "sdxl" / path).read_bytes() == hub.files[SDXL.repo][path] for path in present & WANTED)


def interruptible():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def size_of(path):
    """A file's bytes; None where it has got its own name meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return None


def test_ctrl_c_keeps_what_arrived(hub, tmp_path):
    hub.cut_after[UNET], hub.stalls = 150_000, threading.Event()
    command = [*TRIPTYCH, "fetch", "sdxl", "-o", str(tmp_path), "--accept-licence"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    partials = tmp_path / "sdxl/.incomplete"
    # A shell's background job hands on an ignored SIGINT.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=environment, preexec_fn=interruptible) as process:
        deadline = time.monotonic() + 60
        while not any(size_of(path) == 150_000 for path in partials.glob("*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    hub.stalls.set()
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert not (tmp_path / "sdxl" / UNET).exists()
    assert bring(hub, tmp_path).fetched[0] == UNET
    assert hub.downloads()[-3:][0] == (UNET, "bytes=150000-")


@pytest.mark.parametrize("path", [UNET, "tokenizer/merges.txt"])  # by SHA-256, by Git's id
def test_a_wrong_byte_is_named_and_only_that_file_fetched(hub, tmp_path, path):
    folder = bring(hub, tmp_path).folder
    data = bytearray((folder / path).read_bytes())
    data[7] ^= 1
    (folder / path).write_bytes(data)
    hub.asked.clear()
    told = Told()
    assert bring(hub, tmp_path, told=told).fetched == (path,)
    assert [asked for asked, _ in hub.downloads()] == [path]
    assert len(told.said) == 1
    assert path in told.said[0]
    assert (folder / path).read_bytes() == hub.files[SDXL.repo][path]


def test_wrong_bytes_from_the_hub_are_refused(hub, tmp_path):
    hub.sent[UNET] = bytes(200_000)
    with pytest.raises(FetchError, match=f"{UNET} has SHA-256 [0-9a-f]{{64}}; the hub states [0-9a-f]{{64}}"):
        bring(hub, tmp_path)
    assert not (tmp_path / "sdxl" / UNET).exists()
    assert not list((tmp_path / "sdxl/.incomplete").iterdir())


def test_more_bytes_than_stated_are_refused(hub, tmp_path):
    hub.sent[UNET] = bytes(300_000)
    with pytest.raises(FetchError, match="more bytes arrive than the hub states, 200000"):
        bring(hub, tmp_path)


def test_an_unpinned_model_keeps_its_first_commit(hub, tmp_path):
    first = bring(hub, tmp_path, PRIOR)
    assert hub.asked[0][1] == f"/api/models/{PRIOR.repo}"
    assert first.record.revision == MAIN
    hub.main = LATER
    (first.folder / "prior/config.json").unlink()
    again = bring(hub, tmp_path, PRIOR)
    assert again.record.revision == MAIN
    assert f"/resolve/{MAIN}/" in hub.asked[-1][1]


def test_another_pinned_commit_takes_the_folder_over(hub, tmp_path):
    folder = bring(hub, tmp_path).folder
    changed = hub.files[SDXL.repo]
    changed["unet/config.json"] = b"{}"
    del changed["tokenizer/vocab.json"]
    hub.asked.clear()
    assert bring(hub, tmp_path, replace(SDXL, revision=LATER)).fetched == ("unet/config.json",)
    assert files_of(folder) == (WANTED | {NAME}) - {"tokenizer/vocab.json"}


def test_a_hub_that_answers_with_another_commit_is_refused(hub, tmp_path):
    hub.listing = lambda repo, _: {"id": repo, "sha": LATER, "siblings": []}
    with pytest.raises(FetchError, match=f"commit {LATER}; asked for {SDXL.revision}"):
        bring(hub, tmp_path)


@pytest.mark.parametrize(
    "path",
    ["../evil.json", "unet/../../evil.json", "/etc/evil.json", "unet//x.json", "C:/x.json", "unet\\..\\x.json", ""],
)
def test_a_path_that_would_leave_the_folder_is_refused(hub, tmp_path, path):
    hub.stated.append({"rfilename": path, "size": 1, "blobId": "0" * 40})
    with pytest.raises(FetchError, match="path: "):
        bring(hub, tmp_path)
    assert not (tmp_path / "sdxl").exists()
    assert not is_inside(path)


def test_a_records_path_that_would_leave_the_folder_is_refused(hub, tmp_path):
    folder = bring(hub, tmp_path).folder
    record = (folder / NAME).read_text().replace("unet/config.json", "../config.json")
    (folder / NAME).write_text(record)
    with pytest.raises(FetchError, match="legal: a path that stays in its folder"):
        verify([SDXL], tmp_path, Told())


def test_a_file_without_a_digest_is_refused():
    with pytest.raises(FetchError, match="without a size and a digest"):
        HubFile("unet/config.json", 1)


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("unet/", "unet has no .safetensors"),
        ("model_index.json", "has no model_index.json"),
        ("tokenizer/", "tokenizer has"),
    ],
)
def test_a_repository_without_a_part_is_refused(hub, tmp_path, gone, words):
    hub.files[SDXL.repo] = {path: data for path, data in sdxl_files().items() if not path.startswith(gone)}
    with pytest.raises(FetchError, match=words):
        bring(hub, tmp_path)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_names_its_page(hub, tmp_path, monkeypatch, status):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.status[SDXL.revision] = [status]
    with pytest.raises(FetchError, match=f"accept its terms at {SDXL.page} .* HF_TOKEN") as refused:
        bring(hub, tmp_path)
    assert TOKEN not in str(refused.value)


def test_a_missing_repository(hub, tmp_path):
    del hub.files[SDXL.repo]
    with pytest.raises(FetchError, match=f"{SDXL.repo}: 127.0.0.1 does not have it, or not at revision"):
        bring(hub, tmp_path)


def test_a_busy_hub_is_asked_again(hub, tmp_path):
    hub.status[SDXL.revision], hub.status[UNET] = [500, 503], [502]
    bring(hub, tmp_path, waits_s=(1, 1))
    assert not hub.status[SDXL.revision]
    assert not hub.status[UNET]


def test_a_hub_that_stays_busy(hub, tmp_path):
    hub.status[SDXL.revision] = [500] * 9
    waited = []
    with pytest.raises(FetchError, match=r"127.0.0.1 is busy \(500\)"):
        fetch([SDXL], tmp_path, Hub(hub.url, waits_s=(1, 2, 4), sleep=waited.append), lambda _: None, Told())
    assert waited == [1, 2, 4]


def test_a_hub_that_is_none(hub, tmp_path):
    hub.listing = lambda *_: []
    with pytest.raises(FetchError, match="does not answer as a hub does"):
        bring(hub, tmp_path)


def test_no_network(tmp_path):
    nobody = FakeHub({}, url="http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"no connection to 127\.0\.0\.1 .* check the network"):
        bring(nobody, tmp_path)


def test_an_endpoint_that_is_no_address():
    with pytest.raises(InvalidRequest, match="HF_ENDPOINT: something else given; legal: an address"):
        Hub("huggingface.co")


def test_the_token_goes_to_the_hub_and_not_beyond(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    storage = FakeHub(hub.files)
    for _ in serving(storage):
        hub.elsewhere = storage.url.replace("127.0.0.1", "localhost")
        bring(hub, tmp_path)
        assert {authorization for *_, authorization in hub.asked} == {f"Bearer {TOKEN}"}
        assert {authorization for *_, authorization in storage.asked} == {""}


def test_a_disk_that_is_too_small(hub, tmp_path):
    with pytest.raises(FetchError, match=r"0\.01 GB left on its disk; 0\.06 GB needed\. .* --output"):
        bring(hub, tmp_path, free=lambda _: 10_000_000)
    assert hub.downloads() == []
    assert not (tmp_path / "sdxl").exists()


def test_two_fetches_into_one_folder(hub, tmp_path):
    class Second(Told):
        def task(self, what, total, done=0):
            if what.endswith(UNET):
                with pytest.raises(FetchError, match="another fetch is at work"):
                    bring(hub, tmp_path)
            return super().task(what, total, done)

    bring(hub, tmp_path, told=Second())


def test_offline_finds_all_in_place(hub, tmp_path):
    bring(hub, tmp_path)
    assert verify([SDXL], tmp_path, Told())[0].folder == tmp_path / "sdxl"


def test_offline_names_every_fault(hub, tmp_path):
    folder = bring(hub, tmp_path).folder
    (folder / "unet/config.json").unlink()
    (folder / UNET).write_bytes(b"x" * 200_000)
    (folder / "vae/config.json").write_bytes(b"")
    words = f"unet/config.json is missing; {UNET} has SHA-256 .*; vae/config.json has 0 bytes; the hub states 300"
    with pytest.raises(FetchError, match=words):
        verify([SDXL], tmp_path, Told())


def test_offline_without_a_fetch(tmp_path):
    with pytest.raises(FetchError, match="not fetched yet; run `triptych fetch sdxl` without --offline"):
        verify([SDXL], tmp_path, Told())


def test_offline_with_another_revision(hub, tmp_path):
    bring(hub, tmp_path, replace(SDXL, revision=LATER))
    with pytest.raises(FetchError, match=f"of another revision, {LATER}"):
        verify([SDXL], tmp_path, Told())


def test_a_record_that_cannot_be_read(tmp_path):
    (tmp_path / "sdxl").mkdir()
    (tmp_path / "sdxl" / NAME).write_text("[]")
    with pytest.raises(FetchError, match="not a record of this version"):
        verify([SDXL], tmp_path, Told())


def test_a_licence_that_was_not_accepted_fetches_nothing(hub, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, hub, "sdxl", "-o", str(tmp_path / "w")) == 1
    said = capsys.readouterr()
    assert SDXL.licence.name in said.err
    assert SDXL.licence.url in said.err
    assert "--accept-licence" in said.err
    assert said.out == ""
    assert hub.downloads() == []


def test_an_accepted_licence_is_remembered(hub, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, hub, "sdxl", "-o", str(tmp_path / "one"), "--accept-licence") == 0
    assert SDXL.licence.url in capsys.readouterr().err
    assert run(monkeypatch, hub, "sdxl", "-o", str(tmp_path / "two")) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'two' / 'sdxl'}\n"
    assert SDXL.licence.url not in said.err
    kept = json.loads((tmp_path / "xdg_config_home/triptych/licences.json").read_text())
    assert list(kept) == [f"{SDXL.repo}@{SDXL.revision}"]


def test_an_acceptance_is_for_one_revision(hub, tmp_path, monkeypatch):
    assert run(monkeypatch, hub, "stable-cascade-prior", "-o", str(tmp_path / "one"), "--accept-licence") == 0
    hub.main = LATER
    assert run(monkeypatch, hub, "stable-cascade-prior", "-o", str(tmp_path / "two")) == 1


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_on_a_terminal_the_licence_is_asked_for(hub, tmp_path, answer, code):
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-c",
        "from triptych.cli import main; main()",
        "fetch",
        "sdxl",
        "-o",
        str(tmp_path / "w"),
    ]
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.write(ours, f"{answer}\n".encode())
        out, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code
    assert SDXL.licence.url in err.decode()
    assert out.decode() == (f"{tmp_path / 'w' / 'sdxl'}\n" if answer == "y" else "")


def test_json(hub, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "w"
    assert run(monkeypatch, hub, "sdxl", "-o", str(folder), "--accept-licence", "--json", "--quiet") == 0
    said = capsys.readouterr()
    shown = json.loads(said.out)
    assert shown["path"] == str(folder / "sdxl")
    assert (shown["repo"], shown["revision"], shown["pinned"]) == (SDXL.repo, SDXL.revision, True)
    assert (set(shown["fetched"]), shown["files"]) == (WANTED, len(WANTED))
    assert shown["licence"] == {"name": SDXL.licence.name, "url": SDXL.licence.url}
    assert said.err == ""


def test_cascade_brings_its_prior_in_the_exports_order(hub, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, hub, "stable-cascade", "-o", str(tmp_path), "--accept-licence") == 0
    said = capsys.readouterr()
    prior, decoder = tmp_path / "stable-cascade-prior", tmp_path / "stable-cascade"
    assert said.out == f"{prior}\n{decoder}\n"
    assert f"triptych export {prior} --decoder {decoder}" in said.err


def test_cascade_without_its_prior(hub, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, hub, "stable-cascade", "--no-prior", "-o", str(tmp_path), "--accept-licence") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'stable-cascade'}\n"
    assert run(monkeypatch, hub, "stable-cascade-prior", "--no-prior", "-o", str(tmp_path)) == 2


def test_without_a_folder_it_is_the_users_data_folder(hub, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, hub, "sdxl-vae-fp16-fix", "--accept-licence") == 0
    assert capsys.readouterr().out == f"{tmp_path}/xdg_data_home/triptych/weights/sdxl-vae-fp16-fix\n"


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_on_the_command_line(hub, tmp_path, monkeypatch, capsys, how):
    run(monkeypatch, hub, "sdxl", "-o", str(tmp_path), "--accept-licence")
    hub.asked.clear()
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setenv(how, "1")
    capsys.readouterr()
    assert run(monkeypatch, hub, "sdxl", "-o", str(tmp_path), *([how] if how == "--offline" else [])) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'sdxl'}\n"
    assert hub.asked == []


def test_no_token_in_what_is_said(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.status[UNET] = [403]
    assert run(monkeypatch, hub, "sdxl", "-o", str(tmp_path), "--accept-licence") == 1
    said = capsys.readouterr()
    assert SDXL.page in said.err
    assert TOKEN not in said.err + said.out
    assert said.err.splitlines()[-1].startswith("error: ")


def test_the_extra_is_named_where_it_is_missing(tmp_path):
    code = (
        "import sys; sys.modules['huggingface_hub'] = None; sys.argv = ['triptych', 'fetch', 'sdxl', '-o', sys.argv[1]]\n"
        "from triptych.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: huggingface_hub is missing; pip install 'triptych[fetch]'\n"


def test_help_loads_none_of_it():
    code = (
        "import sys, triptych.cli.app, triptych_export.commands.fetch; "
        "assert not {'huggingface_hub', 'httpx2', 'triptych_export.fetching', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_commands_names_are_the_tables():
    from triptych_export.commands.fetch import Name

    assert [name.value for name in Name] == list(MODELS)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_table_has_whole_commits(model):
    assert model.revision is None or (len(model.revision) == 40 and int(model.revision, 16))
    assert model.licence.url.startswith("https://")
