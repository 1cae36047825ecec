"""One pair of daemons per test file: a test that kills one starts it again, so that the next finds both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kit import CurateCluster, output_bytes, write_rows
from tests.cluster.train_kit import SAME, Outcome, TrainCommands, history_of, outcome

TEXT = "a node may stop at any time and the ledger knows what was done before it did so nothing is lost or scored twice"
WORDS = TEXT.split()


def made_rows(count: int) -> list[dict[str, str]]:
    """Questions and answers of very different lengths, none equal."""
    return [
        {
            "prompt": f"Question {index}: "
            + " ".join(WORDS[(index + at) % len(WORDS)] for at in range(3 + index % 17)),
            "response": " ".join(WORDS[(index * 7 + at) % len(WORDS)] for at in range(4 + (index * 13) % 61)),
            "group": str(index % 3),
        }
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CurateCluster]:
    made = CurateCluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start("alpha")
        made.start("beta")
        yield made
    finally:
        made.close()


@pytest.fixture
def pair(cluster: CurateCluster) -> CurateCluster:
    """The cluster with both daemons up."""
    for daemon in cluster.daemons.values():
        if not daemon.running:
            daemon.start()
    return cluster


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", made_rows(700))


@pytest.fixture(scope="session")
def long_rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for a node to be given up, or to come up, while the run goes on."""
    return write_rows(tmp_path_factory.mktemp("rows") / "long.jsonl", made_rows(1500))


class Undisturbed:
    """The output of the same command on the same input when nothing goes wrong, made once per test process."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], dict[str, bytes]] = {}

    def of(self, cluster: CurateCluster, rows: Path, out: Path, *more: str) -> dict[str, bytes]:
        key = (str(rows), *more)
        if key not in self._known:
            done = cluster.run(cluster.command(rows, out, *more))
            assert done.returncode == 0, done.stderr
            self._known[key] = output_bytes(out)
        return self._known[key]


@pytest.fixture(scope="session")
def undisturbed() -> Undisturbed:
    return Undisturbed()


@pytest.fixture(scope="session")
def train_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", made_rows(300))


@pytest.fixture
def commands(pair: CurateCluster) -> Iterator[TrainCommands]:
    with TrainCommands(pair) as started:
        yield started


@pytest.fixture(scope="module")
def calm_training(cluster: CurateCluster, train_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What `train_kit.SAME` comes to when nothing goes wrong."""
    out = tmp_path_factory.mktemp("calm") / "run"
    with TrainCommands(cluster) as commands:
        commands.start(commands.command(train_rows, out, *SAME), out).finish()
    assert len(history_of(out).generations) == 1
    return outcome(out)
