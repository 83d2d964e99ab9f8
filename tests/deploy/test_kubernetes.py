"""deploy/kubernetes: every document fits Kubernetes' schemas, runs what Compose runs, and has no secret in it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import psycopg
import pytest
import yaml

from contract.job_state import LEASED_STATUSES, JobStatus
from service.settings import Settings
from tests.compose.compose_file import load_raw
from worker.settings import WorkerSettings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSIONS = ("1.35", "1.37")
PARTS = ("base", "ray", "scaling")


def resources(part: str) -> list[dict[str, Any]]:
    """Return the documents that kustomize would apply, of the folder and of those it builds on, before its patches."""
    kustomization = yaml.safe_load((FOLDER / part / "kustomization.yaml").read_text())
    found = []
    for name in kustomization["resources"]:
        if name.startswith("../"):
            found += resources(name.removeprefix("../"))
        else:
            found += list(yaml.safe_load_all((FOLDER / part / name).read_text()))
    return found


ALL = {f"{one['kind']}/{one['metadata']['name']}": one for part in PARTS for one in resources(part)}
CLUSTER = ALL["RayCluster/trd-ray"]["spec"]


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every pod that is made, those of operators included."""
    for name, one in ALL.items():
        if one["kind"] in ("Deployment", "Job"):
            yield name, one["spec"]["template"]
    for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]):
        yield f"RayCluster/{group.get('groupName', 'head')}", group["template"]


PODS = dict(pod_templates())


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, template in PODS.items():
        for container in template["spec"]["containers"]:
            yield name, container


def test_every_file_is_listed_by_a_kustomization() -> None:
    for part in PARTS:
        listed = yaml.safe_load((FOLDER / part / "kustomization.yaml").read_text())["resources"]
        there = {path.name for path in (FOLDER / part).glob("*.yaml")} - {"kustomization.yaml"}
        assert there == {name for name in listed if not name.startswith("../")}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, one in ALL.items()
        if "." not in one["apiVersion"].split("/")[0] or one["apiVersion"].split("/")[0].endswith("k8s.io")
    ],
)
def test_a_document_fits_the_schema(name: str, version: str) -> None:
    kubernetes_validate.validate(ALL[name], version, strict=True)
    broken = copy.deepcopy(ALL[name])
    broken["metadata"]["lables"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


@pytest.mark.parametrize("name", [name for name in PODS if name.startswith("RayCluster")])
def test_a_pod_of_an_operator_fits_the_schema(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": PODS[name]["spec"]}
    kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


def test_commands_and_health_checks_are_those_of_compose_which_its_tests_run() -> None:
    services = load_raw()["services"]
    worker = services["worker-cpu"]
    compose = {
        "migrate": services["migrate"]["command"],
        "api": services["api"]["command"],
        "worker": worker["command"],
    }
    health = worker["healthcheck"]["test"][1].replace("$$", "$")
    kinds = set()
    for name, container in containers():
        if name.startswith("RayCluster"):
            assert "command" not in container, "the operator starts Ray"
            continue
        kind = container["name"]
        kinds.add(kind)
        assert container["command"] == compose[kind], name
        if kind == "worker":
            assert container["readinessProbe"]["exec"]["command"] == ["sh", "-c", health], name
            assert "livenessProbe" not in container, "a broker that is down for minutes would end every run"
    assert kinds == set(compose)


def test_variables_are_known_and_secrets_are_only_named() -> None:
    known = {cls.variable_of(field) for cls in (Settings, WorkerSettings) for field in cls.model_fields}
    given = dict(ALL["ConfigMap/trd-settings"]["data"])
    for _, container in containers():
        given |= {
            one["name"]: one.get("value", "")
            for one in container.get("env", [])
            if "secretKeyRef" not in one.get("valueFrom", {})
        }
    for name in given:
        assert name in known or re.match(r"UVICORN_|AWS_REGION|HOSTNAME|RAY_USAGE_STATS_ENABLED", name), name
    assert not [name for name in given if re.search(r"KEY|TOKEN|SECRET|DATABASE_URL|BROKER_URL", name)]
    assert "Secret" not in {one["kind"] for one in ALL.values()}


def test_the_settings_are_accepted_by_both_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ALL["ConfigMap/trd-settings"]["data"].items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_environment()
    assert (settings.max_devices, settings.devices_per_node) == (8, 8)
    ray = next(c for name, c in containers() if name == "Deployment/trd-worker-ray")
    for one in ray["env"]:
        monkeypatch.setenv(one["name"], one.get("value", "pod"))
    assert WorkerSettings.from_environment().launcher == "ray"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE=token"):
        WorkerSettings.from_environment()


def test_each_kustomization_admits_the_jobs_that_its_workers_wait_for() -> None:
    for part in ("base", "ray"):
        one = yaml.safe_load((FOLDER / part / "kustomization.yaml").read_text())
        limits = dict(ALL["ConfigMap/trd-settings"]["data"])
        for patch in one.get("patches", []):
            patched = yaml.safe_load(patch["patch"])
            assert f"{patched['kind']}/{patched['metadata']['name']}" == "ConfigMap/trd-settings"
            limits |= patched["data"]
        queues = re.findall(r"trd-default-(\d+)", str(resources(part)))
        assert max(map(int, queues)) == int(limits["TRD_MAX_DEVICES"]), part


def test_ray_nodes_have_what_the_engine_reads_and_their_init_container_has_the_token() -> None:
    """KubeRay gives `env`, and not `envFrom`, to the init container that waits for the head with `ray health-check`."""
    for name, container in containers():
        if not name.startswith("RayCluster"):
            continue
        token = next(one for one in container["env"] if one["name"] == "RAY_AUTH_TOKEN")
        assert token["valueFrom"] == {"secretKeyRef": {"name": "trd-ray", "key": "RAY_AUTH_TOKEN"}}, name
        sources = container.get("envFrom", [])
        if name != "RayCluster/head":  # which runs no engine
            assert {"configMapRef": {"name": "trd-settings"}} in sources
            assert {"secretRef": {"name": "trd-worker", "optional": True}} in sources


def test_the_page_says_how_to_make_every_secret() -> None:
    named = set(
        re.findall(r"secret(?:KeyRef|Ref): \{name: ([\w-]+)", "".join(p.read_text() for p in FOLDER.rglob("*.yaml")))
    )
    named |= {one["name"] for one in ALL["TriggerAuthentication/trd-scaling"]["spec"]["secretTargetRef"]}
    made = set(re.findall(r"create secret generic ([\w-]+)", (FOLDER / "README.md").read_text()))
    assert named == made


def test_every_pod_is_confined_and_has_a_disk_of_its_own() -> None:
    for name, template in PODS.items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec.get("shareProcessNamespace") or not name.startswith("Deployment"), f"{name}: who reaps orphans?"
        assert all(set(volume) == {"name", "emptyDir"} for volume in spec["volumes"]), f"{name}: no shared disk"
        for container in spec["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert not container["securityContext"]["allowPrivilegeEscalation"], name
            assert "memory" in container["resources"]["limits"], name
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in spec["volumes"]}, name


def test_no_pod_can_be_reached_unless_a_policy_says_so() -> None:
    policy = ALL["NetworkPolicy/trd-nothing-in"]["spec"]
    assert "ingress" not in policy
    assert "Ingress" in policy["policyTypes"]
    ((part_of, trd),) = policy["podSelector"]["matchLabels"].items()
    for part in ("base", "ray"):
        (labels,) = yaml.safe_load((FOLDER / part / "kustomization.yaml").read_text())["labels"]
        assert labels == {"pairs": {part_of: trd}, "includeTemplates": True}
    for name, template in PODS.items():
        # kustomize does not know where an operator's document has its pods
        assert not name.startswith("RayCluster") or template["metadata"]["labels"][part_of] == trd, name


def test_selectors_find_their_pods() -> None:
    labels = [template["metadata"]["labels"] for template in PODS.values()]
    for name, one in ALL.items():
        selector = one["spec"].get("selector") if "spec" in one else None
        wanted = (selector or {}).get("matchLabels", selector)
        if one["kind"] in ("Deployment", "PodDisruptionBudget", "Service"):
            assert any(wanted.items() <= have.items() for have in labels), name
        if one["kind"] == "Deployment":
            assert wanted.items() <= one["spec"]["template"]["metadata"]["labels"].items(), name
        if one["kind"] == "ScaledObject":
            assert f"Deployment/{one['spec']['scaleTargetRef']['name']}" in ALL, name


def test_workers_are_scaled_by_the_jobs_and_chats_of_their_queues(postgres_url: str) -> None:
    """The database answers the query, which counts what waits and what runs."""
    assert ALL["ScaledObject/trd-worker-cpu"]["spec"]["minReplicaCount"] == 1, "workers send webhooks, and remove"
    for name, one in ALL.items():
        if one["kind"] != "ScaledObject":
            continue
        worker = next(c for n, c in containers() if n == f"Deployment/{one['spec']['scaleTargetRef']['name']}")
        queues = next(v["value"] for v in worker["env"] if v["name"] == "TRD_QUEUES").split(",")
        query = one["spec"]["triggers"][0]["metadata"]["query"]
        in_queues, in_statuses = (set(re.findall(r"'([\w-]+)'", part)) for part in query.split("status"))
        assert in_queues == set(queues), name
        assert in_statuses == {str(status) for status in (JobStatus.QUEUED, *LEASED_STATUSES)}, name
        assert "chat_answers WHERE" in query
        with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
            assert connection.execute(query).fetchall() == [(0,)]
