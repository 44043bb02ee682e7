"""Run the units of a stage that are not there yet, and go on past those that fail."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from prefect.client.schemas.objects import State

from diffmining_core.store.units import Unit
from tasks.units import Done, Failures

Work = TypeVar("Work")


def run_missing(
    work: Sequence[tuple[Unit, Work]], there: set[str], run: Callable[[Work], State[Done]]
) -> list[Done]:
    """One `Done` per unit, in order; only units whose keys are not `there` are run.

    `run` calls the stage's task and returns its state. A unit that fails does not stop the others;
    at the end the first failure is raised, with the names of all. Several processes at one root
    share the work: each takes the missing units in another order.
    """
    done = {unit.key: Done(unit.stage, unit.key, computed=False) for unit, _ in work}
    missing = [(unit, item) for unit, item in work if unit.key not in there]
    random.SystemRandom().shuffle(missing)
    failures = Failures()
    for unit, item in missing:
        result = run(item).result(raise_on_failure=False)
        if isinstance(result, Done):
            done[unit.key] = result
        else:
            failures.add(unit, result)
    failures.raise_for(len(work))
    return [done[unit.key] for unit, _ in work]
