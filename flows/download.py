"""The commands about published datasets: `recipes` shows them, `download` gets them or says how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cyclopts import App
from tqdm import tqdm

from diffmining_core.errors import InputError
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.recipes import Recipe, load_recipe, recipe_names
from diffmining_core.recipes.arrival import Arrival, arrived
from diffmining_core.recipes.hub import Downloaded, Repository, download_repository, unpack
from flows.answers import Answer, command

published = App()
MODELS = "models/"
ROW = "{:<10}{:>11}{:>11}{:>8}{:>6}  {}"
REASONS_SHOWN = 5


@command(published, "diffmining recipes", "diffmining recipes cardb")
def recipes(name: str | None = None) -> Answer:
    """List the recipes of published datasets, or show one.

    Parameters
    ----------
    name
        Name of a recipe, or path of a recipe's file.
    """
    if name is not None:
        recipe = load_recipe(name)
        return Answer(recipe_document(recipe), lambda: print("\n".join(recipe_lines(recipe))))
    listed = [load_recipe(each) for each in recipe_names()]
    return Answer([recipe_document(recipe) for recipe in listed], lambda: print_recipes(listed))


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says, for scripts."""
    return {
        "name": recipe.name,
        "title": recipe.title,
        "about": recipe.about,
        "file": recipe.file,
        "prompts": recipe.prompts.as_options(),
        "size": recipe.size,
        "patch_size": recipe.patch_size,
        "t_range": recipe.t_range,
        "text_encoder": recipe.text_encoder,
        "model": recipe.model,
        "finetune_steps": recipe.finetune_steps,
        "finetune_batch": recipe.finetune_batch,
        "published": dict(recipe.download.published),
        "hub": recipe.download.hub,
        "ask": recipe.download.ask,
    }


def print_recipes(listed: list[Recipe]) -> None:
    """The recipes as a table."""
    print(ROW.format("recipe", "mined", "trained on", "labels", "px", "what"))
    for recipe in listed:
        numbers = recipe.download.published
        mined, train = (
            _number(numbers.get(split, numbers.get("all"))) for split in ("mined", "train")
        )
        labels, size = _number(numbers.get("labels")), _number(recipe.size)
        print(ROW.format(recipe.name, mined, train, labels, size, recipe.title))
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


@command(
    published,
    "diffmining download cardb --to cardb",
    "diffmining download models/cardb --to cardb-model",
)
def download(what: str, *, to: Path | None = None, revision: str | None = None) -> Answer:
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
        fetched = _fetch(Repository("model", recipe.model), folder, revision)
        document = {"folder": folder, "downloaded": asdict(fetched)}
        return Answer(document, lambda: print(f"Use it with --model {folder}"))
    document = {"folder": folder, "downloaded": None}
    if hub := recipe.download.hub:
        fetched = _fetch(Repository("dataset", hub), folder, revision)
        document["downloaded"] = asdict(fetched)
        for file in fetched.files:
            if file.name.endswith(".zip"):
                _unpack(folder / file.name, folder)
    else:
        print("\n".join(where_to_get(recipe)))
        if not folder.is_dir():
            print(f"\nThen run this again: it checks {folder}, or the folder given with --to.")
            return Answer({**document, "ask": recipe.download.ask, "splits": None})
    splits = arrived(recipe, str(folder))
    is_complete = all(split.is_complete for split in splits)

    def say() -> None:
        print(f"\nWhat is in {folder}:")
        print("\n".join(line for split in splits for line in arrival_lines(split)))
        if is_complete:
            print(f"Use it with --dataset {folder} --recipe {name}")

    arrivals = [{**asdict(split), "is_complete": split.is_complete} for split in splits]
    return Answer({**document, "splits": arrivals}, say, status=0 if is_complete else 1)


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
