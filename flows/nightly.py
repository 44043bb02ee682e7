"""Mine what has come to a dataset since the night before, and publish a digest of what is new."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from diffmining_core.recipes import MINED, TRAIN
from diffmining_core.report.digest import NIGHT_FORMAT
from diffmining_core.results.references import results_of, summarised_report
from diffmining_core.store.ledger import Manifest, finished
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import canonical_json
from flows.checks import check_inputs
from flows.mine import mine
from flows.parameters import NightlyParameters
from tasks import finetune
from tasks.digest import (
    NightOptions,
    digest,
    digest_markdown,
    night_report,
    nights,
    publish_nights,
    read_digest,
)
from tasks.evaluation import truth_digest, truth_file
from tasks.index import Listing, listing
from tasks.models import base_model
from tasks.report import publish_page
from tasks.webhook import send_digest


def tonight() -> str:
    """The name of this night: when its run was to start, so that a retry is of the same night."""
    begins: datetime = flow_run.scheduled_start_time
    return begins.astimezone(UTC).strftime(NIGHT_FORMAT)


def _run_name() -> str:
    return f"nightly {flow_run.parameters['parameters'].title} {tonight()}"


@flow(name="nightly", flow_run_name=_run_name, log_prints=True)
def nightly(parameters: NightlyParameters, shard: str = "") -> dict[str, Any]:
    """Mine what is new, and publish the night's digest: page, artifact and message.

    A night that finds nothing new measures nothing. One that was interrupted is gone on with:
    "new" is what the last night's digest does not tell of, wherever the run ended.

    Args:
        parameters: What is mined each night, and how its digest is told.
        shard: Address of the shard whose landing started this run, if one did; only said.
    """
    logger = get_run_logger()
    night, root = tonight(), parameters.root
    if shard:
        logger.info("Started because %s has landed", shard)
    check_inputs(parameters)
    asked = asked_of_mining(parameters)
    published = nights(root)
    last = published[-1] if published else None
    computed: dict[str, int] = {}
    if last and is_told(parameters, asked, last):
        logger.info("Nothing new: dataset and settings are those of the last night")
        report = night_report(last)
    else:
        summary = mine(parameters.mining())
        report, computed = summary["report"], summary["computed"]

    options = NightOptions(asked, parameters.gpu_hour_price, parameters.currency)
    done = digest(root, night, parameters.dataset_name, report, options)
    page = publish_nights(root, parameters.dataset_name, night)
    publish_page(root, report)  # which leads to the nights, now that there are some
    told = read_digest(root, done.key)
    logger.info("%s The page of the night is %s", told.row().sentence, page)
    create_markdown_artifact(
        digest_markdown(root, done.key, page), key="nightly", description=told.row().sentence
    )
    message = None
    if parameters.webhook:
        sent = send_digest(root, night, told, page, flow_run.ui_url, parameters.webhook)
        message = sent.sentence
        (logger.info if sent.arrived else logger.warning)("%s", message)
    return {
        "night": night,
        "said": told.row().sentence,
        "page": page,
        "report": report,
        "computed": computed,
        "message": message,
        "shard": shard,
        **asdict(told.row()),
    }


def asked_of_mining(parameters: NightlyParameters) -> str:
    """Digest of all that mining was asked beside the images: options, recipe, model and truth."""
    truth = truth_file(parameters.dataset)
    content = {
        "parameters": parameters.mining().model_dump(mode="json"),
        "settings": repr(parameters.settings()),
        "model": base_model(parameters.model_source()).digest,
        "start": base_model(parameters.start_source()).digest,
        "truth": truth_digest(truth) if truth else None,
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def is_told(parameters: NightlyParameters, asked: str, last: Manifest) -> bool:
    """Whether the last night tells of all that there is, so that nothing is left to mine."""
    return (
        parameters.mode == "resume"
        and last.parameters["asked"] == asked
        and summarised_report(open_root(parameters.root)) == night_report(last)
        and new_listing(parameters, last) is None
    )


def new_listing(parameters: NightlyParameters, last: Manifest | None) -> Listing | None:
    """What the dataset lists now, None if the last night's results are of the same images.

    No image is read. Where another split is trained on, it counts if the model is to follow it.
    """

    def listed(split: str) -> Listing:
        return listing(
            parameters.root, parameters.dataset, parameters.recipe, split, parameters.allow
        )

    found = listed(MINED)
    if last is None:
        return found
    results = results_of(open_root(parameters.root), night_report(last))
    if found.shards != results.dataset:
        return found
    if parameters.retrain and results.finetune and parameters.chosen_recipe().trains_on_others:
        trained = listed(TRAIN)
        opened = open_root(parameters.root)
        seen = set(finished(opened, finetune.STAGE, results.finetune).inputs[1:])
        if trained.shards is None or {one.content_id for one in trained.shards} != seen:
            return trained
    return None
