"""What frameworks call the losses in closed form: said where each is defined, and read by adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from whence._registry import Registry

__all__ = ["LOSSES", "NamedLoss", "known_as", "loss_named", "losses_of"]


class NamedLoss(NamedTuple):
    """A loss as a framework calls it.

    Attributes
    ----------
    kind : type
        The class of :mod:`whence.layers.losses`.
    tail : str
        What the model does to the pre-activations before that loss: a key of ``models.tail.TAILS``.
    """

    kind: Any
    tail: str

    def mistaken(self, tail: str) -> tuple[str, ...]:
        """Return the tails that can only be there by mistake where the loss takes another one."""
        return tuple({"identity", self.kind.link} - {tail}) if self.kind.is_classification else ()

    def made(self, settings: dict[str, Any]) -> Any:
        """Return the loss with the framework's settings, or None if it has no such setting in closed form.

        Parameters
        ----------
        settings : dict
            By the names of the fields of the class; those that are None are left out.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        fields = {field.name for field in dataclasses.fields(self.kind)}
        return self.kind(**given) if given.keys() <= fields else None


#: Losses by ``framework:name``.
LOSSES: Registry[NamedLoss] = Registry("loss", "whence.layers")


def known_as(framework: str, *names: str, tail: str = "identity") -> Callable[[Any], Any]:
    """Return a decorator that says what a framework calls a loss.

    Parameters
    ----------
    framework : str
    *names : str
        Its class, objective or string there.
    tail : str, default="identity"
        What the model does to the pre-activations before the loss by that name.

    Examples
    --------
    >>> from whence.layers.losses import SquaredError
    >>> loss_named("xgboost", "reg:squarederror").made({})
    SquaredError()
    >>> sorted(losses_of("torch"))[:2]
    ['BCELoss', 'BCEWithLogitsLoss']
    """

    def keep(kind: Any) -> Any:
        for name in names:
            LOSSES.add(f"{framework}:{name}", NamedLoss(kind, tail), kind)
        return kind

    return keep


def loss_named(framework: str, name: str) -> NamedLoss | None:
    """Return what a framework calls so, or None."""
    return LOSSES.get(f"{framework}:{name}")


def losses_of(framework: str) -> dict[str, NamedLoss]:
    """Return every loss that a framework has a name for."""
    mine = f"{framework}:"
    return {name.removeprefix(mine): loss for name, loss in LOSSES.items() if name.startswith(mine)}
