"""Nights on a real server: everything new, nothing new, a crash and its retry, a message each."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.flow_engine import run_flow
from prefect.logging.handlers import APILogHandler
from prefect.states import Scheduled
from pydantic import SecretStr
from served import paged
from unet_forwards import counted_forwards
from webhook_receiver import Receiver, webhook_receiver

from diffmining_core.report.digest import Digest
from diffmining_core.store.ledger import published
from diffmining_core.store.roots import open_root
from flows import nightly as nights
from flows.nightly import nightly
from flows.parameters import MineParameters, NightlyParameters
from tasks.digest import night_name, read_digest
from tasks.digest import nights as told_nights

HOSTILE = "](javascript:alert(1))<img src=x onerror=alert(1)>|"
HOOK = "nightly-hook"
"""The Secret block with the receiver's address."""


@dataclass
class Night:
    """A finished run, what it returned, and the images that went through UNets."""

    run: FlowRun
    summary: dict[str, Any]
    forwards: int

    @property
    def told(self) -> Digest:
        (key,) = [
            manifest.key
            for manifest in told_nights(str(Path(self.summary["page"]).parents[2]))
            if night_name(manifest) == self.summary["night"]
        ]
        return read_digest(str(Path(self.summary["page"]).parents[2]), key)

    def subflows(self) -> list[str]:
        """The names of the flows that ran within."""
        with get_client(sync_client=True) as client:
            own = {task.id for task in paged(client.read_task_runs) if self.owns(task)}
            runs = paged(client.read_flow_runs)
            within = [run for run in runs if run.parent_task_run_id in own]
            return sorted(client.read_flow(run.flow_id).name for run in within)

    def owns(self, task: TaskRun) -> bool:
        return task.flow_run_id == self.run.id


def scheduled(parameters: NightlyParameters, day: int) -> FlowRun:
    """A run of nightly that was to start at 2:00 UTC of this day."""
    when = datetime(2025, 11, day, 2, tzinfo=UTC)
    with get_client(sync_client=True) as client:
        return client.create_flow_run(
            nightly, parameters={"parameters": parameters}, state=Scheduled(scheduled_time=when)
        )


def started(run: FlowRun, parameters: NightlyParameters) -> Night:
    """The run, started as a worker does."""
    with counted_forwards() as seen, get_client(sync_client=True) as client:
        fresh = client.read_flow_run(run.id)
        summary = run_flow(nightly, flow_run=fresh, parameters={"parameters": parameters})
        return Night(client.read_flow_run(run.id), cast("dict[str, Any]", summary), seen["images"])


def retried(run: FlowRun, parameters: NightlyParameters) -> Night:
    """The same run once more, as by Retry in the UI."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Scheduled(), force=True)
    return started(run, parameters)


@dataclass
class Story:
    """Four nights at one root: all new; nothing new; a crash, told when retried; a retry."""

    root: Path
    first: Night
    quiet: Night
    crashed: Counter[str]
    grown: Night
    again: Night
    receiver: Receiver
    sent: list[int]


@pytest.fixture(scope="module")
def story(
    first_run: tuple[Path, dict[str, Any], int],
    dataset: Path,
    scenes: Path,
    parameters: Callable[..., MineParameters],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    root = Path(shutil.copytree(first_run[0], tmp_path_factory.mktemp("nights") / "root"))
    asked = NightlyParameters(
        **parameters(root).model_dump(), gpu_hour_price=2.0, currency="EUR", webhook=HOOK
    )
    sent = []
    added = [dataset / HOSTILE / f"{number}.png" for number in range(4)]
    broken = dataset / "Borvik" / "<script>.png"
    with webhook_receiver() as receiver, pytest.MonkeyPatch.context() as patch:
        Secret(value=SecretStr(receiver.url)).save(HOOK, overwrite=True)
        first = started(scheduled(asked, 18), asked)
        sent.append(len(receiver.received))
        quiet = started(scheduled(asked, 19), asked)
        sent.append(len(receiver.received))
        try:
            added[0].parent.mkdir()
            for number, file in enumerate(added, 1):
                shutil.copy(scenes / "Elsund" / f"Elsund_0000{number}.png", file)
            broken.write_bytes(b"no image")
            run = scheduled(asked, 20)
            with patch.context() as dying, counted_forwards() as crashed:
                dying.setattr(nights, "digest", dies)
                with pytest.raises(KeyboardInterrupt):
                    run_flow(nightly, flow_run=run, parameters={"parameters": asked})
            grown = retried(run, asked)
            sent.append(len(receiver.received))
            again = retried(run, asked)
            sent.append(len(receiver.received))
            yield Story(root, first, quiet, crashed, grown, again, receiver, sent)
        finally:
            broken.unlink(missing_ok=True)
            shutil.rmtree(added[0].parent, ignore_errors=True)


def dies(*_: object) -> None:
    """In the digest's place: the process is told to end before it."""
    raise KeyboardInterrupt


def test_on_the_first_night_all_is_new_though_it_was_mined_before(story: Story) -> None:
    told = story.first.told
    assert (told.night, told.previous) == ("2025-11-18T02-00Z", None)
    assert (told.new_images, told.new_shards, told.measured) == (16, 3, True)
    assert story.first.forwards == 0, "the root was mined already"
    assert story.first.subflows() == ["mine"]


def test_a_night_with_nothing_new_starts_nothing_and_says_so(story: Story) -> None:
    assert story.quiet.forwards == 0
    assert story.quiet.subflows() == []
    assert story.quiet.summary["computed"] == {}
    told = story.quiet.told
    assert (told.previous, told.measured, told.new_images) == ("2025-11-18T02-00Z", False, 0)
    page = Path(story.quiet.summary["page"]).read_text()
    assert "Nothing new tonight" in page
    assert "Nothing new tonight" in story.receiver.received[1]["text"]


def test_after_a_crash_the_retry_measures_nothing_again_and_tells_all(story: Story) -> None:
    assert story.crashed["images"] > 0, "it died after mining"
    assert story.grown.forwards == 0
    told = story.grown.told
    assert (told.night, told.previous) == ("2025-11-20T02-00Z", "2025-11-19T02-00Z")
    assert (told.new_images, told.new_shards, told.gone_images) == (4, 1, 0)
    assert told.new_labels == (HOSTILE,)
    assert [(Path(uri).name, why) for uri, why in told.set_aside] == [
        ("<script>.png", "not a readable image: no known image format")
    ]
    assert told.model == "kept"
    assert told.work.cpu_seconds > 0 and told.work.gpu_seconds == 0
    assert [one.label for one in told.changes if one.entered] == [HOSTILE]
    assert {cluster.label for cluster in told.shown} == {HOSTILE}


def test_only_the_new_shard_was_measured(story: Story) -> None:
    typicality = 2 * 2 * 4
    assert story.crashed["images"] >= typicality
    opened = open_root(str(story.root))
    before = 4  # three shards, and one of them before finetuning
    assert len(published(opened, "typicality")) == before + 1
    assert len(published(opened, "finetune")) == 1


def test_a_night_is_told_once_and_its_message_sent_once(story: Story) -> None:
    assert story.sent == [1, 2, 3, 3]
    assert story.again.summary["night"] == story.grown.summary["night"]
    assert story.again.told == story.grown.told
    assert "sent before" in story.again.summary["message"]
    assert len(published(open_root(str(story.root)), "night")) == 3
    assert story.again.subflows() == ["mine", "mine"], "once before the crash and once after it"


def test_the_pages_and_the_root_lead_to_each_other(story: Story) -> None:
    pages = story.root / "nights"
    listed = re.findall(r'href="([^"/]+)/index.html"', (pages / "index.html").read_text())
    assert listed == ["..", *(f"2025-11-{day}T02-00Z" for day in (20, 19, 18))]
    assert 'href="nights/index.html"' in (story.root / "index.html").read_text()
    for page in pages.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#]+)', page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
        assert "<img src=x" not in page.read_text() and "<script" not in page.read_text()


def test_the_artifact_shows_the_night_and_no_label_is_markup(story: Story) -> None:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[story.grown.run.id])
            )
        )
    said = [str(one.data) for one in found if one.key == "nightly"]
    assert said and all(len(one.encode()) < 200_000 for one in said)
    assert "data:image/png;base64," in said[0]
    without_pictures = re.sub(r"\\.", "", re.sub(r"!\[\]\(data:[^)]*\)", "", said[0]))
    assert not re.search(r"[<>]|\]\(|javascript:", without_pictures)


def test_the_address_of_the_webhook_is_in_no_file_log_or_artifact(story: Story) -> None:
    APILogHandler().flush()
    with get_client(sync_client=True) as client:
        said = [log.message for log in paged(partial(client.read_logs, LogFilter()))]
        said += [json.dumps(str(one.data)) for one in paged(client.read_artifacts)]
        runs = paged(client.read_flow_runs)
        said += [json.dumps(run.model_dump(mode="json")) for run in runs]
    assert any("message has been sent to 127.0.0.1" in one for one in said)
    files = [path.read_bytes() for path in story.root.rglob("*") if path.is_file()]
    secret = "a-secret"
    assert not any(secret in one for one in said)
    assert not any(secret.encode() in one for one in files)


def test_a_run_is_named_for_its_dataset_and_night(story: Story) -> None:
    assert story.quiet.run.name == "nightly streets → root 2025-11-19T02-00Z"


def test_what_was_asked_otherwise_is_not_nothing_new(
    story: Story, parameters: Callable[..., MineParameters]
) -> None:
    """That it makes no difference here is for `mine` to say."""
    asked = NightlyParameters(**parameters(story.root, batch_size=31).model_dump())
    night = started(scheduled(asked, 21), asked)
    assert (night.subflows(), night.forwards) == (["mine"], 0)
    assert not night.told.measured and night.summary["message"] is None


def test_a_webhook_that_stays_down_fails_no_night(
    story: Story, parameters: Callable[..., MineParameters]
) -> None:
    asked = NightlyParameters(
        **parameters(story.root, batch_size=31).model_dump(), webhook="not-there"
    )
    night = started(scheduled(asked, 22), asked)
    assert night.run.state_name == "Completed"
    assert "no Secret block 'not-there'" in night.summary["message"]
    assert not (story.root / "nights" / night.summary["night"] / "message.json").exists()
