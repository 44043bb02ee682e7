"""What every stage's task does: fill one unit of the ledger, and say so in a small reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import Attempt, CorruptFileError, complete
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import Failure, note_failure
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
    """Publish `unit` at `root`, computing it with `produce` unless it is there already.

    A failure is noted at the root for whoever asks for its status, and raised.
    """
    computed = False

    def compute(attempt: Attempt) -> None:
        nonlocal computed
        computed = True
        produce(attempt)

    opened = open_root(root)
    with noted(opened, unit):
        manifest = complete(opened, unit, compute, device=device)
    return Done(unit.stage, unit.key, computed, manifest.seconds, dict(manifest.counts))


@contextmanager
def noted(root: Root, unit: Unit) -> Iterator[None]:
    """Note a failure within as that of `unit`, for whoever asks for the status; it is raised on."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # where even this cannot be written, the error itself says why
            damaged = (error.stage, error.key) if isinstance(error, CorruptFileError) else None
            reason = Failure(str(error) or type(error).__name__, damaged)
            note_failure(root, unit.stage, unit.key, reason)
        raise


class Failures:
    """The units of a stage that failed, so that one stops no other and all are named in the end."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, BaseException]] = []

    def __len__(self) -> int:
        return len(self.errors)

    @contextmanager
    def of(self, unit: Unit) -> Iterator[None]:
        """Note an exception raised within as the failure of `unit`, and go on."""
        try:
            yield
        except Exception as error:
            self.add(unit, error)

    def add(self, unit: Unit, error: BaseException, name: str = "") -> None:
        """Note why `unit`, which a person calls `name`, failed."""
        place = f"{unit.stage}/{unit.key}"
        self.errors.append((f"{name} ({place})" if name else place, error))

    def raise_for(self, total: int) -> None:
        """Raise the first failure, if there is one, with the names of all of `total` units.

        CorruptUnitsError if stored units that some of them needed are damaged.
        """
        if not self.errors:
            return
        errors = [error for _, error in self.errors]
        damaged = [error for error in errors if isinstance(error, CorruptFileError)]
        names = ", ".join(name for name, _ in self.errors)
        sentence = f"{len(errors)} of {total} units failed: {names}; the first because: {errors[0]}"
        if damaged:
            raise CorruptUnitsError(sentence, damaged) from errors[0]
        if len(errors) == 1 and isinstance(errors[0], InputError):
            raise errors[0]
        raise _kind(errors)(sentence) from errors[0]


class CorruptUnitsError(OSError):
    """Units could not be made because stored ones that they need are damaged."""

    def __init__(self, sentence: str, damaged: list[CorruptFileError]) -> None:
        super().__init__(sentence)
        self.damaged = damaged


def _kind(errors: list[BaseException]) -> type[Exception]:
    """The narrowest kind that tells what can be done about them all: mend, try again, look."""
    for kind in (InputError, OSError):
        if all(isinstance(error, kind) for error in errors):
            return kind
    return RuntimeError


def passes(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    """Whether a failure may pass by itself: storage and network faults do, bad input does not.

    Nor does a stored file that is corrupt, though an OSError, nor CUDA's out of memory, a
    RuntimeError.
    """
    try:
        state.result()
    except (InputError, CorruptFileError, CorruptUnitsError):
        return False
    except OSError:  # TimeoutError and ConnectionError are among them
        return True
    except Exception:
        return False
    return False


P = ParamSpec("P")
R = TypeVar("R")


def stage_task(name: str, run_name: str | None = None) -> Callable[[Callable[P, R]], Task[P, R]]:
    """The decorator of every stage's task: how it is named, and what is tried again.

    run_name: of its runs, with parameters in braces, where a run of the flow has several of them.
    """
    return task(
        name=name,
        task_run_name=run_name or name,
        retries=3,
        retry_delay_seconds=[2, 10, 60],
        retry_jitter_factor=0.5,
        retry_condition_fn=passes,
        persist_result=False,  # the ledger is the cache
    )
