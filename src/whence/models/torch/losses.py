"""PyTorch's losses: which have a closed form, and the loss of each sample for all of them."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from whence._errors import WhenceError
from whence.arrays.base import as_numpy
from whence.layers.losses import Loss
from whence.layers.names import NamedLoss, loss_named
from whence.models.adapter import LossSpec

__all__ = ["CLASS_OF_FUNCTION", "TAKE_CLASS_NUMBERS", "PerSampleLoss", "read_loss"]

#: Functions of torch.nn.functional, and the class of torch.nn that calls them.
CLASS_OF_FUNCTION = {
    "cross_entropy": "CrossEntropyLoss",
    "nll_loss": "NLLLoss",
    "binary_cross_entropy": "BCELoss",
    "binary_cross_entropy_with_logits": "BCEWithLogitsLoss",
    "mse_loss": "MSELoss",
    "l1_loss": "L1Loss",
    "smooth_l1_loss": "SmoothL1Loss",
    "huber_loss": "HuberLoss",
    "poisson_nll_loss": "PoissonNLLLoss",
    "kl_div": "KLDivLoss",
    "soft_margin_loss": "SoftMarginLoss",
    "multi_margin_loss": "MultiMarginLoss",
    "multilabel_soft_margin_loss": "MultiLabelSoftMarginLoss",
}

#: Losses whose labels are classes, and from where a single output speaks for class 1.
_BOUNDARIES = {
    "BCELoss": 0.5,
    "BCEWithLogitsLoss": 0.0,
    "CrossEntropyLoss": 0.0,
    "MultiLabelSoftMarginLoss": 0.0,
    "MultiMarginLoss": 0.0,
    "NLLLoss": 0.0,
    "SoftMarginLoss": 0.0,
}

#: Those of them in which each of several outputs says yes or no by itself.
_OF_TAGS = ("BCELoss", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss", "SoftMarginLoss")

#: Losses that take class numbers; all others of torch.nn take targets of the output's dtype.
TAKE_CLASS_NUMBERS = ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss", "MultiLabelMarginLoss")

_MISMATCH = (
    "Pass the loss that takes such outputs (NLLLoss takes log-probabilities, BCELoss probabilities, "
    "CrossEntropyLoss and BCEWithLogitsLoss neither); if the model was trained like that, pass it as a "
    "function: loss_function=lambda output, target: your_loss(output, target), one number a sample."
)

_NEEDS_LOSS = "a function of (output, target), or a loss of torch.nn that takes these two"


class PerSampleLoss:
    """A loss without its reduction over the batch: one number a sample.

    What the reduction does with the axes behind the first is kept: ``"sum"`` and ``"batchmean"`` sum
    over them, ``"mean"`` and ``"none"`` take the mean.

    Parameters
    ----------
    loss : torch.nn.Module or callable
        ``loss(output, target)``.

    Attributes
    ----------
    described : str
        How messages call it.
    kind : str
        The class of torch.nn that it is, or an empty text.
    """

    def __init__(self, loss: Any) -> None:
        self.described = getattr(loss, "__name__", type(loss).__name__)
        if isinstance(loss, functools.partial):
            self.described = getattr(loss.func, "__name__", "loss")
        self.kind, self.settings = _kind_and_settings(loss)
        self._sums = self.settings.get("reduction", "mean") in ("sum", "batchmean")
        self.unreduced = _unreduced(loss, self.kind)
        #: What the loss of each sample is multiplied by.
        self.factor = 1.0

    @property
    def boundary(self) -> float | None:
        """From which output on class 1 is meant, or None for losses that are not on classes."""
        return _BOUNDARIES.get(self.kind)

    @property
    def is_on_tags(self) -> bool:
        """Whether each of several outputs says yes or no by itself."""
        return self.kind in _OF_TAGS

    @property
    def is_on_rows(self) -> bool:
        """Whether the loss is one of PyTorch's, which take classes on the second axis."""
        return bool(self.kind)

    def __call__(self, output: Any, target: Any) -> Any:
        """Return the loss of each row, shape ``(n,)``; ``output (n, ...)``."""
        losses = self.unreduced(output, self._as_target(output, target))
        if getattr(losses, "ndim", 0) == 0:
            raise WhenceError(
                f"loss {self.described}",
                "the loss of each sample: shape (batch,)",
                "a single number for the whole batch",
                "Leave out the last mean or sum: a loss over the batch has no samples to explain.",
            )
        if losses.ndim > 1:
            rest = losses.reshape(losses.shape[0], -1)
            losses = rest.sum(dim=1) if self._sums else rest.mean(dim=1)
        return losses if self.factor == 1 else losses * self.factor

    def spec(self) -> LossSpec:
        """Return the closed form of the loss, if it has one."""
        if self.factor != 1:
            return LossSpec(None, "", self.described, ignored_class=self.settings.get("ignore_index"))
        found = loss_named("torch", self.kind)
        ignored = self.settings.get("ignore_index")
        closed, tail = (None, "") if found is None else self._closed_form(found)
        if found is None or not tail:
            return LossSpec(None, "", self.described, ignored_class=ignored)
        return LossSpec(closed, tail, self.described, found.mistaken(tail), ignored, _MISMATCH)

    def _closed_form(self, found: NamedLoss) -> tuple[Loss | None, str]:
        """Return the closed form with the settings of the loss, or None, and the tail that it takes."""
        settings, tail = self.settings, found.tail
        if self.kind in ("CrossEntropyLoss", "NLLLoss"):
            ignored, weight = settings.get("ignore_index"), settings.get("weight")
            if ignored is not None and ignored >= 0:
                return None, tail  # a class is left to the loss itself, unless it stands for padding
            smoothing = float(settings.get("label_smoothing", 0.0))
            weights = None if weight is None else tuple(float(w) for w in as_numpy(weight))
            return found.made({"label_smoothing": smoothing or None, "class_weight": weights}), tail
        is_weighted = settings.get("weight") is not None or settings.get("pos_weight") is not None
        # The sum over outputs is no mean over them.
        if settings.get("reduction", "mean") == "sum" or is_weighted or settings.get("full"):
            return None, ""
        if self.kind != "PoissonNLLLoss":
            return found.made({}), tail
        if settings.get("log_input", True):
            return found.made({"says_log": True}), tail
        return found.made({"eps": float(settings.get("eps", 1e-8))}), "exp"

    def _as_target(self, output: Any, target: Any) -> Any:
        """Return a target as the loss takes it: its dtype, and the output's shape where it needs that."""
        if self.kind and self.kind not in TAKE_CLASS_NUMBERS:
            if target.numel() == output.numel() and (1 in output.shape[1:] or 1 in target.shape[1:]):
                target = target.reshape(output.shape)  # (n,) and (n, 1) would broadcast to (n, n)
            return target.to(output.dtype)
        return target.to(output.dtype) if target.is_floating_point() else target.long()


def read_loss(loss: Any) -> PerSampleLoss:
    """Return a loss of the user as one of each sample.

    Raises
    ------
    WhenceError
        If it cannot be called with an output and a target alone.
    """
    if isinstance(loss, type) or not callable(loss):
        got = f"the class {loss.__name__}" if isinstance(loss, type) else f"a {type(loss).__name__}"
        raise WhenceError("loss_function", _NEEDS_LOSS, got, "Pass an object: torch.nn.CrossEntropyLoss().")
    function = loss.forward if hasattr(loss, "forward") else loss
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in functions of torch
        return PerSampleLoss(loss)
    try:
        signature.bind(None, None)
    except TypeError:
        names = ", ".join(signature.parameters)
        raise WhenceError(
            "loss_function",
            _NEEDS_LOSS,
            f"{getattr(loss, '__name__', type(loss).__name__)}({names})",
            "Wrap it: loss_function=lambda output, target: your_loss(output, target, ...).",
        ) from None
    return PerSampleLoss(loss)


def _kind_and_settings(loss: Any) -> tuple[str, dict[str, Any]]:
    """Return the class of torch.nn that a loss is, and how it was configured."""
    kind = type(loss).__name__
    if type(loss).__module__ == "torch.nn.modules.loss":
        names = ["reduction", "label_smoothing", "ignore_index", "weight", "pos_weight"]
        names += ["log_input", "full", "eps"]
        return kind, {name: getattr(loss, name) for name in names if hasattr(loss, name)}
    settings: dict[str, Any] = {}
    if isinstance(loss, functools.partial) and not loss.args:
        settings, loss = dict(loss.keywords), loss.func
    name = getattr(loss, "__name__", "")
    if getattr(loss, "__module__", "") == "torch.nn.functional" and name in CLASS_OF_FUNCTION:
        if "Logits" not in CLASS_OF_FUNCTION[name] and name in ("cross_entropy", "nll_loss"):
            settings = {"ignore_index": -100, **settings}
        return CLASS_OF_FUNCTION[name], settings
    return "", settings if "reduction" in settings else {}


def _unreduced(loss: Any, kind: str) -> Callable[[Any, Any], Any]:
    """Return the same loss with one number a sample, where it has a reduction to switch off."""
    if hasattr(loss, "forward") and hasattr(loss, "reduction"):
        plain = copy.copy(loss)
        plain.reduction = "none"
        return plain
    function = loss.func if isinstance(loss, functools.partial) else loss
    try:
        takes_reduction = "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes_reduction = bool(kind)
    return functools.partial(loss, reduction="none") if takes_reduction else loss
