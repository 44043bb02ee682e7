"""infra/compose.yaml: valid, pinned, on loopback only, with no secret in it, and the same stack as
that of infra/local and infra/k8s."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from infra_files import (
    INFRA,
    SERVICES_OF_COMPOSE,
    compose,
    known_settings,
    prefect_names,
    texts,
    values,
    variables,
)

from deployments.profile import load_profile

SERVICES = SERVICES_OF_COMPOSE
LASTING = {"postgres", "redis", "s3", "server", "services", "worker-cpu", "worker-gpu"}
ONCE = {"migration", "bootstrap", "s3-accounts", "s3-bucket", "operator"}


def test_it_is_as_the_compose_specification_says() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, INFRA / "compose.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_all_parts() -> None:
    assert SERVICES.keys() == LASTING | ONCE


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_part_is_pinned_limited_and_may_do_little(name: str) -> None:
    service = SERVICES[name]
    image = re.sub(r"\$\{[A-Z_]+:-(.+)\}", r"\1", service["image"])
    assert re.search(r":v?\d+\.\d+[.\d]*(-[a-z]+)?$", image), image
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    if name != "postgres":  # its start takes the database's folder as root
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"]
    if name in ONCE:
        assert service["restart"] == "no"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_part_waits_for_what_it_needs(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        expected = "service_healthy" if needed in LASTING else "service_completed_successfully"
        assert how == {"condition": expected}


def test_nothing_listens_but_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not any("network_mode" in service for service in SERVICES.values())


def test_the_gpu_worker_starts_when_asked_for_and_holds_gpus() -> None:
    worker = SERVICES["worker-gpu"]
    assert worker["profiles"] == ["gpu"]
    devices = worker["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_every_secret_comes_from_a_file_that_make_secrets_makes(tmp_path: Path) -> None:
    subprocess.run([INFRA / "make-secrets", tmp_path / "secrets"], check=True)
    made = {path.name: path for path in (tmp_path / "secrets").iterdir()}
    declared = compose()["secrets"]
    assert made.keys() == declared.keys()
    for name, secret in declared.items():
        assert secret == {"file": f"${{DIFFMINING_SECRETS:-./secrets}}/{name}"}
        assert len(made[name].read_text()) >= 48
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    for service in SERVICES.values():
        for secret in service.get("secrets", ()):
            assert (secret if isinstance(secret, str) else secret["source"]) in declared

    before = {name: path.read_text() for name, path in made.items()}
    made["redis_password"].unlink()
    made["redis_url"].unlink()
    subprocess.run([INFRA / "make-secrets", tmp_path / "secrets"], check=True)
    after = {name: path.read_text() for name, path in made.items()}
    assert {name for name in made if before[name] != after[name]} == {"redis_password", "redis_url"}
    assert after["redis_password"] in after["redis_url"]


SECRETS = (
    re.compile(
        r"(?i)[a-z_]*(?:password|secret|token|access_key|auth_string)[a-z_]*"
        r"\"?[ \t]*[:=][ \t]*[\"']?(?P<value>[a-z0-9+_.-]{12,})"
    ),
    re.compile(r"://[^\s/@:]*:(?P<value>[^\s/@$%]+)@"),
    re.compile(r"(?P<value>AKIA[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY)"),
)
NAMES = {"prefect-auth", "diffmining-storage-operator", "tests-secret", "PASSWORD", "password"}
"""What names a secret, the key of the tests' own S3 server, and what stands for a password."""


def test_no_file_holds_a_secret() -> None:
    found = [
        (path.name, match[0])
        for path, text in texts()
        for pattern in SECRETS
        for match in pattern.finditer(text)
        if match["value"] not in NAMES
    ]
    assert found == []
    planted = [
        "AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMIK7MDENG",
        "redis://:hunter2hunter2@redis:6379/0",
    ]
    assert all(any(pattern.search(line) for pattern in SECRETS) for line in planted)
    ignored = subprocess.run(
        ["git", "check-ignore", "infra/secrets/api_auth", "infra/.env"],
        cwd=INFRA.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert ignored.stdout.split() == ["infra/secrets/api_auth", "infra/.env"]


def test_the_example_names_every_variable_and_gives_no_value() -> None:
    used = set(re.findall(r"\$\{(DIFFMINING_\w+)", (INFRA / "compose.yaml").read_text()))
    lines = (INFRA / "compose.env.example").read_text().splitlines()
    given = [line.split("=", 1) for line in lines if not line.startswith("#")]
    assert {name for name, _ in given} == used
    assert all(value.strip().startswith("#") for _, value in given)


def server_settings() -> dict[str, set[str]]:
    """The settings of server and services, by where they stand."""
    stack = (INFRA / "local" / "stack").read_text()
    local = prefect_names(stack[stack.index("\nserve()") : stack.index("\nbegin_worker()")])
    chart = values("server")
    kubernetes = {entry["name"] for entry in chart["global"]["prefect"]["env"]}
    for_chart: dict[str, Any] = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": chart["secret"]["name"],
        "PREFECT_SERVER_API_AUTH_STRING": chart["server"]["basicAuth"]["existingSecret"],
    }
    places = {"PREFECT_HOME", "PREFECT_SERVER_API_HOST", "PREFECT_SERVER_API_PORT",
              "PREFECT_SERVER_UI_API_URL"}  # fmt: skip
    own = places | prefect_names((INFRA / "Dockerfile").read_text())
    return {
        "local": local - own,
        "compose": variables(SERVICES["server"]) - own,
        "compose services": variables(SERVICES["services"]) - own,
        "compose migration": variables(SERVICES["migration"]) - own,
        "kubernetes": kubernetes | {name for name, secret in for_chart.items() if secret},
    }


def test_server_and_services_are_set_alike_here_on_kubernetes_and_as_processes() -> None:
    settings = server_settings()
    assert len(settings["local"]) >= 10
    assert {place: sorted(names) for place, names in settings.items()} == {
        place: sorted(settings["local"]) for place in settings
    }


def test_every_setting_is_one_that_prefect_knows() -> None:
    known = known_settings()
    unknown = {
        (path.name, name)
        for path, text in texts()
        for name in prefect_names(text)
        if name not in known and not name.endswith("_")
    }
    assert unknown == set()


def test_its_profile_starts_runs_as_processes_of_the_workers() -> None:
    profile = load_profile(str(INFRA / "compose.profile.toml"))
    assert profile.pools.infrastructure == "process"
    workers = (SERVICES["worker-cpu"], SERVICES["worker-gpu"])
    assert all("--type process" in " ".join(worker["command"]) for worker in workers)
