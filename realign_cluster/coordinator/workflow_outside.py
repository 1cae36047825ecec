"""What a workflow uses that it does not make: models, the user's code, a fact service. Looked for before it starts."""

from __future__ import annotations

from pathlib import Path

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.retrieval.choice import UsersCode, pinned_code
from realign_cluster.metrics.verifiers.fact_service import FactService, FactServiceError
from realign_cluster.store.model_files import describe_model
from realign_cluster.workflows.config import RETRIEVERS, WorkflowConfig
from realign_cluster.workflows.jobs import ModelRef
from realign_cluster.workflows.verify import members_of


def pinned(path: str) -> ModelRef:
    """A model from outside by the content of its files. Raises UsageError where it cannot be used."""
    return ModelRef(path=path, hash=describe_model(path).hash)


def pinned_judge(config: WorkflowConfig, config_file: Path, model: ModelRef) -> ModelRef | None:
    """None where no model judges. Raises UsageError for one that is the model that is trained: it would mark its own
    work.
    """
    if "judge" not in members_of(config.verifier):
        return None
    judge = pinned(judge_path(config, config_file))
    if judge.hash == model.hash:
        raise its_own_judge(config_file)
    return judge


def its_own_judge(config_file: Path) -> UsageError:
    return UsageError(
        f"{config_file}: verifier.model is the model that is trained: it would judge its own answers",
        'choose another model for the verifier, or kind = "lexical"',
    )


def judge_path(config: WorkflowConfig, config_file: Path) -> str:
    """The folder of the judge, relative to the config; a hub id where there is no such folder."""
    folder = (config_file.parent / Path(config.verifier.model).expanduser()).absolute()
    return str(folder) if folder.is_dir() else config.verifier.model


def pinned_retriever(config: WorkflowConfig, config_file: Path) -> UsersCode | None:
    """None for BM25. Raises UsageError for code that is not there, fails, or has not what it needs."""
    asked = config.retrieval
    if asked.kind == "bm25":
        return None
    own = asked.kind not in RETRIEVERS
    try:
        return pinned_code("own" if own else "vectors", asked.kind if own else asked.embedder, config_file.parent)
    except UsageError as error:
        key = "kind" if own else "embedder"
        raise UsageError(f"{config_file}: retrieval.{key}: {error.message}", error.fix) from error


def reach_service(config: WorkflowConfig, config_file: Path) -> None:
    """Nothing where none is asked. Raises UsageError for a fact service that does not answer, or is another version."""
    settings = config.verifier.service
    if settings is None:
        return
    try:
        FactService(settings).reach()
    except FactServiceError as error:
        fix = error.fix or "start it, or correct [verifier.service]"
        raise UsageError(f"{config_file}: verifier.service: {error.message}", fix) from error
