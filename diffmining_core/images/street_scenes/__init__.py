"""The built-in dataset: drawn street scenes of five invented countries, their truth known.

In: a seed. Out: pictures in which each country's typical elements (a roof, and three of windows,
shop sign, mailbox, lamp and car plate) stand at known boxes among things common to all.
"""

from __future__ import annotations

from diffmining_core.images.street_scenes.catalogue import COUNTRIES, ELEMENTS
from diffmining_core.images.street_scenes.dataset import TRUTH_SCHEMA, write_dataset
from diffmining_core.images.street_scenes.scene import Box, Scene, caption, draw_scene

__all__ = [
    "COUNTRIES",
    "ELEMENTS",
    "TRUTH_SCHEMA",
    "Box",
    "Scene",
    "caption",
    "draw_scene",
    "write_dataset",
]
