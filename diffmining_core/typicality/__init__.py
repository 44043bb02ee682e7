"""Typicality: per latent position, how much knowing the label helps the model denoise."""

ALGO = "typicality-2"
"""Version of this stage's arithmetic; part of its units' keys."""
