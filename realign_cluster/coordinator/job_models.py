"""Adapters and reference that a request names besides its model: by content, and where to send them from."""

from __future__ import annotations

from pathlib import Path

from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.job import Beside, ModelSpec
from realign_cluster.store.adapter_files import describe_adapter
from realign_cluster.store.model_files import describe_model, resolve_model


def open_beside(request: CurateRequest) -> tuple[Beside, tuple[ModelSource, ...]]:
    """Raises UsageError for a folder that is missing or no adapter, or no model."""
    sources: list[ModelSource] = []

    def source(spec: ModelSpec, folder: Path) -> ModelSpec:
        sources.append(ModelSource(folder=folder, spec=spec))
        return spec

    def adapter(path: str | None, option: str) -> ModelSpec | None:
        return source(describe_adapter(path, option), Path(path).expanduser()) if path is not None else None

    reference = request.reference_model
    return (
        Beside(
            adapter=adapter(request.adapter, "--adapter"),
            reference_model=source(describe_model(reference), resolve_model(reference)) if reference else None,
            reference_adapter=adapter(request.reference_adapter, "--reference-adapter"),
        ),
        tuple(sources),
    )
