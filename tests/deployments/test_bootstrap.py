"""`diffmining bootstrap`: what an empty server gets, and that it changes only what differs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bootstrapped_server import COMMAND, PASSWORD, Bootstrap, Server
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments import bootstrap as bootstrapping
from diffmining_core.errors import InputError

REPOSITORY = Path(__file__).parents[2]
DEPLOYMENTS = {
    "mine/mine": "cpu",
    "finetune/finetune": "gpu",
    "typicality/typicality": "cpu",
    "typicality-batch/typicality-batch": "gpu",
    "embed-batch/embed-batch": "gpu",
    "translate/translate": "cpu",
    "translate-batch/translate-batch": "gpu",
    "joint-embed-batch/joint-embed-batch": "gpu",
    "localize/localize": "cpu",
    "nightly/nightly": "cpu",
    "watch-shards/watch-shards": "cpu",
    "gc/gc": "cpu",
}
OBJECTS = {
    "pool        cpu",
    "pool        gpu",
    "variable    diffmining_profile",
    *(f"deployment  {name}" for name in DEPLOYMENTS),
    "automation  diffmining: dead runs are Crashed",
    "automation  diffmining: landed shards are mined",
    "automation  diffmining: lost runs are Crashed",
}


@pytest.fixture
def ready(first_said: str) -> None:
    """The server has been bootstrapped."""


def test_an_empty_server_gets_everything(server: Server, first_said: str) -> None:
    said = {line[:54].strip(): line[54:] for line in first_said.splitlines()}
    assert said == dict.fromkeys(OBJECTS, "created")
    with server.client() as client:
        pools = {pool.name: pool for pool in client.read_work_pools()}
        for name, pool in DEPLOYMENTS.items():
            deployment = client.read_deployment_by_name(name)
            assert deployment.work_pool_name == pool
            assert deployment.description
            assert "diffmining" in deployment.tags
            assert deployment.enforce_parameter_schema
            assert not deployment.pull_steps, "the code is installed where the runs are"
        nightly = client.read_deployment_by_name("nightly/nightly")
    assert nightly.global_concurrency_limit and nightly.global_concurrency_limit.limit == 1
    assert nightly.concurrency_options
    assert nightly.concurrency_options.collision_strategy == "ENQUEUE"
    assert (pools["gpu"].concurrency_limit, pools["cpu"].concurrency_limit) == (1, 8)
    for found in pools.values():
        environment = found.base_job_template["variables"]["properties"]["env"]["default"]
        assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert environment["PREFECT_CLIENT_RETRY_EXTRA_CODES"] == "500"


@pytest.mark.usefixtures("ready")
def test_a_second_run_changes_nothing(server: Server, run_bootstrap: Bootstrap) -> None:
    before = server.everything()
    assert run_bootstrap() == dict.fromkeys(OBJECTS, "as it was")
    assert server.everything() == before


@pytest.mark.usefixtures("ready")
def test_only_what_differs_is_changed(
    server: Server, profile: Path, run_bootstrap: Bootstrap, tmp_path: Path
) -> None:
    other = tmp_path / "more_gpus.toml"
    text = profile.read_text(encoding="utf-8")
    other.write_text(text.replace("gpus = 1 ", "gpus = 3 ").replace("cpu_runs = 8", "cpu_runs = 9"))
    changed = {
        "pool        cpu": "updated (concurrency_limit)",
        "pool        gpu": "updated (concurrency_limit)",
        "variable    diffmining_profile": "updated (value)",
    }
    before = server.everything()
    would = {name: f"would be {what}" for name, what in changed.items()}
    assert run_bootstrap(other, dry_run=True) == dict.fromkeys(OBJECTS, "as it was") | would
    assert server.everything() == before, "a dry run changes nothing"
    assert run_bootstrap(other) == dict.fromkeys(OBJECTS, "as it was") | changed
    with server.client() as client:
        assert client.read_work_pool("gpu").concurrency_limit == 3
    assert run_bootstrap() == dict.fromkeys(OBJECTS, "as it was") | changed


@pytest.mark.usefixtures("ready")
def test_what_an_operator_does_by_hand_stays(server: Server, run_bootstrap: Bootstrap) -> None:
    with server.client() as client:
        client.update_work_pool("gpu", WorkPoolUpdate(is_paused=True))
        (automation,) = client.read_automations_by_name("diffmining: dead runs are Crashed")
        ours = AutomationCore(**automation.model_dump(exclude={"id", "owner_resource"}))
        by_hand = ours.model_copy(update={"enabled": False, "description": "by hand"})
        client.update_automation(automation.id, by_hand)
        client.create_work_pool(WorkPoolCreate(name="theirs", type="process"))
    try:
        assert run_bootstrap() == dict.fromkeys(OBJECTS, "as it was") | {
            "automation  diffmining: dead runs are Crashed": "updated (description)",
            "pool        theirs": "not ours, left alone",
        }
        with server.client() as client:
            assert client.read_work_pool("gpu").is_paused
            (kept,) = client.read_automations_by_name(automation.name)
            assert not kept.enabled
    finally:
        with server.client() as client:
            client.update_work_pool("gpu", WorkPoolUpdate(is_paused=False))
            client.update_automation(automation.id, ours)
            client.delete_work_pool("theirs")


@pytest.mark.usefixtures("ready")
def test_prefect_deploy_makes_the_same_from_a_fresh_clone(
    server: Server, run_bootstrap: Bootstrap, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    for file in tracked():
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, clone / file, follow_symlinks=False)
    git = ["git", "-C", str(clone)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://git.example/it.git"], check=True)
    ended = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=clone,
        env={**server.environment, "PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    made = re.findall(r"Deployment '(\S+)' successfully", ended.stdout)
    assert set(made) == set(DEPLOYMENTS)
    assert run_bootstrap(dry_run=True) == dict.fromkeys(OBJECTS, "as it was")


def tracked() -> list[str]:
    """The files a clone of the working tree would have."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    there = [name for name in listed.stdout.split("\0") if (REPOSITORY / name).is_file()]
    return [name for name in there if name.endswith((".py", ".yaml", ".toml", ".json", ".html"))]


@pytest.mark.parametrize(
    ("api", "password", "words"),
    [
        ("http://127.0.0.1:9/api", PASSWORD, "no Prefect server answers at http://127.0.0.1:9/api"),
        ("{api}", "user:wrong-one", "refuses the user or password: set PREFECT_API_AUTH_STRING"),
        ("{api}", None, "refuses the user or password: set PREFECT_API_AUTH_STRING"),
        ("{api}/nowhere", PASSWORD, "is no Prefect server: the address ends in /api"),
        (None, None, "PREFECT_API_URL is not set"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_sentence(
    server: Server, profile: Path, api: str | None, password: str | None, words: str
) -> None:
    address = api and api.replace("{api}", server.api)
    with (
        temporary_settings({PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: password}),
        pytest.raises(InputError) as refused,
    ):
        bootstrapping.bootstrap(str(profile), dry_run=True)
    assert words in str(refused.value)
    assert "PREFECT_API_URL" in str(refused.value)
    assert password is None or password.partition(":")[2] not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_address_is_named_without_the_password_in_it(profile: Path) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://user:secret@127.0.0.1:9/api"}),
        pytest.raises(InputError, match=r"at http://127\.0\.0\.1:9/api") as refused,
    ):
        bootstrapping.bootstrap(str(profile), dry_run=True)
    assert "secret" not in str(refused.value)


def test_the_command_ends_with_status_2_and_one_line() -> None:
    ended = subprocess.run(
        [COMMAND, "bootstrap", "--profile", "nowhere"],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "diffmining: there is no profile 'nowhere': give local, production, staging or a TOML "
        "file\n"
    )


@pytest.mark.usefixtures("ready")
def test_a_pool_of_another_kind_is_not_made_into_this_one(
    server: Server, used: Server, profile: Path, tmp_path: Path
) -> None:
    other = tmp_path / "docker.toml"
    text = profile.read_text(encoding="utf-8")
    other.write_text(text.replace('infrastructure = "process"', 'infrastructure = "docker"'))
    before: dict[str, Any] = server.everything()
    with pytest.raises(InputError, match="should run on docker, but is there for process"):
        bootstrapping.bootstrap(str(other), dry_run=False)
    assert server.everything() == before
