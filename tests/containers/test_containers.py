"""The containers, as far as they can be tried without a container engine: the files, the scripts, and a real server."""

import json
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path

import promql_parser
import psutil
import pytest
import yaml

from triptych import Client
from triptych_api.metrics import Metrics
from triptych_cluster.metrics import ANSWERED
from triptych_serving.metrics import METRICS

tomllib = pytest.importorskip("tomllib", reason="the images have Python 3.12")

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DATA = Path(__file__).parent
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
ALERTS = [rule for group in yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/triptych.json").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
# Triton has these on machines with a GPU only.
GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes"}
ANSWERS_WITHIN_S = 5


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **options)


def tool(name):
    """A tool that the test extra brings."""
    return Path(sys.executable).with_name(name)


# The images.


def instructions(dockerfile):
    """Pairs of an instruction and its arguments, lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined]


def of(dockerfile, name):
    return [arguments for instruction, arguments in instructions(dockerfile) if instruction == name]


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.stem)
def dockerfile(request):
    return request.param


def test_there_are_four_images():
    assert [path.stem for path in DOCKERFILES] == ["api", "exporter", "server", "ui"]


def test_hadolint_finds_nothing(dockerfile):
    found = run(tool("hadolint"), "--failure-threshold", "style", dockerfile)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_images_are_pinned_and_do_not_run_as_root(dockerfile):
    defaults = dict(argument.split("=") for argument in of(dockerfile, "ARG"))
    for base in of(dockerfile, "FROM"):
        name, tag = re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], base.split()[0]).rsplit(":")
        assert name
        assert re.match(r"\d+\.\d+", tag)
    assert of(dockerfile, "USER") == ["10001:10001"]  # the same in all: one writes the builds that another reads
    assert defaults["VERSION"] == PROJECT["version"]
    assert of(dockerfile, "STOPSIGNAL")
    assert of(dockerfile, "HEALTHCHECK")
    assert of(dockerfile, "ENTRYPOINT")[0].startswith("[")  # a shell would keep signals to itself


def test_what_is_copied_exists_and_is_sent_to_the_engine(dockerfile):
    for copied in of(dockerfile, "COPY"):
        sources = [part for part in copied.split()[:-1] if not part.startswith("--chmod")]
        for source in [] if sources[0].startswith("--from") else sources:
            files = [path for path in (ROOT / source).rglob("*") if path.is_file()] or [ROOT / source]
            assert any(path.exists() and sent(path.relative_to(ROOT)) for path in files), source


def test_all_that_a_wheel_includes_is_copied(dockerfile):
    server = tomllib.loads((ROOT / "server/pyproject.toml").read_text())
    included = server["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["include"]
    copied = {line.split()[0] for line in of(dockerfile, "COPY")}
    assert {Path(name).parts[1] for name in included} <= copied


def sent(path):
    """Whether `.dockerignore` lets a file pass: the last rule for it or a folder above it counts."""
    passes = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.removeprefix("!")
        if line and not line.startswith("#") and any(_matches(at, rule) for at in (path, *path.parents)):
            passes = line.startswith("!")
    return passes


def _matches(path, rule):
    any_depth = rule.removeprefix("**/")
    if any_depth != rule:
        return fnmatch(path.name, any_depth)
    return len(path.parts) == len(Path(rule).parts) and fnmatch(str(path), rule)


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("demo/triptych_demo/sdxl/manifest.json", True),
        ("docker/serve.sh", True),
        ("export/triptych_export/build.py", True),
        ("demo/demo_models/train.py", False),
        ("client/triptych/__pycache__/x.pyc", False),
        ("demo/triptych_demo/sdxl/model_repository/sdxl/config.pbtxt", False),
        (".git/config", False),
        (".venv/bin/python", False),
        ("docker/.env", False),
        ("docker/weights/unet.safetensors", False),
    ],
)
def test_nothing_but_sources_goes_into_an_image(path, passes):
    assert sent(Path(path)) == passes


def listed(*arguments):
    """What requirements.py prints, as names."""
    found = run(sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml", *arguments)
    assert found.returncode == 0, found.stderr
    return {_name(line) for line in found.stdout.splitlines()}


def _name(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


@pytest.mark.parametrize("image", ["api", "server", "exporter", "ui"])
def test_every_requirement_of_an_image_is_pinned(image):
    text = (DOCKER / f"{image}.Dockerfile").read_text()
    (line,) = re.findall(r"requirements\.py pyproject\.toml ?(.*?) >", text)
    for default in re.findall(r"^ARG GPU_EXTRA=(.*)", text, re.M):
        line = line.replace('${GPU_EXTRA:+"$GPU_EXTRA"}', default)
    for default in re.findall(r"^ARG SERVER_EXTRA=(.*)", text, re.M):
        line = line.replace('"${SERVER_EXTRA}"', default)
    arguments = [] if line.startswith("${") else line.split()
    pinned = {_name(pin) for pin in (ROOT / "constraints.txt").read_text().splitlines() if "==" in pin}
    assert listed(*arguments) | {"hatchling"} <= pinned
    assert "nvidia-pytriton" not in listed(*arguments)
    assert ({"torch", "diffusers"} <= listed(*arguments)) == (image == "exporter")
    assert ({"cuda-bindings", "tensorrt-rtx-cu13-bindings"} <= listed(*arguments)) == (image not in ("api", "ui"))


@pytest.mark.parametrize(("image", "file"), [("ui", "/users/users"), ("api", "/api/keys.json")])
def test_page_and_front_start_with_options_that_they_take(image, file):
    (entry,) = of(DOCKER / f"{image}.Dockerfile", "ENTRYPOINT")
    _, command, *options = [*json.loads(entry), *SERVICES[image]["command"]]
    found = run(tool("triptych"), command, *options)
    assert (found.returncode, command) == (2, image)
    assert file in found.stderr  # all else was understood


def test_the_server_gets_its_whole_extra_but_the_wheel_of_triton():
    extras = PROJECT["optional-dependencies"]
    wanted = {_name(line) for line in [*PROJECT["dependencies"], *extras["server"], *extras["serving"]]}
    ours = {"triptych", "triptych-demo", "triptych-server"}  # built in the image
    assert listed("server", "--without", "nvidia-pytriton") == wanted - {"nvidia-pytriton"} - ours


def test_an_image_has_one_of_the_two_onnx_runtimes():
    pinned = {_name(pin) for pin in (ROOT / "constraints.txt").read_text().splitlines() if "==" in pin}
    assert listed("cuda") - listed("server") == {"cuda-bindings", "onnxruntime-gpu"}
    assert listed("server") - listed("cuda") == {"onnxruntime"}
    assert listed("cuda") - {"triptych-demo", "triptych-server"} <= pinned


def test_an_extra_that_does_not_exist_is_named():
    found = run(sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml", "sever")
    assert found.returncode == 2
    assert "has no extra 'sever'" in found.stderr


# Compose.


def interpolated(value):
    """Compose's `${NAME:-default}` where nothing is set."""
    if isinstance(value, dict):
        return {key: interpolated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item) for item in value]
    return VARIABLE.sub(lambda found: found[2], value) if isinstance(value, str) else value


@pytest.fixture(params=SERVICES, ids=str)
def service(request):
    return interpolated(SERVICES[request.param])


@pytest.mark.parametrize("made", [COMPOSE, interpolated(COMPOSE)], ids=["as written", "with its settings"])
def test_compose_is_valid(made, tmp_path):
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(made))
    found = run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml")
    assert found.returncode == 0, found.stdout


def test_every_service_is_hardened(service):
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc", "user"} & service.keys()
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert limits["pids"]
    assert service["profiles"]  # nothing starts that was not asked for
    assert service["healthcheck"].get("test") or service["healthcheck"] == {"disable": True}


def test_every_port_is_on_loopback(service):
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    assert not any(port.endswith(":8002") for port in service.get("ports", []))  # metrics stay inside


def test_every_mount_exists_and_is_read_only(service):
    for mount in service.get("volumes", []):
        if isinstance(mount, dict):  # the caller's weights
            assert mount["read_only"]
            assert not mount["bind"]["create_host_path"]
            continue
        source, _, *options = mount.split(":")
        if source.startswith("."):
            assert (DOCKER / source).exists()
            assert options == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


def test_every_image_is_pinned(service):
    name, tag = service["image"].split(":")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    if "build" in service:
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert tag == PROJECT["version"]
        assert name in (DOCKER / "README.md").read_text()


def test_a_stop_waits_longer_than_the_grace():
    for name in ("server", "cpu"):
        grace = int(SERVICES[name]["environment"]["TRIPTYCH_GRACE"])
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= grace + 10


def test_the_servers_differ_in_the_model_and_the_gpu_only():
    server, cpu = (dict(SERVICES[name]) for name in ("server", "cpu"))
    assert cpu["environment"] == {**server["environment"], "TRIPTYCH_BUILDS": "demo"}
    assert "reservations" not in cpu["deploy"]["resources"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "/models:ro" in server["volumes"][0]
    for one in (server, cpu):
        for key in ("environment", "deploy", "profiles", "volumes"):
            one.pop(key, None)
    assert server == cpu


def test_the_example_of_settings_has_composes_own_defaults():
    lines = [line for line in (DOCKER / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    example = dict(line.split("=", 1) for line in lines)
    assert set(example.pop("COMPOSE_PROFILES").split(",")) <= {
        profile for s in SERVICES.values() for profile in s["profiles"]
    }
    assert example == dict(VARIABLE.findall((DOCKER / "compose.yaml").read_text()))
    (tag,) = (argument for argument in of(DOCKER / "server.Dockerfile", "ARG") if argument.startswith("TRITON_TAG"))
    assert tag == f"TRITON_TAG={example['TRITON_TAG']}"


def test_yamllint_finds_nothing():
    found = run(tool("yamllint"), "--strict", "-c", DOCKER / ".yamllint.yaml", DOCKER, DATA)
    assert (found.returncode, found.stdout) == (0, "")


# Monitoring.


def queries():
    """Every PromQL expression, with Grafana's variables filled in."""
    for rule in ALERTS:
        yield rule["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield filled_in(annotation["expr"])
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield filled_in(target["expr"])


def filled_in(expression):
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")


def names(expression):
    """The metrics that a query asks for."""
    found = set()

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def test_the_loops_metrics_are_all_on_the_dashboard():
    shown = set().union(*(names(filled_in(t["expr"])) for p in DASHBOARD["panels"] for t in p.get("targets", [])))
    assert {f"triptych_{name}" for name in METRICS} <= shown
    assert shown >= GPU_METRICS


# On the front's own page, whose samples have the names that are asked for.
FRONT_METRICS = {*re.findall(r"^(?:# TYPE )?(\w+)[ {]", Metrics().page.decode(), re.MULTILINE)} | {
    f"{name}_{part}"
    for name in ("triptych_api_request_seconds", "triptych_api_queue_seconds")
    for part in ("bucket", "count")
}


def test_queries_ask_for_metrics_that_a_running_server_has(served):
    with urllib.request.urlopen(served.metrics) as page:
        published = set(re.findall(r"^# HELP (\S+)", page.read().decode(), re.MULTILINE))
    assert {f"triptych_{name}" for name in METRICS} <= published
    for query in queries():
        assert names(query), query
        assert names(query) <= published | GPU_METRICS | FRONT_METRICS | {"up", ANSWERED}, query


def test_panels_are_unique_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    titles = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert titles == [
        "Now",
        "Batches",
        "Queue",
        "Latency",
        "Refused, failed, ended early",
        "Cache",
        "Machine",
        "HTTP front",
        "Cluster",
    ]
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        assert not (_crosses(one, other, "x", "w") and _crosses(one, other, "y", "h"))
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def _crosses(one, other, at, length):
    return one[at] < other[at] + other[length] and other[at] < one[at] + one[length]


def test_panels_say_what_they_show_and_use_the_provisioned_source():
    (source,) = yaml.safe_load((DOCKER / "grafana/datasources/prometheus.yml").read_text())["datasources"]
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == source["uid"]
            assert all('instance=~"$instance"' in target["expr"] for target in panel["targets"])
    (provider,) = yaml.safe_load((DOCKER / "grafana/providers/triptych.yml").read_text())["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


def test_alerts_say_how_bad_it_is_and_what_to_do():
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_stall_is_asked_for_as_the_manual_says():
    (rule,) = (rule for rule in ALERTS if rule["alert"] == "TriptychLoopStalled")
    assert rule["expr"] in (ROOT / "docs/operations.md").read_text()


def test_prometheus_asks_the_server_that_runs():
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "triptych")
    assert job["static_configs"] == [{"targets": ["triton:8002"]}]
    for name in ("server", "cpu"):
        assert SERVICES[name]["networks"]["monitoring"]["aliases"] == ["triton"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
def test_alerts_fire_when_they_should():
    for arguments in (("check", "config", DOCKER / "prometheus.yml"), ("test", "rules", DATA / "alerts.test.yml")):
        found = run("promtool", *arguments)
        assert found.returncode == 0, found.stdout + found.stderr


# The scripts, run as the container runs them.


def test_shellcheck_finds_nothing():
    script = DOCKER / "serve.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    assert run("sh", "-n", script).returncode == 0
    found = run(tool("shellcheck"), "--shell=sh", "--enable=all", "--exclude=SC2250,SC2310", script)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.fixture
def said(tmp_path):
    """What serve.sh would start, by a `triptych` that only says its arguments."""
    program = tmp_path / "bin/triptych"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor each in "$@"; do echo "$each"; done\n')
    program.chmod(0o755)

    def say(*arguments, **environment):
        paths = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
        return run(DOCKER / "serve.sh", *arguments, env={**paths, **environment})

    return say


def build(folder):
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
    return folder


OPTIONS = ["serve", "--host", "0.0.0.0", "--grace", "30", "--cache-mb", "256"]


def test_one_build_is_served(said, tmp_path):
    one = build(tmp_path / "my models")
    assert said(TRIPTYCH_BUILDS=str(one)).stdout.splitlines() == [*OPTIONS, "--logs", str(one)]


def test_a_folder_of_builds_is_served_whole(said, tmp_path):
    builds = [build(tmp_path / "models" / name) for name in ("cascade", "sd xl")]
    (tmp_path / "models/lost+found").mkdir()
    given = said("--http-port", "80", TRIPTYCH_BUILDS=str(tmp_path / "models"), TRIPTYCH_LOGS="0")
    assert given.stdout.splitlines() == [*OPTIONS, "--http-port", "80", *map(str, builds)]


def test_the_demo_and_settings(said):
    given = said(TRIPTYCH_BUILDS="demo", TRIPTYCH_GRACE="5", TRIPTYCH_CACHE_MB="0", TRIPTYCH_LOGS="0")
    assert given.stdout.splitlines() == ["serve", "--host", "0.0.0.0", "--grace", "5", "--cache-mb", "0"]


def test_no_build_is_an_error_that_helps(said, tmp_path):
    given = said(TRIPTYCH_BUILDS=str(tmp_path))
    assert given.returncode == 1
    assert f"no build in {tmp_path}" in given.stderr
    assert "TRIPTYCH_BUILDS=demo" in given.stderr


class Served:
    """A server started by serve.sh, with little more in its environment than the container has."""

    def __init__(self, folder):
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "TRIPTYCH_BUILDS": "demo",
            "TRIPTYCH_HOST": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
        }
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [DOCKER / "serve.sh", *ports], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        told = dict(line.split()[:2] for line in (self.process.stdout.readline() for _ in range(3)) if line.strip())
        assert told, (folder / "log").read_text()[-2000:]
        self.grpc, self.http, self.metrics = told["gRPC"], told["HTTP"], told["metrics"]

    @property
    def loop(self):
        (found,) = (p for p in psutil.Process(self.process.pid).children(recursive=True) if "/denoise/" in _line(p))
        return found

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _line(process):
    return " ".join(process.cmdline())


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Served(tmp_path_factory.mktemp("container"))
    yield server
    code = server.stop()
    assert code == 0  # drained


def probe(url, **environment):
    """The health check as the image runs it: exit code, seconds, what it said."""
    began = time.monotonic()
    found = run(sys.executable, "-IS", DOCKER / "healthcheck.py", env={"TRIPTYCH_HEALTH_URL": url, **environment})
    return found.returncode, time.monotonic() - began, found.stdout + found.stderr


def test_a_loop_that_answers_is_healthy(served):
    code, _, said = probe(served.http)
    assert code == 0, said
    assert re.fullmatch(r"waiting 0, running 0, batches_total \d+\n", said)


def test_a_loop_that_is_stopped_is_not_healthy_and_is_started_again(served):
    loop = served.loop
    loop.suspend()
    code, seconds, said = probe(served.http)
    assert (code, said.count("\n")) == (1, 1)
    assert seconds < ANSWERS_WITHIN_S
    until(lambda: not loop.is_running())  # the call that failed has told the supervisor
    until(lambda: probe(served.http)[0] == 0)
    with Client(served.grpc, timeout=60) as client:
        assert client.generate("a red apple", num_inference_steps=1).seed >= 0


def test_a_loop_that_does_not_answer_in_time_is_not_healthy(served):
    probes = []

    def timed_out():
        probes.append(probe(served.http, TRIPTYCH_HEALTH_TIMEOUT="0.3"))
        return "timed out" in probes[-1][2]

    with Client(served.grpc) as client, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(lambda: [client.verify(timeout=60) for _ in range(5)])  # it answers nobody meanwhile
        until(lambda: timed_out() or busy.done(), every_s=0)
        code, seconds, said = probes[-1]
        assert "timed out" in said
        assert code == 1
        assert seconds < ANSWERS_WITHIN_S
        busy.result(60)
    assert probe(served.http)[0] == 0


def until(condition, limit_s=60, every_s=0.2):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every_s)


def test_no_server_is_not_healthy():
    code, seconds, said = probe("http://127.0.0.1:9")
    assert code == 1
    assert seconds < ANSWERS_WITHIN_S
    assert "refused" in said


def test_another_servers_answer_is_not_healthy(served):
    code, _, said = probe(served.metrics.removesuffix("/metrics"))
    assert code == 1
    assert "HTTP 4" in said


def test_the_health_check_needs_nothing_but_python():
    assert not re.search(r"^(from|import) (triptych|numpy|tritonclient)", (DOCKER / "healthcheck.py").read_text(), re.M)
    (checked,) = of(DOCKER / "server.Dockerfile", "HEALTHCHECK")
    assert json.loads(checked.split("CMD ")[1]) == SERVICES["cpu"]["healthcheck"]["test"][1:]
    (copied,) = (line for line in of(DOCKER / "server.Dockerfile", "COPY") if "healthcheck.py" in line)
    assert copied.endswith("/usr/local/lib/triptych/")


def test_nothing_here_is_a_secret_or_moves():
    for path in [*DOCKER.rglob("*"), ROOT / ".dockerignore"]:
        if path.is_file():
            assert not re.search(r":latest\b|password\s*[=:]\s*\S|BEGIN .*KEY", path.read_text(), re.IGNORECASE), path
