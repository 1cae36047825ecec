"""Whole ranks as real processes: trajectories that do not depend on who computes, restarts to the bit, honest ends."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import pytest

from realign_cluster.domain.rank_report import (
    Diverged,
    Ended,
    Evaluated,
    Failed,
    Joined,
    Kept,
    Loaded,
    ReferenceRows,
    Section,
    StepDone,
)
from realign_cluster.domain.section_limits import SectionLimits
from realign_cluster.domain.world import StatePart, WorldPlan
from realign_cluster.store.state_part import data_path, list_parts
from realign_cluster.training.lifeline import SILENCE_EXIT
from tests.fixtures import models
from tests.fixtures.models import make_model
from tests.training.rank_driver import ROOT, Crew, prepared_job, replicas, single
from tests.training.test_masks import ABSOLUTE

INSTRUCTIONS = ROOT / "examples" / "data" / "instructions.jsonl"
PREFERENCES = ROOT / "examples" / "data" / "preferences.jsonl"


@pytest.fixture
def some_rows(tmp_path: Path) -> tuple[Path, Path]:
    """Forty rows to learn from, eight others to evaluate on."""
    lines = INSTRUCTIONS.read_text().splitlines(keepends=True)
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    train.write_text("".join(dict.fromkeys(lines[:60])))
    valid.write_text("".join([line for line in dict.fromkeys(lines[60:]) if line not in lines[:60]][:8]))
    return train, valid


class TestTrajectory:
    @pytest.fixture(scope="class")
    @classmethod
    def alone(cls, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
        folder = tmp_path_factory.mktemp("alone")
        job = prepared_job(folder, INSTRUCTIONS, steps=10, global_batch=16)
        with Crew(folder, job, single()) as crew:
            crew.go()
            crew.finish()
            return crew.losses()

    @pytest.mark.parametrize("shares", [pytest.param((1, 1), marks=pytest.mark.soak), (65, 35), (50, 30, 20)])
    def test_it_does_not_depend_on_ranks_and_shares(
        self, tmp_path: Path, alone: list[float], shares: tuple[float, ...]
    ) -> None:
        job = prepared_job(tmp_path, INSTRUCTIONS, steps=10, global_batch=16)
        with Crew(tmp_path, job, replicas(*shares)) as crew:
            crew.go()
            ends = crew.finish()
            assert len({end.digest for end in ends}) == 1
            assert crew.losses() == pytest.approx(alone, abs=1e-4)
            done = [rank.all(StepDone) for rank in crew.ranks]
            assert sum(steps[0].own_tokens for steps in done) == done[0][0].tokens
            asked = shares[0] / sum(shares)
            own = sum(step.own_tokens for step in done[0]) / sum(step.tokens for step in done[0])
            assert own == pytest.approx(asked, abs=0.1)

    @pytest.mark.soak
    @pytest.mark.timeout(3600)
    def test_three_hundred_steps_do_not_depend_on_ranks_and_shares(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """At a rate at which much is learned: differences of summation order have every chance to grow."""
        job = prepared_job(
            tmp_path, INSTRUCTIONS, steps=300, global_batch=16, optimizer={"learning_rate": 1e-3, "warmup_steps": 20}
        )
        losses = {}
        for shares in ((1,), (65, 35), (50, 30, 20)):
            world = single() if len(shares) == 1 else replicas(*shares)
            with Crew(tmp_path / str(len(shares)), job, world, data=tmp_path / "data") as crew:
                crew.go()
                for rank in crew.ranks:
                    rank.until(Ended, seconds=1200.0)
                losses[shares] = crew.losses()
        alone = losses.pop((1,))
        assert len(alone) == 300
        assert sum(alone[-20:]) < 0.8 * sum(alone[:20])
        for shares, found in losses.items():
            furthest = max(abs(one - other) for one, other in zip(alone, found, strict=True))
            with capsys.disabled():
                print(f"\n{shares}: losses within {furthest:.1e} over 300 steps, {alone[0]:.2f} to {alone[-1]:.2f}")
            assert furthest < 5e-3, shares

    @pytest.mark.soak
    def test_pipelines_of_unequal_stages_train_the_same(self, tmp_path: Path, alone: list[float]) -> None:
        job = prepared_job(tmp_path, INSTRUCTIONS, steps=3, global_batch=16, optimizer={"schedule": "constant"})
        losses = {}
        world = WorldPlan(parallel="pipeline", nodes=("alpha", "beta"), shares=(0.3, 0.7), layers=((0, 1), (1, 3)))
        for name, plan in (("single", single()), ("pipeline", world)):
            with Crew(tmp_path / name, job, plan, data=tmp_path / "data") as crew:
                crew.go()
                crew.finish()
                losses[name] = crew.losses()
        assert losses["pipeline"] == pytest.approx(losses["single"], abs=1e-5)

    @pytest.mark.parametrize(
        ("method", "first"), [("dpo", 0.693147), pytest.param("ipo", 25.0, marks=pytest.mark.soak)]
    )
    def test_reference_is_computed_once_and_shared(self, tmp_path: Path, method: str, first: float) -> None:
        job = prepared_job(tmp_path, PREFERENCES, method=method, steps=3, global_batch=8)
        with Crew(tmp_path, job, replicas(70, 30)) as crew:
            crew.go()
            crew.finish()
            assert crew.losses()[0] == pytest.approx(first, abs=1e-4)
            losses = crew.losses()
            rows = [row for rank in crew.ranks for said in rank.all(ReferenceRows) for row in said.rows]
        assert [row for row, _, _ in rows] == list(range(len(PREFERENCES.read_text().splitlines())))
        with Crew(tmp_path / "again", job, replicas(30, 70), data=tmp_path / "data") as crew:
            for rank in crew.ranks:
                rank.tell({"op": "reference", "rows": rows})
            crew.go()
            crew.finish()
            assert not any(rank.all(ReferenceRows) for rank in crew.ranks)
            assert crew.losses() == pytest.approx(losses, abs=1e-5)


class TestStates:
    def test_a_restart_is_identical_to_the_bit(self, tmp_path: Path) -> None:
        settings = {"steps": 8, "global_batch": 8, "snapshot_every": 1, "reproducible": True}
        job = prepared_job(tmp_path, INSTRUCTIONS, adapter={"dropout": 0.1}, **settings)
        with Crew(tmp_path, job, replicas(60, 40)) as crew:
            crew.go()
            wanted, losses = crew.finish()[0].digest, crew.losses()
        for folder in tmp_path.glob("state-*"):
            shutil.rmtree(folder)
        with Crew(tmp_path, job, replicas(60, 40)) as crew:
            crew.go()
            crew.ranks[0].until(Kept)
            crew.ranks[0].until(StepDone, step=4)
            crew.ranks[1].kill()
            while (report := crew.ranks[0].hear()) is not None:
                said = report
            assert isinstance(said, Failed)
            assert (said.code, said.fatal) == ("peer", False)
        part = _newest_of_both(tmp_path)
        with Crew(tmp_path, job, replicas(60, 40), generation=2, start=(part,)) as crew:
            crew.go()
            assert crew.finish()[0].digest == wanted
            assert crew.losses() == losses[part.step :]

    def test_a_damaged_state_is_not_loaded(self, tmp_path: Path, some_rows: tuple[Path, Path]) -> None:
        job = prepared_job(tmp_path, some_rows[0], steps=2, global_batch=4, snapshot_every=1)
        with Crew(tmp_path, job, single()) as crew:
            crew.go()
            crew.finish()
        part = max(list_parts(tmp_path / "state-0"), key=lambda part: part.step)
        file = data_path(tmp_path / "state-0", part)
        damaged = bytearray(file.read_bytes())
        damaged[-5] ^= 1
        file.write_bytes(damaged)
        with Crew(tmp_path, job, single(), generation=2, start=(part,)) as crew:
            failed = _failure(crew)
        assert (failed.code, failed.fatal) == ("state", False)
        assert part.name in failed.message

    def test_asked_to_stop_all_stop_after_the_same_step_with_a_checkpoint(self, tmp_path: Path) -> None:
        job = prepared_job(tmp_path, INSTRUCTIONS, steps=10_000, global_batch=4)
        with Crew(tmp_path, job, replicas(1, 1)) as crew:
            crew.go()
            crew.ranks[1].until(StepDone, step=3)
            crew.ranks[1].tell({"op": "stop"})  # one is enough
            ends = crew.finish()
            kept = [rank.all(Kept)[-1].part for rank in crew.ranks]
        assert ends[0].step == ends[1].step < 10_000
        assert not ends[0].complete
        assert [(part.kind, part.step) for part in kept] == [("checkpoint", ends[0].step)] * 2
        assert kept[0].digest == kept[1].digest

    def test_new_shares_are_used_once_all_have_them(self, tmp_path: Path) -> None:
        job = prepared_job(tmp_path, INSTRUCTIONS, steps=10_000, global_batch=8)
        with Crew(tmp_path, job, replicas(1, 1)) as crew:
            crew.go()
            crew.ranks[0].until(StepDone, step=2)
            for rank in crew.ranks:
                rank.tell({"op": "shares", "version": 1, "shares": [0.9, 0.1]})
            moved = crew.ranks[0].until(StepDone, shares_version=1)
            assert crew.ranks[1].until(StepDone, shares_version=1).step == moved.step
            assert moved.own_tokens > 0.7 * moved.tokens


class TestMeasurements:
    def test_validation_divergence_and_early_stop(self, tmp_path: Path, some_rows: tuple[Path, Path]) -> None:
        job = prepared_job(
            tmp_path,
            *some_rows,
            steps=40,
            global_batch=8,
            optimizer={"learning_rate": 0.05, "schedule": "constant"},  # it gets worse soon
            evaluation={"every": 2, "patience": 2},
            kl={"every": 4, "prompts": 2, "new_tokens": 4},
        )
        with Crew(tmp_path, job, replicas(1, 1)) as crew:
            crew.go()
            end = crew.finish()[0]
            evaluated = [[each.metrics["loss"] for each in rank.all(Evaluated)] for rank in crew.ranks]
            diverged = [each.kl for each in crew.ranks[0].all(Diverged)]
        assert end.complete
        assert end.reason == "early stop"
        assert end.step < 40
        assert evaluated[0] == evaluated[1]
        best = min(evaluated[0][1:])  # the model before training is no state of it
        assert evaluated[0][-3] == best
        assert diverged[0] > 0
        last = _newest_of_both(tmp_path)
        assert last.step == end.step
        with Crew(tmp_path, job, single(), generation=2, start=(last,)) as crew:  # the end was not heard of
            crew.go()
            again = crew.finish()[0]
            assert not crew.ranks[0].all(StepDone)
        assert (again.step, again.complete, again.digest) == (end.step, True, end.digest)

    def test_every_section_is_said(self, tmp_path: Path, some_rows: tuple[Path, Path]) -> None:
        probes = tmp_path / "probes.jsonl"
        probes.write_text("".join(f'{{"prompt": "What is {at}?"}}\n' for at in range(5)))
        job = prepared_job(
            tmp_path,
            *some_rows,
            steps=3,
            global_batch=4,
            snapshot_every=1,
            evaluation={"every": 2},
            probes=probes,
            kl={"every": 3, "new_tokens": 1},
        )
        with Crew(tmp_path, job, replicas(1, 1)) as crew:
            crew.go()
            crew.finish()
            said = {section.section for section in crew.ranks[0].all(Section)}
            diverged = [each.tokens for each in crew.ranks[0].all(Diverged)]
        assert said == {"load", "wait", "join", "step", "reduce", "snapshot", "evaluate", "generate", "save"}
        assert diverged == [5]  # a token of each probe, though there are more rows of validation


class TestRowsWithNothingToLearn:
    """Rows that were cut to their prompt: six long ones of eight."""

    @pytest.fixture
    def cut_rows(self, tmp_path: Path) -> Path:
        data = tmp_path / "cut.jsonl"
        prompts = [f"{number} " + "many words " * (60 if number not in (2, 5) else 1) for number in range(8)]
        data.write_text("".join(json.dumps({"prompt": prompt, "completion": "b c"}) + "\n" for prompt in prompts))
        return data

    def test_they_make_no_step(self, tmp_path: Path, cut_rows: Path) -> None:
        job = prepared_job(tmp_path, cut_rows, steps=6, global_batch=1, max_tokens=32, truncate="right")
        with Crew(tmp_path, job, replicas(1, 1)) as crew:
            crew.go()
            crew.finish()
            counts = [done.metrics["tokens"] for done in crew.ranks[0].all(StepDone)]
            assert crew.ranks[0].all(Loaded)[0].truncated_rows == 6
        assert len(counts) == 6
        assert min(counts) > 0

    def test_a_batch_needs_enough_of_the_others(self, tmp_path: Path, cut_rows: Path) -> None:
        job = prepared_job(tmp_path, cut_rows, steps=6, global_batch=3, max_tokens=32, truncate="right")
        with Crew(tmp_path, job, single()) as crew:
            failed = _failure(crew)
        assert failed.fatal
        assert "of 2 of the 8 rows of train.jsonl something is left to learn" in failed.message
        assert "--global-batch 2 or less" in failed.message


class TestRefusals:
    def test_a_loss_that_is_not_finite_stops_with_its_rows(self, tmp_path: Path, some_rows: tuple[Path, Path]) -> None:
        settings = {"learning_rate": 1e30, "clip_norm": None, "name": "sgd", "schedule": "constant"}
        job = prepared_job(tmp_path, some_rows[0], steps=20, global_batch=4, optimizer=settings)
        with Crew(tmp_path, job, single()) as crew:
            crew.go()
            failed = _failure(crew)
        assert (failed.code, failed.fatal) == ("not-finite", True)
        assert len(failed.details["rows"]) == 4

    def test_a_validation_loss_that_is_not_finite_stops_too(self, tmp_path: Path, some_rows: tuple[Path, Path]) -> None:
        """The only step has a loss; the weights after it give none."""
        settings = {"learning_rate": 1e30, "clip_norm": None, "name": "sgd", "schedule": "constant"}
        job = prepared_job(tmp_path, *some_rows, steps=1, global_batch=4, optimizer=settings)
        with Crew(tmp_path, job, single()) as crew:
            crew.go()
            failed = _failure(crew)
        assert (failed.code, failed.fatal, failed.step) == ("not-finite", True, 1)
        assert "after step 1: the validation loss is" in failed.message

    def test_too_long_rows_are_named(self, tmp_path: Path) -> None:
        data = tmp_path / "long.jsonl"
        rows = [{"prompt": "a", "completion": "b"}, {"prompt": "many words " * 60, "completion": "b"}]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = prepared_job(tmp_path, data, steps=1, global_batch=1, max_tokens=32)
        with Crew(tmp_path, job, single()) as crew:
            failed = _failure(crew)
        assert failed.fatal
        assert "train.jsonl:2" in failed.message
        assert "--max-tokens" in failed.message

    def test_rows_are_not_packed_where_they_would_see_each_other(
        self, tmp_path: Path, some_rows: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(models.CONFIGS, "absolute", ABSOLUTE)
        model = make_model(tmp_path / "model", "absolute")
        job = prepared_job(tmp_path, some_rows[0], model=model, steps=2, global_batch=4, packing=True, chat="plain")
        with Crew(tmp_path, job, single(), model=model) as crew:
            crew.go()
            failed = _failure(crew)
        assert failed.fatal
        assert "cannot be packed" in failed.message

    def test_packed_rows_train_as_they_do_alone(self, tmp_path: Path, some_rows: tuple[Path, Path]) -> None:
        world = WorldPlan(parallel="pipeline", nodes=("alpha", "beta"), shares=(0.3, 0.7), layers=((0, 1), (1, 3)))
        losses = []
        for number, (plan, packing) in enumerate(((single(), False), (single(), True), (world, True))):
            job = prepared_job(tmp_path, some_rows[0], steps=2, global_batch=8, packing=packing)
            with Crew(tmp_path / str(number), job, plan, data=tmp_path / "data") as crew:
                crew.go()
                crew.finish()
                losses.append(crew.losses())
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
        assert losses[2] == pytest.approx(losses[0], abs=1e-5)

    def test_ranks_of_different_jobs_do_not_train_together(self, tmp_path: Path, some_rows: tuple[Path, Path]) -> None:
        job = prepared_job(tmp_path, some_rows[0], steps=2, global_batch=4)
        with (
            Crew(tmp_path, job, replicas(1, 1)) as one,
            Crew(
                tmp_path / "other", job.model_copy(update={"seed": 7}), replicas(1, 1), data=tmp_path / "data"
            ) as other,
        ):
            one.ranks[1].kill()
            one.ranks[1] = other.ranks[1]
            one.go()
            failed = _failure(one)
        assert (failed.code, failed.fatal) == ("world", True)

    def test_a_port_that_was_taken_meanwhile_may_be_tried_again_with_another(
        self, tmp_path: Path, some_rows: tuple[Path, Path]
    ) -> None:
        job = prepared_job(tmp_path, some_rows[0], steps=2, global_batch=4)
        with Crew(tmp_path, job, replicas(1, 1)) as crew:
            ports = [rank.until(Loaded).port for rank in crew.ranks]
            with socket.create_server(("127.0.0.1", ports[0])):
                addresses = [f"127.0.0.1:{port}" for port in ports]
                crew.ranks[0].tell({"op": "go", "generation": 1, "addresses": addresses})
                failed = _failure(crew)
        assert (failed.code, failed.fatal) == ("group", False)
        assert "the group of generation 1 could not be made" in failed.message
        assert "bind" in failed.message

    def test_a_rank_whose_peer_never_comes_ends_by_itself(self, tmp_path: Path, some_rows: tuple[Path, Path]) -> None:
        job = prepared_job(tmp_path, some_rows[0], steps=2, global_batch=4)
        with Crew(tmp_path, job, replicas(1, 1), limits=SectionLimits(join_seconds=2.0)) as crew:
            ports = [rank.until(Loaded).port for rank in crew.ranks]
            addresses = [f"127.0.0.1:{port}" for port in ports]
            crew.ranks[0].tell({"op": "go", "generation": 1, "addresses": addresses})
            while crew.ranks[0].hear() is not None:
                pass
            assert crew.ranks[0].process.wait(10) == 1
            assert "Timeout (0:00:02)!" in crew.ranks[0].errors.read_text()

    def test_a_rank_whose_daemon_falls_silent_ends_by_itself(
        self, tmp_path: Path, some_rows: tuple[Path, Path]
    ) -> None:
        job = prepared_job(tmp_path, some_rows[0], steps=2, global_batch=4)
        with Crew(tmp_path, job, replicas(1, 1)) as crew:
            rank = crew.ranks[0]
            rank.until(Loaded)
            for _ in range(6):
                rank.tell({"op": "beat", "within_seconds": 2.0})
                time.sleep(0.5)
            assert rank.process.poll() is None
            assert rank.process.wait(10) == SILENCE_EXIT
            assert "the daemon has said nothing for" in rank.errors.read_text()


def _failure(crew: Crew) -> Failed:
    while (report := crew.ranks[0].hear()) is not None:
        if isinstance(report, Failed):
            return report
        assert not isinstance(report, Ended | Joined) or isinstance(report, Joined), report
    raise AssertionError("it ended without a word")


def _newest_of_both(folder: Path) -> StatePart:
    first, second = (set(list_parts(folder / f"state-{rank}")) for rank in (0, 1))
    return max(first & second, key=lambda part: part.step)
