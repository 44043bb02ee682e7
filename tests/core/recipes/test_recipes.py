"""Recipes as they are read: the five, copies of them, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from written_images import own_name, photo, put

from diffmining_core.errors import InputError
from diffmining_core.images.sources import open_source
from diffmining_core.images.sources.layouts import FolderLayout, TableLayout, TarLayout
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.recipes import (
    MINED,
    TRAIN,
    load_recipe,
    plain_recipe,
    recipe_file,
    recipe_names,
)


def test_the_five_are_here() -> None:
    assert recipe_names() == ["cardb", "ftt", "g3", "places", "xray"]


PAPER = {
    "cardb": ("A car from the 1950s.", "A car."),
    "ftt": ("A portrait from the 1950s.", "A portrait."),
    "g3": ("A Google streetview image of 1950.", "A Google streetview image."),
    "places": ("An image of 1950.", ""),
    "xray": ("Chest X-Ray with 1950.", "Chest X-Ray."),
}
OFFICIAL = {  # training, typicality
    "cardb": (("A car from the 1950s.", "A car."), ("A car at the 1950's.", "A car.")),
    "ftt": (("A face portrait of the 1950s.", "A face portrait"), ("1950", "")),
    "g3": (("A google street view image in 1950", "A google street view image"), ("1950", "")),
    "places": (("Image of 1950.", ""), ("Image of 1950.", "")),
    "xray": (
        ("Chest X-Ray with 1950.", "Chest X-Ray."),
        ("Chest X-Ray with 1950.", "Chest X-Ray"),
    ),
}


def pair(prompts: PromptTemplate) -> tuple[str, str]:
    return prompts.of("1950"), prompts.null


@pytest.mark.parametrize("name", PAPER)
def test_prompts_are_the_papers_and_the_released_codes(name: str) -> None:
    recipe = load_recipe(name)
    assert pair(recipe.prompts) == PAPER[name]
    assert pair(recipe.official_training) == OFFICIAL[name][0]
    assert pair(recipe.official_typicality) == OFFICIAL[name][1]


def test_sizes_shares_and_encoders_are_the_papers() -> None:
    recipes = {name: load_recipe(name) for name in recipe_names()}
    assert {n: (r.size, r.patch_size, r.crop) for n, r in recipes.items()} == {
        "cardb": (256, 50, "random"),
        "ftt": (256, 50, "none"),
        "g3": (512, 64, "random"),
        "places": (512, 64, "random"),
        "xray": (512, 64, "none"),
    }
    assert {n: r.null_share for n, r in recipes.items() if r.null_share != 0.05} == {"ftt": 0.10}
    assert {n: r.t_range for n, r in recipes.items() if r.t_range != (0.1, 0.7)} == {
        "xray": (0.0, 1.0)
    }
    encoders = {name: recipe.text_encoder for name, recipe in recipes.items()}
    assert encoders.pop("g3") == "geolocal/StreetCLIP"
    assert set(encoders.values()) == {"openai/clip-vit-large-patch14-336"}
    assert {n: (r.finetune_steps, r.finetune_batch) for n, r in recipes.items()} == {
        "cardb": (None, 64),
        "ftt": (12_610, 64),
        "g3": (64_542, 8),
        "places": (112_716, 8),
        "xray": (None, 8),
    }
    assert {recipe.model for recipe in recipes.values()} == {f"diff-mining/{n}" for n in recipes}
    assert {n for n, r in recipes.items() if r.trains_on_others} == {"g3", "places", "xray"}


def test_streets_say_the_region_in_a_tenth_of_the_training() -> None:
    prompts = load_recipe("g3").prompts
    assert prompts.detailed_share == 0.10
    said = prompts.of_detail(["Italy"], "Lazio")
    assert said == "A Google streetview image of Italy, in the region of Lazio."


def test_findings_are_said_in_words_and_joined() -> None:
    prompts = load_recipe("xray").prompts
    assert prompts.of("Mass", "Pleural_Thickening") == "Chest X-Ray with Mass, Pleural Thickening."
    assert prompts.of("No Finding") == "Chest X-Ray with no finding."
    assert load_recipe("xray").official_training.of("No Finding").endswith("with no finding.")


def test_nested_scenes_are_said_parent_first_and_in_official_training_child_first() -> None:
    recipe = load_recipe("places")
    label = "apartment_building_outdoor"
    assert recipe.prompts.of(label) == "An image of apartment building outdoor."
    assert recipe.official_typicality.of(label) == "Image of apartment building outdoor."
    assert recipe.official_training.of(label) == "Image of outdoor apartment building."
    assert recipe.official_training.of("airfield") == "Image of airfield."
    assert len(recipe.official_training.words) == 75


def test_a_dataset_without_a_recipe_is_mined_with_the_defaults() -> None:
    recipe = plain_recipe()
    assert recipe.layout(MINED) is recipe.layout(TRAIN) is None
    assert recipe.prompts == recipe.official_training == PromptTemplate()
    assert (recipe.size, recipe.patch_size, recipe.crop) == (None, None, "random")
    assert (recipe.null_share, recipe.t_range) == (0.05, (0.1, 0.7))


def test_one_layout_serves_both_splits_or_each_has_its_own() -> None:
    faces, scenes = load_recipe("ftt"), load_recipe("places")
    assert faces.layout(MINED) is faces.layout(TRAIN) is not None
    assert isinstance(scenes.layout(MINED), TableLayout)
    assert isinstance(scenes.layout(TRAIN), FolderLayout)


def test_a_recipe_may_say_what_is_what_in_tars(tmp_path: Path) -> None:
    file = tmp_path / "captions.toml"
    text = 'title = "Captions"\n[layouts.all]\nkind = "tars"\n'
    file.write_text(f'{text}image = "rgb.png"\nlabel = "txt"\n')
    assert load_recipe(str(file)).layout(MINED) == TarLayout(image="rgb.png", label="txt")
    file.write_text(f'{text}label = "caption"\n')
    with pytest.raises(InputError, match=r"`layouts.all.label`"):
        load_recipe(str(file))


@pytest.mark.parametrize("name", ["cardb", "ftt", "g3", "places", "xray"])
def test_a_copy_of_a_recipe_is_a_recipe(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "mine.toml"
    copy.write_text(recipe_file(name).read_text(encoding="utf-8"))
    recipe = load_recipe(str(copy))
    assert (recipe.name, recipe.file) == ("mine", copy)
    assert recipe.layouts == load_recipe(name).layouts


WRONG = {
    "title = 'x'\n[images]\nsize = 'large'": "`images.size`: .*valid integer.*large",
    "title = 'x'\n[images]\nsize = 8": "`images.size`: input should be greater than.* 32, but is 8",
    "title = 'x'\n[images]\ncolour = 8": "`images.colour`: there is no such field",
    "[images]": "`title`: is needed",
    "title = 'x'\n[prompts]\nconditioned = 'hi'": r"must hold \{label\}",
    "title = 'x'\n[typicality]\nt_range = [0.7, 0.1]": r"must rise, but is \[0.7, 0.1\]",
    "title = 'x'\n[layouts.mined]\nkind = 'folders'": "both `mined` and `train`, but has `mined`",
    "title = 'x'\n[layouts.all]\nkind = 'heap'": "`layouts.all`: .*'folders', 'table'",
    "title = 'x'\n[layouts.all]\nkind = 'folders'\nskips = 1": "`layouts.all.skips`: there is no",
    "title = 'x'\n[layouts.all]\nkind = 'table'\nlabel = 'x'": "`layouts.all.table`: is needed; ",
    "title = ": "is no TOML file",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_a_recipe_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=WRONG[text]) as caught:
        load_recipe(str(tmp_path / "mine.toml"))
    assert str(caught.value).startswith(f"recipe {tmp_path / 'mine.toml'}")
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_refused_with_the_names_of_those_there_are() -> None:
    said = "there is no recipe 'plces': give one of cardb, ftt, g3, places, xray, or the path"
    with pytest.raises(InputError, match=re.escape(said)):
        load_recipe("plces")


def test_the_worked_example_of_the_documentation_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(toml|text)\n((?:file;|title).*?)```", text, re.S))
    (tmp_path / "paintings.toml").write_text(blocks["toml"], encoding="utf-8")
    (tmp_path / "paintings.csv").write_text(blocks["text"], encoding="utf-8")
    for number in (1, 2):
        put(str(tmp_path), f"scans/000{number}.jpg", photo(number))
    recipe = load_recipe(str(tmp_path / "paintings.toml"))
    (shard,) = open_source(str(tmp_path), recipe.layout(MINED)).plan([], 10).new
    assert sorted((own_name(row.uri), row.label, row.detail) for row in shard.images) == [
        ("0001.jpg", "Anna Ancher", "a blue room"),
        ("0002.jpg", "Anna Ancher", "a beach"),
        ("0002.jpg", "Michael Ancher", "a beach"),
    ]


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_text('title = "P"\n', encoding="utf-8-sig")
    assert load_recipe(str(tmp_path / "bom.toml")).title == "P"
