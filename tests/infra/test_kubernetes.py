"""What stands for Kubernetes and Docker, read by the workers' own code and checked by schemas."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker.types
import kubernetes_validate
import pytest
from infra_files import INFRA, POOLS, SERVICES_OF_COMPOSE, compose, documents, values
from jsonschema import Draft202012Validator
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.workers.base import BaseJobConfiguration
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from deployments.profile import load_profile

VERSION = "1.34"
NAME = "mine <b>photos</b> → $(results) ../../x"
"""A run's name may hold anything."""


def template(kind: str, pool: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((POOLS / f"{kind}-{pool}.json").read_text())
    return found


def prepared(
    configuration: type[BaseJobConfiguration], kind: str, pool: str, **job_variables: Any
) -> Any:
    """What a worker makes of the template and a run's variables, just before it starts the run."""
    with temporary_settings(
        {PREFECT_API_URL: "http://server:4200/api", PREFECT_API_AUTH_STRING: "user:hidden"}
    ):
        made: Any = asyncio.run(
            configuration.from_template_and_values(template(kind, pool), job_variables)
        )
        made.prepare_for_flow_run(
            FlowRun(flow_id=uuid4(), name=NAME), flow=Flow(name="mine", labels={})
        )
    return made


def job(pool: str, **job_variables: Any) -> dict[str, Any]:
    """The Kubernetes job of a run."""
    found: dict[str, Any] = prepared(
        KubernetesWorkerJobConfiguration, "kubernetes", pool, **job_variables
    ).job_manifest
    return found


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return found


def check(resource: dict[str, Any]) -> None:
    """kubernetes_validate.ValidationError for what the API would not know."""
    checked = copy.deepcopy(resource)
    # Prefect's worker asks for these two in the pod, where Kubernetes ignores them.
    spec = checked["spec"].get("template", {}).get("spec", {}) if "spec" in checked else {}
    for misplaced in ("completions", "parallelism"):
        spec.pop(misplaced, None)
    kubernetes_validate.validate(checked, VERSION, strict=True)


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_a_run_is_a_job_that_kubernetes_takes_and_the_restricted_standard_allows(pool: str) -> None:
    manifest = job(pool)
    check(manifest)
    spec = pod(manifest)
    assert manifest["metadata"]["namespace"] == "diffmining"
    assert manifest["spec"]["backoffLimit"] == 0
    assert manifest["spec"]["ttlSecondsAfterFinished"] == 3600
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] == 120
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 1001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    writable = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert writable.keys() == {"/home/prefect", "/tmp", "/cache", "/dev/shm"}
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    assert volumes.keys() == set(writable.values())
    assert all("sizeLimit" in volume for volume in volumes.values())
    assert volumes["shm"]["medium"] == "Memory"
    assert container["args"][0] == "prefect"
    assert container["image"] == "registry.example.com/diffmining:0.1.0"
    secret = {"secretRef": {"name": "diffmining-storage", "optional": True}}
    assert container["envFrom"] == [secret]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    # A run whose node is drained goes on elsewhere.
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    annotations = manifest["spec"]["template"]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


def test_a_job_of_the_gpu_pool_holds_a_gpu_and_one_of_the_cpu_pool_none() -> None:
    gpu = pod(job("gpu"))
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert gpu["tolerations"][0]["key"] == "nvidia.com/gpu"
    cpu = pod(job("cpu"))
    assert cpu["containers"][0]["resources"]["limits"].keys() == {"memory"}
    assert cpu.get("tolerations", []) == []


def test_a_deployment_or_run_changes_what_its_job_is() -> None:
    manifest = job(
        "gpu",
        gpu_count=4,
        node_selector={"nvidia.com/gpu.product": "H200"},
        tolerations=[{"key": "team", "operator": "Equal", "value": "us", "effect": "NoSchedule"}],
        storage_secret="operator-storage",
        service_account_name="operator",
        memory_limit="64Gi",
        cpu_limit="16",
        shm_size="16Gi",
        termination_grace_seconds=30,
        env={"HF_TOKEN_PATH": "/cache/token"},
    )
    check(manifest)
    spec = pod(manifest)
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": 4}
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "H200"}
    assert spec["tolerations"][0]["key"] == "team"
    assert spec["serviceAccountName"] == "operator"
    assert spec["terminationGracePeriodSeconds"] == 30
    assert spec["containers"][0]["envFrom"][0]["secretRef"]["name"] == "operator-storage"
    names = {entry["name"] for entry in spec["containers"][0]["env"]}
    assert {"HF_TOKEN_PATH", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"} <= names


def test_a_jobs_password_is_a_reference_once_the_worker_is_set_as_its_values_say() -> None:
    settings = {
        entry["name"]: entry["value"] for entry in values("worker-gpu")["worker"]["extraEnvVars"]
    }
    start = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    configuration = prepared(KubernetesWorkerJobConfiguration, "kubernetes", "gpu")
    assert "user:hidden" in json.dumps(configuration.job_manifest)
    worker = KubernetesWorker(work_pool_name="gpu")
    asyncio.run(
        worker._replace_env_variable_with_secret(
            "PREFECT_API_AUTH_STRING",
            configuration,
            settings[f"{start}_NAME"],
            settings[f"{start}_KEY"],
        )
    )
    check(configuration.job_manifest)
    assert "user:hidden" not in json.dumps(configuration.job_manifest)
    entries = pod(configuration.job_manifest)["containers"][0]["env"]
    entry = next(entry for entry in entries if entry["name"] == "PREFECT_API_AUTH_STRING")
    assert entry["valueFrom"] == {"secretKeyRef": {"name": "prefect-auth", "key": "auth-string"}}


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_a_run_is_a_container_that_docker_takes_with_no_password_in_it(pool: str) -> None:
    configuration = prepared(DockerWorkerJobConfiguration, "docker", pool)
    assert "PREFECT_API_AUTH_STRING" not in configuration.env  # the image's start reads it
    assert configuration.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    # The worker's own address, on the machine's loopback, leads nowhere in a container.
    assert configuration.env["PREFECT_API_URL"] == "http://server:4200/api"
    assert "server" in SERVICES_OF_COMPOSE
    assert configuration.image == "diffmining:0.1.0"
    assert configuration.networks == [compose()["networks"]["default"]["name"]]
    assert "/etc/diffmining/secrets:/run/secrets:ro" in configuration.volumes
    assert "diffmining-cache:/cache" in configuration.volumes
    assert configuration.auto_remove
    assert not configuration.privileged
    asked = configuration.container_create_kwargs
    assert asked["user"] == "1001:1001"
    host = docker.types.HostConfig(
        version="1.47",
        mem_limit=configuration.mem_limit,
        **{name: value for name, value in asked.items() if name != "user"},
    )
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    if pool == "gpu":
        [request] = host["DeviceRequests"]
        assert (request["Driver"], request["Count"]) == ("nvidia", -1)
        assert "diffmining-gpus:/tmp/diffmining-gpus" in configuration.volumes
    else:
        assert not host.get("DeviceRequests")


@pytest.mark.parametrize("path", sorted(POOLS.glob("*.json")), ids=lambda path: path.stem)
def test_a_template_is_a_form_that_uses_all_its_fields(path: Path) -> None:
    found = json.loads(path.read_text())
    variables = found["variables"]
    Draft202012Validator.check_schema(variables)
    Draft202012Validator(variables).validate({})
    text = json.dumps(found["job_configuration"])
    for name, field in variables["properties"].items():
        assert f"{{{{ {name} }}}}" in text, name
        assert field["description"], name
    defaults = {n: f["default"] for n, f in variables["properties"].items() if f.get("default")}
    Draft202012Validator(variables).validate(defaults)


@pytest.mark.parametrize("name", ["cluster", "bootstrap"])
def test_a_manifest_is_one_that_kubernetes_knows(name: str) -> None:
    for resource in documents(INFRA / "k8s" / f"{name}.yaml"):
        check(resource)
        if resource["kind"] != "Namespace":
            assert resource["metadata"]["namespace"] == "diffmining"


def test_the_namespace_allows_only_what_all_its_pods_keep_to() -> None:
    resources = {
        (r["kind"], r["metadata"]["name"]): r for r in documents(INFRA / "k8s" / "cluster.yaml")
    }
    labels = resources["Namespace", "diffmining"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    quota = resources["ResourceQuota", "gpus"]["spec"]["hard"]["requests.nvidia.com/gpu"]
    assert int(quota) == load_profile("production").pools.gpus
    assert resources["NetworkPolicy", "nobody"]["spec"]["podSelector"] == {}
    server = values("server")
    for context in (
        server["server"]["containerSecurityContext"],
        server["backgroundServices"]["containerSecurityContext"],
        server["migrations"]["securityContext"],
        values("worker-cpu")["worker"]["containerSecurityContext"],
        values("worker-gpu")["worker"]["containerSecurityContext"],
    ):
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
    [bootstrap] = documents(INFRA / "k8s" / "bootstrap.yaml")
    assert pod(bootstrap)["containers"][0]["args"][:2] == ["diffmining", "bootstrap"]


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_the_workers_values_name_the_pool_the_server_and_the_secret(pool: str) -> None:
    worker, server = values(f"worker-{pool}"), values("server")
    assert worker["worker"]["config"]["workPool"] == pool
    address = worker["worker"]["selfHostedServerApiConfig"]
    assert address["apiUrl"] == "http://prefect-server.diffmining.svc.cluster.local:4200/api"
    assert server["fullnameOverride"] == "prefect-server"
    assert (
        address["basicAuth"]
        == server["server"]["basicAuth"]
        == {
            "enabled": True,
            "existingSecret": "prefect-auth",
        }
    )
    image = server["global"]["prefect"]["image"]
    assert worker["worker"]["image"] == image
    assert not server["postgresql"]["enabled"] and not server["redis"]["enabled"]
