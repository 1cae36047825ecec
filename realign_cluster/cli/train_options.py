"""The options that say what is trained, shared by `train` and `plan train`: one table, from which both are made.

Every option may also stand in a file (`--config`), under the path that the table gives; what is typed goes before what
the file says, and that before the default. `train_asked` reads both.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

Path = tuple[str, ...]
Given = Mapping[Path, Any]  # what was typed, by path

TEXTS = list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One option. `path` is where it stands in a file and, but for REQUESTED, in TrainSettings."""

    path: Path
    option: str
    kind: Any
    help: str
    meanings: Mapping[Any, Any] = field(default_factory=dict)  # typed value -> value in a file

    @property
    def parameter(self) -> str:
        """Of the Python function behind the command."""
        return "_".join(self.path)

    def typed(self, value: Any) -> Any:
        return self.meanings[value] if self.meanings and value in self.meanings else value


def _setting(path: str, kind: Any, help: str, option: str = "", meanings: Mapping[Any, Any] | None = None) -> Setting:
    parts = tuple(path.split("."))
    name = option or "--" + parts[-1].replace("_", "-")
    return Setting(path=parts, option=name, kind=kind, help=help, meanings=meanings or {})


def _switch(path: str, help: str) -> Setting:
    name = path.replace("_", "-")
    return _setting(path, bool, help, f"--{name}/--no-{name}")


REQUESTED = (
    _setting("model", str, "mlx-lm model folder or hub id."),
    _setting("data", TEXTS, "Rows to learn from: a file, glob or folder; may be repeated."),
    _setting("valid", TEXTS, "Rows to evaluate on; may be repeated."),
    _setting(
        "benchmarks", TEXTS, "JSONL of questions to watch: prompt, answer, choices; may be repeated.", "--benchmark"
    ),
    _setting(
        "kl.probes", TEXTS, "Rows whose prompts divergence is measured on, all of them; may be repeated.", "--kl-probes"
    ),
    _setting("parallel", str, "auto, single, data, tensor, pipeline or sharded. Default: auto, the plan decides."),
    _setting("backend", str, "What joins the ranks: auto, ring, jaccl or mpi. Default: auto."),
    _setting("track", str, "Also write the curves for: none, wandb (offline), tensorboard. Default: none."),
)
SETTINGS = (
    _setting("method", str, "sft, or on pairs dpo, cdpo, robust, ipo, orpo."),
    _setting("fine_tune", str, "What is trained: lora, dora or full."),
    _setting("steps", int, "Optimizer steps."),
    _setting("global_batch", int, "Rows (or pairs) of one step, over all nodes."),
    _setting("optimizer.learning_rate", float, "Highest learning rate."),
    _setting("optimizer.schedule", str, "Of the learning rate: constant, linear or cosine."),
    _setting("optimizer.warmup_steps", int, "Steps until the learning rate is reached."),
    _setting("optimizer.final_fraction", float, "Of the learning rate, at the last step."),
    _setting("optimizer.name", str, "adamw, adam or sgd.", "--optimizer"),
    _setting("optimizer.weight_decay", float, "Of adamw."),
    _setting("optimizer.beta1", float, "Of adamw and adam."),
    _setting("optimizer.beta2", float, "Of adamw and adam."),
    _setting("optimizer.eps", float, "Of adamw and adam."),
    _setting("optimizer.clip_norm", float, "Largest norm of the whole gradient; 0: any.", meanings={0.0: None}),
    _setting("adapter.rank", int, "Of lora and dora.", "--rank"),
    _setting("adapter.scale", float, "Factor of the adapters' output.", "--scale"),
    _setting("adapter.dropout", float, "Fraction of an adapter's inputs left out.", "--dropout"),
    _setting("adapter.layers", int, "Last blocks that get adapters; -1: all.", "--layers"),
    _setting("adapter.keys", str, "Layers within a block, by commas: self_attn.q_proj,... Default: all.", "--keys"),
    _setting("loss.beta", float, "Of dpo, cdpo, robust and ipo."),
    _setting("loss.label_smoothing", float, "Of cdpo and robust: how likely a pair is the wrong way round."),
    _setting("loss.orpo_weight", float, "Weight of orpo's odds term."),
    _setting("kl.every", int, "Measure the divergence from the model before, every N steps.", "--kl-every"),
    _setting("kl.budget", float, "Nats per token that are allowed.", "--kl-budget"),
    _setting("kl.action", str, "Beyond the budget: soften (go back, halve the rate) or stop.", "--kl-action"),
    _setting("kl.prompts", int, "Without --kl-probes: that many of the first rows of --valid.", "--kl-prompts"),
    _setting("kl.new_tokens", int, "Tokens sampled for each.", "--kl-new-tokens"),
    _setting("evaluation.every", int, "Evaluate every N steps; 0: only at the end.", "--evaluate-every"),
    _setting("evaluation.patience", int, "Evaluations without a better loss until it stops."),
    _setting("evaluation.max_rows", int, "Only the first N rows of --valid.", "--evaluate-rows"),
    _setting("max_tokens", int, "Longest sequence in tokens."),
    _setting("truncate", str, "What gives way when a row is longer: left, right or refuse."),
    _setting(
        "chat", bool, "Use the tokenizer's chat template or not.", "--chat/--plain", {True: "chat", False: "plain"}
    ),
    _switch("mask_prompt", "sft: learn completions only, or prompts too."),
    _switch("packing", "Put short rows into one sequence, without attention across them."),
    _switch("grad_checkpoint", "Compute activations again in the backward pass: less memory, more time."),
    _setting("micro_batch_tokens", int, "Padded tokens that go through the model at once."),
    _setting("pad_to", int, "Sequences are padded to a multiple of this."),
    _setting("dtype", str, "Of the weights: auto (the model's), float32, bfloat16 or float16."),
    _setting("seed", int, "Of the order of rows, adapters and dropout."),
    _switch("reproducible", "The same bits again, whatever fails meanwhile: shares stay as planned."),
    _setting("checkpoint_every", int, "Steps between durable checkpoints."),
    _setting("keep_checkpoints", int, "That many are kept."),
    _setting("snapshot_every", int, "Steps between snapshots on the nodes. Default: by what they cost."),
)
ALL = (*REQUESTED, *SETTINGS)
BY_PATH = {setting.path: setting for setting in ALL}


def takes_train_options(command: Callable[..., int]) -> Callable[..., int]:
    """`command` with every option of the table besides its own; it gets the ones that were typed as `given`.

    Its own parameters must be keywords with Annotated types, one of them `given`.
    """
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapper(**values: Any) -> int:
        typed = {setting.path: values.pop(setting.parameter) for setting in ALL}
        given = {path: BY_PATH[path].typed(value) for path, value in typed.items() if value not in (None, [])}
        return command(given=given, **values)

    first = [parameter for parameter in own.parameters.values() if parameter.name != "given"]
    parameters = [*(_parameter(setting) for setting in ALL), *first]
    parameters.sort(key=lambda parameter: parameter.kind)
    wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": int}
    return wrapper


def _parameter(setting: Setting) -> inspect.Parameter:
    help = setting.help
    if setting not in REQUESTED and (default := _default(setting)):
        help = f"{help} Default: {default}."
    return inspect.Parameter(
        setting.parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[setting.kind | None, typer.Option(setting.option, help=help, show_default=False)],
    )


def _default(setting: Setting) -> str:
    """As a user would type it; nothing for what is required or said in the help."""
    from realign_cluster.domain.training import KlSettings, TrainSettings

    model: Any = TrainSettings
    for name in setting.path[:-1]:
        model = {"kl": KlSettings}.get(name) or model.model_fields[name].annotation
    value = model.model_fields[setting.path[-1]].get_default()
    if isinstance(value, bool):
        return setting.option.split("/")[0 if value else 1]
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, int | str) else ""
