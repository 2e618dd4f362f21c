"""The adapter for scikit-learn: linear models, multi-layer perceptrons, and pipelines that end in one.

Regularisation is read from the estimator and written for the *mean* loss, ``lam`` its second derivative.
With ``N`` training samples, ``C`` outputs, and losses that average over outputs:

======================= ====================================================== =========================
estimator               what it minimises                                      ``lam`` of the weights
======================= ====================================================== =========================
LogisticRegression      ``C_ sum_i ell_i + |w|^2 / 2``                         ``1 / (C_ N)``
LinearSVC               the same with the squared hinge                        ``1 / (C_ N C)``
SGDClassifier           ``mean ell_i + alpha |w|^2 / 2``                       ``alpha / C``
SGDRegressor            ``mean (u - y)^2 / 2 + alpha |w|^2 / 2``               ``2 alpha``
Ridge, RidgeClassifier  ``sum_i sum_c (u - y)^2 + alpha |w|^2``                ``2 alpha / (N C)``
MLPClassifier           ``mean ell_i + alpha |w|^2 / (2 b)``                   ``alpha / b``
MLPRegressor            ``mean |u - y|^2 / 2 + alpha |w|^2 / (2 b)``           ``2 alpha / (b C)``
======================= ====================================================== =========================

``C_`` is the parameter ``C``, and ``b`` the size of a batch: ``N`` for ``solver="lbfgs"``; a shorter last
batch is not counted. One classifier a class against the rest has its own ``|w|^2``, hence the division by
``C``. The intercept is not regularised, except by liblinear (``LinearSVC`` and
``LogisticRegression(solver="liblinear")``), where ``intercept_scaling`` divides it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from whence._errors import WhenceError, warn
from whence.arrays.base import Array, as_numpy, check_number
from whence.arrays.sparse import SparseRows
from whence.layers.losses import BinaryCrossEntropy, Loss, SoftmaxCrossEntropy, SquaredError
from whence.layers.margin_losses import SquaredHinge, SquaredMargin
from whence.layers.names import loss_named, losses_of
from whence.layers.perceptron import inputs_of_layers
from whence.models.adapter import Adapter, Weights, register_adapter
from whence.models.sklearn.class_weights import weights_by_class
from whence.models.sklearn.estimators import (
    EstimatorAdapter,
    Pipe,
    is_fitted,
    refuse,
    split_pipeline,
)
from whence.models.sklearn.fitted import fitted_parts
from whence.models.sklearn.perceptron import PerceptronRows, layers_of
from whence.models.sklearn.refusals import refuse_estimator
from whence.models.state import Part

__all__ = ["LinearAdapter", "open_sklearn"]


# Wrappers in scikit-learn's manner, and XGBoost's and LightGBM's own boosters.
@register_adapter("sklearn.", "xgboost.", "lightgbm.")
def open_sklearn(
    model: Any,
    start_layer: int | str = -1,
    loss_function: Any = None,
    *,
    class_weight: Any = None,
    reg_lambda: float | None = None,
    base_margin: Any = None,
) -> Adapter:
    """Return the adapter of an estimator, or of the last step of a pipeline.

    Parameters
    ----------
    model : estimator
    start_layer : int or str, default=-1
    loss_function : Loss or str, optional
        Only for boosters with an objective of the user's own; other models know theirs.
    class_weight : array of shape (C,), dict or "balanced", optional
        What training counted each class, in place of what the model says itself. ``"balanced"``, here or
        there, is computed from the labels of the training set.
    reg_lambda : float, optional
        In place of the L2 strength on leaf values that XGBoost or LightGBM was trained with, and of what
        small steps and stopping add to it; 0 leaves the factory's damping alone.
    base_margin : str, sequence of str, or True, optional
        Where each sample's ``base_margin`` (XGBoost) or ``init_score`` (LightGBM) stands, which a booster
        was trained with: a column of the frame that is none of the model's, or one for each class; or
        ``True``, for inputs ``(X, base_margin)``. Training samples and explained ones bring it.

    Raises
    ------
    WhenceError
        If the estimator is not fitted, not known, or does something that is not a dense layer.
    """
    pipe, final = split_pipeline(model)
    if pipe.samplers:
        warn(
            f"{type(model).__name__}: expected a training set as it is given, got one that "
            f"{', '.join(pipe.samplers)} changed before the last step was fitted. Samples count as they "
            "are given here; to count them as in training, explain the last step on the resampled set."
        )
    if reg_lambda is not None:
        check_number(reg_lambda, "reg_lambda")
    options = {"class_weight": class_weight, "reg_lambda": reg_lambda, "base_margin": base_margin}
    adapter = _open(pipe, final, loss_function, options)
    return adapter.with_layer(start_layer)


def _open(pipe: Pipe, final: Any, loss_function: Any, options: dict[str, Any]) -> Adapter:
    class_weight = options["class_weight"]
    bases = [f"{base.__module__.split('.')[0]}.{base.__name__}" for base in type(final).__mro__]
    if any(name.startswith("xgboost.") for name in bases):
        from whence.models.sklearn.xgboost import XGBoostAdapter

        return XGBoostAdapter(final, pipe, loss_function, **options)
    if any(name.startswith("lightgbm.") for name in bases):
        from whence.models.sklearn.lightgbm import LightGBMAdapter

        return LightGBMAdapter(final, pipe, loss_function, **options)
    for name in ("reg_lambda", "base_margin"):
        if options[name] is not None:
            got = f"a {type(final).__name__}"
            raise WhenceError(name, "a booster of XGBoost or LightGBM", got, "Leave it out.")
    from whence.models.sklearn.forests import ENSEMBLES, open_ensemble

    for name in bases:
        if name.removeprefix("sklearn.") in ENSEMBLES and name.startswith("sklearn."):
            _no_loss(final, loss_function)
            return open_ensemble(final, pipe, class_weight)
        if name.removeprefix("sklearn.") in READERS and name.startswith("sklearn."):
            _no_loss(final, loss_function)
            return LinearAdapter(final, pipe, READERS[name.removeprefix("sklearn.")], class_weight)
    raise refuse_estimator(final, [*READERS, *ENSEMBLES])


def _no_loss(final: Any, loss_function: Any) -> None:
    if loss_function is not None:
        raise WhenceError(
            "loss_function",
            f"None: a {type(final).__name__} knows its loss",
            repr(loss_function),
            "Leave it out.",
        )


class LinearAdapter(EstimatorAdapter):
    """Reads a linear model, or the last layer of a multi-layer perceptron.

    Parameters
    ----------
    model : estimator
    pipe : Pipe
    reader : callable
        Returns what the estimator's class says: see ``READERS``.
    class_weight : array or dict, optional
    """

    layer_name = "coef_"

    def __init__(
        self, model: Any, pipe: Pipe, reader: Callable[[Any], tuple[Any, ...]], class_weight: Any = None
    ) -> None:
        is_fitted(model, "coef_", "coefs_")
        self._model = model
        loss, strengths, against_rest = reader(model)
        self._strengths: dict[str, Any] = strengths
        names = getattr(model, "classes_", None)
        if names is not None and getattr(model, "_label_binarizer", None) is not None:
            binarizer = model._label_binarizer  # labels in columns have no class names
            names = None if binarizer.y_type_.startswith("multilabel") else names
        super().__init__(pipe, loss, names, against_rest, weights_by_class(model, names, class_weight))
        if hasattr(model, "coefs_"):
            self.layer_name = f"coefs_[{len(model.coefs_) - 1}]"

    def weights(self) -> Weights:
        """Return coefficients and intercept as they are now."""
        model = self._model
        if hasattr(model, "coefs_"):
            return Weights(model.coefs_[-1], model.intercepts_[-1], **self._strengths)
        kernel = np.asarray(as_numpy(model.coef_), dtype=np.float64)
        if scipy.sparse.issparse(model.coef_):
            kernel = model.coef_.toarray()
        kernel = np.atleast_2d(kernel).T
        bias = np.broadcast_to(np.asarray(model.intercept_, dtype=np.float64), (kernel.shape[1],))
        return Weights(kernel, bias if model.fit_intercept else None, **self._strengths)

    def state(self) -> Mapping[str, Part]:
        """Return the steps before the model, and its own weights."""
        names = ("coefs_", "intercepts_", "coef_", "intercept_", "activation")
        return {**super().state(), **{n: p for n, p in fitted_parts(self._model).items() if n in names}}

    def features(self, inputs: Any) -> Array:
        """Return the input of the last layer: that of a linear model itself."""
        x = self._pipe(inputs)
        model = self._model
        width = getattr(model, "n_features_in_", None)
        if getattr(x, "ndim", 2) != 2 or (width is not None and x.shape[1] != width):
            raise WhenceError(
                "inputs",
                f"shape (batch, {width}), as at fit",
                f"shape {tuple(x.shape)}",
                "Give the columns of the fit.",
            )
        kind = getattr(np.dtype(getattr(x, "dtype", object)), "kind", "O")
        if kind not in "biufO":  # what NumPy would read or cut down to numbers, and the model refuses
            raise WhenceError("inputs", "numbers", f"dtype {x.dtype}", "Give the columns of the fit.")
        if not hasattr(model, "coefs_"):
            if scipy.sparse.issparse(x):
                return SparseRows(scipy.sparse.csr_array(x, dtype=np.float64))
            return np.asarray(x, dtype=np.float64)
        first = self._dense(x)
        return inputs_of_layers(first, model.coefs_, model.intercepts_, model.activation)[-1]

    def _dense(self, x: Any) -> np.ndarray:
        """Return what a perceptron's first layer takes in."""
        whole = x.toarray() if scipy.sparse.issparse(x) else x
        return np.asarray(whole, dtype=self._model.coefs_[0].dtype)

    def check_layers(self, wanted: Any) -> None:
        """Raise unless the model is a perceptron that has these layers."""
        if not hasattr(self._model, "coefs_"):
            raise WhenceError(
                "layers",
                f"-1 or {self.layer_name!r}, the only layer of a {type(self._model).__name__}",
                repr(wanted if isinstance(wanted, str) else list(wanted)),
                "Leave it out.",
            )
        layers_of(self._model, wanted)

    def row_source(self, wanted: Any) -> PerceptronRows:
        """Return what records rows of several layers of a perceptron."""
        return PerceptronRows(
            self._model, wanted, lambda inputs: self._dense(self._pipe(inputs)), **self._strengths
        )


# ------------------------------------------------------------------ what each class minimises


def _logistic(model: Any) -> tuple[Loss, dict[str, float], bool]:
    strength = model.C_ if hasattr(model, "C_") else model.C  # C_: chosen by cross-validation
    strength = np.unique(np.asarray(strength, dtype=np.float64))
    penalty = model.penalty
    ratio = getattr(model, "l1_ratio_", getattr(model, "l1_ratio", None))
    is_mixed = penalty in ("elasticnet", "deprecated") and ratio is not None
    has_l1 = penalty == "l1" or (is_mixed and np.max(np.asarray(ratio, dtype=float)) > 0)
    if has_l1:
        raise refuse(model, "an L1 penalty, which has no curvature", "Fit it with an L2 penalty.")
    if len(strength) > 1:
        raise refuse(model, "another C for each class", "Fit a LogisticRegression with one C.")
    sum_strength = 0.0 if penalty in (None, "none") else 1.0 / float(strength[0])
    n_outputs = np.atleast_2d(model.coef_).shape[0]
    liblinear = model.solver == "liblinear"
    kind = getattr(model, "multi_class", "auto")
    if kind == "multinomial" and n_outputs == 1:
        raise refuse(model, "multi_class='multinomial' on two classes", "Leave multi_class out.")
    against_rest = n_outputs > 1 and (liblinear or kind == "ovr")
    loss: Loss = BinaryCrossEntropy() if against_rest or n_outputs == 1 else SoftmaxCrossEntropy()
    if against_rest:
        sum_strength /= n_outputs
    strengths = {"l2_of_sum": sum_strength}
    if liblinear:
        strengths["bias_l2_of_sum"] = sum_strength / model.intercept_scaling**2
    return loss, strengths, against_rest


def _linear_svc(model: Any) -> tuple[Loss, dict[str, float], bool]:
    if model.loss != "squared_hinge" or model.penalty != "l2":
        what = f"loss={model.loss!r} and penalty={model.penalty!r}"
        raise refuse(model, what, "Fit it with loss='squared_hinge', penalty='l2'.")
    if model.multi_class != "ovr":
        raise refuse(model, f"multi_class={model.multi_class!r}", "Fit it with multi_class='ovr'.")
    n_outputs = np.atleast_2d(model.coef_).shape[0]
    strength = 1.0 / (model.C * n_outputs)
    bias = strength / model.intercept_scaling**2
    return SquaredHinge(), {"l2_of_sum": strength, "bias_l2_of_sum": bias}, n_outputs > 1


def _sgd_classifier(model: Any) -> tuple[Loss, dict[str, float], bool]:
    found = loss_named("sklearn.linear_model", model.loss)
    if found is None:
        fix = f"Fit it with loss={' or '.join(map(repr, losses_of('sklearn.linear_model')))}."
        raise refuse(model, f"loss={model.loss!r}", fix)
    n_outputs = np.atleast_2d(model.coef_).shape[0]
    return found.made({}), {"l2": _sgd_alpha(model) / n_outputs}, n_outputs > 1


def _sgd_regressor(model: Any) -> tuple[Loss, dict[str, float], bool]:
    if model.loss != "squared_error":
        raise refuse(model, f"loss={model.loss!r}", "Fit it with loss='squared_error'.")
    return SquaredError(), {"l2": 2 * _sgd_alpha(model)}, False


def _sgd_alpha(model: Any) -> float:
    if model.penalty is None:
        return 0.0
    if model.penalty != "l2":
        raise refuse(model, f"penalty={model.penalty!r}", "Fit it with penalty='l2' or None.")
    return float(model.alpha)


def _least_squares(model: Any) -> tuple[Loss, dict[str, float], bool]:
    if getattr(model, "positive", False):
        raise refuse(model, "positive=True, a bound on its weights", "Fit it with positive=False.")
    return SquaredError(), {}, False


def _ridge(model: Any) -> tuple[Loss, dict[str, float], bool]:
    if getattr(model, "positive", False):
        raise refuse(model, "positive=True, a bound on its weights", "Fit it with positive=False.")
    alpha = model.alpha_ if hasattr(model, "alpha_") else model.alpha  # alpha_: by cross-validation
    alpha = np.unique(np.asarray(alpha, dtype=np.float64))
    if len(alpha) > 1:
        raise refuse(model, "another alpha for each target", "Fit it with one alpha.")
    n_outputs = np.atleast_2d(model.coef_).shape[0]
    return SquaredError(), {"l2_of_sum": 2 * float(alpha[0]) / n_outputs}, False


def _ridge_classifier(model: Any) -> tuple[Loss, dict[str, float], bool]:
    _, strengths, _ = _ridge(model)
    return SquaredMargin(), strengths, np.atleast_2d(model.coef_).shape[0] > 1


def _perceptron(model: Any) -> tuple[Loss, dict[str, float], bool]:
    loss: Loss
    n_outputs, factor = int(model.n_outputs_), 1.0
    if model.out_activation_ == "softmax":
        loss = SoftmaxCrossEntropy()
    elif model.out_activation_ == "logistic":
        loss, factor = BinaryCrossEntropy(), 1.0 / n_outputs
    elif getattr(model, "loss", "squared_error") == "squared_error":
        loss, factor = SquaredError(), 2.0 / n_outputs  # its gradient sums over the outputs
    else:
        raise refuse(model, f"loss={model.loss!r}", "Fit it with loss='squared_error'.")
    if model.solver == "lbfgs":
        return loss, {"l2_of_sum": factor * model.alpha}, False
    # The penalty is divided by the size of a batch; t_ counts the samples of all passes.
    seen = max(1, round(model.t_ / max(1, model.n_iter_)))
    batch = min(200 if model.batch_size == "auto" else int(model.batch_size), seen)
    return loss, {"l2": factor * model.alpha / batch}, False


#: Class name -> reader: the loss, its regularisers, and whether outputs are classes against the rest.
READERS: dict[str, Callable[[Any], tuple[Loss, dict[str, float], bool]]] = {
    "LogisticRegression": _logistic,
    "LinearSVC": _linear_svc,
    "SGDClassifier": _sgd_classifier,
    "SGDRegressor": _sgd_regressor,
    "LinearRegression": _least_squares,
    "Ridge": _ridge,
    "RidgeClassifier": _ridge_classifier,
    "RidgeClassifierCV": _ridge_classifier,
    "RidgeCV": _ridge,
    "MLPClassifier": _perceptron,
    "MLPRegressor": _perceptron,
}
