"""Keras's losses: which have a closed form, and the loss of each sample for all others."""

from __future__ import annotations

from typing import Any

from whence._errors import WhenceError
from whence._errors import described as described_kind
from whence.layers.names import loss_named, losses_of
from whence.models.adapter import LossSpec

__all__ = ["GivenLoss", "PerSampleLoss", "loss_spec"]

#: Losses on classes without a closed form: where a single output speaks for class 1, unless it is a logit.
_BOUNDARIES = {
    "BinaryFocalCrossentropy": 0.5,
    "CategoricalFocalCrossentropy": 0.5,
    "CategoricalHinge": 0.0,
    "Hinge": 0.0,
    "SquaredHinge": 0.0,
}
#: Those of them in which each of several outputs says yes or no by itself.
_OF_TAGS = ("BinaryCrossentropy", "BinaryFocalCrossentropy", "Hinge", "SquaredHinge")


class PerSampleLoss:
    """A Keras loss without its reduction: one number a sample, or one a position of a sequence.

    The mean is taken over the axes behind those, as Keras would; what a mask on the losses hides
    does not count in it.

    Parameters
    ----------
    keras : module
    loss : keras.losses.Loss
    described : str
    """

    def __init__(self, keras: Any, loss: Any, described: str) -> None:
        self._keras = keras
        self.loss = loss
        self.described = described
        # Keras brings labels and outputs to one rank for these, and not for other classes.
        self._squeezes = isinstance(loss, keras.losses.MeanSquaredError.__mro__[1])

    def identity(self) -> tuple[Any, dict[str, Any]]:
        """Return the function that computes the loss, and its settings: what tells it from others."""
        settings = {key: value for key, value in vars(self.loss).items() if key != "name"}
        return getattr(self.loss, "fn", type(self.loss).call), settings

    @property
    def boundary(self) -> float | None:
        """From which output on class 1 is meant, or None for losses that are not on classes."""
        name, config = _name_and_config(self._keras, self.loss)
        found = loss_named("keras", name)
        if found is not None and not found.kind.is_classification:
            return None
        boundary = _BOUNDARIES.get(name) if found is None else 0.5
        return 0.0 if config.get("from_logits", False) else boundary

    @property
    def is_on_tags(self) -> bool:
        """Whether each of several outputs says yes or no by itself."""
        return _name_and_config(self._keras, self.loss)[0] in _OF_TAGS

    def __call__(self, labels: Any, output: Any, n_kept: int = 1) -> Any:
        """Return the losses with the ``n_kept`` first axes of labels and output."""
        ops = self._keras.ops
        if self._squeezes:
            labels, output = _in_columns(ops, labels, output, n_kept)
        # As Keras does before it calls a loss; ours may be in another precision than its default.
        losses = self.loss.call(ops.cast(labels, output.dtype), output)
        n_axes = len(getattr(losses, "shape", ()))
        if n_axes == 0:
            raise WhenceError(
                f"loss {self.described}",
                "the loss of each sample: shape (batch,)",
                "a single number for the whole batch",
                "Leave out the last mean or sum: a loss over the batch has no samples to explain.",
            )
        if n_axes < n_kept:
            raise WhenceError(
                f"loss {self.described}",
                f"the loss of each position: {n_kept} axes",
                f"{n_axes} axes",
                "Choose a layer behind the place where positions are brought together.",
            )
        mask = getattr(losses, "_keras_mask", None)
        if n_axes == n_kept:
            return losses
        axes = list(range(n_kept, n_axes))
        if mask is None:
            return ops.mean(losses, axis=axes)
        mask = ops.cast(mask, losses.dtype)
        return ops.divide_no_nan(ops.sum(losses * mask, axis=axes), ops.sum(mask, axis=axes))


class GivenLoss(PerSampleLoss):
    """A function of the user that gives the loss of each sample: ``loss(outputs, (None, labels))``."""

    def __init__(self, keras: Any, function: Any) -> None:
        super().__init__(keras, None, getattr(function, "__name__", "loss"))
        self._function = function

    def identity(self) -> tuple[Any, dict[str, Any]]:
        return self._function, {}

    @property
    def boundary(self) -> None:
        """None: what its labels say is not known."""
        return None

    @property
    def is_on_tags(self) -> bool:
        return False

    def __call__(self, labels: Any, output: Any, n_kept: int = 1) -> Any:
        losses = self._function(output, (None, self._keras.ops.convert_to_tensor(labels)))
        if len(getattr(losses, "shape", ())) == n_kept:
            return losses
        raise WhenceError(
            "loss",
            f"the loss of each sample{' and position' * (n_kept > 1)}: {n_kept} axes",
            f"shape {tuple(getattr(losses, 'shape', ()))}",
            "Return one number a sample, without a mean or sum over the batch.",
        )


def _in_columns(ops: Any, labels: Any, output: Any, n_kept: int) -> tuple[Any, Any]:
    """Return labels and outputs of one number a row with an axis for it, whether they have one or not."""
    kept = tuple(output.shape[:n_kept])
    for array in (labels, output):
        if tuple(array.shape[n_kept:]) not in ((), (1,)) or len(array.shape) < n_kept:
            return labels, output

    def in_column(array: Any) -> Any:
        return ops.expand_dims(array, -1) if len(array.shape) == len(kept) else array

    return in_column(labels), in_column(output)


def loss_spec(keras: Any, loss: Any) -> tuple[LossSpec, PerSampleLoss]:
    """Return the closed form of a loss, if there is one, and the loss of each sample.

    Parameters
    ----------
    keras : module
    loss : str, callable or keras.losses.Loss

    Raises
    ------
    WhenceError
        If Keras would not take it as a loss.
    """
    described = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError as error:
            raise WhenceError(
                "loss_function", "a loss that Keras knows", repr(loss), "Pass an object of keras.losses."
            ) from error
    if isinstance(loss, type) or not (callable(loss) or hasattr(loss, "call")):
        raise WhenceError(
            "loss_function",
            "one loss: an object, a name, or a function of (y_true, y_pred)",
            described_kind(loss),
            f"Make one: {loss.__name__}()."
            if isinstance(loss, type)
            else "Explain one output of the model at a time, with the loss of that output.",
        )
    name, config = _name_and_config(keras, loss)
    if not isinstance(loss, keras.losses.Loss):
        # What compile() makes of a function; it stands right above the losses that Keras exports.
        wrapper = keras.losses.MeanSquaredError.__mro__[1]
        loss = wrapper(loss, name=described if described.isidentifier() else None)
    per_sample = PerSampleLoss(keras, loss, described)
    spec = LossSpec(None, "", described, ignored_class=config.get("ignore_class"))
    found = loss_named("keras", name)
    if found is None or spec.ignored_class is not None or config.get("axis", -1) != -1:
        return spec, per_sample
    closed = found.made(_settings(keras, name, config))
    tail = "identity" if config.get("from_logits", False) else found.tail
    return LossSpec(closed, tail, described, found.mistaken(tail)), per_sample


def _settings(keras: Any, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration by the names of the closed form's fields; None for what is not set."""
    eps = keras.config.epsilon() if name == "Poisson" else None
    return {"label_smoothing": float(config.get("label_smoothing", 0.0)) or None, "eps": eps}


def _name_and_config(keras: Any, loss: Any) -> tuple[str, dict[str, Any]]:
    """Return the name of the Keras class that a loss is of, and how it was configured."""
    if type(loss).__module__.startswith("keras.") and hasattr(loss, "get_config"):
        if type(loss).__name__ == "LossFunctionWrapper":
            return _class_of_function(keras, loss.fn), dict(loss._fn_kwargs)
        return type(loss).__name__, loss.get_config()
    return _class_of_function(keras, loss), {}


def _class_of_function(keras: Any, function: Any) -> str:
    """Return the name of the class that wraps one of Keras's loss functions, or an empty text."""
    for name in {**losses_of("keras"), **_BOUNDARIES}:
        if getattr(getattr(keras.losses, name)(), "fn", None) is function:
            return name
    return ""
