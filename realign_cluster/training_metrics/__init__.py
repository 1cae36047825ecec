"""Figures that say whether data and models are fit for training: preference pairs, IFD, KL, contamination.

Every figure is computed when it is asked for: by the cluster of `hostfile`, or without one by a worker process on this
machine. Nothing here imports MLX. Definitions and thresholds are those of the gates; docs/training_metrics.md shows
each function at work. All raise UsageError for input that is wrong, with what would be right.
"""

from realign_cluster.training_metrics.divergence import KlDivergence, kl_divergence
from realign_cluster.training_metrics.evaluation_leaks import contamination
from realign_cluster.training_metrics.ifd import IfdRow, IfdScores, calculate_ifd_score
from realign_cluster.training_metrics.pair_validation import validate_dpo_pairs

__all__ = [
    "IfdRow",
    "IfdScores",
    "KlDivergence",
    "calculate_ifd_score",
    "contamination",
    "kl_divergence",
    "validate_dpo_pairs",
]
