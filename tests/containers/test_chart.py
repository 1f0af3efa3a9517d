"""The Helm chart, rendered by helm itself, as far as it can be tried without a Kubernetes."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate here")

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/chart"
OWN = Path(sys.prefix, "helm")
HELM = os.environ.get("HELM") or shutil.which("helm", path=f"{OWN}{os.pathsep}{os.environ['PATH']}")
pytestmark = pytest.mark.skipif(not HELM, reason=f"no helm in HELM, on PATH or in {OWN}")
KUBERNETES = "1.35"
# The custom resources' own definitions (CRDs), as their projects publish them, in a folder of YAML files.
CRDS = os.environ.get("TRIPTYCH_CRDS", "")
SETS = sorted((CHART / "ci").glob("*.yaml"))
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
CUSTOM = {"RayService", "ServingRuntime", "InferenceService"}


def helm(*command):
    return subprocess.run([HELM, *map(str, command)], capture_output=True, text=True, timeout=60)


def rendered(*options):
    done = helm("template", "demo", CHART, "--namespace", "pictures", *options)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


@pytest.fixture(scope="module", params=SETS, ids=lambda path: path.stem)
def documents(request):
    return rendered("-f", request.param)


def of(documents, kind):
    return [one for one in documents if one["kind"] == kind]


def pods(documents):
    """Every pod that comes of it, as Kubernetes sees it, by part."""
    found = {}
    for service in of(documents, "RayService"):
        config = service["spec"]["rayClusterConfig"]
        found["head"] = config["headGroupSpec"]["template"]
        found |= {group["groupName"]: group["template"] for group in config["workerGroupSpecs"]}
    for runtime, service in zip(of(documents, "ServingRuntime"), of(documents, "InferenceService"), strict=True):
        predictor, beside = service["spec"]["predictor"], ("containers", "volumes")
        taken = ("terminationGracePeriodSeconds", "automountServiceAccountToken", "securityContext", "nodeSelector")
        spec = {name: predictor[name] for name in taken if name in predictor}
        spec |= {name: runtime["spec"][name] for name in beside}
        found["predictor"] = {"metadata": {"labels": predictor["labels"]}, "spec": spec}
    return {part: {"apiVersion": "v1", "kind": "Pod", **template} for part, template in found.items()}


def container(pod):
    (one,) = pod["spec"]["containers"]
    return one


def test_there_are_six_sets_of_values():
    assert len(SETS) == 6


@pytest.mark.parametrize("values", SETS, ids=lambda path: path.stem)
def test_helm_finds_nothing_to_mend(values):
    found = helm("lint", "--strict", CHART, "-f", values)
    assert (found.returncode, "[WARNING]" in found.stdout, "[ERROR]" in found.stdout) == (0, False, False), found.stdout


def test_kubernetes_takes_every_document_and_every_pod(documents):
    plain = [one for one in documents if one["kind"] not in CUSTOM]
    for document in [*plain, *pods(documents).values()]:
        named = {**document, "metadata": {"name": "demo", **document["metadata"]}}
        kubernetes_validate.validate(named, KUBERNETES, strict=True)


@pytest.mark.skipif(not CRDS, reason="no folder of CRDs in TRIPTYCH_CRDS")
def test_custom_resources_are_what_their_definitions_say(documents):
    known = {}
    for path in Path(CRDS).rglob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text()):
            if one and one.get("kind") == "CustomResourceDefinition":
                for each in one["spec"]["versions"]:
                    name = f"{one['spec']['group']}/{each['name']}", one["spec"]["names"]["kind"]
                    known[name] = closed(each["schema"]["openAPIV3Schema"])
    for document in documents:
        if document["kind"] in CUSTOM:
            jsonschema.Draft202012Validator(known[document["apiVersion"], document["kind"]]).validate(document)


def closed(schema):
    """The same where what is unknown is refused, as a strict API server does."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(one) for name, one in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    opened = "additionalProperties" in made or made.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not opened:
        known = {"apiVersion", "kind", "metadata"} & made["properties"].keys()
        made |= {} if known else {"additionalProperties": False}
    return made


@pytest.mark.parametrize("values", [one for one in SETS if one.stem.startswith("ray")], ids=lambda path: path.stem)
def test_ray_serve_takes_the_applications_and_so_do_ours(values):
    schema = pytest.importorskip("ray.serve.schema")
    applications = pytest.importorskip("triptych_cluster.applications")
    (service,) = of(rendered("-f", values), "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    told = schema.ServeDeploySchema(**copy.deepcopy(config))
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == version("ray")
    has_front = "triptych-fronts" in {one.name for one in told.applications}
    assert has_front == (config["proxy_location"] == "EveryNode")
    group = next(
        one for one in service["spec"]["rayClusterConfig"]["workerGroupSpecs"] if one["groupName"] == "servers"
    )
    for one in told.applications:
        module, _, function = one.import_path.partition(":")
        assert module == applications.__name__
        assert callable(getattr(applications, function))
        made = applications._options({**one.args, "front": None})  # whose file of keys is in the pods only
        assert made.servers == (group["minReplicas"], group["maxReplicas"])
        assert made.gpus == int(group["rayStartParams"]["num-gpus"])
        assert json.loads(json.loads(doors(service)["rayStartParams"]["resources"])) == {made.on: 1}
        assert made.doors == doors(service)["replicas"]
        assert made.serving.grace_s < group["template"]["spec"]["terminationGracePeriodSeconds"] - 60


def doors(service):
    return next(one for one in service["spec"]["rayClusterConfig"]["workerGroupSpecs"] if one["groupName"] == "doors")


def test_pods_keep_to_the_restricted_profile(documents):
    for part, pod in pods(documents).items():
        spec, own = pod["spec"], container(pod)["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"], part
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all("hostPort" not in port for port in container(pod)["ports"])
        kinds = {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]}
        assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret", "image"}
        assert spec["automountServiceAccountToken"] is (part == "head")  # Ray's autoscaler asks Kubernetes for pods


def test_pods_are_started_watched_and_left_in_peace(documents):
    for part, pod in pods(documents).items():
        one = container(pod)
        startup = one["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
        assert {"livenessProbe", "readinessProbe"} <= one.keys()
        if part != "head":
            stop = one["lifecycle"]["preStop"]
            waits = stop["sleep"]["seconds"] if "sleep" in stop else int(stop["exec"]["command"][-1])
            assert waits >= 15
            assert pod["spec"]["terminationGracePeriodSeconds"] >= waits + 30
        mounts = {mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert mounts["/tmp"]
        assert all(mount.get("readOnly") for mount in one["volumeMounts"] if mount["mountPath"] in ("/models", "/keys"))
        assert {"cpu", "memory"} <= one["resources"]["requests"].keys()
        assert "memory" in one["resources"]["limits"]


@pytest.mark.parametrize(("values", "gpu"), [("ray", 1), ("ray-cpu", 0), ("kserve", 1), ("kserve-claim", 0)])
def test_only_servers_have_a_gpu(values, gpu):
    for part, pod in pods(rendered("-f", CHART / f"ci/{values}.yaml")).items():
        expected = gpu if part in ("servers", "predictor") else 0
        assert container(pod)["resources"]["limits"].get("nvidia.com/gpu", 0) == expected
    if gpu:
        chosen = pods(rendered("-f", CHART / "ci/ray-large.yaml"))["servers"]["spec"]
        assert chosen["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
        assert chosen["tolerations"][0]["key"] == "nvidia.com/gpu"


def allowed(documents):
    """(part, who, port) that network policies let in; a port of None is any."""
    for policy in of(documents, "NetworkPolicy"):
        part = policy["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component", "any")
        for rule in policy["spec"]["ingress"]:
            for peer in rule["from"]:
                for port in rule.get("ports", [{"port": None}]):
                    yield part, json.dumps(peer, sort_keys=True), port["port"]


@pytest.mark.parametrize("values", ["ray", "ray-urls", "ray-large", "kserve"])
def test_tritons_ports_and_rays_are_for_the_release_alone(values):
    documents = rendered("-f", CHART / f"ci/{values}.yaml")
    own = json.dumps({"podSelector": {"matchLabels": selector(documents)}}, sort_keys=True)
    for part, who, port in allowed(documents):
        if who != own:
            ports = {"doors": {8001, 8002, 8080, 8443}, "head": {8265}, "any": {8001, 8002}}[part]
            assert port in ports
            assert values.startswith("ray") or part == "any"
    for pod in pods(documents).values():
        assert selector(documents).items() <= pod["metadata"]["labels"].items()
    assert {8000, 6379, 52365, None} & {port for _, who, port in allowed(documents) if who != own} == set()


def selector(documents):
    first = of(documents, "NetworkPolicy")[0]["spec"]["podSelector"]["matchLabels"]
    return {name: value for name, value in first.items() if not name.endswith("component")}


def test_services_and_budgets_find_their_pods(documents):
    labels = {part: pod["metadata"]["labels"] for part, pod in pods(documents).items()}
    for service in of(documents, "Service"):
        chosen = [part for part, own in labels.items() if service["spec"]["selector"].items() <= own.items()]
        assert chosen == ["doors"]
        ports = {port["name"]: port["containerPort"] for port in container(pods(documents)["doors"])["ports"]}
        assert all(port["targetPort"] in ports for port in service["spec"]["ports"])
    budgets = of(documents, "PodDisruptionBudget")
    for budget in budgets:
        assert any(budget["spec"]["selector"]["matchLabels"].items() <= own.items() for own in labels.values())
        assert budget["spec"]["maxUnavailable"] == 1


def test_keda_asks_for_the_seconds_that_wait():
    (service,) = of(rendered("-f", CHART / "ci/kserve.yaml"), "InferenceService")
    (metric,) = service["spec"]["predictor"]["autoScaling"]["metrics"]
    query = metric["external"]["metric"]["query"]
    assert query == 'sum(triptych_estimate_seconds{namespace="pictures", pod=~"demo-predictor-.*"})'
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "20"}
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"


def test_every_value_is_documented():
    def check(schema, values, path):
        assert schema["description"], path
        if schema.get("type") == "object" and "properties" in schema:
            assert schema["additionalProperties"] is False, path
            for name, value in values.items():
                check(schema["properties"][name], value, f"{path}.{name}")
            assert schema["properties"].keys() - values.keys() <= {"global"}, path

    check(SCHEMA, DEFAULTS, "")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("mode=swarm", "mode"),
        ("http.keysSecret=", "keysSecret"),
        ("servers.most=0", "most"),
        ("servers.mots=3", "mots"),
        ("servers.startupSeconds=60", "startupSeconds"),
        ("servers.sharedMemory=lots", "sharedMemory"),
        ("builds.places={sdxl}", "places"),
        ("image.digest=latest", "digest"),
        ("builds.claim=A_B", "claim"),
        ("securityContext.runAsUser=0", "runAsUser"),
        ("http.port=80", "port"),
    ],
)
def test_wrong_values_are_refused_by_name(option, named):
    done = helm("template", "demo", CHART, "--set", "http.keysSecret=keys", "--set", option)
    assert done.returncode != 0
    assert re.search(rf"\b{named}\b", done.stderr), done.stderr


def test_versions_are_the_projects():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version("triptych")
