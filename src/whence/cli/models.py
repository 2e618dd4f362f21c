"""Models as they lie in files, and those that a function makes."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import import_extra
from whence.cli.forms import PIXELS, InputSpec
from whence.cli.loaders import LOADERS, PICKLES, comes_from, from_factory, from_file, import_module, named
from whence.models import InfluenceModel

__all__ = ["ModelSpec", "OpenedModel", "code_of", "is_factory", "open_model"]


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and what a person says about it.

    Attributes
    ----------
    model : str
        A file, or ``module:factory``.
    weights : str or None
        The file of a state dict for what the factory returns.
    folder : str
        Where modules are looked for, before the usual places.
    imports : list of str
        Modules that are imported first, such as those that register layers.
    loss, layer, weight_decay, reg_lambda
        See :class:`whence.InfluenceModel`.
    pixels : str or None
        The range of pixels that the model takes; see :class:`~whence.cli.forms.InputSpec`.
    """

    model: str
    weights: str | None = None
    folder: str = "."
    imports: tuple[str, ...] = ()
    loss: str | None = None
    layer: str = "-1"
    weight_decay: float | None = None
    reg_lambda: float | None = None
    pixels: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON, with whole paths."""
        whole = {"folder": os.path.abspath(self.folder), "imports": list(self.imports)}
        for name in ("model", "weights"):
            path = getattr(self, name)
            if path is not None and (name == "weights" or not is_factory(path)):
                whole[name] = os.path.abspath(path)
        return asdict(self) | whole

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ModelSpec:
        """Return what :meth:`as_json` gave."""
        return cls(**content | {"imports": tuple(content["imports"])})


class OpenedModel(NamedTuple):
    """A model that was loaded.

    Attributes
    ----------
    wrapped : InfluenceModel
    form : InputSpec
    digest : str
        Changes with the model's weights, those before the layer included.
    """

    wrapped: InfluenceModel
    form: InputSpec
    digest: str


def code_of(spec: ModelSpec) -> list[str]:
    """Return the attributes of a spec by which opening the model runs code."""
    is_pickle = Path(spec.model).suffix.lower() in PICKLES
    runs = {
        "model": is_pickle or is_factory(spec.model),
        "imports": bool(spec.imports),
        "loss": ":" in (spec.loss or ""),
    }
    return [name for name, does in runs.items() if does]


def is_factory(model: str) -> bool:
    """Return whether a model is named by what builds it, ``module:factory``."""
    return ":" in model and not Path(model).exists() and Path(model).suffix.lower() not in LOADERS


def open_model(spec: ModelSpec, *, trusted: bool = False) -> OpenedModel:
    """Load a model and wrap it.

    Parameters
    ----------
    spec : ModelSpec
    trusted : bool, default=False
        Whether a file may be loaded that runs code, as pickles do.

    Raises
    ------
    WhenceError
        If there is no such model, it cannot be read, or it is none that whence takes.
    """
    folder = os.path.abspath(spec.folder)
    if (is_factory(spec.model) or spec.imports or trusted) and folder not in sys.path:
        sys.path.insert(0, folder)
    for module in spec.imports:
        import_module(module, "--import")
    if is_factory(spec.model):
        model, digest = from_factory(spec.model, spec.weights)
    elif spec.weights is None:
        model, digest = from_file(spec.model, trusted)
    else:
        got = f"the file {spec.model}, which holds its own"
        raise WhenceError("--weights", "a model named as module:factory", got, "Leave it out.")
    form = _form_of(model, spec)
    options: dict[str, Any] = {}
    is_torch = comes_from(model, "torch")
    for name, value, fits in (
        ("weight_decay", spec.weight_decay, is_torch),
        ("reg_lambda", spec.reg_lambda, not is_torch),
    ):
        if value is not None and not fits:
            expected = "a booster" if is_torch else "a PyTorch model"
            raise WhenceError(name, expected, described(model), "Leave it out.")
        if value is not None:
            options[name] = value
    layer: int | str = spec.layer
    if spec.layer.lstrip("-").isdigit():
        layer = int(spec.layer)
    loss = _loss_of(spec.loss, is_torch)
    try:
        wrapped = InfluenceModel(model, layer, loss_function=loss, **options)
    except WhenceError as error:
        if error.argument != "loss_function" or loss is not None:
            raise
        example = "CrossEntropyLoss" if is_torch else "sparse_categorical_crossentropy"
        fix = f"Name the one that it was trained with, e.g. --loss {example}."
        raise WhenceError("--loss", error.expected, "none", fix) from error
    return OpenedModel(wrapped, form, digest)


# ------------------------------------------------------------------------------------ form and loss


def _form_of(model: Any, spec: ModelSpec) -> InputSpec:
    """Return what a model takes."""
    if spec.pixels is not None and spec.pixels not in PIXELS:
        raise WhenceError("--pixels", f"one of {', '.join(PIXELS)}", repr(spec.pixels), "Choose one.")
    if comes_from(model, "keras"):
        keras = import_extra("keras", "tensorflow")
        layout = keras.config.image_data_format().replace("_", " ")
        shape = getattr(model, "input_shape", None)
        image_shape = None
        if isinstance(shape, tuple) and len(shape) == 4 and not isinstance(shape[0], tuple):
            h, w, c = shape[1:] if layout == "channels last" else (shape[2], shape[3], shape[1])
            image_shape = [h, w, c]
        return InputSpec(layout, "float32", image_shape=image_shape, pixels=spec.pixels or "0..255")
    if comes_from(model, "torch"):
        is_double = any(str(p.dtype) == "torch.float64" for p in model.parameters())
        return InputSpec(
            "channels first", "float64" if is_double else "float32", pixels=spec.pixels or "0..1"
        )
    from whence.models.sklearn.estimators import split_pipeline

    pipe, final = split_pipeline(model)
    columns = pipe.columns
    if columns is None and hasattr(final, "feature_names"):  # a booster of XGBoost
        columns = final.feature_names
    if columns is None and hasattr(final, "feature_name"):  # a booster of LightGBM
        columns = final.feature_name()
    if columns is not None and all(name == f"Column_{i}" for i, name in enumerate(columns)):
        columns = None  # what LightGBM calls the columns of an array
    names = getattr(final, "classes_", None)
    values = names.tolist() if isinstance(names, np.ndarray) and names.ndim == 1 else None
    return InputSpec(
        "flat",
        None,
        frames=columns is not None,
        columns=None if columns is None else list(columns),
        pixels=spec.pixels or "0..255",
        classes=None if values is None else [str(value) for value in values],
        values=values,
    )


def _loss_of(name: str | None, is_torch: bool) -> Any:
    """Return the loss that a person named, as the framework has it."""
    if name is None:
        return None
    if ":" in name:
        found = named(name, "--loss")
        return found() if isinstance(found, type) else found
    if not is_torch:
        return name
    torch = import_extra("torch", "torch")
    found = getattr(torch.nn, name, None)
    if not (isinstance(found, type) and name.endswith("Loss")):
        known = sorted(n for n in dir(torch.nn) if n.endswith("Loss"))
        raise WhenceError(
            "--loss", f"a loss of torch.nn ({', '.join(known)}), or module:name", repr(name), "Choose one."
        )
    return found()
