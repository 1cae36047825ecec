"""Tasks of lm-evaluation-harness with data of their own, in a folder as a user would have it; and a workflow's part
that measures them, driven on its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from realign_cluster.coordinator.workflow_jobs import Done, JobRunner, Where
from realign_cluster.coordinator.workflow_record import WorkflowRun, open_workflow_run
from realign_cluster.coordinator.workflow_request import WorkflowRequest
from realign_cluster.workflows.evaluating import Evaluation, evaluate
from realign_cluster.workflows.jobs import ArtifactId, Job, JobResult, Look
from realign_cluster.workflows.stage import Context
from realign_cluster.workflows.template import write_template
from tests.fixtures.models import TINY_MODEL

CARDS = Path(__file__).parents[2] / "examples" / "data" / "cards-held-out.jsonl"
QUESTIONS = 10  # 29 choices
CHOOSING = """
task: made_choosing
dataset_path: json
dataset_kwargs:
  data_files: {test: choosing.jsonl}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
WRITING = """
task: made_writing
dataset_path: json
dataset_kwargs:
  data_files: {test: choosing.jsonl}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{begins}}"
generation_kwargs: {until: [";", "\\n"], do_sample: false, max_gen_toks: 12}
filter_list:
  - {name: first word, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
GROUP = """
group: made_group
task: [made_choosing, made_again]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
"""
OTHER = """
task: made_{name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: choosing.jsonl}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: {target}
"""
ACC = "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
OWN_METRIC = """
def halves(doc, results):
    return {"acc": 0.5}
"""


def write_tasks(folder: Path, questions: int = QUESTIONS) -> Path:
    """Multiple choice of two to four, and writing to a stop text; and tasks that will not do."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = [json.loads(line) for line in CARDS.read_text().splitlines()]
    with (folder / "choosing.jsonl").open("w") as file:
        for at in range(questions):
            card = cards[at % len(cards)]
            choices = [cards[(at + 5 * other) % len(cards)]["completion"] for other in range(2 + at % 3)]
            answer = at % len(choices)
            choices[0], choices[answer] = choices[answer], choices[0]
            asked = f"<|user|>\n{card['prompt']}<|end|>\n<|assistant|>\n"
            begins = ("The", "1")[at % 2]  # the tiny model begins with either
            row = {
                "plain": card["prompt"],
                "prompt": asked,
                "choices": choices,
                "answer": answer,
                "begins": begins,
            }
            file.write(json.dumps(row) + "\n")
    prompt, begins = "{{prompt}}", '" {{begins}}"'
    own = OTHER.format(name="own", kind="multiple_choice", text=prompt, target="answer")
    tasks = {
        "choosing": CHOOSING,
        "writing": WRITING,
        "asking": CHOOSING.replace("made_choosing", "made_asking").replace("{{prompt}}", "{{plain}}"),
        "group": GROUP,
        "again": CHOOSING.replace("made_choosing", "made_again"),
        "mixed": "group: made_mixed\ntask: [made_choosing, made_writing]\n",
        "own": own + "doc_to_choice: ['a', 'b']\nprocess_results: !function own.halves\n" + ACC,
        "fixed": CHOOSING.replace("made_choosing", "made_fixed") + "num_fewshot: 0\n",
        "rolling": OTHER.format(name="rolling", kind="loglikelihood_rolling", text="", target=begins),
        "ending": OTHER.format(name="ending", kind="loglikelihood", text=prompt, target=begins) + ACC,
        "alone": OTHER.format(name="alone", kind="loglikelihood", text="", target=begins) + ACC,
        "beams": WRITING.replace("made_writing", "made_beams").replace("max_gen_toks: 12", "num_beams: 4"),
        "missing": CHOOSING.replace("made_choosing", "made_missing").replace("choosing.jsonl", "nowhere.jsonl"),
    }
    for name, text in tasks.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "own.py").write_text(OWN_METRIC)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    job: Job
    done: Done


def write_workflow(folder: Path, *benchmarks: str, questions: int = QUESTIONS) -> Path:
    """What `init` writes, with the tiny model and these lines as its benchmarks; returns the configuration's path."""
    write_tasks(folder / "tasks", questions)
    *_, path = write_template("source-attribution", folder / "made")
    text = path.read_text().replace("mlx-community/Qwen3-0.6B-4bit", str(TINY_MODEL))
    at, to = text.index("[benchmarks]"), text.index("[generation]")
    lines = [f'{line}\ninclude = "../tasks"' if line.startswith("task = ") else line for line in benchmarks]
    path.write_text("\n".join([text[:at], *lines, text[to:]]))
    return path


@contextlib.contextmanager
def opened(path: Path, out: Path) -> Iterator[WorkflowRun]:
    """A run of it that nothing was done in."""
    request = WorkflowRequest(workflow="source-attribution", config=path, out=out, where=Where())
    with contextlib.closing(open_workflow_run(request)) as run:
        yield run


def measured(run: WorkflowRun, jobs: JobRunner, **artifacts: ArtifactId) -> tuple[Evaluation, dict[str, Made]]:
    """The run's model as a stage measures it, with what earlier stages left; and each job with its result, by title."""

    async def drive() -> tuple[Evaluation, dict[str, Made]]:
        state = replace(run.state, artifacts=artifacts)
        way = evaluate(Context(config=run.config, state=state, attempt=0, number=0), state.model, "items", title="now")
        answer: JobResult | None = None
        made = {}
        while True:
            try:
                step = way.send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                return end.value, made
            if isinstance(step, Look):
                answer = JobResult(value=list(run.artifacts.rows(step.rows)))
            else:
                made[step.title] = Made(job=step, done=await jobs.run(step, reproducible=False))
                answer = made[step.title].done.result

    return asyncio.run(drive())
