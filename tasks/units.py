"""What every stage's task does: fill one unit of the ledger, and say so in a small reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import Attempt, CorruptFileError, complete
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit


@dataclass(frozen=True)
class Done:
    """A published unit; `computed` tells whether this run made it or found it."""

    stage: str
    key: str
    computed: bool
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)


def fill(root: str, unit: Unit, produce: Callable[[Attempt], None], device: str = "cpu") -> Done:
    """Publish `unit` at `root`, computing it with `produce` unless it is there already."""
    computed = False

    def compute(attempt: Attempt) -> None:
        nonlocal computed
        computed = True
        produce(attempt)

    manifest = complete(open_root(root), unit, compute, device=device)
    return Done(unit.stage, unit.key, computed, manifest.seconds, dict(manifest.counts))


def passes(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    """Whether a failure may pass by itself: storage and network faults do, bad input does not.

    Nor does a stored file that is corrupt, though an OSError, nor CUDA's out of memory, a
    RuntimeError.
    """
    try:
        state.result()
    except (InputError, CorruptFileError):
        return False
    except OSError:  # TimeoutError and ConnectionError are among them
        return True
    except Exception:
        return False
    return False


P = ParamSpec("P")
R = TypeVar("R")


def stage_task(name: str, run_name: str | None = None) -> Callable[[Callable[P, R]], Task[P, R]]:
    """The decorator of every stage's task: how it is named, and what is tried again."""
    return task(
        name=name,
        task_run_name=run_name,
        retries=3,
        retry_delay_seconds=[2, 10, 60],
        retry_jitter_factor=0.5,
        retry_condition_fn=passes,
        persist_result=False,  # the ledger is the cache
    )
