"""Measures of what an explanation can be shown to predict: label errors, retraining, completeness.

Needs pandas; results are tidy frames, one row an observation. ``n_jobs`` runs retrainings and seeds in
parallel by joblib, where that is installed.
"""

from whence.evaluation.agreement import completeness, stability
from whence.evaluation.detection import (
    average_precision,
    detection_curve,
    flip_labels,
    label_error_detection,
    roc_auc,
    summary,
)
from whence.evaluation.removal import (
    agreement,
    leave_group_out,
    leave_one_out,
    linear_datamodeling_score,
    subset_removal,
)
from whence.evaluation.retraining import EstimatorRetraining, LayerRetraining

__all__ = [
    "EstimatorRetraining",
    "LayerRetraining",
    "agreement",
    "average_precision",
    "completeness",
    "detection_curve",
    "flip_labels",
    "label_error_detection",
    "leave_group_out",
    "leave_one_out",
    "linear_datamodeling_score",
    "roc_auc",
    "stability",
    "subset_removal",
    "summary",
]
