"""The study of clusters: how many, k-means against merged groups against HDBSCAN."""

from __future__ import annotations

from typing import Any

from prefect import flow

from diffmining_core.report.study_clusters import HDBSCAN, KMEANS, MERGED, Way
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.embed import embed
from flows.parameters import ClusterStudyParameters
from flows.run_ledger import RunLedger
from flows.study.prepared import announce, check, mine_sides, prepare, study_facts
from tasks.report import publish_page
from tasks.selection import label_digests
from tasks.study_clusters import ClustersStudy, study_clusters
from tasks.study_sides import studied_numbers


@flow(name="study clusters", flow_run_name="study clusters {parameters.title}", log_prints=True)
def study_of_clusters(parameters: ClusterStudyParameters) -> dict[str, Any]:
    """Cluster the highest patches of each label in several ways, and measure each.

    Returns the numbers of the page `study-clusters.html` at the root.
    """
    check(parameters)
    root, run = parameters.root, RunLedger()
    prepared = prepare(parameters, run)
    size = prepared.geometry.size
    (mined,) = mine_sides(parameters, prepared, {"typicality": {}}, run).values()
    digests = label_digests(root, mined.selection)
    with run.stage("features"):
        embedded = embed(parameters, mined.selection, digests, prepared.model, size, run)
    numbers, finer = parameters.numbers(), parameters.merged_from()
    as_mined, dense = parameters.k, parameters.least_members[0]
    least = ", ".join(map(str, parameters.least_members))
    with run.stage("study"):
        study = ClustersStudy(
            title=f"Clusters in {parameters.dataset_name}",
            truth=prepared.truth,
            features=tuple(embedded.items()),
            ways=(
                *(Way(KMEANS, k) for k in numbers),
                *(Way(MERGED, k) for k in numbers),
                *(Way(HDBSCAN, members) for members in sorted(set(parameters.least_members))),
            ),
            shown=(Way(KMEANS, as_mined), Way(MERGED, as_mined), Way(HDBSCAN, dense)),
            finer=finer,
            size=size,
            facts={
                **study_facts(parameters, prepared),
                "clusters": {
                    "k-means": numbers,
                    "merged": f"average linkage of the means of {finer} times as many groups",
                    "HDBSCAN": f"clusters of at least {least}",
                    "shown": f"{as_mined} by k-means and merged, HDBSCAN of at least {dense}",
                },
            },
        )
        plan_stage(open_root(root), study.unit.stage, [study.unit.key])
        (done,) = run.add([study_clusters(root, study)])
        page = publish_page(root, done.key, study.unit.stage, "study-clusters.html")
    found = studied_numbers(root, done.key)
    announce(parameters, "clusters", found["table"], page)
    return {**found, **run.summary(), "page": page}
