"""The profiles that come along, and what is said against a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.client.schemas.schedules import CronSchedule

from deployments.bootstrap import POOLS, read_deployments, wanted_pool
from deployments.profile import load_profile, profile_file
from diffmining_core.errors import InputError
from diffmining_core.images.reach import ALLOW


@pytest.mark.parametrize("name", ["local", "staging", "production"])
def test_each_profile_makes_pools_and_deployments(name: str) -> None:
    profile = load_profile(name)
    for pool in POOLS:
        wanted = wanted_pool(pool, profile.pools)
        assert wanted.type == profile.pools.infrastructure
        defaults = wanted.base_job_template["variables"]["properties"]
        for variable, default in profile.pools.job_variables.items():
            assert defaults[variable]["default"] == default
    schedules = {
        deployment.name: [
            (schedule.active, schedule.schedule.timezone)
            for schedule in deployment.schedules or []
            if isinstance(schedule.schedule, CronSchedule)
        ]
        for deployment in read_deployments(profile)
    }
    assert schedules["nightly"] == [(profile.nightly.scheduled, profile.time_zone)]
    assert schedules["watch-shards"] == [(profile.watch_shards.scheduled, profile.time_zone)]
    assert schedules["gc"] == [(profile.gc.scheduled, profile.time_zone)]


def test_what_a_profile_allows_reaches_the_runs_of_its_pools() -> None:
    pools = load_profile("local").pools
    allowing = pools.model_copy(update={"allow": ["https://cdn.example/"]})
    for given, said in ((pools, None), (allowing, '["https://cdn.example/"]')):
        template = wanted_pool("gpu", given).base_job_template
        assert template["variables"]["properties"]["env"]["default"].get(ALLOW) == said


@pytest.mark.parametrize("name", ["local", "staging", "production"])
def test_every_value_of_a_profile_is_explained(name: str) -> None:
    lines = profile_file(name).read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("time_zone"))
    values = [line for line in lines[first:] if "=" in line and not line.startswith("#")]
    explained = {line.partition("=")[0].strip() for line in values if "#" in line}
    of_the_flow = {"dataset", "root", "model", "currency", "cron", "scheduled"}
    assert {line.partition("=")[0].strip() for line in values} - explained <= of_the_flow


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("gpus = 1 ", "gpus = 0 ", "`pools.gpus`: input should be greater than or equal to 1, but"),
        ("gpus = 1 ", "gpu = 1 ", "`pools.gpu`: extra inputs are not permitted"),
        ('"process"', '"podman"', "`pools.infrastructure`: input should be 'process', 'docker'"),
        ("heartbeat_seconds = 30", "heartbeat_seconds = 5", "`pools.heartbeat_seconds`"),
        ('"America/New_York"', '"Mars/Base"', "`time_zone`: value error, should be a time zone"),
        ('"0 2 * * *"', '"at two"', "`nightly.cron`"),
        ("[pools]", "[pools", "is no TOML file"),
        ('model = "tiny"', "draws = 1", "`nightly.parameters.draws`: 1 is less than the minimum"),
        ('model = "tiny"', "drawz = 9", "Additional properties are not allowed ('drawz' was"),
        ('dataset = "/nowhere/photos"', "", "`nightly.parameters`: 'dataset' is a required"),
        ("# working_dir", "image", "`pools.job_variables.image` is no variable of process-cpu"),
        ('templates = ""', 'templates = "ours"', "ours/process-cpu.json should be a base job"),
    ],
)
def test_what_is_wrong_with_a_profile_is_one_sentence(
    profile: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    text = profile.read_text(encoding="utf-8").replace('# model = "tiny"', 'model = "tiny"')
    assert old in text
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace(old, new))
    with pytest.raises(InputError) as refused:
        loaded = load_profile(str(wrong))
        wanted_pool("cpu", loaded.pools)
        read_deployments(loaded)
    assert words.lower() in str(refused.value).lower()
    assert "\n" not in str(refused.value)
