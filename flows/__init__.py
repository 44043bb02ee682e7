"""Prefect flows, one file per thing a person asks for, and the command line."""

import os
from uuid import UUID

from diffmining_core.proxies import never_proxy_loopback
from diffmining_core.secrets import keep_secrets_out_of_logs

keep_secrets_out_of_logs()
never_proxy_loopback()  # before Prefect makes its clients

if run_id := os.environ.get("PREFECT__FLOW_RUN_ID"):  # a worker has started this process for a run
    from flows.orphans import look_after

    look_after(UUID(run_id))
