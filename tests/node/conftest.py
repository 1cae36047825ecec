from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster_kit import DaemonProcess, TestCluster


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    with TestCluster(tmp_path_factory.mktemp("shared")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared_daemon(shared_cluster: TestCluster) -> DaemonProcess:
    """One that no test of the module kills."""
    return shared_cluster.start("studio", environment={"REALIGN_FAULTS": "1"})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TestCluster]:
    with TestCluster(tmp_path) as cluster:
        yield cluster
