"""The page that says how far a run is: stages with bars, what failed, the highest patches so far.

In: the stages' status and strips of patches. Out: a page that reads without script; its own script
fetches it again and puts what is new into place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from diffmining_core.report.environment import environment
from diffmining_core.report.so_far import Strip
from diffmining_core.store.status import Pace, StageStatus

CSP = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
"""Of this page, which fetches itself."""

REASONS_SHOWN = 20

State = Literal["running", "waiting", "stopped", "finished", "failed", "unplanned"]

_WORDS: Mapping[State, str] = {
    "running": "running",
    "waiting": "no result yet",
    "stopped": "stopped",
    "finished": "done",
    "failed": "failed",
    "unplanned": "done",
}


@dataclass(frozen=True)
class StageLine:
    """A stage as the page shows it; `share` of its units, of what was planned, is done."""

    name: str
    state: State
    words: str
    share: float | None
    """None where nobody knows how many units there will be."""
    numbers: str
    """Units that are done, of how many."""
    pace: str
    """Rate and time left, or since when nothing came."""
    asides: Sequence[str]
    """Units that failed, images set aside, where there are some."""


@dataclass(frozen=True)
class RunState:
    """A run as a whole, in a few words; going: whether anything is being made."""

    state: State
    headline: str
    detail: str

    @property
    def going(self) -> bool:
        """Whether results come, or are waited for."""
        return self.state in ("running", "waiting")


def run_state(stages: Sequence[StageStatus], now: float) -> RunState:
    """What the whole run is at: the first stage that is not done tells."""
    # What no run has planned is made on the way, or was made by an earlier version.
    stages = [stage for stage in stages if stage.planned is not None] or stages
    if not stages:
        return RunState("waiting", "Nothing has been made yet", "")
    states = [stage_state(stage) for stage in stages]
    for state in ("running", "waiting", "failed", "stopped"):
        if state not in states:
            continue
        stage = stages[states.index(state)]
        name = stage_name(stage.stage)
        done = f"{stage.done:,} of {stage.planned:,}" if stage.planned else f"{stage.done:,}"
        if state == "running":
            return RunState("running", f"{name}: {done}", _left(stage.pace))
        if state == "waiting":
            headline = f"{name}: {done}" if stage.done else f"{name} under way"
            since = age(now - stage.pace.since)
            return RunState("waiting", headline, f"planned {since} ago, no result since")
        if state == "failed":
            return RunState("failed", f"{name}: {len(stage.failed):,} failed", "reasons below")
        ago = f"no result for {age(now - stage.pace.since)}; the same command goes on from there"
        return RunState("stopped", f"{name} stopped at {done}", ago)
    last = max(stage.pace.since for stage in stages)
    return RunState(
        "finished", "All that was planned is done", f"last result {age(now - last)} ago"
    )


def stage_state(stage: StageStatus) -> State:
    """What a stage is at; failed where all that is not done has failed."""
    if stage.failed and not stage.missing:
        return "failed"
    return stage.pace.state


def stage_name(stage: str) -> str:
    """A stage's name for people."""
    return stage.replace("_", " ").capitalize()


def stage_line(stage: StageStatus, now: float) -> StageLine:
    """A line of the page."""
    state = stage_state(stage)
    is_open = stage.planned is None and state == "running"
    asides = [(len(stage.failed), "failed"), (stage.set_aside or 0, "set aside")]
    return StageLine(
        name=stage_name(stage.stage),
        state=state,
        words=_WORDS[state],
        share=None if is_open else stage.done / (stage.planned or stage.done or 1),
        numbers=f"{stage.done:,} of {stage.planned:,}" if stage.planned else f"{stage.done:,}",
        pace=_pace(stage, state, now),
        asides=[f"{count:,} {what}" for count, what in asides if count],
    )


def _pace(stage: StageStatus, state: State, now: float) -> str:
    pace = stage.pace
    if state == "running":
        return f"{rate(pace.per_hour or 0.0)}, {_left(pace)}" if stage.missing else _left(pace)
    if state == "waiting":
        return f"planned {age(now - pace.since)} ago"
    if state == "stopped":
        return f"since {age(now - pace.since)}"
    return ""


def _left(pace: Pace) -> str:
    return "" if pace.seconds_left is None else f"about {age(pace.seconds_left)} left"


def rate(per_hour: float) -> str:
    """Units an hour, or a minute where these are more than one."""
    number, per = (per_hour / 60, "a minute") if per_hour >= 60 else (per_hour, "an hour")
    return f"{number:.{0 if number >= 100 else 1}f} {per}"


def age(seconds: float) -> str:
    """Seconds in the largest unit of which there are two."""
    for length, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    whole = max(round(seconds), 0)
    return f"{whole} second{'' if whole == 1 else 's'}"


def render_status(
    dataset: str,
    root: str,
    stages: Sequence[StageStatus],
    strips: Sequence[Strip],
    now: float,
    is_home: bool,
    has_gallery: bool,
) -> str:
    """The page as HTML. is_home: it stands in for the gallery until that is there."""
    reasons = [
        (stage_name(stage.stage), key, reason)
        for stage in stages
        for key, reason in stage.failed.items()
    ]
    run = run_state(stages, now)
    return (
        environment()
        .get_template("status.html")
        .render(
            csp=CSP,
            dataset=dataset,
            root=root,
            run=run,
            stages=[stage_line(stage, now) for stage in stages],
            reasons=reasons[:REASONS_SHOWN],
            more_reasons=max(0, len(reasons) - REASONS_SHOWN),
            strips=strips,
            at=datetime.fromtimestamp(now, UTC).astimezone().strftime("%H:%M:%S"),
            is_home=is_home,
            has_gallery=has_gallery,
        )
    )


def with_bar(page: bytes, run: RunState) -> bytes:
    """A published page with a bar at its top that says a run is going, and leads to its status."""
    from markupsafe import escape

    said = f"{run.headline}{f', {run.detail}' if run.detail else ''}"
    bar = (
        '<aside class="run-bar" aria-label="Run"><span class="pulse" aria-hidden="true"></span>'
        f"<span>A run is going: {escape(said)}</span>"
        ' <a href="/status">See how far it is</a></aside>'
    ).encode()
    styles = b'<link rel="stylesheet" href="/static/status.css">\n</head>'
    return page.replace(b"</head>", styles, 1).replace(b"<body>", b"<body>\n  " + bar, 1)
