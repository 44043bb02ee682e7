"""Recipes: all that is particular to a dataset, as data that can be read, copied and changed.

In: the name of a recipe here, or the path of a TOML file such as those beside this one. Out: its
labels, prompts, sizes and layout.
"""

from __future__ import annotations

from diffmining_core.recipes.recipe import (
    MINED,
    TRAIN,
    Download,
    Recipe,
    load_recipe,
    plain_recipe,
    recipe_file,
    recipe_names,
)

__all__ = [
    "MINED",
    "TRAIN",
    "Download",
    "Recipe",
    "load_recipe",
    "plain_recipe",
    "recipe_file",
    "recipe_names",
]
