"""Stable Diffusion pipelines: loading them, their prompts, finetuning them on labelled images."""

ALGO = "finetune-1"
"""Version of finetuning's arithmetic; part of its units' keys."""
