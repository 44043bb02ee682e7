"""The committed files of infra/, parsed, and the names of Prefect's settings."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prefect.settings.base import PrefectBaseSettings
from pydantic import AliasChoices

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"
POOLS = REPOSITORY / "deployments" / "pools"


def documents(path: Path) -> list[Any]:
    """All YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def compose() -> dict[str, Any]:
    """infra/compose.yaml, its anchors resolved."""
    found: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
    return found


SERVICES_OF_COMPOSE = compose()["services"]


def values(name: str) -> dict[str, Any]:
    """The Helm values of this name in infra/k8s."""
    found: dict[str, Any] = yaml.safe_load((INFRA / "k8s" / f"{name}.values.yaml").read_text())
    return found


def variables(service: dict[str, Any]) -> set[str]:
    """The environment variables of a compose service, those from secrets too."""
    secrets = [secret["target"] for secret in service.get("secrets", ()) if "target" in secret]
    return {*service.get("environment", ()), *secrets}


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file below infra/ that git keeps, and the templates of the pools."""
    ignored = {INFRA / "secrets", INFRA / "data"}
    for path in sorted([*INFRA.rglob("*"), *POOLS.iterdir()]):
        if path.is_file() and path.name != ".env" and not ignored & set(path.parents):
            yield path, path.read_text()


def prefect_names(text: str) -> set[str]:
    """The names of Prefect's settings that a text holds."""
    return set(re.findall(r"\bPREFECT_[A-Z0-9_]+", text))


def known_settings() -> set[str]:
    """The environment variables that this version of Prefect and its integrations know."""
    for module in ("prefect.settings", "prefect_redis.client", "prefect_redis.cleanup_queue",
                   "prefect_kubernetes.settings"):  # fmt: skip
        importlib.import_module(module)  # defines its classes of settings
    found = set()
    for kind in _below(PrefectBaseSettings):
        prefix = kind.model_config.get("env_prefix", "")
        for name, field in kind.model_fields.items():
            found.add(f"{prefix}{name}".upper())
            if isinstance(alias := field.validation_alias, AliasChoices):
                found |= {choice.upper() for choice in alias.choices if isinstance(choice, str)}
    return found


def _below(kind: type[PrefectBaseSettings]) -> Iterator[type[PrefectBaseSettings]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
