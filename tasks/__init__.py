"""Prefect tasks, one file per stage: unit keys, retries, names and artifacts; no arithmetic."""

from diffmining_core.secrets import keep_secrets_out_of_logs

keep_secrets_out_of_logs()  # in every process that runs a task, whoever started it
