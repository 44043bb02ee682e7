"""The forms in the UI, and that the server refuses bad values in the command line's words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from bootstrapped_server import PASSWORD, Server
from cyclopts import CycloptsError
from prefect.exceptions import PrefectHTTPStatusError

from diffmining_core.errors import InputError
from flows.checks import check_inputs
from flows.cli import app, option_error
from flows.parameters import MineParameters

pytestmark = pytest.mark.usefixtures("first_said")

BAD_VALUES: list[tuple[str, Any, str]] = [
    ("draws", 1, "1 is less than the minimum of 2"),
    ("max_bad_share", 2.5, "2.5 is greater than the maximum of 1"),
    ("size", 16, "16 is less than the minimum of 32"),
    ("null_share", 1.5, "1.5 is greater than or equal to the maximum of 1"),
    ("mode", "fast", "'fast' is not one of ['resume', 'verify', 'recompute']"),
    ("draws", "many", "'many' is not of type 'integer'"),
    ("retrain", "perhaps", "'perhaps' is not of type 'boolean'"),
    ("no_such", 1, "Additional properties are not allowed ('no_such' was unexpected)"),
]


def test_every_field_of_every_form_is_described(server: Server) -> None:
    with server.client() as client:
        forms = {one.name: one.parameter_openapi_schema or {} for one in client.read_deployments()}
    assert len(forms) >= 9
    bare = [
        f"{name}: {field}"
        for name, form in forms.items()
        for table in (form, *form.get("definitions", {}).values())
        for field, what in table["properties"].items()
        if not what.get("description") and "$ref" not in what
    ]
    assert bare == []


def test_no_field_is_a_choice_of_types(server: Server) -> None:
    with server.client() as client:
        form = client.read_deployment_by_name("mine/mine").parameter_openapi_schema
    assert form
    fields = form["definitions"]["MineParameters"]["properties"]
    assert [name for name, field in fields.items() if "anyOf" in field] == []
    assert fields["size"]["type"] == "integer"


@pytest.mark.parametrize(("field", "value", "sentence"), BAD_VALUES)
def test_form_server_and_command_say_the_same(
    server: Server, field: str, value: Any, sentence: str
) -> None:
    parameters = {"dataset": "photos", "root": "mined", field: value}
    with pytest.raises(CycloptsError) as refused:
        options = [f"--{name.replace('_', '-')}={given}" for name, given in parameters.items()]
        app(["mine", *options], exit_on_error=False, print_error=False)
    option = field.replace("_", "-")
    assert option_error(refused.value).startswith(f"--{option}: {sentence}")

    with server.client() as client:
        deployment = client.read_deployment_by_name("mine/mine")
        with pytest.raises(PrefectHTTPStatusError) as answered:
            client.create_flow_run_from_deployment(
                deployment.id, parameters={"parameters": parameters}
            )
    assert answered.value.response.status_code == 409
    assert answered.value.response.json()["detail"].endswith(f"Failure reason: {sentence}")

    body = {"schema": deployment.parameter_openapi_schema, "values": {"parameters": parameters}}
    user, _, password = PASSWORD.partition(":")
    form = httpx.post(f"{server.api}/ui/schemas/validate", json=body, auth=(user, password))
    (of_parameters,) = form.json()["errors"]
    (said,) = of_parameters["errors"]
    assert sentence in (said if isinstance(said, str) else said["errors"])


def test_left_out_and_null_are_taken_alike(server: Server) -> None:
    with server.client() as client:
        deployment = client.read_deployment_by_name("mine/mine")
        run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"parameters": {"dataset": "d", "root": "r", "size": None, "lora": None}},
        )
        client.delete_flow_run(run.id)


def test_what_only_the_flow_can_see_is_said_in_the_runs_state(
    server: Server, tmp_path: Path
) -> None:
    given = MineParameters(dataset=str(tmp_path / "nothing"), root=str(tmp_path / "root"))
    with pytest.raises(InputError, match="there is no such folder") as refused:
        check_inputs(given)  # whose sentence the command prints
    with server.client() as client:
        deployment = client.read_deployment_by_name("mine/mine")
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"parameters": given.model_dump(exclude_unset=True)}
        )
        subprocess.run(
            [sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id)],
            cwd=tmp_path,  # Prefect copies the folder it stands in, which here has a whole .venv
            env=server.environment,
            capture_output=True,
            check=False,
        )
        state = client.read_flow_run(run.id).state
    assert state and state.is_failed()
    assert str(refused.value) in (state.message or "")
