"""Translation: images redrawn under other labels, to see how elements change (paper, section 4.3).

In: images with their labels and a finetuned pipeline. Out: the same images under every other label,
element by element in the same places, and what is typical in all of them at once.
"""

ALGO = "translation-2"
"""Version of what decides a translated image, given its source and the model."""
