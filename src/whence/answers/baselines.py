"""Baselines that use no derivative: similarity of features, and the training loss alone."""

from __future__ import annotations

from typing import Any, Unpack

from whence.answers.contract import METHODS, Attribution
from whence.indexing.options import IndexKeywords
from whence.methods.baselines import LossOfSample, Similarity
from whence.models.base import InfluenceModel

__all__ = ["FeatureSimilarity", "TrainingLoss"]


@METHODS.register("FeatureSimilarity")
class FeatureSimilarity(Attribution):
    """Score training samples by how similar their features are, signed by their labels.

    With the features ``phi`` of the layer (the constant of the bias left out), targets ``y_i`` as rows
    and their mean over the training set::

        v_j(i, t) = (y_ij - mean_k y_kj) cos(phi_i, phi_t)

    a vote on output ``j`` among the neighbours of ``t``. Among samples of one class the order is that of
    the similarities. Positive speaks for output ``j``: the label of ``i`` is ``j`` more than on average
    and its features point the same way. No weight of the layer and no loss play a part. Self-influence
    is ``|v_j(i, i)|``, which depends on the label alone; ``suspects`` takes the vote of all others.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset or Index
        The training set, batched; or an index of it, see :meth:`whence.InfluenceModel.index`.
    target_layer : int or str, default=-1
        Whose inputs are compared; ``-1`` follows the model's ``start_layer``.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own.
    **options
        How the training set is stored and worked on, by name: ``index_path``, ``engine``, ``ids``,
        ``feature_dtype``, ``on_error``, ``progress``; or all as one object, ``index_options``. See
        :class:`~whence.IndexOptions`.
    """

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        target_layer: int | str = -1,
        *,
        label: str = "predicted",
        **options: Unpack[IndexKeywords],
    ) -> None:
        super().__init__(influence_model, dataset, Similarity, target_layer, label=label, **options)


@METHODS.register("TrainingLoss")
class TrainingLoss(Attribution):
    """Score training samples by their own training loss, whatever is asked.

    ::

        v_j(i, t) = ell_i sign(-r_ij)

    the loss of sample ``i``, positive if its label asks for more of output ``j`` than the model gives,
    so that positive speaks for ``j``; the same for every ``t``. Self-influence is ``ell_i``. It is the
    baseline that a method has to beat at finding wrong labels, and it explains no prediction. ``suspects``
    leaves nothing out: its margins are those of the model itself.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset or Index
        The training set, batched; or an index of it, see :meth:`whence.InfluenceModel.index`.
    target_layer : int or str, default=-1
        Which dense layer; ``-1`` follows the model's ``start_layer``. Without a bias, only
        self-influence and suspects are to be had.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own.
    **options
        How the training set is stored and worked on, by name: ``index_path``, ``engine``, ``ids``,
        ``feature_dtype``, ``on_error``, ``progress``; or all as one object, ``index_options``. See
        :class:`~whence.IndexOptions`.
    """

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        target_layer: int | str = -1,
        *,
        label: str = "predicted",
        **options: Unpack[IndexKeywords],
    ) -> None:
        super().__init__(influence_model, dataset, LossOfSample, target_layer, label=label, **options)
