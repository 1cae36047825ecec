"""What a training run asks of every rank: method, model, data, optimizer and their numbers, all typed.

Equal jobs, from equal states, give the same trajectory whatever the ranks and shares are. Knows no tokenizer, no MLX
and no node: `training` gives these names their meaning, `domain.world` says who computes what.
"""

from __future__ import annotations

from typing import Final, Literal

from realign_cluster.domain.job import Chat, ModelSpec, Strict, Truncate

Method = Literal["sft", "dpo", "cdpo", "robust", "ipo", "orpo"]
FineTune = Literal["lora", "dora", "full"]
ParallelMode = Literal["single", "data", "tensor", "pipeline", "sharded"]
Backend = Literal["ring", "jaccl", "mpi"]
Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "adam", "sgd"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
KlAction = Literal["stop", "soften"]

PREFERENCE_METHODS: frozenset[str] = frozenset({"dpo", "cdpo", "robust", "ipo", "orpo"})
REFERENCE_METHODS: frozenset[str] = frozenset({"dpo", "cdpo", "robust", "ipo"})
PROBES_FILE: Final = "probes.jsonl"  # of prepared data: prompts that divergence is measured on
TRAINING_VERSION = 1  # of what a step computes: a run is continued by the same version only


class AdapterSettings(Strict):
    """mlx-lm's adapter_config.json in our words. `layers` counts from the last block; -1 is all of them."""

    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    layers: int = 16
    keys: tuple[str, ...] = ()  # module paths within a block, "self_attn.q_proj"; empty: every linear layer


class OptimizerSettings(Strict):
    name: Optimizer = "adamw"
    learning_rate: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0  # of the global gradient; None: never clipped
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.0  # of the learning rate, at the last step


class LossSettings(Strict):
    beta: float = 0.1
    label_smoothing: float = 0.0
    orpo_weight: float = 0.1  # lambda


class KlSettings(Strict):
    """KL as in metrics.md: mean over completion tokens sampled from the policy of the exact sum over the vocabulary.

    `prompts`: of the first rows of validation or, without any, of training; where probes are given all of those count.
    """

    every: int
    budget: float = 0.1  # nats per completion token
    action: KlAction = "soften"  # soften: halve the rate, double beta, go back to the last checkpoint within budget
    prompts: int = 16
    new_tokens: int = 64


class EvaluationSettings(Strict):
    every: int = 0  # steps; 0: only at the end
    patience: int | None = None  # evaluations without a better validation loss before stopping; None: never
    max_rows: int | None = None


class TrainSettings(Strict):
    """What a user chooses, apart from the model and the data."""

    method: Method = "sft"
    fine_tune: FineTune = "lora"
    adapter: AdapterSettings = AdapterSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    loss: LossSettings = LossSettings()
    kl: KlSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    steps: int
    global_batch: int  # rows (pairs for a preference method) of one optimizer step, over all ranks
    seed: int = 0
    reproducible: bool = False
    max_tokens: int = 2048
    truncate: Truncate = "refuse"
    chat: Chat = "auto"
    mask_prompt: bool = True  # sft: only completion tokens count; False: every token but the first
    packing: bool = False
    grad_checkpoint: bool = False
    micro_batch_tokens: int = 4096  # padded tokens that go through the model at once
    pad_to: int = 32
    dtype: Dtype = "auto"
    checkpoint_every: int = 100
    keep_checkpoints: int = 3
    snapshot_every: int | None = None  # None: from a budget of 1 % of the step time

    @property
    def preference(self) -> bool:
        return self.method in PREFERENCE_METHODS

    @property
    def needs_reference(self) -> bool:
        return self.method in REFERENCE_METHODS

    @property
    def kl_budget(self) -> float | None:
        """Nats per completion token; None: not measured."""
        return self.kl.budget if self.kl is not None else None


class TrainJob(TrainSettings):
    """One training run as a rank sees it. `data` is the prepared dataset: train.jsonl and, where given, valid.jsonl,
    probes.jsonl and benchmarks.
    """

    model: ModelSpec
    data: ModelSpec
    blas_threads: int | None = None  # None: the rank's share of the cores
    blas_core_type: str = ""  # pinned when reproducible
    memory_limit_bytes: int | None = None
    version: int = TRAINING_VERSION
