"""Prefect tasks, one file per stage: unit keys, retries, names and artifacts; no arithmetic."""
