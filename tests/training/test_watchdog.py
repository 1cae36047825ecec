"""What a rank says while it gets further, and that its process ends where it does not."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from realign_cluster.domain.rank_report import RankReport, Section
from realign_cluster.domain.section_limits import SectionLimits
from realign_cluster.training import watchdog as watchdog_module
from realign_cluster.training.watchdog import HANG_EXIT, Watchdog

LIMITS = SectionLimits(least_seconds=0.5)


def test_pieces_of_a_section_are_said_with_how_long_the_next_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "SAY_SECONDS", 0.0)
    said: list[RankReport] = []
    watch = Watchdog(said.append, LIMITS)
    watch.enter("evaluate", 3, work=100)
    time.sleep(0.3)
    watch.enter("evaluate", 3)
    watch.enter("evaluate", 3, work=200)
    watch.written()  # beside what the training does: no progress of the evaluation
    watch.stop()
    sections = [report for report in said if isinstance(report, Section)]
    assert [(section.section, section.step) for section in sections] == [("evaluate", 3)] * 3
    first, second, third = (section.patience_seconds for section in sections)
    assert first == LIMITS.first_piece_seconds
    assert 0.9 <= second < 3.0
    assert third == pytest.approx(2 * second)


def test_what_a_writing_thread_gets_done_counts_where_the_training_waits_for_it() -> None:
    said: list[RankReport] = []
    watch = Watchdog(said.append, LIMITS.model_copy(update={"write_seconds": 0.6}))
    watch.enter("save", 3)
    for _ in range(4):
        time.sleep(0.3)
        watch.written()
    watch.stop()
    assert all(isinstance(report, Section) for report in said)


def test_a_process_without_progress_in_an_evaluation_ends() -> None:
    code = (
        "import time\n"
        "from realign_cluster.domain.section_limits import SectionLimits\n"
        "from realign_cluster.training.watchdog import Watchdog\n"
        "def say(report): print(report.model_dump_json(), flush=True)\n"
        "watch = Watchdog(say, SectionLimits(least_seconds=0.5))\n"
        "for _ in range(3):\n"
        "    watch.enter('evaluate', 3)\n"
        "    time.sleep(0.05)\n"
        "watch.enter('evaluate', 3)\n"
        "time.sleep(30)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=False)
    assert ended.returncode == HANG_EXIT
    assert "no progress in section evaluate for 0." in ended.stdout.splitlines()[-1]
