"""What a root holds, for comparing roots and runs."""

from __future__ import annotations

from pathlib import Path

from diffmining_core.store.ledger import Manifest, read_manifests, stages
from diffmining_core.store.roots import open_root


def manifests(root: Path | str) -> dict[str, Manifest]:
    """All published units by stage/key."""
    opened = open_root(str(root))
    return {
        manifest.unit: manifest
        for stage in stages(opened)
        for manifest in read_manifests(opened, stage)
    }


def results(root: Path | str) -> dict[str, dict[str, str]]:
    """The sha256 of every file of every published unit: equal for byte-identical results."""
    return {
        unit: {name: record["sha256"] for name, record in manifest.files.items()}
        for unit, manifest in manifests(root).items()
    }


def results_of(root: Path | str, *stages_wanted: str) -> dict[str, dict[str, str]]:
    """The results of some stages."""
    return {
        unit: files for unit, files in results(root).items() if unit.split("/")[0] in stages_wanted
    }


def attempts(root: Path) -> dict[str, int]:
    """How many attempts each unit of a local root has had."""
    counts: dict[str, int] = {}
    for attempt in root.glob("*/*/attempt-*"):
        unit = attempt.parent.relative_to(root).as_posix()
        counts[unit] = counts.get(unit, 0) + 1
    return counts
