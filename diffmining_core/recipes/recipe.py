"""A recipe, and how it is read from its TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffmining_core.errors import InputError
from diffmining_core.images.sources.layouts import FolderLayout, Layout, TableLayout, TarLayout
from diffmining_core.models.prompts import PromptTemplate

MINED, TRAIN, ALL = "mined", "train", "all"
"""The splits of a dataset: what typicality is measured on, what a model is finetuned on; a dataset
that is one and the same for both has `all` in their place."""

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Download:
    """Where the data are: a dataset of the hub, or whom to ask for them.

    put: what to put where. published: how many images a split has (and `labels`) in print, to check
    what arrived.
    """

    hub: str | None = None
    ask: str | None = None
    put: str = ""
    published: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Everything that is particular to one dataset.

    layouts: by split, `mined` and `train`, or `all`; none: whatever kind of dataset is found.
    prompts: the paper's pair, the same in training and inference; `official_…`: what the released
    code says there. size, patch_size: pixels; None for the model's own. crop: random squares in
    training, or the whole image. null_share: of all images that are trained on. t_range:
    shares of the 1000 timesteps. text_encoder: of the finetuned model. model: the released
    finetuned one. finetune_…: the authors' numbers.
    """

    name: str
    title: str
    about: str
    file: Path | None
    layouts: Mapping[str, Layout]
    prompts: PromptTemplate
    official_training: PromptTemplate
    official_typicality: PromptTemplate
    size: int | None
    crop: Literal["random", "none"]
    patch_size: int | None
    null_share: float
    t_range: tuple[float, float]
    text_encoder: str | None
    model: str | None
    finetune_batch: int | None
    finetune_steps: int | None
    download: Download

    @property
    def trains_on_others(self) -> bool:
        """Whether the model is finetuned on other images than are mined."""
        return TRAIN in self.layouts

    def layout(self, split: str) -> Layout | None:
        """How the images of a split lie; None for whatever is found."""
        return self.layouts.get(split, self.layouts.get(ALL))


def plain_recipe() -> Recipe:
    """The recipe of a dataset that has none."""
    return _recipe("plain", None, _File(title="A dataset without a recipe"))


def recipe_names() -> list[str]:
    """The recipes that come with the program."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def recipe_file(name_or_path: str) -> Path:
    """The file of a recipe; InputError if there is none of this name or at this path."""
    if name_or_path in recipe_names():
        return HERE / f"{name_or_path}.toml"
    if (path := Path(name_or_path)).is_file():
        return path
    raise InputError(
        f"there is no recipe {name_or_path!r}: give one of {', '.join(recipe_names())}, or the "
        "path of a TOML file like theirs (`diffmining recipes NAME` shows where one is)"
    )


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of this name, or in this file; InputError for what is wrong with it."""
    path = recipe_file(name_or_path)
    try:
        return _recipe(
            path.stem, path, _File(**tomllib.loads(path.read_text(encoding="utf-8-sig")))
        )
    except ValidationError as error:
        raise InputError(f"recipe {path}: {'; '.join(_wrong(error))}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is no TOML file: {error}") from error
    except InputError as error:  # of the prompts
        raise InputError(f"recipe {path}: {error}") from error


class _Section(BaseModel):
    """A section of a recipe's file; what it does not know is an error."""

    model_config = ConfigDict(extra="forbid")


class _Prompts(_Section):
    conditioned: str = "An image of {label}."
    null: str = ""
    detailed: str | None = None
    detailed_share: float = 0.0
    words: dict[str, str] = {}


class _Official(_Section):
    training: _Prompts
    typicality: _Prompts


class _Images(_Section):
    size: Annotated[int | None, Field(ge=32)] = None
    crop: Literal["random", "none"] = "random"
    patch_size: Annotated[int | None, Field(ge=8)] = None


class _Finetuning(_Section):
    null_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    text_encoder: str | None = None
    model: str | None = None
    batch: Annotated[int | None, Field(ge=1)] = None
    steps: Annotated[int | None, Field(ge=0)] = None


class _Typicality(_Section):
    t_range: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (
        0.1,
        0.7,
    )


class _Download(_Section):
    hub: str | None = None
    ask: str | None = None
    put: str = ""
    published: dict[str, int] = {}


_AnyLayout = Annotated[FolderLayout | TableLayout | TarLayout, Field(discriminator="kind")]


class _Layouts(_Section):
    mined: _AnyLayout | None = None
    train: _AnyLayout | None = None
    all: _AnyLayout | None = None


class _File(_Section):
    title: str
    about: str = ""
    prompts: _Prompts = _Prompts()
    official: _Official | None = None
    images: _Images = _Images()
    finetuning: _Finetuning = _Finetuning()
    typicality: _Typicality = _Typicality()
    download: _Download = _Download()
    layouts: _Layouts = _Layouts()


def _recipe(name: str, path: Path | None, file: _File) -> Recipe:
    layouts = {split: layout for split, layout in file.layouts if layout is not None}
    if set(layouts) not in ({MINED, TRAIN}, {ALL}, set()):
        raise InputError(
            "`layouts` must have `all`, or both `mined` and `train`, but has "
            f"{' and '.join(f'`{split}`' for split in layouts)}"
        )
    start, end = file.typicality.t_range
    if start >= end:
        raise InputError(f"`typicality.t_range` must rise, but is [{start}, {end}]")
    prompts = PromptTemplate(**file.prompts.model_dump())
    official = file.official
    return Recipe(
        name=name,
        title=file.title,
        about=file.about.strip(),
        file=path,
        layouts=layouts,
        prompts=prompts,
        official_training=_said(official.training, prompts) if official else prompts,
        official_typicality=_said(official.typicality, prompts) if official else prompts,
        size=file.images.size,
        crop=file.images.crop,
        patch_size=file.images.patch_size,
        null_share=file.finetuning.null_share,
        t_range=(start, end),
        text_encoder=file.finetuning.text_encoder,
        model=file.finetuning.model,
        finetune_batch=file.finetuning.batch,
        finetune_steps=file.finetuning.steps,
        download=Download(**{f.name: getattr(file.download, f.name) for f in fields(Download)}),
    )


def _said(section: _Prompts, prompts: PromptTemplate) -> PromptTemplate:
    """Official prompts read the labels in the same words, but for those they have of their own."""
    return PromptTemplate(**section.model_dump() | {"words": {**prompts.words, **section.words}})


def _wrong(error: ValidationError) -> Sequence[str]:
    """What is wrong with which field, in a few words each."""
    found = []
    for wrong in error.errors():
        parts = [str(part) for part in wrong["loc"]]
        if parts[0] == "layouts":
            del parts[2:3]  # the kind of layout
        place = ".".join(parts)
        what: Any = wrong["input"]
        came = "" if wrong["type"] in ("missing", "extra_forbidden") else f", but is {what!r:.60}"
        found.append(f"`{place}`: {_expected(wrong['type'], wrong['msg'])}{came}")
    return found


def _expected(kind: str, message: str) -> str:
    if kind == "missing":
        return "is needed"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return "there is no such field"
    return message[0].lower() + message[1:]
