"""A method made again from a stored index, without the training set and the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.answers.contract import METHODS, Attribution
from whence.answers.reading import check_model
from whence.arrays.base import as_numpy
from whence.ihvp import InverseHessianVectorProduct, InverseHessianVectorProductFactory
from whence.index import StoredIndex, StoredMethod, stored_methods
from whence.index.store import refuse_damage
from whence.methods.base import RULES
from whence.methods.solver import check_factory
from whence.models.base import InfluenceModel
from whence.models.stored import StoredModel, made_from

__all__ = ["load_index"]


def load_index(
    path: str | Path,
    *,
    method: str | None = None,
    ihvp_calculator_factory: InverseHessianVectorProductFactory | None = None,
    influence_model: InfluenceModel | None = None,
    verify: bool = True,
    progress: bool | None = None,
    engine: Any = None,
) -> Attribution:
    """Open a stored index, without the training set that it is of.

    Parameters
    ----------
    path : path
        The folder that a method was made with (``index_path=``), or that its vectors were saved to.
    method : str, optional
        Which method, by the name of its folder, where the index holds several.
    ihvp_calculator_factory : InverseHessianVectorProductFactory, optional
        The solver that the method was made with, if that is one of your own: it is built again.
    influence_model : InfluenceModel, optional
        The model that the index was made with, if samples are to be given as its inputs. Without it,
        features are explained. It is compared as far as the index knows it: layer, weights and loss.
    verify : bool, default=True
        Whether to compare every file with its checksum first; lengths are compared in any case.
    progress : bool, optional
        ``None`` shows progress bars on a terminal, ``True`` always, ``False`` never.
    engine : int or dask.distributed.Client or Engine, optional
        Where work on the training set is done; see :class:`~whence.RepresenterPointLJE`.

    Returns
    -------
    Attribution
        Of the class that it was made by, as it was. Without ``influence_model``, the features of samples
        stand in place of the model's inputs: an array ``(n, d)`` without the bias's constant, or batches of
        such. ``explain``, ``suspects()``, ``influences`` and all others work as before.

    Raises
    ------
    WhenceError
        If there is no index, it is damaged, it is of another model, or its loss has no closed form, so
        that the method has to be made again with ``index_path=``.

    Examples
    --------
    ::

        whence.RepresenterPointLJE(model, train, whence.ExactIHVPFactory(), index_path="train.index")
        # elsewhere, without the model and the training set:
        whence.load_index("train.index").explain(features, k=5)
    """
    index = StoredIndex(path, verify=verify, engine=engine, progress=progress)
    stored = _chosen(index, method)
    refuse_damage(index.folder, stored.damage(thoroughly=verify))
    settings = stored.settings
    known = settings.get("class") in METHODS or settings.get("class") in RULES
    if not known or settings.get("layer") is None:
        raise WhenceError(
            f"path {str(index.folder)!r}",
            f"a method of {', '.join([*METHODS, *RULES])} with a loss in closed form",
            f"{stored.about.get('method')} with loss {stored.about.get('loss')}",
            "Make it with the model, index_path= this folder: nothing is computed twice.",
        )
    if ihvp_calculator_factory is None and "factory" in settings:
        made = _made_as_written(index, stored, verify, progress)
    else:
        made = _made(index, stored, ihvp_calculator_factory, verify, progress)
    if influence_model is not None:
        made._take_model(check_model(influence_model).at_index(index))
    return made


def _made_as_written(
    index: StoredIndex, stored: StoredMethod, verify: bool, progress: bool | None
) -> Attribution:
    """Return the method with the solver that its own record names."""
    description = stored.settings.get("factory")
    if description is None:
        raise WhenceError(
            "ihvp_calculator_factory",
            f"the factory that the index was made with, which gave a {stored.about.get('solver')}",
            "None",
            "Pass it: a solver of your own cannot be made from its name.",
        )
    try:
        factory = made_from(description, "whence.ihvp", InverseHessianVectorProductFactory)
        return _made(index, stored, factory, verify, progress)
    except WhenceError:
        raise
    except (ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        # All of it comes from files, of which one says something else than whence wrote.
        raise WhenceError(
            f"path {str(index.folder)!r}",
            "a method as it was written",
            f"one that cannot be made again ({type(error).__name__}: {error})",
            "Make it with the model, index_path= this folder.",
        ) from error


def _made(
    index: StoredIndex,
    stored: StoredMethod,
    given: InverseHessianVectorProductFactory | None,
    verify: bool,
    progress: bool | None,
) -> Attribution:
    settings, state = stored.settings, stored.state
    model = StoredModel(index, settings["layer"], state.pop("theta"))
    factory: tuple[Any, ...] = ()
    if "factory" in settings:
        check_factory(given)
        assert given is not None
        factory = (_Restoring(given, state),)
    if verify:
        _check_targets(index, model)
    arguments = dict(settings["arguments"])
    if settings["class"] in METHODS:
        made: Attribution = METHODS[settings["class"]](
            model, index, *factory, progress=progress, **arguments
        )
        return made
    label, rule = arguments.pop("label"), RULES[settings["class"]]
    make = partial(rule.of, **arguments, **({"factory": factory[0]} if factory else {}))
    return Attribution(model, index, make, label=label, progress=progress)


def _check_targets(index: StoredIndex, model: StoredModel) -> None:
    """Raise unless stored labels are such as the loss takes."""
    n_outputs = model.layer.n_outputs
    for number, shard in enumerate(index.shards):
        if shard.features.ndim == 2:
            model.loss.encode(as_numpy(shard.target), n_outputs, f"shard {number} of {str(index.folder)!r}")


def _chosen(index: StoredIndex, name: str | None) -> StoredMethod:
    found = stored_methods(index.folder)
    chosen = [stored for stored in found if name in (None, stored.folder.name)]
    if len(chosen) == 1:
        return chosen[0]
    if not found:
        raise WhenceError(
            f"path {str(index.folder)!r}",
            "an index with a method on it",
            "features alone",
            "Make a method with index_path= this folder.",
        )
    listed = "; ".join(f"{s.folder.name}: {_differences(s, found)}" for s in found)
    expected = "the name of one of the methods that the index holds"
    raise WhenceError("method", expected, repr(name), f"It holds {listed}.")


def _differences(stored: StoredMethod, all_stored: list[StoredMethod]) -> str:
    """Return what tells a method from the others of an index."""
    about = stored.about
    keys = [key for key in about if any(other.about.get(key) != about[key] for other in all_stored)]
    return ", ".join(f"{key} {about[key]!r}" for key in keys or ["method"])


class _Restoring(InverseHessianVectorProductFactory):
    """Builds what another factory builds, from its stored state."""

    def __init__(
        self, factory: InverseHessianVectorProductFactory, state: Mapping[str, np.ndarray]
    ) -> None:
        self.factory = factory
        self._state: Mapping[str, np.ndarray] = state

    def build(self, model: Any, dataset: Any) -> InverseHessianVectorProduct:
        """Restore the solver, or build it anew if it has no state."""
        restore = getattr(self.factory, "restore", None)
        if restore is None or not self._state:
            return self.factory.build(model, dataset)
        state, self._state = self._state, {}  # large, and in the solver from here on
        return restore(model, dataset, state)
