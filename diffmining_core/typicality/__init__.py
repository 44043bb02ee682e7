"""Typicality: per latent position, how much knowing the label helps the model denoise."""

ALGO = "typicality-3"
"""Version of this stage's arithmetic; part of its units' keys."""
