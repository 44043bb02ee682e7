"""Other ways to find what is typical of a label, held against typicality on the same images.

In: the images of dataset shards. Out: what mining goes on with, so that the same patches, page and
truth are measured: maps of numbers per image and label (`clip_ranking`, `saliency`), or patches
with scores (`doersch`, `random_choice`).
"""

SALIENCY_ALGO = "saliency-1"
"""Version of the classifier, its maps and features; here, where planning them needs no torch."""
