"""What `realign workflow run` was asked for: kept in run.toml."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from realign_cluster.coordinator.train_request import Track
from realign_cluster.coordinator.workflow_jobs import Where
from realign_cluster.workflows.config import Mode


class WorkflowRequest(BaseModel):
    """`mode`: None is what the config says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workflow: str
    config: Path
    out: Path
    mode: Mode | None = None
    reproducible: bool = False
    track: Track = "none"  # of the trainings
    where: Where = Where()

    def anchored(self) -> WorkflowRequest:
        """The same request with absolute paths."""
        hostfile = self.where.hostfile
        where = self.where.model_copy(update={"hostfile": hostfile.expanduser().absolute() if hostfile else None})
        return self.model_copy(
            update={"config": self.config.expanduser().absolute(), "out": self.out.absolute(), "where": where}
        )
