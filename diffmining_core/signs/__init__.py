"""Results of one mining run in, signs that they should not be trusted out.

Each sign is a measure of what is stored, a threshold with its reason, and words: what is wrong, the
evidence and what to do. Plain NumPy; sums over shards add up, and nothing grows with the dataset.
"""

from diffmining_core.signs.sign import Sign

__all__ = ["Sign"]

ALGO = "signs-1"
"""Version of the measures and their thresholds; part of their units' keys."""
