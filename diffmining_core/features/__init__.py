"""Features of patches from the diffusion model itself (DIFT)."""

ALGO = "features-2"
"""Version of this stage's arithmetic; part of its units' keys."""
