"""The commands about published datasets: `recipes` shows them, `download` gets them or says how."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cyclopts import App
from tqdm import tqdm

from diffmining_core.errors import InputError
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.recipes import Recipe, load_recipe, recipe_names
from diffmining_core.recipes.arrival import Arrival, arrived
from diffmining_core.recipes.hub import Downloaded, Repository, download_repository, unpack

MODELS = "models/"
ROW = "{:<10}{:>11}{:>11}{:>8}{:>6}  {}"
REASONS_SHOWN = 5


def recipes(name: str | None = None) -> None:
    """List the recipes of published datasets, or show one.

    Parameters
    ----------
    name
        Name of a recipe, or path of a recipe's file.
    """
    if name is not None:
        print("\n".join(recipe_lines(load_recipe(name))))
        return
    print(ROW.format("recipe", "mined", "trained on", "labels", "px", "what"))
    for each in recipe_names():
        recipe = load_recipe(each)
        numbers = recipe.download.published
        mined, train = (
            _number(numbers.get(split, numbers.get("all"))) for split in ("mined", "train")
        )
        labels, size = _number(numbers.get("labels")), _number(recipe.size)
        print(ROW.format(each, mined, train, labels, size, recipe.title))
    print("\n`diffmining recipes NAME` shows one; `--recipe NAME` or a copy's path uses it.")


def recipe_lines(recipe: Recipe) -> list[str]:
    """A recipe for people to read."""
    steps, batch = recipe.finetune_steps, recipe.finetune_batch
    values = {
        "file": recipe.file,
        "prompts": _pair(recipe.prompts),
        "  official, training": _pair(recipe.official_training),
        "  official, typicality": _pair(recipe.official_typicality),
        "shorter side": f"{recipe.size} px" if recipe.size else "the model's",
        "crop in training": recipe.crop,
        "patch": f"{recipe.patch_size} px" if recipe.patch_size else "by the size",
        "null prompts": f"{recipe.null_share:.0%} of the training",
        "timesteps": "{} to {} of 1".format(*recipe.t_range),
        "text encoder": recipe.text_encoder or "the model's",
        "finetuned model": recipe.model or "none published",
        "authors' finetuning": f"{steps or '?'} steps of {batch or '?'} images",
        **{f"{split} images": layout.kind for split, layout in recipe.layouts.items()},
    }
    lines = [f"{name:24}{value}" for name, value in values.items()]
    return [recipe.title, "", recipe.about, "", *lines, "", *where_to_get(recipe)]


def where_to_get(recipe: Recipe) -> list[str]:
    """Where the data are to be had, and what goes where."""
    download = recipe.download
    put = [f"  {line}" for line in download.put.strip().splitlines()]
    if download.hub:
        return [f"`diffmining download {recipe.name}` gets it from the hub ({download.hub}):", *put]
    if download.ask:
        return [f"Ask for the data at {download.ask} and put into one folder:", *put]
    return []


def download(what: str, *, to: Path | None = None, revision: str | None = None) -> None:
    """Get a published dataset or a finetuned model, or say where to ask; check what arrived.

    Run it again to go on where it stopped, or to check a folder.

    Parameters
    ----------
    what
        Name of a recipe, such as `cardb`, for its dataset; `models/NAME` for its finetuned model.
    to
        Folder for it; one of the same name here if unset.
    revision
        Branch, tag or commit on the hub; what the folder has of it, else the latest, if unset.
    """
    folder = to or Path(what)
    name = what.removeprefix(MODELS)
    recipe = load_recipe(name)
    if name != what:
        if recipe.model is None:
            raise InputError(f"the recipe {name} names no finetuned model")
        _fetch(Repository("model", recipe.model), folder, revision)
        print(f"Use it with --model {folder}")
        return
    if hub := recipe.download.hub:
        fetched = _fetch(Repository("dataset", hub), folder, revision)
        for file in fetched.files:
            if file.name.endswith(".zip"):
                _unpack(folder / file.name, folder)
    else:
        print("\n".join(where_to_get(recipe)))
        if not folder.is_dir():
            print(f"\nThen run this again: it checks {folder}, or the folder given with --to.")
            return
    print(f"\nWhat is in {folder}:")
    splits = arrived(recipe, str(folder))
    print("\n".join(line for split in splits for line in arrival_lines(split)))
    if not all(split.is_complete for split in splits):
        sys.exit(1)
    print(f"Use it with --dataset {folder} --recipe {name}")


def arrival_lines(arrival: Arrival) -> list[str]:
    """What is there of a split, for people to read."""
    if arrival.problem:
        return [f"{arrival.split}: nothing can be used: {arrival.problem}"]
    images = f"{arrival.images:,} images{_of_published(arrival.published)}"
    labels = f"{arrival.labels:,} labels{_of_published(arrival.published_labels)}"
    return [
        f"{arrival.split}: {images}, {labels}",
        *_reasons("cannot be used", arrival.unusable),
        *_reasons("left out", arrival.left_out),
    ]


def _of_published(number: int | None) -> str:
    return "" if number is None else f" of {number:,} published"


def _reasons(what: str, counts: Mapping[str, int]) -> list[str]:
    most = Counter(counts).most_common()
    lines = [f"  {count:,} {what}: {reason}" for reason, count in most[:REASONS_SHOWN]]
    if others := sum(count for _, count in most[REASONS_SHOWN:]):
        lines.append(f"  {others:,} {what} for other reasons")
    return lines


def _fetch(repository: Repository, folder: Path, revision: str | None) -> Downloaded:
    fetched = download_repository(repository, folder, revision)
    size = tqdm.format_sizeof(sum(file.bytes for file in fetched.files))
    print(
        f"{repository.id} at commit {fetched.commit} is in {folder}: {len(fetched.files)} files, "
        f"{size}B, all as the hub says"
    )
    return fetched


def _unpack(archive: Path, folder: Path) -> None:
    with tqdm(desc=f"unpack {archive.name}", unit=" files") as bar:
        unpack(archive, folder, bar.update)


def _pair(prompts: PromptTemplate) -> str:
    detailed = f", {prompts.detailed_share:.0%} {prompts.detailed!r}" if prompts.detailed else ""
    return f"{prompts.conditioned!r} / {prompts.null!r}{detailed}"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def add_to(app: App) -> None:
    """Add these commands to the command line."""
    for command in (recipes, download):
        app.command(command)
