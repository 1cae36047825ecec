"""Adding items until a gate passes: what counts as another look, and what is left of alpha for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from realign_cluster.domain.gate import Measurement, Verdict
from realign_cluster.domain.retention import BenchmarkPair
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.course import Decisions, Judged
from realign_cluster.workflows.looks import Place
from realign_cluster.workflows.stage import Context, Outcome, Retained, StageGate
from tests.workflows.made import at_least, config, drive, share, stage, workflow

Measured = Callable[[], Outcome]


def of(measurement: Measurement, **more: object) -> Measured:
    return lambda: Outcome(measurements={"accuracy": measurement}, **more)  # type: ignore[arg-type]


class Run:
    """Sittings of one run, one stage with one gate, which remembers what was looked at as the ledger does."""

    def __init__(self, gate: StageGate | None = None, *, trains: bool = False, asked: WorkflowConfig | None = None):
        self.gate = gate or at_least()
        self.trains = trains
        self.asked = asked or config(attempts=1)
        self.seen: dict[Place, list[str]] = {}

    def judge(self, measured: Measured, seed: int = 0) -> Verdict:
        def body(context: Context) -> Outcome:
            outcome = measured()
            return replace(outcome, model=context.state.model) if self.trains else outcome

        made = workflow(stage(1, body, self.gate, repeats=False))
        before = Decisions(seen={place: tuple(sets) for place, sets in self.seen.items()})
        _, events, _ = drive(made, self.asked.model_copy(update={"seed": seed}), before)
        [judged] = [each for each in events if isinstance(each, Judged)]
        sight = judged.sight
        if sight is not None and sight.new:
            self.seen.setdefault(sight.place, []).append(sight.items)
        return judged.verdict


def test_items_added_after_the_only_look_cannot_make_a_gate_pass() -> None:
    run = Run()
    first = run.judge(of(share("accuracy", 57, 3)))
    assert (first.outcome, first.look, first.looks, first.alpha_each) == ("INSUFFICIENT", 1, 1, 0.05)
    assert first.reason.endswith("; added to these they make look 2 of 1 declared, which cannot pass")
    second = run.judge(of(share("accuracy", 380, 20)))
    assert second.bound is not None
    assert second.bound > 0.9
    assert (second.outcome, second.look) == ("INSUFFICIENT", 2)
    assert second.reason.endswith("but this is look 2 of 1 declared, by other items: nothing is left of alpha")
    assert run.judge(of(share("accuracy", 380, 20))).outcome == "INSUFFICIENT"  # and again: it is still look 2


def test_a_look_beyond_those_declared_can_fail() -> None:
    run = Run()
    losing = run.judge(of(share("accuracy", 52, 8)))
    assert "would show a FAIL" in losing.reason
    assert "cannot pass" not in losing.reason
    assert run.judge(of(share("accuracy", 200, 200))).outcome == "FAIL"


def test_the_same_items_in_any_order_are_the_same_look() -> None:
    run = Run()
    there = share("accuracy", 100, 0)
    back = replace(there, items=there.items[::-1], values=there.values[::-1])
    assert [run.judge(of(each)).outcome for each in (there, back, there)] == ["PASS", "PASS", "PASS"]
    assert run.judge(of(share("accuracy", 101, 0))).look == 2
    assert run.judge(of(there)).look == 1


def test_declared_looks_share_alpha() -> None:
    run = Run(asked=config(attempts=1, looks=2))
    first = run.judge(of(share("accuracy", 29, 0)))  # enough for 5 %, not for half of it
    assert (first.outcome, first.alpha_each, first.looks) == ("INSUFFICIENT", 0.025, 2)
    assert "cannot pass" not in first.reason
    second = run.judge(of(share("accuracy", 40, 0)))
    assert (second.outcome, second.look, second.alpha_each) == ("PASS", 2, 0.025)
    assert run.judge(of(share("accuracy", 400, 0))).outcome == "INSUFFICIENT"


def test_every_attempt_has_its_looks_and_its_part_of_alpha() -> None:
    asked = config(attempts=2, looks=2)
    made = workflow(stage(1, lambda _: of(share("accuracy", 50, 50))(), at_least()))
    judged = [each.verdict for each in drive(made, asked)[1] if isinstance(each, Judged)]
    assert [each.alpha_each for each in judged] == [0.0125, 0.0125]
    # Nothing is trained, so both attempts look at the same model with the same items.
    assert [each.look for each in judged] == [1, 1]


def test_another_model_is_another_candidate() -> None:
    """Models made here are named by their number: the one of the second sitting is another."""
    run = Run(trains=True)
    run.judge(of(share("accuracy", 57, 3)))
    [(stage_name, gate, model)] = run.seen
    assert (stage_name, gate, model) == ("stage1", "accuracy", "model 1")
    run.seen = {(stage_name, gate, "model of before"): run.seen[stage_name, gate, model]}
    found = run.judge(of(share("accuracy", 380, 20)))
    assert (found.outcome, found.look) == ("PASS", 1)


def test_what_judges_the_verifier_looks_at_the_verifier() -> None:
    run = Run(at_least(judges="verifier"), trains=True)
    one = replace(share("accuracy", 57, 3), verifier="one")
    more = replace(share("accuracy", 380, 20), verifier="one")
    assert run.judge(of(one)).look == 1
    assert run.judge(of(more)).look == 2
    assert run.judge(of(replace(more, verifier="other"))).look == 1


def test_what_judges_an_artifact_looks_at_that() -> None:
    """More queries of one index are another look at it; of an index built anew it is the first."""
    run = Run(at_least(judges="index"))
    assert run.judge(of(share("accuracy", 57, 3), artifacts={"index": "a"})).look == 1
    assert run.judge(of(share("accuracy", 380, 20), artifacts={"index": "a"})).look == 2
    assert run.judge(of(share("accuracy", 380, 20), artifacts={"index": "b"})).look == 1


def test_retention_is_looked_at_likewise() -> None:
    def kept(items: int) -> Measured:
        right = (1.0,) * items
        pair = BenchmarkPair(benchmark="b", items=tuple(map(str, range(items))), before=right, after=right, chance=0.25)
        return lambda: Outcome(benchmarks={"b": pair})

    run = Run(StageGate(name="kept", title="kept", rule=Retained(benchmark="b")))
    assert [(each.outcome, each.look) for each in (run.judge(kept(size)) for size in (50, 300, 50))] == [
        ("INSUFFICIENT", 1),
        ("INSUFFICIENT", 2),
        ("INSUFFICIENT", 1),
    ]
    assert Run(run.gate).judge(kept(300)).outcome == "PASS"


def test_nothing_measured_is_no_look() -> None:
    run = Run(asked=config(attempts=1, looks=2))
    nothing = run.judge(lambda: Outcome())
    assert (nothing.outcome, nothing.look, nothing.looks) == ("INSUFFICIENT", 1, 2)
    assert run.seen == {}
    first = run.judge(of(share("accuracy", 100, 0)))
    assert (first.outcome, first.look, first.looks) == ("PASS", 1, 2)
