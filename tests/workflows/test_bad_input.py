"""What a user gets wrong is named with file, line and field before anything starts, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.coordinator import train_track
from realign_cluster.coordinator.workflow_record import data_files, open_workflow_run
from realign_cluster.coordinator.workflow_request import WorkflowRequest
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.retention import BenchmarkPair, judge_benchmark
from realign_cluster.metrics.verifiers.lexical import LexicalVerifier
from realign_cluster.metrics.verifiers.verdict import Pair
from realign_cluster.workflows import answers
from realign_cluster.workflows.config import read_config
from realign_cluster.workflows.intake import check_data
from realign_cluster.workflows.tables import workflow_named
from realign_cluster.workflows.template import write_template
from realign_cluster.workflows.thresholds import check_thresholds

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"
Rows = list[dict[str, Any]]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What `init` writes, with a model that is there."""
    *_, path = write_template("source-attribution", tmp_path / "made")
    path.write_text(path.read_text().replace("mlx-community/Qwen3-0.6B-4bit", str(TINY_MODEL)))
    return path


def rewrite(made: Path, name: str, how: Callable[[Rows], Rows]) -> Path:
    file = made.parent / "data" / f"{name}.jsonl"
    rows = how([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def refused(made: Path, workflow: str = "source-attribution") -> str:
    config = read_config(made)
    with pytest.raises(UsageError) as error:
        check_data(workflow, config, data_files(config, made))
    return error.value.message


def without(field: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{name: value for name, value in rows[0].items() if name != field}, *rows[1:]]


def test_there_is_nothing_to_cite(made: Path) -> None:
    file = rewrite(made, "sources", lambda _: [])
    assert refused(made) == f"{file}: is empty: there is nothing to cite"


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("sources", "text"),
        ("items", "sources"),
        ("practice", "completion"),
        ("queries", "relevant"),
        ("labels", "label"),
    ],
)
def test_a_row_without_what_it_needs(made: Path, name: str, field: str) -> None:
    file = rewrite(made, name, without(field))
    assert refused(made).startswith(f"{file}:1: {field}")


def test_a_claim_without_sources(tmp_path: Path) -> None:
    *_, path = write_template("antihallucination", tmp_path / "made")
    file = rewrite(path, "pairs", without("sources"))
    assert refused(path, "antihallucination").startswith(f"{file}:1: sources")


def test_a_query_for_a_source_that_is_not_there(made: Path) -> None:
    file = rewrite(made, "queries", lambda rows: [{**rows[0], "relevant": ["nowhere"]}])
    assert refused(made) == f"{file}:1: relevant: there is no source 'nowhere'"


def test_an_evaluation_question_in_the_training_data_is_refused_with_both_rows(made: Path) -> None:
    question = json.loads((made.parent / "data" / "items.jsonl").read_text().splitlines()[1])["prompt"]
    file = rewrite(made, "citation", lambda rows: [*rows, {"prompt": question, "completion": "It is known [1]."}])
    items = made.parent / "data" / "items.jsonl"
    assert refused(made) == f"{items}:2: the evaluation question is in the training data: {file}:3"


def test_perplexity_needs_an_answer_apart_from_its_prompt(made: Path) -> None:
    file = rewrite(made, "valid", lambda _: [{"text": "All in one."}])
    assert refused(made).startswith(f"{file}:1: completion")


def test_a_line_that_is_no_json(made: Path) -> None:
    file = made.parent / "data" / "general.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    assert refused(made).startswith(f"{file}:2: is not JSON")


def test_a_misspelt_key_gets_the_right_one(made: Path) -> None:
    made.write_text(made.read_text().replace("least_pairs = 1000", "leest_pairs = 1000"))
    with pytest.raises(UsageError) as error:
        read_config(made)
    line = made.read_text().splitlines().index("leest_pairs = 1000") + 1
    assert error.value.message == f"{made}:{line}: preference.leest_pairs: unknown; did you mean 'least_pairs'?"


@pytest.mark.parametrize(
    ("taught", "wrong"),
    [
        ("basic", "there is no benchmark 'basic'; did you mean 'basics'?"),
        ("cards", "cards is a task: its items are not looked for in what is trained on"),
    ],
)
def test_a_benchmark_that_is_taught_and_is_none_that_could_be(made: Path, taught: str, wrong: str) -> None:
    task = '[benchmarks.cards]\ntask = "made_choosing"\n'
    asked = re.sub("^taught = .*", f'taught = ["{taught}"]', made.read_text(), flags=re.MULTILINE)
    made.write_text(asked.replace("[generation]", f"{task}[generation]"))
    with pytest.raises(UsageError) as error:
        read_config(made)
    line = made.read_text().splitlines().index(f'taught = ["{taught}"]') + 1
    assert error.value.message == f"{made}:{line}: cleaning.taught: {wrong}"


def test_a_way_of_cleaning_that_there_is_not(made: Path) -> None:
    made.write_text(made.read_text().replace("duplicates = ", "duplicate = "))
    with pytest.raises(UsageError, match=r": cleaning\.general\.duplicate: unknown; did you mean 'duplicates'\?"):
        read_config(made)


def test_a_service_in_the_open(made: Path) -> None:
    service = 'kind = "service"\n[verifier.service]\nurl = "http://facts.example.org/check"\nversion = "1"'
    made.write_text(made.read_text().replace('kind = "lexical"', service).replace("\nsupported = 0.5", ""))
    with pytest.raises(UsageError, match=r": verifier\.service\.url: http://facts\.example\.org/check is not https"):
        read_config(made)


def test_a_preference_training_that_is_none(made: Path) -> None:
    made.write_text(made.read_text().replace('method = "dpo"', 'method = "sft"'))
    with pytest.raises(UsageError, match=r"training\.preference\.method: the method should be on pairs"):
        read_config(made)


def test_a_preference_training_that_would_never_stop_early(made: Path) -> None:
    wanted = 'method = "dpo"\nevaluation = { every = 2, patience = 3 }'
    made.write_text(made.read_text().replace('method = "dpo"', wanted))
    with pytest.raises(UsageError, match=r"training\.preference\.evaluation\.patience: no pairs are validated on"):
        read_config(made)


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ("[gates.citation]\ncitation_recall = 1.5", "is out of range: a threshold lies above 0 and below 1"),
        ("[gates.evaluation]\nretention_basics = 95", "a retention of 95 will not do"),
        ("[gates.citation]\ncitation_recal = 0.9", "there is no such gate; did you mean 'citation_recall'?"),
        ("[gates.citations]\ncitation_recall = 0.9", "there is no such stage; did you mean 'citation'?"),
    ],
)
def test_a_threshold_that_cannot_be_meant(made: Path, gates: str, said: str) -> None:
    made.write_text(f"{made.read_text()}\n{gates}\n")
    config = read_config(made)
    with pytest.raises(UsageError) as error:
        check_thresholds(workflow_named("source-attribution", config), config, made)
    assert said in error.value.message
    assert error.value.message.startswith(f"{made}:")


def test_a_judge_that_is_the_model_that_is_trained(made: Path, tmp_path: Path) -> None:
    verifier = f'kind = "judge"\nmodel = "{TINY_MODEL}"'
    made.write_text(made.read_text().replace('kind = "lexical"', verifier))
    request = WorkflowRequest(workflow="source-attribution", config=made, out=tmp_path / "run")
    with pytest.raises(UsageError, match="it would judge its own answers"):
        open_workflow_run(request)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not found out by the first training, hours later."""
    monkeypatch.setitem(train_track.PACKAGES, "wandb", "a_package_that_is_nowhere")
    request = WorkflowRequest(workflow="source-attribution", config=made, out=tmp_path / "run", track="wandb")
    with pytest.raises(UsageError, match="--track wandb needs the package"):
        open_workflow_run(request)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_another_workflow(made: Path, tmp_path: Path) -> None:
    asked = WorkflowRequest(workflow="source-attribution", config=made, out=tmp_path / "run")
    open_workflow_run(asked).close()
    *_, other = write_template("antihallucination", tmp_path / "other")
    other.write_text(other.read_text().replace("mlx-community/Qwen3-0.6B-4bit", str(TINY_MODEL)))
    with pytest.raises(UsageError, match="is of the workflow source-attribution, not antihallucination"):
        open_workflow_run(WorkflowRequest(workflow="antihallucination", config=other, out=tmp_path / "run"))


def measured(text: str) -> dict[str, Any]:
    """Of one answer to a question with one source."""
    row = {"id": "q", "prompt": "?", "sources": [{"id": "s", "text": "The harbour was built in 1821."}]}
    pairs = [Pair(claim=query.claim, evidence=query.evidence) for query in answers.queries_of(row, text)]
    said = LexicalVerifier().score(pairs)
    verdicts = {pair.key: {"supported": v.supported, "label": v.label} for pair, v in zip(pairs, said, strict=True)}
    return dict(answers.measure_texts([(row, text)], verdicts, 0.5, "inline"))


def test_an_answer_without_sentences_is_undefined_and_counts_as_not_answered() -> None:
    found = measured("")
    assert found["citation_recall"].value is None
    assert found["factuality"].value is None
    assert found["over_abstention"].value == 1.0


def test_an_unknown_citation_supports_nothing_and_stays_in_the_denominator() -> None:
    found = measured("The harbour was built in 1821 [7].")
    assert found["citation_recall"].value == 0.0
    assert found["citation_precision"].value == 0.0
    assert found["attribution_coverage"].value == 0.0
    assert measured("The harbour was built in 1821 [1].")["citation_recall"].value == 1.0


def test_a_benchmark_whose_baseline_is_at_chance_is_undefined() -> None:
    items = tuple(map(str, range(100)))
    half = (1.0, 0.0) * 50
    verdict = judge_benchmark(BenchmarkPair(benchmark="coin", items=items, before=half, after=half, chance=0.5))
    assert verdict.outcome == "INSUFFICIENT"
    assert verdict.reason.startswith("undefined: the baseline, 0.500, is not shown to be above chance")
