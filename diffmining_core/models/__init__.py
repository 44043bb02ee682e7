"""Stable Diffusion pipelines: where they come from, loading them, their prompts."""
