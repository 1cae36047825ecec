"""The page of a training run: self-contained, well formed, and it says what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.coordinator.train_history import TrainHistory, read_train_history
from realign_cluster.coordinator.train_report import render_train_report, write_train_report
from realign_cluster.store.run_folder import to_toml
from realign_cluster.store.train_ledger import TrainLedgerReader

from .made_training import MadeTraining
from .test_report import read_page

SETTINGS = {"method": "sft", "fine_tune": "lora", "steps": 40}


def summary_of(history: TrainHistory, **more: Any) -> dict[str, Any]:
    """As train_finish writes it, as far as the page reads it."""
    return {
        "state": "complete",
        "steps": {"asked": 40, "done": len(history.steps)},
        "tokens": 800 * len(history.steps),
        "nodes": history.nodes_summary(),
        "validation": history.validation_summary(),
        "versions": {"nodes": {"a": {"chip": "Apple M4 Max"}, "b": {"chip": "Apple M3 Ultra"}}},
        **more,
    }


def page_of(history: TrainHistory, *, plan: dict[str, Any] | None = None, **more: Any) -> str:
    record = {"command": "realign train --data x", "request": {"model": "tiny", "settings": SETTINGS}}
    return render_train_report("first", history, summary=summary_of(history, **more), plan=plan or {}, record=record)


def words_of(page: str) -> str:
    return " ".join(" ".join(read_page(page).text).split())


@pytest.fixture
def killed(tmp_path: Path) -> MadeTraining:
    """40 steps with a rank killed after the 28th."""
    run = MadeTraining(tmp_path / "run", steps=40)
    run.ready("ab")
    run.goes()
    run.evaluate(0)
    run.train(28)
    run.evaluate(20)
    run.now += 0.25
    run.exits("b")
    run.obeys("a")
    run.goes()
    run.train(40, first=26)
    run.evaluate(40)
    run.all_done(40)
    return run


def test_a_kill_and_what_it_cost_are_on_the_page(killed: MadeTraining):
    page = page_of(killed.history())
    text = words_of(page)
    for said in (
        "40 of 40 steps of sft , lora of tiny",
        "generation 2 goes on from step 25: the rank on b exited: killed by signal 9",
        "lost or given up, then done again",
        "generation 1 cannot go on: the rank on b exited: killed by signal 9",
        "to generation 1 (cold start)",
        "best validation loss, after step 40",
        "Apple M3 Ultra",
        "Checkpoints in the run folder: 20, 40.",
    ):
        assert said in text, said
    assert page.count('class="lost ring"') == 3 + 1  # three steps, and the legend
    assert "lost or given up: at step 26" in text


def test_a_takeover_has_its_phases_in_seconds(killed: MadeTraining):
    page = page_of(killed.history())
    row = page[page.index("to generation 2</td>") :].split("</tr>")[0]
    assert "0.25 s" in row  # noticed
    assert "2.00 s" in row  # loaded
    assert "<b>3.75 s</b>" in row  # all, to the first step
    assert row.endswith("<td class=r>3</td>")  # steps lost


def test_a_run_without_trouble_has_no_section_about_it(tmp_path: Path):
    run = MadeTraining(tmp_path / "run", steps=40)
    run.ready("ab")
    run.goes()
    run.train(40)
    run.all_done(40)
    text = words_of(page_of(run.history()))
    assert "What taking over cost" not in text
    assert "lost or given up" not in text
    assert "best validation loss" not in text
    assert "1 generation of ranks" in text
    assert "all steps are done" in text


def test_going_back_for_the_divergence_is_shown_with_what_was_given_up(tmp_path: Path):
    run = MadeTraining(tmp_path / "kl", steps=40, kl_budget=0.1)
    run.ready("ab")
    run.goes()
    run.train(20)
    run.diverge(20, 0.05)
    run.train(30, first=21)
    run.diverge(30, 0.2)
    run.obeys("ab")
    run.arrive()
    run.goes()
    run.train(22, first=21)
    record = {"request": {"settings": {"kl": {"budget": 0.1}}}}
    page = render_train_report("kl", run.history(), summary={"state": "incomplete"}, plan={}, record=record)
    text = words_of(page)
    assert "Divergence from the base model" in text
    assert "budget 0.1" in text
    assert "KL, given up, at step 30: 0.2" in text
    assert "back to step 20 with half the learning rate and twice the beta" in text


def test_pairs_and_benchmarks_have_their_curves(tmp_path: Path):
    run = MadeTraining(tmp_path / "run", steps=40, metrics={"accuracy": 0.75, "margin": 1.5})
    run.ready("ab")
    run.goes()
    run.evaluate(0, **{"benchmark/sums": 0.25})
    run.train(10)
    run.evaluate(10, **{"benchmark/sums": 0.5})
    text = words_of(page_of(run.history()))
    assert "Chosen against rejected" in text
    assert "sums: 0.25 before, 0.5 now" in text


def test_the_plan_is_held_against_what_was_measured(killed: MadeTraining):
    text = words_of(page_of(killed.history(), plan={"why": ["one copy fits on every node"], "step_seconds": 0.25}))
    assert "one copy fits on every node" in text
    assert "planned 250 ms a step, measured 500 ms (the median)" in text


def test_what_comes_from_outside_is_text_and_never_markup(tmp_path: Path):
    attack = "<script>alert(1)</script>"
    run = MadeTraining(tmp_path / "run", steps=40)
    run.ready("ab")
    run.goes()
    run.evaluate(0, **{f"benchmark/{attack}": 1.0})
    run.train(3)
    run.could_not_keep(attack, 3)
    run.exits("b", attack)
    run.fails("a", "peer", attack)
    page = page_of(run.history(), plan={"why": [attack]}, reason=attack, state=attack, versions={attack: attack})
    assert "<script" not in page
    read_page(page)


def test_a_run_that_never_began_has_a_page(tmp_path: Path):
    run = MadeTraining(tmp_path / "run")
    assert "0 of 0 steps" in words_of(render_train_report("x", run.history(), summary={}, plan={}, record={}))


def test_the_page_is_made_from_the_folder_alone(killed: MadeTraining, tmp_path: Path):
    history = killed.history()
    folder = tmp_path / "run"
    (folder / "run.toml").write_text(to_toml({"command": "realign train", "request": {"model": "tiny"}}))
    (folder / "summary.json").write_bytes(orjson.dumps(summary_of(history)))
    path = write_train_report(folder, read_train_history(TrainLedgerReader(folder / "ledger.sqlite")))
    assert "40 of 40 steps" in words_of(path.read_text())
