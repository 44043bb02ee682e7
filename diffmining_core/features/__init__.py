"""Features of patches from the diffusion model itself (DIFT)."""

ALGO = "features-1"
"""Version of this stage's arithmetic; part of its units' keys."""
