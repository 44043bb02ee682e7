"""For the stack's processes: a file with a gate beside it (`NAME.gate`) opens once that is gone.

So a test holds a run in the middle of a shard, for as long as it likes, without touching its code.
"""

import os
import sys
import time
from typing import Any


def wait_at_gate(event: str, arguments: tuple[Any, ...]) -> None:
    """Called by Python for everything that it audits; https://peps.python.org/pep-0578/."""
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".png"):
        while os.path.exists(f"{arguments[0]}.gate"):  # noqa: PTH110 - light: it runs for each open
            time.sleep(0.1)


sys.addaudithook(wait_at_gate)
