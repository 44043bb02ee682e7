"""Mining by a recipe of one's own: other images in training, several labels to an image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import open_root
from flows.checks import check_inputs
from flows.index import index_dataset
from flows.mine import mine
from flows.parameters import IndexParameters, MineParameters

Make = Callable[..., MineParameters]

RECIPE = """
title = "Drawn scenes, some under two labels"
[prompts]
conditioned = "A scene with {label}."
null = "A scene."
words = { Borvik = "the north" }
[official.training]
conditioned = "Scene, {label}"
[official.typicality]
conditioned = "{label}"
[images]
size = 64
crop = "none"
patch_size = 16
[finetuning]
null_share = 0.2
batch = 3
steps = 5
text_encoder = "somebody/some-clip"
[typicality]
t_range = [0.0, 1.0]
[layouts.mined]
kind = "table"
image_file = "{file}"
label = "labels"
separator = "|"
[layouts.mined.table]
file = "mined.csv"
[layouts.train]
kind = "folders"
"""


@pytest.fixture
def by_recipe(dataset: Path, parameters: Make, tmp_path: Path) -> Make:
    """Trained on all 16 scenes, mined are 6 of them, 2 of which have two labels."""
    (tmp_path / "scenes.toml").write_text(RECIPE)
    published = tmp_path / "published"
    published.mkdir()
    lines = ["file,labels"]
    for label in ("Almara", "Borvik"):
        (published / label).symlink_to(dataset / label)
        names = [f"{label}/{path.name}" for path in sorted((dataset / label).iterdir())[:3]]
        lines += [f"{names[0]},Almara|Borvik", *(f"{name},{label}" for name in names[1:])]
    (published / "mined.csv").write_text("\n".join(lines) + "\n")

    def make(**changes: Any) -> MineParameters:
        given = parameters(tmp_path / "root").model_dump(exclude_unset=True)
        for taken_from_recipe in ("size", "finetune_batch", "finetune_steps"):
            del given[taken_from_recipe]
        own = {
            "dataset": str(published),
            "allow": (str(dataset),),  # to which its folders are links
            "recipe": str(tmp_path / "scenes.toml"),
            "text_encoder": "own",
        }
        return MineParameters(**{**given, **own, **changes})

    return make


@pytest.mark.usefixtures("prefect_api")
def test_a_recipe_says_what_is_trained_on_mined_and_said(
    by_recipe: Make, forwards: Counter[str]
) -> None:
    parameters = by_recipe(before_shards=0)
    summary = mine(parameters)
    root = open_root(parameters.root)
    (finetuned,) = read_manifests(root, "finetune")
    assert finetuned.counts["images"] == 8
    said = {name: finetuned.parameters[name] for name in ("steps", "batch_size", "null_share")}
    assert said == {"steps": 5, "batch_size": 3, "null_share": 0.2}

    measured = read_manifests(root, "typicality")
    assert sum(manifest.counts["images"] for manifest in measured) == summary["images"] == 6
    maps = [read_maps(root, manifest) for manifest in measured]
    pairs = [pair for one in maps for pair in zip(one.image_id, one.label, strict=True)]
    assert len(pairs) == len(set(pairs)) == 8
    assert summary["labels"] == {"Almara": 4, "Borvik": 4}
    # The null branch of an image once, whatever the number of its labels.
    assert sum(m.counts["unet_forwards"] for m in measured) == parameters.draws * (6 + 8)
    for manifest in (finetuned, *measured):
        assert manifest.parameters["prompt"] == "A scene with {label}."
        assert manifest.parameters["words"] == {"Borvik": "the north"}
    assert measured[0].parameters["t_range"] == [0.0, 1.0]
    patches = read_manifests(root, "patches")
    assert {manifest.parameters["size"] for manifest in patches} == {16}
    assert "Drawn scenes, some under two labels" in Path(summary["page"]).read_text()

    before = forwards["images"]
    assert mine(parameters)["unet_forwards"] == 0
    assert forwards["images"] == before


@pytest.mark.usefixtures("prefect_api")
def test_the_released_codes_prompts_are_told_apart_by_stage(by_recipe: Make) -> None:
    parameters = by_recipe(prompts="official", finetune_steps=1)
    mine(parameters)
    root = open_root(parameters.root)
    (finetuned,) = read_manifests(root, "finetune")
    assert finetuned.parameters["prompt"] == "Scene, {label}"
    for stage in ("typicality", "features"):
        for manifest in read_manifests(root, stage):
            assert manifest.parameters["prompt"] == "{label}"
            assert manifest.parameters["null_prompt"] == ""


@pytest.mark.usefixtures("prefect_api")
def test_released_weights_are_measured_with_the_prompts_they_were_trained_with(
    by_recipe: Make,
) -> None:
    """And with the paper's own draws; the page says both."""
    parameters = by_recipe(
        prompts="official-training", draws_spread="independent", finetune_steps=1
    )
    page = Path(mine(parameters)["page"]).read_text()
    assert "independent, as in the paper" in page
    assert "Scene, {label}" in page
    root = open_root(parameters.root)
    assert all(m.parameters["spread"] == "independent" for m in read_manifests(root, "typicality"))
    for stage in ("finetune", "typicality", "features"):
        for manifest in read_manifests(root, stage):
            assert manifest.parameters["prompt"] == "Scene, {label}"
            assert manifest.parameters["words"] == {"Borvik": "the north"}


@pytest.mark.parametrize(
    ("recipe", "label", "pair"),
    [
        ("ftt", "1950", ("A face portrait of the 1950s.", "A face portrait")),
        ("g3", "Italy", ("A google street view image in Italy", "A google street view image")),
        ("places", "bakery_shop", ("Image of shop bakery.", "")),
    ],
)
def test_the_training_prompts_of_the_released_weights(
    by_recipe: Make, recipe: str, label: str, pair: tuple[str, str]
) -> None:
    settings = by_recipe(recipe=recipe, prompts="official-training").settings()
    assert settings.prompts == settings.training_prompts
    assert (settings.prompts.of(label), settings.prompts.null) == pair


def test_shares_of_more_than_all_images_are_refused(by_recipe: Make) -> None:
    with pytest.raises(InputError, match=r"must add up to 1 at most"):
        by_recipe(recipe="g3", null_share=0.95).settings()


def test_what_the_user_says_goes_before_the_recipe(by_recipe: Make) -> None:
    settings = by_recipe(
        prompt="{label}!", size=128, null_share=0.5, t_max=0.6, patch_size=24, finetune_steps=7
    ).settings()
    assert settings.prompts == settings.training_prompts
    assert settings.prompts.conditioned == "{label}!"
    assert settings.prompts.null == "A scene."
    assert (settings.size, settings.patch_size, settings.finetune_steps) == (128, 24, 7)
    assert settings.null_share == 0.5
    assert settings.t_range == (0.0, 0.6)


def test_the_recipes_text_encoder_is_that_of_finetuning_alone(by_recipe: Make) -> None:
    assert by_recipe(text_encoder=None).start_source().text_encoder == "somebody/some-clip"
    assert by_recipe(text_encoder=None).model_source().text_encoder is None
    assert by_recipe(text_encoder=None, finetune_steps=0).start_source().text_encoder is None
    assert by_recipe(text_encoder="a/b", finetune_steps=0).start_source().text_encoder == "a/b"
    assert by_recipe().start_source().text_encoder is None


def test_a_text_encoder_that_cannot_be_had_is_refused_before_the_root_is_claimed(
    by_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    parameters = by_recipe(text_encoder=None)
    with pytest.raises(InputError, match="some-clip"):
        check_inputs(parameters)
    assert not Path(parameters.root).exists()


@pytest.mark.usefixtures("prefect_api")
def test_index_reads_what_is_trained_on_too(by_recipe: Make) -> None:
    given = by_recipe()
    counts = index_dataset(
        IndexParameters(
            dataset=given.dataset, root=given.root, recipe=given.recipe, allow=given.allow
        )
    )
    assert counts["images"] == 6
    assert counts["train"]["images"] == 8
    json.dumps(counts)
