"""The study of predictability: how well mined patches tell their label, against random ones."""

from __future__ import annotations

from typing import Any

from prefect import flow

from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.embed import embed
from flows.parameters import PredictabilityStudyParameters
from flows.run_ledger import RunLedger
from flows.study.prepared import announce, check, mine_sides, prepare, study_facts
from tasks.report import publish_page
from tasks.selection import kind_digests
from tasks.study_predictability import KINDS, Asked, study_predictability
from tasks.study_sides import studied_numbers


@flow(
    name="study predictability",
    flow_run_name="study predictability {parameters.title}",
    log_prints=True,
)
def study_of_predictability(parameters: PredictabilityStudyParameters) -> dict[str, Any]:
    """Predict labels from the highest, random and lowest patches, no image on both sides.

    Returns the numbers of the page `study-predictability.html` at the root.
    """
    check(parameters)
    root, run = parameters.root, RunLedger()
    prepared = prepare(parameters, run)
    size, first = prepared.geometry.size, parameters.patches
    (mined,) = mine_sides(parameters, prepared, {"typicality": {}}, run).values()
    features = []
    for kind in KINDS:
        with run.stage(f"features of the {kind}"):
            # Not under the label's own prompt, which would tell it.
            changes = {"kind": kind, "first": first, "unlabelled": True}
            digests = kind_digests(root, mined.selection, kind, first)
            of_kind = embed(
                parameters, mined.selection, digests, prepared.model, size, run, changes
            )
        features.append((kind, tuple(of_kind.items())))
    with run.stage("study"):
        asked = Asked(
            title=f"Labels told from patches of {parameters.dataset_name}",
            selection=mined.selection,
            features=tuple(features),
            patches=first,
            seed=parameters.seed,
            size=size,
            facts=study_facts(parameters, prepared),
        )
        plan_stage(open_root(root), asked.unit.stage, [asked.unit.key])
        (done,) = run.add([study_predictability(root, asked)])
        page = publish_page(root, done.key, asked.unit.stage, "study-predictability.html")
    found = studied_numbers(root, done.key)
    announce(parameters, "predictability", found["table"], page)
    return {**found, **run.summary(), "page": page}
