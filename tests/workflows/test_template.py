"""What `init` writes is a workflow that passes every check that is made before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.coordinator.workflow_record import data_files
from realign_cluster.domain.errors import UsageError
from realign_cluster.workflows.config import read_config
from realign_cluster.workflows.intake import check_data
from realign_cluster.workflows.tables import WORKFLOWS, workflow_named
from realign_cluster.workflows.template import write_template
from realign_cluster.workflows.thresholds import check_thresholds


@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_can_be_run_as_it_is(name: str, tmp_path: Path) -> None:
    *_, path = write_template(name, tmp_path / "made")
    config = read_config(path)
    check_thresholds(workflow_named(name, config), config, path)
    check_data(name, config, data_files(config, path))
    assert len(workflow_named(name, config).stages) == 7


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        list(write_template("source-attribution", tmp_path))


def test_a_misspelt_name_gets_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'source-attribution'"):
        list(write_template("source-atribution", tmp_path / "made"))
