"""What adapters of estimators in scikit-learn's manner share: pipelines, class names, columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy, check_finite
from whence.data.tables import is_table
from whence.layers.losses import BinaryCrossEntropy, Loss
from whence.layers.names import loss_named, losses_of
from whence.models.adapter import Adapter, LossSpec
from whence.models.sklearn.class_weights import Counted
from whence.models.sklearn.fitted import fitted_parts
from whence.models.state import Part

__all__ = [
    "EstimatorAdapter",
    "Pipe",
    "given_loss",
    "is_fitted",
    "refuse",
    "refuse_objective",
    "split_pipeline",
    "unfitted",
]


class Pipe:
    """The steps of a pipeline before its last, and the columns that it was fitted on.

    Parameters
    ----------
    pipelines : sequence of sklearn.pipeline.Pipeline
        From the outermost to the innermost; empty if there is none.
    final : estimator
    """

    def __init__(self, pipelines: Sequence[Any], final: Any) -> None:
        self._pipelines = [pipeline for pipeline in pipelines if len(pipeline.steps) > 1]
        first = self._pipelines[0].steps[0][1] if self._pipelines else final
        if not hasattr(first, "feature_names_in_") and pipelines:
            first = pipelines[0]
        #: Steps that made another training set of the one given, and leave samples that are asked about.
        self.samplers = [
            type(step).__name__
            for pipeline in self._pipelines
            for _, step in pipeline.steps[:-1]
            if hasattr(step, "fit_resample")
        ]
        names = getattr(first, "feature_names_in_", None)
        self.columns = None if names is None else [str(name) for name in names]
        self._spelled: Callable[[str], str] = str

    def expect(self, names: Sequence[str] | None, spelled: Callable[[str], str] = str) -> None:
        """Take the columns from what the last step keeps of them, unless another step sees them first.

        Parameters
        ----------
        names : sequence of str or None
        spelled : callable
            How the last step spells the name of a frame's column.
        """
        if not self._pipelines:
            self.columns = None if names is None else list(names)
            self._spelled = spelled

    def state(self) -> dict[str, Part]:
        """Return the fitted attributes of all steps before the last."""
        return {
            name: part
            for pipeline in self._pipelines
            for step, estimator in pipeline.steps[:-1]
            for name, part in fitted_parts(estimator, step).items()
        }

    def __call__(self, inputs: Any) -> Any:
        """Return what the last step is given."""
        for pipeline in self._pipelines:
            if self.samplers:  # one by one: a pipeline of imbalanced-learn cannot be cut
                for _, step in pipeline.steps[:-1]:
                    inputs = step.transform(inputs) if hasattr(step, "transform") else inputs
            else:
                inputs = pipeline[:-1].transform(inputs)
        return inputs

    def check(self, inputs: Any, where: str) -> None:
        """Raise if a frame has other columns than at fit."""
        given = getattr(inputs, "columns", None)
        if given is None or self.columns is None:
            return
        given = [self._spelled(str(name)) for name in given]
        if given == self.columns:
            return
        missing = [name for name in self.columns if name not in given]
        extra = [name for name in given if name not in self.columns]
        got = "the same ones in another order"
        if missing or extra:
            got = "; ".join(
                f"{word} {', '.join(names[:5])}"
                for word, names in (("without", missing), ("with", extra))
                if names
            )
        raise WhenceError(
            f"columns in {where}",
            f"the {len(self.columns)} columns of the fit, in their order",
            got,
            "Select them: frame[list(model.feature_names_in_)].",
        )


def split_pipeline(model: Any) -> tuple[Pipe, Any]:
    """Return the steps before the last and the last step of a pipeline, through searches; of any depth."""
    pipelines, final = [], model
    while True:
        if hasattr(final, "steps") and hasattr(final, "named_steps"):
            pipelines.append(final)
            final = final.steps[-1][1]
        elif hasattr(final, "best_estimator_"):
            final = final.best_estimator_
        elif type(final).__name__ == "FrozenEstimator":
            final = final.estimator
        else:
            return Pipe(pipelines, final), final


class EstimatorAdapter(Adapter):
    """Reads an estimator behind a pipeline; a loss in closed form, and nothing behind the layer.

    Parameters
    ----------
    pipe : Pipe
    loss : Loss
    classes : array of shape (C,) or None
        The names of the classes, in the order of the outputs; with two classes and one output, the
        second is what the output speaks for. ``None`` for values, and for labels in columns.
    one_against_rest : bool
        Whether each output is a classifier of its own: class names become rows of 0 and 1.
    by_class : array of shape (C,), Counted or None
        What training counts each class; :class:`Counted` finds it from the training labels.
    """

    def __init__(
        self,
        pipe: Pipe,
        loss: Loss,
        classes: np.ndarray | None = None,
        one_against_rest: bool = False,
        by_class: np.ndarray | Counted | None = None,
    ) -> None:
        self._pipe = pipe
        if one_against_rest and isinstance(loss, BinaryCrossEntropy):
            loss = replace(loss, one_against_rest=True)
        self._loss = loss
        self._classes = classes
        self._one_against_rest = one_against_rest
        self._by_class = by_class
        self._found_by_class: np.ndarray | None = None

    #: Nothing is drawn or computed in another order from one pass to the next.
    probe_tolerance = 1e-6

    def state(self) -> Mapping[str, Part]:
        return self._pipe.state()

    def with_layer(self, layer: int | str) -> Adapter:
        if layer in (-1, 0, self.layer_name):
            return self
        raise WhenceError(
            "target layer",
            f"-1 or {self.layer_name!r}, the only layer that is explained in such a model",
            repr(layer),
            "Leave it out.",
        )

    def loss_spec(self) -> LossSpec:
        return LossSpec(self._loss, "identity", self._loss.name)

    def tail(self, inputs: Any, pre_activations: np.ndarray) -> np.ndarray:
        return pre_activations

    def check_inputs(self, inputs: Any, where: str) -> None:
        """Raise for other columns than at fit. Missing values are the model's to take or refuse."""
        self._pipe.check(inputs, where)

    def encode_labels(self, labels: Any, where: str) -> np.ndarray:
        """Return class names as class numbers, or as rows of 0 and 1; values as they are."""
        given = np.asarray(labels) if is_table(labels) else as_numpy(labels)
        if self._classes is None:
            return given
        if given.ndim == 2 and given.shape[1] == 1:
            given = given[:, 0]
        if given.ndim != 1:
            raise WhenceError(
                f"labels in {where}", "one class a sample", f"shape {given.shape}", "Give class names."
            )
        if given.dtype.kind == "f":
            check_finite(given, "labels", where, "Clean or drop the samples.")
        if given.dtype == object and any(label is None for label in given):
            fix = "Leave out the samples without a label."
            raise WhenceError(f"labels in {where}", "a class of each sample", "None", fix)
        names = self._classes
        order = np.argsort(names)
        try:
            place = np.minimum(np.searchsorted(names[order], given), len(names) - 1)
            known = names[order][place] == given
        except TypeError:  # names that do not compare, such as numbers and strings
            known = np.zeros(given.shape, dtype=bool)
        if not np.all(known):
            unseen = given[~np.asarray(known)][0]
            raise WhenceError(
                f"labels in {where}",
                f"the classes of the fit: {', '.join(map(str, names[:10]))}",
                f"{unseen!r}",
                "Leave these samples out: the model has no output for them.",
            )
        numbers = order[place]
        if self._one_against_rest:
            return (numbers[:, None] == np.arange(len(names))).astype(np.float64)
        return numbers.astype(np.int64)

    @property
    def class_names(self) -> list[Any] | None:
        return None if self._classes is None else np.asarray(self._classes).tolist()

    @property
    def counts_classes(self) -> bool:
        return isinstance(self._by_class, Counted)

    def count_classes(self, labelled: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
        assert isinstance(self._by_class, Counted)
        self._found_by_class = self._by_class(
            (_class_numbers(target), weight) for target, weight in labelled
        )
        return self._found_by_class

    def class_weights(self, target: np.ndarray) -> np.ndarray | None:
        weights = self._found_by_class if isinstance(self._by_class, Counted) else self._by_class
        if weights is None and self._by_class is not None:
            fix = "Index the training set, or pass the numbers: class_weight={class: weight}."
            raise WhenceError("class_weight", "a training set first, to count its classes", "none yet", fix)
        return None if weights is None else weights[_class_numbers(target)]


def _class_numbers(target: np.ndarray) -> np.ndarray:
    """Return targets, class numbers or rows, as class numbers; of one column, its 0 or 1."""
    if target.ndim == 2:
        target = target[:, 0] if target.shape[1] == 1 else target.argmax(axis=1)
    return target.astype(np.int64)


def is_fitted(estimator: Any, *attributes: str) -> None:
    """Raise unless the estimator has what a fit leaves."""
    if any(hasattr(estimator, attribute) for attribute in attributes):
        return
    raise unfitted(estimator)


def unfitted(estimator: Any) -> WhenceError:
    """Return the error for an estimator that has not learned anything yet."""
    return WhenceError(
        "model",
        "a fitted estimator",
        f"a {type(estimator).__name__} that was not fitted",
        "Call fit(X, y) first.",
    )


def refuse(estimator: Any, what: str, fix: str) -> WhenceError:
    """Return the error for something that an estimator does and that is not a dense layer."""
    return WhenceError(
        "model",
        "an estimator whose prediction is a dense layer with a smooth loss",
        f"a {type(estimator).__name__} with {what}",
        fix,
    )


def refuse_objective(booster: Any, what: str, known: Iterable[str]) -> WhenceError:
    """Return the error for a booster trained with an objective whose loss is not known."""
    if any(word in what for word in ("rank", "survival", "lambdarank")):
        fix = "Its loss is one of samples together: no sample has a loss of its own to be explained by."
        return refuse(booster, what, fix)
    if any(word in what for word in ("absolute", "quantile", "regression_l1", "mape", "hinge")):
        fix = "Its loss has no second derivative: train it with a smooth one, such as Huber or logistic."
        return refuse(booster, what, fix)
    return refuse(
        booster,
        what,
        f"Known are {', '.join(known)}; of another one, pass its loss: "
        "InfluenceModel(model, loss_function='binary_crossentropy').",
    )


def given_loss(loss_function: Any) -> Loss | None:
    """Return the loss that a user gave, or None."""
    if loss_function is None or isinstance(loss_function, Loss):
        return loss_function
    found = loss_named("whence", loss_function) if isinstance(loss_function, str) else None
    if found is not None:
        return found.made({})
    raise WhenceError(
        "loss_function",
        f"one of {', '.join(losses_of('whence'))}, or a whence.layers.losses.Loss",
        repr(loss_function),
        "Leave it out for a model that knows its loss.",
    )
