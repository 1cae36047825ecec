"""The page of a workflow: self-contained, every link leads somewhere, and every number comes from what was measured."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.coordinator.model_card import card_markdown
from realign_cluster.coordinator.workflow_decisions import override_gate, sign_item
from realign_cluster.coordinator.workflow_history import WorkflowHistory, read_workflow_history
from realign_cluster.coordinator.workflow_report import render_workflow_report, write_workflow_report
from realign_cluster.coordinator.workflow_report_data import provenance_rows
from realign_cluster.coordinator.workflow_report_examples import CHANGES, before_and_after, final_model
from realign_cluster.coordinator.workflow_report_items import Behind
from realign_cluster.coordinator.workflow_status import gate_lines, gate_rows, retention_rows
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.gate import Gate
from realign_cluster.store.workflow_ledger import WorkflowLedger
from realign_cluster.workflows.gate_planning import BY_THE_VERIFIER
from realign_cluster.workflows.judging import OF_THE_VERIFIER
from realign_cluster.workflows.training_data import good_answer
from tests.workflows.harness_kit import QUESTIONS, write_tasks
from tests.workflows.rehearsed import PAIRS_MADE, as_asked, jobs_done, rehearsal_of

from .made_runs import MadeNode, make_run
from .made_workflow import HOSTILE, TINY_MODEL, MadeWorkflow

VOID = {"meta", "br"}
LOOSE = {
    "preparation": {"perplexity": 900000},
    "sources": {"types_missing": 2, "retrieval_r_precision": 0.01},
    "citation": {"citation_precision": 0.01, "citation_recall": 0.01, "citation_format": 0.01},
    "verification": {
        "citation_precision": 0.01,
        "citation_recall": 0.01,
        "attribution_coverage": 0.01,
        "verifier_false_positives": 0.9,
    },
    "optimisation": {"kl": 1.9, "citation_precision": 0.01, "citation_recall": 0.01, "attribution_coverage": 0.01},
    "iteration": {"progress": -0.99, "attribution_coverage": 0.01},
    "evaluation": {
        "kl": 1.9,
        "citation_precision": 0.01,
        "citation_recall": 0.01,
        "attribution_coverage": 0.01,
        "citation_format": 0.01,
    },
}


class Page(HTMLParser):
    """Fails on tags that are not closed in order, on what would fetch or run something, and on an id used twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        assert not [name for name, count in self.ids.items() if count > 1]
        assert not re.search(r"url\(|@import|https?://", text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "form")
        found = dict(attrs)
        assert not [name for name in found if name.startswith("on") or name == "src"], found
        if tag not in VOID:
            self.open.append(tag)
        if found.get("id"):
            self.ids[str(found["id"])] += 1
        if tag == "a":
            self.links.append(str(found["href"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def part(self, anchor: str) -> str:
        """The source of a section."""
        begin = self.source.index(f'<section id="{anchor}">')
        return self.source[begin : self.source.index("</section>", begin)]


def page_of(run: Path) -> Page:
    page = Page(write_workflow_report(run).read_text())
    for link in page.links:
        place = link[1:] in page.ids if link.startswith("#") else (run / link).exists()
        assert place, f"{link} leads nowhere"
    return page


def report_of(run: Path) -> dict[str, Any]:
    write_workflow_report(run)
    found: dict[str, Any] = orjson.loads((run / "report.json").read_bytes())
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("REALIGN_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def complete(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A permissive run through all seven stages, with two gates that it went on from."""
    made = MadeWorkflow(tmp_path_factory.mktemp("complete") / "made", gates=LOOSE)
    assert made.sit() == 0
    return made.run


@pytest.fixture(scope="module")
def page(complete: Path) -> Page:
    return page_of(complete)


@pytest.fixture(scope="module")
def history(complete: Path) -> WorkflowHistory:
    return read_workflow_history(complete)


def test_the_verdict_and_the_mode_stand_at_the_head_and_the_banner_on_every_section(page: Page):
    assert (
        "Complete: gone on without: SFT preparation, validation perplexity, Evaluation, retention of basics"
        in page.text
    )
    banner = "Mode permissive: gone on from gates that could not decide: 1 SFT preparation, validation perplexity; "
    sections = page.source.count("<section")
    assert sections == 15
    assert page.text.count(f"{banner}7 Evaluation, retention of basics.") == sections + 1


def test_every_gate_has_its_figures_as_the_ledger_has_them(page: Page, history: WorkflowHistory):
    stages = page.part("stages")
    for attempt in history.attempts:
        for verdict in attempt.verdicts:
            body = verdict.body
            assert escape(body["reason"]) in stages
            assert escape(body["title"]) in stages
            assert f"{body['direction']} {body['threshold']:g}" in stages
    assert "by default 0.9" in stages  # the workflow's own
    assert "by default 0.95" not in stages  # retention: it was not changed
    said = [verdict.body["outcome"] for attempt in history.attempts for verdict in attempt.verdicts]
    assert stages.count(">INSUFFICIENT<") == said.count("INSUFFICIENT") > 0


def test_the_mean_of_retention_stands_beside_the_minimum(page: Page, history: WorkflowHistory, complete: Path):
    with_benchmarks = [attempt for attempt in history.attempts if attempt.retention is not None]
    assert {attempt.name for attempt in with_benchmarks} == {"citation", "optimisation", "iteration", "evaluation"}
    rows = retention_rows(gate_rows(complete))
    assert [(row["stage"], row["benchmarks"]) for row in rows] == [(each.name, 1) for each in with_benchmarks]
    for attempt in with_benchmarks:
        (verdict,) = [each.body for each in attempt.verdicts if each.body["metric"] == "retention of basics"]
        assert attempt.retention.mean == attempt.retention.minimum == verdict["value"]
        assert page.text.count(f"Retention {attempt.retention.text()}. Each benchmark is gated, so the minimum is.")
    stages = {each["name"]: each["attempts"] for each in report_of(complete)["stages"]}
    assert stages["evaluation"][-1]["retention"] == asdict(with_benchmarks[-1].retention)
    assert stages["preparation"][-1]["retention"] is None
    assert sum(line.startswith("retention ") for line in gate_lines(gate_rows(complete))) == len(with_benchmarks)
    (basics,) = [
        row for row in gate_rows(complete) if (row["stage"], row["gate"]) == ("evaluation", "retention_basics")
    ]
    several = [{**basics, "dataset": name, "value": value} for name, value in (("a", 0.9), ("b", 1.0), ("c", None))]
    (together,) = retention_rows(several)
    assert (together["minimum"], together["mean"], together["undefined"]) == (0.9, pytest.approx(0.95), 1)
    assert (
        "retention    evaluation (attempt 1), over 3 benchmarks: minimum 0.9000 (a), mean 0.9500; 1 of them undefined;"
        in (gate_lines(several)[-1])
    )


def test_a_plan_lists_the_jobs_that_the_run_asked_for(complete: Path, tmp_path: Path):
    plan = rehearsal_of(complete.parent / "workflow.toml", "source-attribution", tmp_path)
    assert not plan.stopped
    asked, done = [as_asked(each) for each in plan.jobs], jobs_done(complete)
    assert [replace(each, rows=0) for each in asked] == [replace(each, rows=0) for each in done]
    differing = [one.title for one, other in zip(asked, done, strict=True) if one.rows != other.rows]
    assert differing == [PAIRS_MADE]


def test_gates_that_need_labels_are_those_that_the_verifier_s_errors_are_in(history: WorkflowHistory):
    (verifier,) = {each.facts["verifier"]["verifier"] for each in history.attempts if "verifier" in each.facts}
    judged = {
        gate.rule.metric
        for attempt in history.attempts
        for gate, verdict in zip(history.workflow.stage(attempt.name).gates, attempt.verdicts, strict=True)
        if isinstance(gate.rule, Gate)
        and verdict.body["verifier"] == verifier
        and gate.rule.metric not in OF_THE_VERIFIER
        and gate.rule.lowest == 0
    }
    assert judged == BY_THE_VERIFIER - {"pairs_supported", "factuality", "hallucination_rate"}


def test_a_number_leads_to_its_items_with_the_worst_first(page: Page, complete: Path):
    gates = {each["gate"]: each for each in report_of(complete)["stages"][2]["attempts"][0]["gates"]}
    found = gates["citation_recall"]
    rows = [orjson.loads(line) for line in (complete / found["items_file"]).read_bytes().splitlines()]
    row = next(each for each in rows if each["metric"] == "citation_recall")
    assert found["value"] == pytest.approx(sum(row["values"]) / len(row["values"]))
    assert found["items"] == len(row["values"])
    linked = re.search(rf'<a href="#(m-\w+)">{found["value"]:.4g}</a>', page.part("stages"))
    assert linked is not None
    table = page.source[page.source.index(f'<div id="{linked[1]}">') :].split("</table>")[0]
    shown = re.findall(r"<tr><td><code>(.*?)</code></td><td class=r>(.*?)</td>", table)
    values = dict(zip(row["items"], row["values"], strict=True))
    assert [float(value) for _, value in shown] == sorted(row["values"])[:10]
    assert all(values[item] == float(value) for item, value in shown)


def test_every_measure_of_a_stage_leads_to_items(history: WorkflowHistory):
    behind = Behind(history)
    missing = [
        (attempt.label, metric)
        for attempt in history.attempts
        for metric in [*attempt.measurements, *(each.body["metric"] for each in attempt.verdicts)]
        if not behind.link(attempt, metric)
    ]
    assert missing == []


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_retention_of_a_task_leads_to_its_documents(home: Path, tmp_path: Path):
    """Of lm-evaluation-harness, through a whole run, which then has nothing left to do."""
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    made = MadeWorkflow(tmp_path / "made", gates=LOOSE)
    write_tasks(tmp_path / "tasks")
    config = made.folder / "workflow.toml"
    benchmark = '[benchmarks.cards]\ntask = "made_choosing"\ninclude = "../tasks"\n'
    config.write_text(config.read_text().replace("[generation]", f"{benchmark}[generation]"))
    assert made.sit() == 0
    history = read_workflow_history(made.run)
    last = history.last("evaluation")
    assert last is not None
    (verdict,) = [each.body for each in last.verdicts if each.body["metric"] == "retention of cards"]
    assert verdict["items"] == QUESTIONS
    behind = Behind(history)
    for metric in ("retention of cards", "accuracy of cards"):
        anchor = behind.link(last, metric)
        shown = behind.items[anchor].worst
        assert len(shown) == QUESTIONS
        assert all("Write a card." in said and "<b>Node " in said for _, _, said in shown)
    jobs = {job.key for job in history.jobs}
    assert made.sit(killed_at=1) == 0
    assert {job.key for job in read_workflow_history(made.run).jobs} == jobs


def test_models_with_equal_sums_do_not_share_items(history: WorkflowHistory):
    """Over-abstention is 0 of the same questions after every stage: each number leads to its own model's answers."""
    behind = Behind(history)
    measured = [each for each in history.attempts if "over_abstention" in each.measurements]
    assert len({each.measurements["over_abstention"]["value"] for each in measured}) == 1
    anchors = {each.name: behind.link(each, "over_abstention") for each in measured}
    assert anchors["citation"] == anchors["verification"]  # the same model, not measured again
    assert len({anchors[name] for name in ("preparation", "citation", "optimisation", "evaluation")}) == 4


def test_an_answer_shows_its_citations_claims_and_the_span_in_its_source(page: Page, history: WorkflowHistory):
    answers = page.part("answers")
    assert '<span class="cite good" tabindex="0">[2]<span class="passage"><b>[2] ' in answers
    assert '<span class="cite bad" tabindex="0">[1]' in answers
    assert '<span class="bad">contradicted</span>' in answers
    assert re.search(r"\[2\] <q>The harbour of Ostrel was built in \d+\.</q>", answers)
    assert re.search(r'<span class="tag">cited</span><br><mark>The \w+ of Ostrel was built in \d+\.</mark>', answers)
    trained = next(job for job in history.jobs if job.request["what"] == "train")
    assert f'trained by <a href="#t-{trained.key[:12]}">citation training</a>' in answers


def test_what_users_write_never_becomes_markup(page: Page):
    assert HOSTILE not in page.source  # Page refuses handlers of events
    assert escape(HOSTILE) in page.source


def test_before_and_after_counts_every_question_and_shows_a_sample_that_nobody_chose(
    page: Page, history: WorkflowHistory
):
    found = before_and_after(history)
    assert found is not None
    assert found.final
    before = {row["id"]: good_answer(row) for row in history.rows(found.before)}
    after = {row["id"]: good_answer(row) for row in history.rows(found.after)}
    assert len(after) == 18
    for item in after:
        change = "unchanged" if after[item] == before[item] else "better" if after[item] else "worse"
        assert item in found.items[change]
    assert sum(len(found.items[change]) for change in CHANGES) == 18
    assert len(found.items["better"]) > len(found.items["worse"])
    examples = page.part("examples")
    for change in CHANGES:
        shown = [item for item in found.items[change] if f"<code>{escape(item)}</code>" in examples]
        assert shown == list(found.items[change][:3])


def test_rounds_gaps_pairs_retrieval_and_the_verifiers_confusion_are_there(page: Page, history: WorkflowHistory):
    iteration = next(each for each in history.attempts if each.name == "iteration")
    for each in iteration.facts["rounds"]:
        assert escape(each["why"]) in page.part("iteration")
        for group, gap in each["gaps"].items():
            assert f"<td>{group}</td>" in page.part("iteration")
            assert f"{gap['wrong']} of {gap['items']} wrong" in page.part("iteration")
    quality = page.part("quality")
    assert "retrieval_r_precision" in quality
    assert ">contamination<" in quality
    assert "<td>supported</td><td class=r>105</td>" in quality.replace("\n", "")


def test_what_was_cleaned_is_there_by_set_and_no_training_had_what_was_left_out(page: Page, history: WorkflowHistory):
    quality = page.part("quality")
    rows = {
        name: re.findall(r"<td class=r>(.*?)</td>", rest)
        for name, rest in re.findall(r"<tr><td>(\w+)</td>(.*?)</tr>", quality)
    }
    assert rows["citation"] == ["19", "0", "1", "0", "18"]
    assert rows["practice"] == ["19", "1", "0", "0", "18"]
    assert rows["general"] == ["3", "1", "1", "0", "1"]
    assert "<td>items (exact 1)</td>" in quality
    assert "<td>basics (exact 1)</td>" in quality
    assert "questions that a held-out set asks too: none." in quality
    trained = [row for job in history.trainings for row in history.rows(job.request["inputs_by_role"]["data"])]
    prompts = {row["prompt"] for row in trained}
    assert "Name a colour." in prompts
    assert "The capital of France is" not in prompts
    assert not any(prompt.isupper() for prompt in prompts)
    stages = {each.name: set(each.facts.get("cleaned") or {}) for each in history.attempts}
    assert stages["preparation"] == set()  # nothing is trained there
    assert stages["sources"] == {"citation"}
    assert stages["citation"] == {"citation", "general"}
    assert stages["optimisation"] == {"practice"}
    assert stages["iteration"] == {"practice", "general"}


def test_a_run_of_before_every_set_was_cleaned_still_has_its_report(complete: Path, tmp_path: Path):
    run = tmp_path / "older"
    shutil.copytree(complete, run)
    counts = {"rows": 19, "kept": 16, "doubled": 2, "nearly doubled": 0, "contaminated": 1, "by variant": {"exact": 1}}
    with contextlib.closing(WorkflowLedger(run / "ledger.sqlite")) as ledger:
        cleaning = {"near_duplicates": False, "contamination": ["exact"]}
        ledger.set_meta("config", {**ledger.meta("config"), "cleaning": cleaning})
        for stage in ledger.stages():
            facts = {name: each for name, each in stage.body["facts"].items() if name != "cleaned"}
            facts |= {"cleaned": counts} if stage.body["name"] == "sources" else {}
            if "pairs" in facts:
                del facts["pairs"]["leaked"]
            ledger.put_stage(stage.stage, stage.attempt, stage.begun, {**stage.body, "facts": facts}, ended=True)
    quality = page_of(run).part("quality")
    cells = ("19", "1", "2", "0", "16")
    assert f"<tr><td>citation</td>{''.join(f'<td class=r>{each}</td>' for each in cells)}" in quality
    assert "<td>evaluation sets (exact 1)</td>" in quality
    assert "that were there already." in quality
    override_gate(run, "evaluation.retention_basics", by="A. Name", reason="known")
    config = read_workflow_history(run).config
    assert (config.cleaning.citation.duplicates, config.cleaning.citation.contamination) == ("exact", ("exact",))


def test_what_rows_are_held_against_is_not_said_to_be_in_them(page: Page):
    made_of = set(re.findall(r"rows in .*?, made of\s+(.*?)\. ", page.part("data")))
    assert made_of == {"citation, general", "general, practice", "practice"}


def test_a_training_s_capability_checkpoints_are_drawn_where_it_had_some(page: Page):
    losses = page.part("losses")
    assert losses.count("basics: 0.875 at last") == 1  # the preference training's: no other asked for them


def test_the_provenance_of_the_model_goes_back_to_the_inputs(history: WorkflowHistory):
    rows = provenance_rows(history, final_model(history))
    seen: set[str] = set()
    for row in rows:
        assert set(row["inputs"].values()) <= seen
        seen.add(row["artifact"])
    assert rows[-1]["artifact"] == history.end["model"]["identity"]
    assert rows[-1]["code"] == "0.0.made"
    assert rows[-1]["nodes"] == ["alpha"]
    ends = [row["made_by"] for row in rows if not row["inputs"]]
    assert str(TINY_MODEL) in ends
    assert any(end.endswith("data/citation.jsonl") for end in ends)


def test_the_model_card_names_data_trainings_figures_and_limits(complete: Path, history: WorkflowHistory):
    write_workflow_report(complete)
    card = (complete / "model-card.md").read_text()
    citation = next(each for each in history.artifacts.values() if each.name == "citation")
    assert f"| citation | {citation.id} |" in card
    assert "| citation training | sft, lora | 12 |" in card
    assert "to be written by the person who signs" in card
    assert "signed for by: (not signed)" in card
    assert "Evaluation, retention of basics: INSUFFICIENT" in card
    assert "gone on from without a decision: Evaluation, retention of basics" in card
    assert "| at least 0.01 (by default 0.9) |" in card
    assert card == card_markdown(history)


def test_the_page_is_the_same_each_time_it_is_made(complete: Path, page: Page):
    history = read_workflow_history(complete)
    assert render_workflow_report(history, Behind(history)) == page.source


def test_where_artifacts_are_gone_the_ledger_still_has_verdicts_and_sums(complete: Path, tmp_path: Path):
    run = tmp_path / "moved"
    shutil.copytree(complete, run)
    for artifact in (run / "artifacts").glob("*.jsonl"):
        artifact.unlink()
    page = page_of(run)
    assert page.part("stages").count(">PASS<") == 22
    assert "Answers" not in page.text


def test_a_run_that_was_killed_says_where(home: Path, tmp_path: Path):
    made = MadeWorkflow(tmp_path / "made", gates=LOOSE)
    assert made.sit(killed_at=28) == -1
    page = page_of(made.run)
    assert "Interrupted: stopped in stage 3 Citation training; the same command goes on from there." in page.text
    assert page.part("stages").count("Not reached. Its gates: ") == 4
    assert report_of(made.run)["model"] == {"identity": final_model(read_workflow_history(made.run))}
    assert made.sit() == 0
    assert "Complete: " in page_of(made.run).text


def test_before_any_stage_there_is_a_page_too(home: Path, tmp_path: Path):
    made = MadeWorkflow(tmp_path / "made", gates=LOOSE)
    made.sit(killed_at=1)
    assert "Two models have not yet answered the same questions." in page_of(made.run).text


def test_a_failed_run_says_what_it_was_rolled_back_to(home: Path, tmp_path: Path):
    gates = {**LOOSE, "sources": {**LOOSE["sources"], "largest_share_of_a_type": 0.01}}
    made = MadeWorkflow(tmp_path / "made", gates=gates, mode="permissive", attempts=2)
    assert made.sit() == 1
    page = page_of(made.run)
    assert "rolled back to stage preparation, the best model within every limit" in page.text
    assert "The model that came out is the one of stage preparation," in page.text
    stages = page.part("stages")
    assert stages.count("<h4>Attempt 2</h4>") == 1
    assert "the index is built again with other parameters" in stages
    assert '<b class="bad">FAIL</b>' in stages


def test_what_a_person_overrode_is_not_said_to_be_gone_on_from(complete: Path):
    history = read_workflow_history(complete)
    [(attempt, verdict), _] = history.went_on
    overridden = replace(verdict, body={**verdict.body, "overridden": True})
    verdicts = tuple(overridden if each is verdict else each for each in attempt.verdicts)
    attempts = tuple(replace(each, verdicts=verdicts) if each is attempt else each for each in history.attempts)
    assert len(replace(history, attempts=attempts).went_on) == 1


def test_what_people_decided_and_what_changed_stands_there_with_name_time_and_reason(home: Path, tmp_path: Path):
    made = MadeWorkflow(tmp_path / "made", gates=LOOSE, mode="strict")
    assert made.sit() == 1
    assert "Incomplete: validation perplexity: INSUFFICIENT" in page_of(made.run).text
    override_gate(made.run, "preparation.perplexity", by="A. <Name>", reason="one row is enough | for a test")
    sign_item(made.run, "thresholds understood", by="B. Name")
    page = page_of(made.run)
    assert "Since then a person decided (override): the next run acts on it." in page.text
    with (made.folder / "data" / "general.jsonl").open("a") as file:
        file.write('{"prompt": "Name a tree.", "completion": " Oak."}\n')
    made.sit()
    page = page_of(made.run)
    assert "preparation.perplexity, which was INSUFFICIENT, counts as passed" in page.text
    assert re.search(r"A\. <Name> one row is enough \| for a test", page.text)
    assert re.search(r"Looked at again at [\d: -]+ UTC because data general changed\.", page.text)
    assert re.search(r"thresholds understood B\. Name, [\d: -]+ UTC", page.text)
    found = report_of(made.run)
    assert [each["by"] for each in found["overrides"]] == ["A. <Name>"]
    assert found["reruns"][0]["changed"] == ["data general"]
    signed = [each for each in found["checklists"] if each["by"]]
    assert [each["item"] for each in signed] == ["thresholds understood"]
    assert "for a test" in (made.run / "model-card.md").read_text()


def test_the_other_workflow_has_its_own_stages(home: Path, tmp_path: Path):
    made = MadeWorkflow(tmp_path / "made", workflow="antihallucination", mode="permissive")
    made.sit()
    page = page_of(made.run)
    assert "2. Factuality data" in page.text
    assert "baseline hallucination rate measured" in page.text


def test_the_run_of_something_else_is_refused(tmp_path: Path):
    run = make_run(tmp_path / "run", rows=10, nodes=[MadeNode("a", 1000.0)])
    with pytest.raises(UsageError, match="is not the run of a workflow"):
        write_workflow_report(run)
