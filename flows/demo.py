"""The whole pipeline on the built-in street scenes and the tiny pipeline, and how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffmining_core.images.street_scenes import COUNTRIES, write_dataset
from flows.checks import claim_root
from flows.mine import mine
from flows.parameters import MineParameters
from flows.temporary_server import run

IMAGES_PER_COUNTRY = 100


def demo_parameters(folder: Path) -> MineParameters:
    """What the demo mines with: everything that it does not name is the default of `mine`."""
    return MineParameters(
        dataset=str(folder / "street_scenes"),
        root=str(folder),
        finetune_steps=600,
        learning_rate=2e-3,
        schedule="cosine",
        preview_every=600,
        draws=32,
        before_shards=-1,
        k=8,
        top=100,
        shard_rows=125,
    )


def demo(folder: Path) -> dict[str, Any]:
    """Draw the scenes, mine them and return the summary; `folder/index.html` is the page."""
    parameters = demo_parameters(folder.resolve())
    claim_root(parameters)
    total = IMAGES_PER_COUNTRY * len(COUNTRIES)
    with tqdm(total=total, desc="street scenes", unit=" images") as bar:
        write_dataset(
            Path(parameters.dataset),
            IMAGES_PER_COUNTRY,
            parameters.seed,
            lambda done, _total: bar.update(done - bar.n),
        )
    return run(mine, parameters)
