"""Imports point one way: deployments → flows → tasks → diffmining_core, and further in the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LAYERS = ("diffmining_core", "tasks", "flows", "deployments")
"""Each may import itself and those before it."""

MODEL_ROOMS = ("models", "finetuning", "typicality", "features", "baselines")
NOT_ON_A_GPU_MACHINE = (
    *(
        "dask",
        "distributed",
        "pandas",
        "pi_heif",
        "prefect",
        "pyarrow",
        "s3fs",
        "scipy",
        "skimage",
        "sklearn",
    ),
    *("tensorboard", "umap", "zarr"),
)
"""What a machine may lack that has torch, diffusers, transformers, peft and what these need."""

MEASURE_TWO_IMAGES = """
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from diffmining_core.images.pixels import content_id
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.pipelines import load_pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

images = []
for number in range(2):
    path = Path(sys.argv[1]) / f"{number}.png"
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    images.append(ShardImage(content_id(path.read_bytes()), str(path), "here", 64, 64))
options = TypicalityOptions(PromptTemplate(), size=64, draws=1, t_range=(0.1, 0.7), seed=42)
maps, set_aside = shard_typicality(load_pipeline("tiny"), images, options)
print([maps[place].mean.shape for place in range(2)], set_aside)
"""

PLAIN_ROOMS = ("patches", "clusters", "localization", "evaluation", "signs", "report", "results")


def imported(folder: str) -> Iterator[tuple[str, str]]:
    """(file, dotted name imported) for every import below `folder`, wherever in its file it is."""
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        file = path.relative_to(REPOSITORY).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} imports relatively"
                assert node.module is not None
                yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)


def offences(folder: str, *forbidden: str) -> list[str]:
    """The imports below `folder` of a forbidden package or of anything in it."""
    return [
        f"{file} imports {name}"
        for file, name in imported(folder)
        if any(f"{name}.".startswith(f"{package}.") for package in forbidden)
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_a_later_one(layer: str) -> None:
    assert offences(layer, *LAYERS[LAYERS.index(layer) + 1 :]) == []


def test_the_core_knows_no_prefect() -> None:
    assert offences("diffmining_core", "prefect") == []


@pytest.mark.parametrize("room", ["store", "images"])
def test_store_and_images_know_no_models(room: str) -> None:
    rooms = (f"diffmining_core.{name}" for name in MODEL_ROOMS)
    assert offences(f"diffmining_core/{room}", *rooms, "torch") == []


@pytest.mark.parametrize("room", PLAIN_ROOMS)
def test_plain_rooms_need_no_torch(room: str) -> None:
    rooms = (f"diffmining_core.{name}" for name in MODEL_ROOMS)
    assert offences(f"diffmining_core/{room}", *rooms, "torch", "diffusers", "transformers") == []


@pytest.mark.parametrize("room", MODEL_ROOMS)
def test_the_model_side_runs_without_prefect_dask_and_zarr(room: str) -> None:
    assert offences(f"diffmining_core/{room}", "prefect", "dask", "zarr") == []


def test_a_machine_with_little_but_torch_measures_typicality(tmp_path: Path) -> None:
    models = (REPOSITORY / "diffmining_core" / "models").glob("*.py")
    modules = [
        *(f"diffmining_core.models.{path.stem}" for path in models),
        "diffmining_core.features.dift",
        "diffmining_core.finetuning.training",
        "diffmining_core.translation.shard",
        "diffmining_core.typicality.shard",
    ]
    program = (
        f"import sys\nsys.modules |= dict.fromkeys({NOT_ON_A_GPU_MACHINE!r})\n"
        f"for name in {modules!r}: __import__(name)\n{MEASURE_TWO_IMAGES}"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[(8, 8), (8, 8)] {}"


def test_the_rooms_are_all_here() -> None:
    for room in (*MODEL_ROOMS, *PLAIN_ROOMS, "store", "images", "recipes"):
        assert (REPOSITORY / "diffmining_core" / room / "__init__.py").exists()


def test_what_a_rerun_imports_loads_no_torch() -> None:
    modules = [
        "flows.cli",
        "flows.mine",
        "flows.nightly",
        "flows.watch",
        *(
            ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            for room in (*PLAIN_ROOMS, "store", "images", "recipes")
            for path in (REPOSITORY / "diffmining_core" / room).glob("*.py")
        ),
    ]
    program = (
        f"import sys\nfor name in {modules!r}: __import__(name)\n"
        "print(sorted({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_the_command_asks_for_no_prefect_before_its_checks() -> None:
    program = "import sys, deployments.cli; print('prefect' in sys.modules)"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
