"""What a user says of a workflow, in one TOML file: model, data, verifier, trainings, thresholds.

Reads the file and checks everything that can be checked without the data; every mistake is named with file and line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Discriminator, Field, Tag, ValidationError

from realign_cluster.curation.decontaminate import VARIANTS, Variant
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import Chat, Strict
from realign_cluster.domain.suggest import did_you_mean
from realign_cluster.domain.toml_lines import line_of_toml, lines_of_toml
from realign_cluster.domain.train_limits import broken_limits
from realign_cluster.domain.training import TrainSettings
from realign_cluster.metrics.retrieval.plugin import CODE
from realign_cluster.metrics.verifiers.fact_service import FactServiceSettings

Mode = Literal["strict", "permissive"]
RETRIEVERS: Final = ("bm25", "vectors")
VerifierKind = Literal["lexical", "judge", "service", "ensemble"]


class ModelConfig(Strict):
    path: str  # folder or hub id
    chat: Chat = "auto"
    max_tokens: int = Field(default=2048, ge=2)


class DataConfig(Strict):
    """Files of JSON lines, relative to the TOML file. docs/workflows/templates.md has a row of each."""

    sources: str  # {"id", "text", "type"}
    items: str  # questions that stages 1 to 6 are measured on: {"id", "prompt", "sources", "answerable", "group"}
    sealed: str  # the same, of stage 7 alone
    practice: str  # the same, with "completion": what pairs and targeted rounds are made from
    citation: str  # {"prompt", "completion"}: stage 3 is trained on it
    valid: str  # {"prompt", "completion"}: perplexity and validation loss
    general: str | None = None  # {"prompt", "completion"}: mixed into every sft
    preparation: str | None = None  # {"prompt", "completion"}: stage 1 is trained on it; none: the model is taken as is
    queries: str | None = None  # {"query", "relevant": [source ids]}: stage 2 of source attribution
    pairs: str | None = None  # {"claim", "sources"}: stage 2 of anti-hallucination
    labels: str | None = None  # {"claim", "evidence", "label"}: the verifier is held against them


class HarnessTask(Strict):
    """A benchmark that is a task of lm-evaluation-harness, or a group or tag of them."""

    task: str
    metric: str | None = None  # none: the first that each document has, in [0, 1], of which more is better
    filter: str | None = None  # of the answers, before that metric; none: the task's first
    limit: int | None = Field(default=None, ge=1)  # documents of each task, from the first on
    num_fewshot: int | None = Field(default=None, ge=0)  # none: as the task says
    chat: bool = False  # questions and examples as a conversation, by the model's chat template
    include: str | None = None  # folder with the YAML, code and data files of the user's own tasks
    chance: float | None = Field(default=None, ge=0, lt=1)  # of guessing; none: right choices over choices


FORMS = (A_FILE, A_TASK) = ("a file", "a task")  # of a benchmark; pydantic puts them into the places of errors
Benchmark = Annotated[
    Annotated[str, Tag(A_FILE)] | Annotated[HarnessTask, Tag(A_TASK)],
    Discriminator(lambda value: A_FILE if isinstance(value, str) else A_TASK),
]


class GenerationConfig(Strict):
    max_new_tokens: int = Field(default=64, ge=1)
    stop: tuple[str, ...] = ()
    most_claims: int = Field(default=16, ge=1)  # of one answer: an answer with more makes its gates undecidable


class VerifierConfig(Strict):
    kind: VerifierKind = "lexical"
    model: str = ""  # of the judge; never the model that is trained
    template: str | None = None
    supported: float = Field(default=0.5, gt=0, lt=1)  # probability from which a claim counts as supported
    evidence_tokens: int = Field(default=1024, ge=64)  # of the judge: longer evidence is cut into chunks
    service: FactServiceSettings | None = None  # who answers it, of kind service or ensemble


class RetrievalConfig(Strict):
    """`module:attribute` is code of the user's: an installed package's, or of a file beside the TOML file."""

    kind: str = "bm25"  # or vectors, or module:attribute: a retriever
    embedder: str = ""  # of vectors, module:attribute


class CitationsConfig(Strict):
    format: Literal["inline", "footnote", "author-year"] = "inline"


class CleaningOf(Strict):
    """Of a set whose prompts show passages. Those that show the same ones are near copies and share long runs of words
    whatever they ask, so by default only what is the same word for word is dropped.
    """

    duplicates: Literal["keep", "exact", "near"] = "exact"  # near: MinHash over word 5-grams, FineWeb's bands, as well
    contamination: tuple[Variant, ...] = ("exact",)  # variants that find what models are judged on


class CleaningOfGeneral(CleaningOf):
    """Of texts that show no passages: there what is nearly the same teaches nearly the same."""

    duplicates: Literal["keep", "exact", "near"] = "near"
    contamination: tuple[Variant, ...] = VARIANTS


class CleaningConfig(Strict):
    """By set, in the order in which they are first trained on."""

    taught: tuple[str, ...] = ()  # benchmarks of what is known by heart: rows that hold their items stay
    preparation: CleaningOf = CleaningOf()
    general: CleaningOfGeneral = CleaningOfGeneral()
    citation: CleaningOf = CleaningOf()
    practice: CleaningOf = CleaningOf()


class MixConfig(Strict):
    general: float = Field(default=0.3, ge=0, lt=1)  # fraction of the rows of a training


class PreferenceConfig(Strict):
    samples: int = Field(default=4, ge=1)
    temperature: float = Field(default=0.9, gt=0)
    prompts: int | None = Field(default=None, ge=1)  # of the practice questions; none: all
    least_pairs: int = Field(default=1000, ge=1)
    gap: float = 0.15
    abstention: float = Field(default=0.35, ge=0, le=1)  # fraction of pairs about questions without an answer
    unseen_words: bool = False  # samples that say a word that only `items` and `sealed` have give no pairs
    probe_prompts: int = Field(default=200, ge=1)  # the divergence is measured on as many task and general prompts


class IterationConfig(Strict):
    rounds: int = Field(default=3, ge=1)
    flat: float = Field(default=0.02, gt=0)
    flat_rounds: int = Field(default=3, ge=1)
    rows: int = Field(default=1000, ge=1)  # of targeted data for a round


class TrainingConfig(Strict):
    preparation: TrainSettings | None = None
    citation: TrainSettings
    preference: TrainSettings
    iteration: TrainSettings


class WorkflowConfig(Strict):
    seed: int = Field(default=0, ge=0)
    mode: Mode = "strict"
    attempts: int = Field(default=2, ge=1, le=8)  # of a stage: the first and its remedies; alpha is divided by it
    looks: int = Field(default=1, ge=1, le=8)  # at one candidate, with items added in between; alpha is divided by it
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    model: ModelConfig
    data: DataConfig
    benchmarks: dict[str, Benchmark] = Field(default_factory=dict)
    generation: GenerationConfig = GenerationConfig()
    verifier: VerifierConfig = VerifierConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    citations: CitationsConfig = CitationsConfig()
    cleaning: CleaningConfig = CleaningConfig()
    mix: MixConfig = MixConfig()
    preference: PreferenceConfig = PreferenceConfig()
    iteration: IterationConfig = IterationConfig()
    training: TrainingConfig
    gates: dict[str, dict[str, float]] = Field(default_factory=dict)  # stage -> gate -> threshold, if another

    @property
    def benchmark_files(self) -> dict[str, str]:
        return {name: each for name, each in self.benchmarks.items() if isinstance(each, str)}

    @property
    def harness_tasks(self) -> dict[str, HarnessTask]:
        return {name: each for name, each in self.benchmarks.items() if isinstance(each, HarnessTask)}


def read_config(path: Path) -> WorkflowConfig:
    """Raises UsageError with a line for everything that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {path} cannot be read: {error}", "name a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config: {path}: {error}", "correct that line") from error
    lines = lines_of_toml(text)
    try:
        config = WorkflowConfig.model_validate(values)
    except ValidationError as error:
        wrong = "\n".join(_said(path, lines, each) for each in error.errors())
        raise UsageError(wrong, "docs/workflows/templates.md has every key") from None
    if wrong_verifier := [*_wrong_verifier(path, lines, config.verifier)]:
        raise UsageError("\n".join(wrong_verifier), "docs/workflows/verification.md says what each kind needs")
    if wrong_retrieval := [*_wrong_retrieval(path, lines, config.retrieval)]:
        raise UsageError("\n".join(wrong_retrieval), "docs/workflows/source-data.md has an example of each")
    if wrong_cleaning := [*_wrong_cleaning(path, lines, config)]:
        raise UsageError("\n".join(wrong_cleaning), "docs/workflows/templates.md says what cleaning does")
    if wrong_training := [*_wrong_trainings(path, lines, config.training)]:
        raise UsageError("\n".join(wrong_training), "see realign train --help")
    return config


def recorded_config(values: Mapping[str, Any]) -> WorkflowConfig:
    """As a run's ledger has it. One of before every set had its own rules of cleaning has those of `citation` only."""
    cleaning = values.get("cleaning", {})
    if "near_duplicates" in cleaning:
        duplicates = "near" if cleaning["near_duplicates"] else "exact"
        citation = {"duplicates": duplicates, "contamination": cleaning["contamination"]}
        values = {**values, "cleaning": {"citation": citation}}
    return WorkflowConfig.model_validate(values)


def _said(path: Path, lines: dict[tuple[str, ...], int], error: Mapping[str, Any]) -> str:
    at = tuple(str(part) for part in error["loc"] if part not in FORMS)
    place = f"{path}:{line_of_toml(lines, at)}: {'.'.join(at)}"
    match error["type"]:
        case "extra_forbidden":
            return f"{place}: unknown{did_you_mean(at[-1], _keys_of(at[:-1]))}"
        case "missing":
            return f"{place}: missing"
        case _:
            return f"{place}: {error['msg'].removeprefix('Value error, ')}"


def _keys_of(table: tuple[str, ...]) -> list[str]:
    """The keys that are right within a table of the file."""
    model: Any = WorkflowConfig
    for name in table:
        if name not in model.model_fields:
            continue  # a name of the user's own: of a benchmark
        model = next(
            (each for each in _within(model.model_fields[name].annotation) if hasattr(each, "model_fields")), None
        )
        if model is None:
            return []
    return list(model.model_fields)


def _wrong_verifier(path: Path, lines: dict[tuple[str, ...], int], verifier: VerifierConfig) -> Iterator[str]:
    def place(key: str) -> str:
        return f"{path}:{line_of_toml(lines, ('verifier', key))}: verifier.{key}"

    kind, model, service = verifier.kind, verifier.model, verifier.service
    if kind == "judge" and not model:
        yield f"{place('model')}: missing, the kind is judge"
    if kind == "service" and service is None:
        yield f"{place('service')}: missing, the kind is service: [verifier.service] has its url and version"
    if kind == "ensemble" and not model and service is None:
        yield f"{place('kind')}: an ensemble has a model, a [verifier.service], or both, beside the rules"
    if kind in ("lexical", "service") and model:
        yield f'{place("model")}: nobody asks it, the kind is {kind}; kind = "judge" or "ensemble" does'
    if kind in ("lexical", "judge") and service is not None:
        yield f'{place("service")}: nobody asks it, the kind is {kind}; kind = "service" or "ensemble" does'


def _wrong_retrieval(path: Path, lines: dict[tuple[str, ...], int], retrieval: RetrievalConfig) -> Iterator[str]:
    def place(key: str) -> str:
        return f"{path}:{line_of_toml(lines, ('retrieval', key))}: retrieval.{key}"

    kind, embedder = retrieval.kind, retrieval.embedder
    if kind not in RETRIEVERS and not CODE.fullmatch(kind):
        near = did_you_mean(kind, RETRIEVERS)
        yield f"{place('kind')}: {kind!r} is none of {', '.join(RETRIEVERS)}, and no module:attribute{near}"
    if kind == "vectors" and not CODE.fullmatch(embedder):
        said = f"{embedder!r} is no module:attribute" if embedder else "missing: vectors are made by an embedder"
        yield f"{place('embedder')}: {said}"
    if kind != "vectors" and embedder:
        yield f'{place("embedder")}: only kind = "vectors" has one'


def _wrong_cleaning(path: Path, lines: dict[tuple[str, ...], int], config: WorkflowConfig) -> Iterator[str]:
    place = f"{path}:{line_of_toml(lines, ('cleaning', 'taught'))}: cleaning.taught"
    for name in config.cleaning.taught:
        if name in config.harness_tasks:
            yield f"{place}: {name} is a task: its items are not looked for in what is trained on"
        elif name not in config.benchmarks:
            yield f"{place}: there is no benchmark {name!r}{did_you_mean(name, config.benchmark_files)}"


def _within(annotation: Any) -> Iterator[Any]:
    """The annotation and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _within(part)


def _wrong_trainings(path: Path, lines: dict[tuple[str, ...], int], training: TrainingConfig) -> Iterator[str]:
    for name in TrainingConfig.model_fields:
        settings: TrainSettings | None = getattr(training, name)
        if settings is None:
            continue
        at = ("training", name)

        def place(*key: str, at: tuple[str, ...] = at) -> str:
            return f"{path}:{line_of_toml(lines, (*at, *key))}: {'.'.join((*at, *key))}"

        for broken in broken_limits(settings):
            yield f"{place(*broken.path)}: {broken.what}; it should be {broken.right}"
        if settings.preference != (name == "preference"):
            kind = "on pairs, such as dpo" if name == "preference" else "sft"
            yield f"{place('method')}: the method should be {kind}"
        if name == "preference" and settings.evaluation.patience is not None:
            yield f"{place('evaluation', 'patience')}: no pairs are validated on, so it would never stop early"
