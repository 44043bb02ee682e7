"""What goes through UNets, counted from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def counted_forwards() -> Iterator[Counter[str]]:
    """Counts the images through every UNet ("images") and the calls ("calls"), torch's own way."""
    from diffusers import UNet2DConditionModel
    from torch.nn.modules.module import register_module_forward_pre_hook

    seen: Counter[str] = Counter()

    def count(module: object, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, UNet2DConditionModel):
            seen["calls"] += 1
            seen["images"] += len(arguments[0])

    hook = register_module_forward_pre_hook(count)
    try:
        yield seen
    finally:
        hook.remove()
