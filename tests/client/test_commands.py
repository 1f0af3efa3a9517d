"""The commands against a server that the test plays: what they ask, what they say, how they end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import triptych_demo as shipped_models
from triptych import InvalidRequest, ServerError, ServerUnavailable
from triptych import async_client as under_test
from triptych.cli import connections, main
from triptych.cli.verify import mixed_requests
from triptych.receipts import differences, reasons, request_of
from triptych_contract.errors import Problem
from triptych_contract.families import FAMILIES, read_card

from .fakes import FakeTransport
from .models import card

GONE = ServerUnavailable("no server is ready there (refused)", nothing_accepted=True)
CARD = card(
    "sdxl",
    min_size=32,
    size_multiple=24,
    default_sampler="euler",
    default_schedule="default",
    samplers={
        "euler": {
            "diffusers": "EulerDiscreteScheduler",
            "a1111": "Euler",
            "schedules": {
                "default": {"path": "a.npz", "max_steps": 100, "inpaint": True},
                "karras": {"path": "b.npz", "max_steps": 100, "inpaint": True},
            },
        },
        "lcm": {
            "diffusers": "LCMScheduler",
            "a1111": "LCM",
            "schedules": {
                "default": {"path": "c.npz", "max_steps": 4, "inpaint": False},
                "long": {"path": "d.npz", "max_steps": 50, "inpaint": True},
            },
        },
    },
)
DENOISERS = {"unet": {"batch_invariant": True, "batches": [1, 2, 4]}}
RECEIPT = {
    "model": "tiny",
    "prompt": "a fox",
    "negative_prompt": None,
    "seed": 7,
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "height": 32,
    "width": 32,
    "sampler": "euler",
    "schedule": "default",
    "output_format": "png",
    "build": "b1",
    "stages": {"unet": "ab", "vae_decoder": "cd"},
    "runtime": {"onnxruntime": "1.30", "numpy": "1.26", "processor": "X", "machine": "x86_64"},
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command with `transport` as its server; gives exit code, stdout and stderr."""
    monkeypatch.setattr(connections, "ABSENT_S", 0)

    def run(transport, *arguments):
        monkeypatch.setattr(under_test, "TritonTransport", lambda *_, **__: transport)
        monkeypatch.setattr("sys.argv", ["triptych", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def families(**cards):
    """What a server of these families says of itself."""
    return {"models": {family: {"model": card, "family": family} for family, card in cards.items()}}


def served(*answers, denoisers=DENOISERS, **cards):
    reports = {"describe": families(**(cards or {"sdxl": CARD})), "verify": {"denoisers": denoisers}}
    return FakeTransport(*answers, reports=reports)


class Gone(FakeTransport):
    async def infer(self, *_, **__):
        raise GONE


def painted(path, receipt, color="red"):
    """A file as Triptych makes it; its bytes tell its receipt."""
    info = PngInfo()
    info.add_text("triptych", json.dumps(receipt))
    Image.new("RGB", (2, 2), color).save(path, pnginfo=info)
    return path


def told(receipt):
    return {**receipt, "timings": {"total_ms": 1.0}, "cached": False}


# generate


def test_generate_sends_every_option(run, tmp_path):
    (tmp_path / "start.png").write_bytes(b"start")
    (tmp_path / "mask.png").write_bytes(b"mask")
    (tmp_path / "like.png").write_bytes(b"like")
    options = {
        "--guidance-rescale": (0.5, "guidance_rescale", 0.5),
        "--guidance-end": (0.25, "guidance_end", 0.25),
        "--clip-skip": (1, "clip_skip", 1),
        "--original-size": ("128x96", "original_size", (96, 128)),
        "--target-size": ("64×32", "target_size", (32, 64)),
        "--crops-coords-top-left": ("3,0", "crops_coords_top_left", (3, 0)),
        "--image": (tmp_path / "start.png", "init_image", b"start"),
        "--mask": (tmp_path / "mask.png", "mask", b"mask"),
        "--mask-blur": (4, "mask_blur", 4),
        "--padding-mask-crop": (32, "padding_mask_crop", 32),
        "--extend": ("0, 64,8,0", "extend", (0, 64, 8, 0)),
        "--ip-adapter-image": (tmp_path / "like.png", "ip_adapter_image", b"like"),
        "--ip-adapter": ("plus", "ip_adapter", "plus"),
        "--ip-adapter-scale": (0.5, "ip_adapter_scale", 0.5),
        "--strength": (0.5, "strength", 0.5),
        "--denoising-end": (0.75, "denoising_end", 0.75),
        "--aesthetic-score": (7, "aesthetic_score", 7.0),
        "--negative-aesthetic-score": (2, "negative_aesthetic_score", 2.0),
        "--prompt-syntax": ("a1111", "prompt_syntax", "a1111"),
        "--negative-prompt": ("blue", "negative_prompt", "blue"),
        "--num-inference-steps": (4, "num_inference_steps", 4),
        "--guidance-scale": (2, "guidance_scale", 2.0),
        "--sampler": ("lcm", "sampler", "lcm"),
        "--schedule": ("long", "schedule", "long"),
        "--output-format": ("webp", "output_format", "webp"),
        "--tenant": ("me", "tenant", "me"),
        "--seed": (5, "seed", 5),
        "--lora": ("ink:-0.5", "lora", '[{"name": "ink", "scale": -0.5}]'),
        "--control": (f"edges={tmp_path / 'start.png'}:0.5:0-0.75", "control_images", (b"start",)),
    }
    transport = FakeTransport()
    given = [word for option, (value, _, _) in options.items() for word in (option, value)]
    flags = ["--cancel-on-disconnect", "--no-cache"]
    code, out, _ = run(transport, "generate", "a fox", "-o", tmp_path / "out", "--size", "96x128", *given, *flags)
    assert code == 0
    assert out.count("\n") == 1
    sent = {name: value for name, value in transport.requests[0].items() if name not in ("request_id", "timeout_s")}
    wanted = {name: value for _, name, value in options.values()}
    wanted["control"] = '[{"name": "edges", "image": 0, "scale": 0.5, "start": 0.0, "end": 0.75}]'
    flagged = {"cancel_on_disconnect": True, "use_cache": False}
    assert sent == {"prompt": "a fox", "width": 96, "height": 128, **wanted, **flagged}
    assert set(sent) == set(FAMILIES["sdxl"].parameters) - {"deadline_ms"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--original-size", "big"], "error: original_size: 'big' given; legal: WIDTHxHEIGHT in pixels, as 128x96"),
        (["--target-size", "3x"], "error: target_size: '3x' given; legal: WIDTHxHEIGHT"),
        (["--crops-coords-top-left", "3"], "error: crops_coords_top_left: '3' given; legal: TOP,LEFT in pixels"),
        (["--init-image", "none.png"], "error: init_image: 'none.png' (No such file or directory) given; legal: a PNG"),
    ],
)
def test_generate_refuses_by_name(run, tmp_path, arguments, message):
    transport = FakeTransport()
    code, out, err = run(transport, "generate", "a fox", "-o", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert not transport.requests


def test_generate_tells_all_that_is_wrong_here_a_line_each(run, tmp_path):
    wrong = ["--size", "big", "--image", "none.png", "--prior-steps", "4", "--seed", str(2**63)]
    code, out, err = run(FakeTransport(), "generate", "a fox", "-o", tmp_path, *wrong)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    named = [line.split(": ")[1] for line in lines]
    assert sorted(named) == ["--prior-num-inference-steps", "init_image", "seed", "size"]


def test_generate_tells_all_that_the_server_finds_once_a_line_each(run, tmp_path):
    found = [Problem("width", "100", "multiples of 8"), Problem("sampler", "'nope'", "euler")]
    code, out, err = run(
        FakeTransport(InvalidRequest(found)), "generate", "a fox", "-n", "3", "-o", tmp_path, "--quiet"
    )
    assert (code, out) == (2, "")
    assert err == "error: width: 100 given; legal: multiples of 8\nerror: sampler: 'nope' given; legal: euler\n"


@pytest.mark.parametrize("name", ["png/../../../x", "", None, 7])
def test_a_file_is_never_named_by_a_server(run, tmp_path, name):
    transport = FakeTransport(receipt={"output_format": name, "timings": {"total_ms": 5.0}})
    code, out, err = run(transport, "generate", "a fox", "-o", tmp_path / "out", "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith("error: the answer is not Triptych's")
    assert not list((tmp_path / "out").iterdir())


# what others wrote


HOSTILE = "x\x1b[2K\r\nequal    FAKE.png\x9b1A\x7f\u2028"
HARMLESS = r"x\x1b[2K\r\nequal    FAKE.png\x9b1A\x7f\u2028"


def test_a_receipt_cannot_forge_a_line_or_steer_a_terminal(run, tmp_path):
    file = painted(tmp_path / "a.png", {**RECEIPT, "model": HOSTILE})
    again = painted(tmp_path / "b.png", RECEIPT, "blue")
    _, out, _ = run(Repeating([again]), "replay", file)
    assert out == f"DIFFERS  {file}: other model ({HARMLESS} → tiny)\n"
    _, out, _ = run(Repeating([again]), "replay", file, "--json")
    assert json.loads(out)["differences"] == [f"model: {HOSTILE} → tiny"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    file = painted(tmp_path / "c.png", {**RECEIPT, "family": HOSTILE})
    _, out, err = run(FakeTransport(), "replay", file)
    assert out.count("\n") == err.count("\n") == 1
    assert "\x1b" not in out + err


def test_a_server_cannot_either(run, tmp_path):
    samplers = {HOSTILE: CARD["samplers"]["euler"]}
    _, out, _ = run(served(sdxl={**CARD, "samplers": samplers}), "samplers")
    assert HARMLESS in out
    assert out.count("\n") == 4
    _, out, _ = run(served(drawn, denoisers={HOSTILE: DENOISERS["unet"]}), "verify")
    assert out.startswith(f"equal    {HARMLESS}: every row")
    state = {"status": "running", "step": 1, "num_steps": 3, "remaining_s": None, "stage": HOSTILE, "preview": None}
    transport = FakeTransport(states=[{**state, "seq": 1}, {**state, "seq": 2}])
    transport.hold.clear()
    _, _, err = run(transport, "generate", "a fox", "-o", tmp_path, "--seed", "5", "--denoising-end", "0.5")
    assert err.startswith(f"seed 5: {HARMLESS}, step 1 of 3\n")
    _, _, err = run(FakeTransport(ServerError(HOSTILE)), "generate", "a fox", "-o", tmp_path, "--quiet")
    assert "\x1b" not in err
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_generate_tells_what_was_cached(run, tmp_path):
    transport = FakeTransport(receipt={"output_format": "png", "timings": {"total_ms": 5.0}, "cached": True})
    _, out, _ = run(transport, "generate", "a fox", "-o", tmp_path, "--json")
    facts = json.loads(out)
    assert facts["cached"] is True
    assert facts["receipt"] == {"output_format": "png"}


# samplers


def test_samplers_are_a_table_that_marks_the_default(run):
    code, out, err = run(served(), "samplers")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["sampler", "A1111", "diffusers", "steps", "schedules"]
    assert lines[1].split() == ["euler", "*", "Euler", "EulerDiscreteScheduler", "100", "default", "*,", "karras"]
    assert lines[2].split() == ["lcm", "LCM", "LCMScheduler", "50", "default", "(4", "steps,", "no", "mask),", "long"]
    assert lines[1].index("Euler ") == lines[2].index("LCM")


def test_samplers_of_a_build_are_the_same_as_its_servers(run, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 3, "family": "sdxl", "model": CARD}))
    for options in ([], ["--json"]):
        assert run(Gone(), "samplers", "--build", tmp_path, *options) == run(served(), "samplers", *options)


def test_samplers_as_json_are_one_document(run):
    _, out, _ = run(served(), "samplers", "--json")
    assert json.loads(out) == {name: CARD[name] for name in ("default_sampler", "default_schedule", "samplers")}


BROKEN_MANIFESTS = [
    None,
    "not JSON",
    "[]",
    '{"model": {}}',
    '{"family": [], "model": {}}',
    '{"family": "flux", "model": {}}',
    '{"family": "stable_cascade", "model": {"prior_table": {}}}',
    '{"family": "sdxl", "model": {"samplers": {"euler": {"default": "a.npz"}}}}',
]


@pytest.mark.parametrize("text", BROKEN_MANIFESTS)
def test_a_folder_without_samplers_is_refused_by_name(run, tmp_path, text):
    if text:
        (tmp_path / "manifest.json").write_text(text)
    code, out, err = run(Gone(), "samplers", "--build", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: build: {tmp_path}, a ")
    assert err.endswith("legal: a folder that `triptych export` made\n")


def test_an_old_servers_answer_is_one_line(run):
    code, out, err = run(served(sdxl={}), "samplers")
    assert (code, out) == (1, "")
    assert err.startswith("error: the answer is not this version's")


@pytest.mark.parametrize("command", ["samplers", "verify"])
def test_no_server_is_exit_69(run, command):
    code, out, err = run(Gone(), command)
    assert (code, out, err) == (69, "", f"error: {GONE}\n")


# verify


def drawn(inputs):
    return json.dumps({name: str(value) for name, value in inputs.items() if name != "tenant"}).encode()


def test_verify_tells_what_is_equal(run):
    transport = served(drawn)
    code, out, err = run(transport, "verify")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "equal    unet: every row has the same bytes in batches of 1, 2, 4",
        "equal    pipeline: 8 mixed requests, one by one and all at once",
        "The same request gives the same bytes here, whatever else is drawn.",
    ]
    alone, together = ({r["tenant"] for r in half} for half in (transport.requests[:8], transport.requests[8:]))
    assert len(alone) == len(together) == 1
    assert alone != together
    run(transport, "verify")
    assert len({request["tenant"] for request in transport.requests}) == 4


async def others():
    """Let every other task go as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)


class Together(FakeTransport):
    """Spoils what is drawn beside something else, and counts how much that is."""

    def __init__(self, **options):
        super().__init__(**options)
        self.running = self.most = 0

    async def infer(self, model, inputs, outputs, **options):
        if model == "denoise":
            return await super().infer(model, inputs, outputs, **options)
        self.running += 1
        await others()
        self.most = max(self.most, self.running)
        answer = await super().infer(model, inputs, outputs, **options)
        spoilt = self.running > 1 and inputs["sampler"] == "lcm"
        await others()
        self.running -= 1
        return {**answer, "image": b"spoilt" if spoilt else b"image"}


def test_verify_tells_what_differs_when_all_are_at_once(run):
    transport = Together(reports=served().reports)
    code, out, _ = run(transport, "verify", "--json")
    report = json.loads(out)
    assert code == 1
    assert transport.most == 8
    assert {request["sampler"] for request in report["pipeline"]["differing"]} == {"lcm"}
    assert report["denoisers"] == DENOISERS
    assert not report["equal"]
    code, out, _ = run(transport, "verify")
    assert out.splitlines()[1].startswith("DIFFERS  pipeline: of 8 mixed requests")
    assert "can give other bytes" in out.splitlines()[2]


def test_verify_tells_which_engine_differs(run):
    denoisers = {**DENOISERS, "refiner": {"batch_invariant": False, "batches": [1, 2]}}
    code, out, _ = run(served(drawn, denoisers=denoisers), "verify")
    assert code == 1
    assert out.splitlines()[1] == "DIFFERS  refiner: a row's bytes depend on its batch, of 1, 2 rows"
    assert "can give other bytes" in out


def test_an_answer_that_verifies_nothing_is_an_error(run):
    for transport in (served(denoisers=None), served(sdxl={"samplers": {}})):
        code, out, err = run(transport, "verify")
        assert (code, out) == (1, "")
        assert err.startswith("error: the answer is not this version's")


def test_mixed_requests_are_legal_and_mixed():
    requests = mixed_requests(*read_card({"family": "sdxl", "model": CARD}))
    assert len(requests) == 8
    for name in ("prompt", "seed", "num_inference_steps", "guidance_scale", "sampler", "schedule"):
        assert len({request[name] for request in requests}) > 1
    for request in requests:
        table = CARD["samplers"][request["sampler"]]["schedules"][request["schedule"]]
        assert 2 <= request["num_inference_steps"] <= min(6, table["max_steps"])
    assert {request.get("height") for request in requests} == {48, None}


# replay


class Repeating(FakeTransport):
    """A server that makes each request's own file again, found by its seed."""

    def __init__(self, files, **changes):
        files = {json.loads(Image.open(path).text["triptych"])["seed"]: path.read_bytes() for path in files}
        super().__init__(
            lambda inputs: files[inputs["seed"]],
            receipt=lambda inputs: told({**RECEIPT, "seed": inputs["seed"], **changes}),
        )


def test_twenty_files_are_in_flight_at_once(run, tmp_path):
    files = [painted(tmp_path / f"{seed}.png", {**RECEIPT, "seed": seed}) for seed in range(20)]
    transport = Repeating(files)
    transport.hold.clear()
    infer = transport.infer

    async def hold_until_all_are_there(*arguments, **options):
        if len(transport.requests) == 19:
            transport.hold.set()
        return await infer(*arguments, **options)

    transport.infer = hold_until_all_are_there
    code, out, err = run(transport, "replay", *files)
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"equal    {file}" for file in files]
    run(transport, "replay", files[0])
    tenants = [request["tenant"] for request in transport.requests]
    assert len(set(tenants[:20])) == 1
    assert len(set(tenants)) == 2


def test_an_old_receipt_asks_only_for_what_it_names(run, tmp_path):
    file = painted(tmp_path / "old.png", RECEIPT)
    transport = Repeating([file])
    run(transport, "replay", file)
    assert set(transport.requests[0]) - {"tenant", "request_id", "timeout_s"} == {
        name for name in FAMILIES["sdxl"].remembered if RECEIPT.get(name) is not None
    }


def test_all_settings_are_asked_for_again(run, tmp_path):
    new = {"guidance_end": 0.5, "clip_skip": 1, "original_size": [96, 128], "crops_coords_top_left": [0, 3]}
    file = painted(tmp_path / "new.png", {**RECEIPT, **new, "strength": None})
    transport = Repeating([file])
    run(transport, "replay", file)
    sent = transport.requests[0]
    assert sent["original_size"] == (96, 128)
    assert sent["crops_coords_top_left"] == (0, 3)
    assert (sent["guidance_end"], sent["clip_skip"]) == (0.5, 1)
    assert "strength" not in sent


def test_a_request_that_fails_loses_no_other_verdict(run, tmp_path):
    files = [painted(tmp_path / f"{seed}.png", {**RECEIPT, "seed": seed}) for seed in range(4)]
    (tmp_path / "other.png").write_text("not a picture")
    transport = Repeating(files)
    answer = transport.answers[0]
    errors = {1: InvalidRequest(message="sampler: 'nope' given; legal: euler"), 2: GONE, 3: ServerError("broke")}
    transport.answers = [lambda inputs: errors.get(inputs["seed"]) or answer(inputs)]
    code, out, err = run(transport, "replay", *files, tmp_path / "other.png")
    lines = out.splitlines()
    assert lines[:4] == [
        f"equal    {files[0]}",
        f"FAILED   {files[1]}: sampler: 'nope' given; legal: euler",
        f"FAILED   {files[2]}: {GONE}",
        f"FAILED   {files[3]}: broke",
    ]
    assert lines[4].startswith(f"FAILED   {tmp_path / 'other.png'}: an unreadable file")
    assert (code, err) == (2, "error: sampler: 'nope' given; legal: euler\n")
    code, out, _ = run(transport, "replay", "--json", *files[:2])
    assert [json.loads(line) for line in out.splitlines()] == [
        {"file": str(files[0]), "equal": True, "differences": []},
        {"file": str(files[1]), "equal": False, "differences": [], "error": str(errors[1])},
    ]


def test_no_server_for_replay_is_exit_69(run, tmp_path):
    assert run(Gone(), "replay", painted(tmp_path / "a.png", RECEIPT))[0] == 69


def started(tmp_path, **also):
    start, mask = tmp_path / "start.jpg", tmp_path / "mask.png"
    start.write_bytes(b"start")
    mask.write_bytes(b"mask")
    pictures = {"init_image": start, **({"mask": mask} if also.get("masked") else {})}
    named = {
        name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "width": 32, "height": 32}
        for name, path in pictures.items()
    }
    return painted(tmp_path / "made.png", {**RECEIPT, **named, "strength": 0.5}), start, mask, named


def test_the_pictures_it_was_made_from_are_matched_by_their_bytes(run, tmp_path):
    file, start, mask, named = started(tmp_path, masked=True)
    other = tmp_path / "other.png"
    other.write_bytes(b"other")
    transport = Repeating([file], **named, strength=0.5)
    given = ["--init-image", other, "--init-image", start, "--mask", mask]
    code, out, _ = run(transport, "replay", file, *given)
    assert (code, out) == (0, f"equal    {file}\n")
    sent = transport.requests[0]
    assert (sent["init_image"], sent["mask"], sent["strength"]) == (b"start", b"mask", 0.5)


def test_a_missing_picture_is_named_by_its_hash(run, tmp_path):
    file, start, _, named = started(tmp_path)
    plain = painted(tmp_path / "plain.png", {**RECEIPT, "seed": 8})
    transport = Repeating([file, plain])
    needs = f"needs the picture it was made from: --init-image FILE with SHA-256 {named['init_image']['sha256']}"
    start.write_bytes(b"changed since")
    for given in ([], ["--init-image", start]):
        code, out, err = run(transport, "replay", file, plain, *given)
        assert code == 2
        assert out.splitlines() == [f"FAILED   {file}: {needs}", f"equal    {plain}"]
        assert err == f"error: {file}: {needs}\n"
    code, _, err = run(transport, "replay", file, "--init-image", tmp_path / "none.png")
    assert code == 2
    assert err.startswith(f"error: init_image: '{tmp_path / 'none.png'}' (No such file or directory) given")


def test_both_missing_pictures_are_named(run, tmp_path):
    file, _, _, named = started(tmp_path, masked=True)
    _, out, _ = run(Repeating([file]), "replay", file)
    assert "needs the pictures it was made from: --init-image FILE with SHA-256" in out
    assert f", --mask FILE with SHA-256 {named['mask']['sha256']}" in out


@pytest.mark.parametrize("lie", ["/etc/passwd", 7, {"sha256": 7}, ["x"]])
def test_a_receipt_cannot_have_a_file_read_and_sent(run, tmp_path, lie):
    file = painted(tmp_path / "lie.png", {**RECEIPT, "init_image": lie})
    transport = Repeating([file])
    code, out, _ = run(transport, "replay", file)
    assert code == 2
    assert "init_image: a receipt with something else given" in out
    assert not transport.requests
    with pytest.raises(InvalidRequest):
        request_of({**RECEIPT, "mask": lie})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": {"unet": "ef", "vae_decoder": "cd"}, "build": "b2"}, ["other weights (stages.unet: ab → ef)"]),
        ({"build": "b2"}, ["other build (b1 → b2)"]),
        ({"runtime": {**RECEIPT["runtime"], "onnxruntime": "1.31"}}, ["other runtime (onnxruntime 1.30 → 1.31)"]),
        (
            {"runtime": {"onnxruntime": "1.31", "numpy": "2.0", "processor": "Y", "machine": "x86_64"}},
            ["other runtime (onnxruntime 1.30 → 1.31, numpy 1.26 → 2.0)", "other CPU (X → Y)"],
        ),
        ({"model": "big"}, ["other model (tiny → big)"]),
        ({"model_x": 1, "clip_skip": 0}, ["not in the file's receipt (model_x: 1, clip_skip: 0)"]),
        ({"seed": 8, "width": 64}, ["seed: 7 → 8", "width: 32 → 64"]),
        ({}, []),
    ],
)
def test_what_differs_is_told_by_what_it_is_about(changes, words):
    assert reasons(RECEIPT, {**RECEIPT, **changes}) == words


def test_what_differs_is_in_the_verdict(run, tmp_path):
    file = painted(tmp_path / "a.png", RECEIPT)
    again = painted(tmp_path / "b.png", RECEIPT, "blue")
    runtime = {**RECEIPT["runtime"], "onnxruntime": "1.31"}
    transport = Repeating([again], runtime=runtime)
    code, out, err = run(transport, "replay", file)
    assert (code, err) == (1, "")
    assert out == f"DIFFERS  {file}: other runtime (onnxruntime 1.30 → 1.31)\n"
    _, out, _ = run(transport, "replay", file, "--json")
    assert json.loads(out)["differences"] == ["runtime.onnxruntime: 1.30 → 1.31"]
    assert differences(RECEIPT, {**RECEIPT, "runtime": runtime}) == ["runtime.onnxruntime: 1.30 → 1.31"]
    _, out, _ = run(Repeating([again]), "replay", file)
    assert out == f"DIFFERS  {file}: the receipts agree: the file was changed after it was made\n"


# Stable Cascade


CASCADE_CARD = card(
    "stable_cascade",
    default_num_inference_steps=10,
    default_prior_num_inference_steps=20,
    prior_table={"path": "samplers/prior.npz.xz", "max_steps": 100, "inpaint": False},
    decoder_table={"path": "samplers/decoder.npz.xz", "max_steps": 3, "inpaint": False},
)
CASCADE_DENOISERS = {name: {"batch_invariant": True, "batches": [1, 2]} for name in ("prior", "decoder")}
CASCADE_RECEIPT = {
    "model": "tiny-cascade",
    "family": "stable_cascade",
    "prompt": "a fox",
    "negative_prompt": None,
    "seed": 9,
    "prior_num_inference_steps": 4,
    "prior_guidance_scale": 4.0,
    "num_inference_steps": 2,
    "decoder_guidance_scale": 0.0,
    "height": 128,
    "width": 128,
    "output_format": "png",
    "build": "c1",
    "stages": {"prior": "ab", "decoder": "cd", "vqgan": "ef"},
    "runtime": RECEIPT["runtime"],
}
CASCADE_LINE = (
    "Stable Cascade has one sampler, DDPMWuerstchen: 1 to 100 steps (default: 20) in Stage C, "
    "1 to 3 steps (default: 10) in Stage B\n"
)


@pytest.mark.parametrize("spelling", ["stable-cascade", "stable_cascade"])
def test_generate_asks_stable_cascade(run, tmp_path, spelling):
    options = {
        "--prior-num-inference-steps": (20, "prior_num_inference_steps", 20),
        "--prior-guidance-scale": (3.5, "prior_guidance_scale", 3.5),
        "--num-inference-steps": (10, "num_inference_steps", 10),
        "--decoder-guidance-scale": (1.5, "decoder_guidance_scale", 1.5),
        "--negative-prompt": ("blue", "negative_prompt", "blue"),
        "--output-format": ("webp", "output_format", "webp"),
        "--tenant": ("me", "tenant", "me"),
        "--seed": (5, "seed", 5),
    }
    transport = FakeTransport()
    given = [word for option, (value, _, _) in options.items() for word in (option, value)]
    code, out, _ = run(
        transport,
        "generate",
        "a fox",
        "-o",
        tmp_path,
        "--model",
        spelling,
        "-n",
        2,
        "--size",
        "256x128",
        "--json",
        *given,
    )
    assert code == 0
    assert [json.loads(line)["seed"] for line in out.splitlines()] == [5, 6]
    assert transport.models == ["stable_cascade"] * 2
    sent = {name: value for name, value in transport.requests[0].items() if name not in ("request_id", "timeout_s")}
    wanted = {name: value for _, name, value in options.values()}
    assert sent == {"prompt": "a fox", "width": 256, "height": 128, **wanted}
    assert set(sent) == set(FAMILIES["stable_cascade"].parameters) - {
        "deadline_ms",
        "cancel_on_disconnect",
        "use_cache",
    }


@pytest.mark.parametrize(
    ("model", "option", "message"),
    [
        (
            "stable-cascade",
            ["--sampler", "euler"],
            "error: --sampler: an option of sdxl and not of stable_cascade given; legal: --negative-prompt, --seed, "
            "--size, --output-format, --prior-num-inference-steps, --prior-guidance-scale, --num-inference-steps, "
            "--decoder-guidance-scale\n",
        ),
        ("stable-cascade", ["--guidance-scale", "3"], "error: --guidance-scale: an option of sdxl and not of "),
        ("stable-cascade", ["--image", "none.png"], "error: --init-image: an option of sdxl and not of "),
        ("stable-cascade", ["--target-size", "8x8"], "error: --target-size: an option of sdxl and not of "),
        (
            "sdxl",
            ["--prior-guidance-scale", "3"],
            "error: --prior-guidance-scale: an option of stable_cascade and not of ",
        ),
    ],
)
def test_an_option_of_another_model_is_refused_by_its_name(run, tmp_path, model, option, message):
    transport = FakeTransport()
    code, out, err = run(transport, "generate", "a fox", "-o", tmp_path / "out", "--model", model, *option)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert not transport.requests
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "stage", "told"),
    [
        (["--model", "stable-cascade"], "prior", "seed 5: Stage C, step 1 of 3\n"),
        (["--denoising-end", "0.5"], "unet", "seed 5: base, step 1 of 3\n"),
        ([], "unet", "seed 5: step 1 of 3\n"),
    ],
)
def test_progress_names_the_stage_where_there_are_several(run, tmp_path, options, stage, told):
    state = {"status": "running", "step": 1, "num_steps": 3, "remaining_s": 1.5, "stage": stage, "preview": None}
    transport = FakeTransport(states=[{**state, "seq": 1}, {**state, "seq": 2}])
    transport.hold.clear()
    code, _, err = run(transport, "generate", "a fox", "-o", tmp_path, "--seed", "5", *options)
    assert code == 0
    assert err.startswith(told)
    assert all("preview" not in watch for watch in transport.watches)


@pytest.mark.parametrize("command", [("generate", "a fox"), ("samplers",), ("demo",)])
def test_a_model_that_nobody_knows_is_usage(run, command):
    code, _, err = run(Gone(), *command, "--model", "flux")
    assert code == 2
    assert "'flux' given; legal: sdxl, stable-cascade" in err


def test_cascades_sampler_is_one_line(run, tmp_path):
    both = served(sdxl=CARD, stable_cascade=CASCADE_CARD)
    alone = served(stable_cascade=CASCADE_CARD)
    (tmp_path / "manifest.json").write_text(json.dumps({"family": "stable_cascade", "model": CASCADE_CARD}))
    model = ["--model", "stable-cascade"]
    for transport, options in ((both, model), (alone, model), (alone, []), (Gone(), ["--build", tmp_path])):
        assert run(transport, "samplers", *options) == (0, CASCADE_LINE, "")
    assert run(both, "samplers") == run(served(), "samplers", "--model", "sdxl")
    assert json.loads(run(alone, "samplers", "--json")[1]) == {
        "sampler": "DDPMWuerstchen",
        "steps": {
            "prior_num_inference_steps": {"default": 20, "max": 100},
            "num_inference_steps": {"default": 10, "max": 3},
        },
    }


def test_samplers_of_a_model_that_is_not_served_are_refused(run, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"family": "sdxl", "model": CARD}))
    for transport, options in ((served(), []), (Gone(), ["--build", tmp_path])):
        code, out, err = run(transport, "samplers", "--model", "stable-cascade", *options)
        assert (code, out, err) == (2, "", "error: --model: stable-cascade given; legal: sdxl\n")


def test_verify_mixes_the_requests_of_all_models(run):
    transport = served(drawn, denoisers={**DENOISERS, **CASCADE_DENOISERS}, sdxl=CARD, stable_cascade=CASCADE_CARD)
    code, out, _ = run(transport, "verify")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[:4]] == [
        ["equal", "unet:"],
        ["equal", "prior:"],
        ["equal", "decoder:"],
        ["equal", "pipeline:"],
    ]
    assert "16 mixed requests" in out
    assert transport.models == (["sdxl"] * 8 + ["stable_cascade"] * 8) * 2


def test_verify_names_what_differs_of_cascade(run):
    turn = iter(range(100))
    transport = served(lambda _: str(next(turn)).encode(), denoisers=CASCADE_DENOISERS, stable_cascade=CASCADE_CARD)
    code, out, _ = run(transport, "verify")
    assert code == 1
    assert "all at once, stable_cascade in 2 + 2 steps, stable_cascade in 3 + 3 steps" in out


@pytest.mark.parametrize("models", [{}, {"mine": {"family": "flux", "model": {}}}, {"sdxl": {"family": "sdxl"}}])
def test_a_server_of_nothing_known_is_not_verified(run, models):
    transport = FakeTransport(reports={"describe": {"models": models}, "verify": {"denoisers": DENOISERS}})
    for command in ("verify", "samplers"):
        code, out, err = run(transport, command)
        assert (code, out) == (1, "")
        assert err.startswith("error: the answer is not this version's")


def test_mixed_cascade_requests_are_legal_and_mixed():
    requests = mixed_requests(*read_card({"family": "stable_cascade", "model": CASCADE_CARD}))
    for name in ("prior_num_inference_steps", "num_inference_steps", "prior_guidance_scale", "decoder_guidance_scale"):
        assert len({request[name] for request in requests}) > 1
    assert all(1 <= request["num_inference_steps"] <= 3 for request in requests)
    assert all(set(request) <= set(FAMILIES["stable_cascade"].parameters) for request in requests)
    assert {request.get("height") for request in requests} == {CASCADE_CARD["min_size"], None}


def test_files_of_both_families_are_made_again_by_their_own_models(run, tmp_path):
    files = [painted(tmp_path / "sdxl.png", RECEIPT), painted(tmp_path / "cascade.png", CASCADE_RECEIPT)]
    transport = Repeating(files)
    code, out, _ = run(transport, "replay", *files)
    assert code == 0, out
    asked = dict(zip(transport.models, transport.requests, strict=True))
    assert asked["sdxl"]["seed"] == 7
    assert set(asked["stable_cascade"]) - {"tenant", "request_id", "timeout_s"} == {
        name for name in FAMILIES["stable_cascade"].remembered if CASCADE_RECEIPT[name] is not None
    }
    assert len({request["tenant"] for request in transport.requests}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "flux"}, "family: 'flux' given; legal: sdxl, stable_cascade"),
        ({"family": ["sdxl"]}, "family: ['sdxl'] given; legal: sdxl, stable_cascade"),
        ({"family": "sdxl"}, "a picture without a receipt given; legal: a picture that Triptych made"),
    ],
)
def test_a_receipt_of_another_family_is_refused_by_name(run, tmp_path, changes, message):
    file = painted(tmp_path / "a.png", {**CASCADE_RECEIPT, **changes})
    code, out, err = run(FakeTransport(), "replay", file)
    assert code == 2
    assert out == f"FAILED   {file}: {message}\n"
    assert err == f"error: {file}: {message}\n"


def test_what_differs_of_cascade_is_told_by_what_it_is_about():
    stages = {**CASCADE_RECEIPT["stages"], "prior": "00"}
    assert reasons(CASCADE_RECEIPT, {**CASCADE_RECEIPT, "stages": stages}) == ["other weights (stages.prior: ab → 00)"]
    assert reasons(CASCADE_RECEIPT, {**CASCADE_RECEIPT, "prior_guidance_scale": 1.0}) == [
        "prior_guidance_scale: 4.0 → 1.0"
    ]


# demo


def shipped(folder, *names):
    for name in names:
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text("{}")


@pytest.mark.parametrize("names", [["sdxl"], ["sdxl", "stable_cascade"]])
def test_the_demo_is_every_model_that_ships(tmp_path, monkeypatch, names):
    monkeypatch.setattr(shipped_models, "FOLDER", tmp_path)
    (tmp_path / "stable_cascade.tmp").mkdir()
    shipped(tmp_path, *reversed(names))
    assert shipped_models.demo_builds() == [tmp_path / name for name in names]
    assert [shipped_models.demo_build(name) for name in names] == [tmp_path / name for name in names]


@pytest.mark.parametrize(("options", "name"), [([], "sdxl"), (["--model", "stable_cascade"], "stable_cascade")])
def test_a_demo_model_that_does_not_ship_is_named(run, tmp_path, monkeypatch, options, name):
    monkeypatch.setattr(shipped_models, "FOLDER", tmp_path)
    (tmp_path / name).mkdir()
    code, out, err = run(Gone(), "demo", "-o", tmp_path / "out", *options)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: no demo model '{name}' in {tmp_path / name}; reinstall triptych-demo")


def test_the_package_ships_a_demo_model():
    assert shipped_models.demo_builds()[0] == shipped_models.demo_build("sdxl")
