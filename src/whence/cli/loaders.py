"""How a model is loaded: from a file, or from the function that builds it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import import_extra
from whence.cli.digests import digest_of_arrays, digest_of_file
from whence.cli.notes import one_line

__all__ = ["LOADERS", "PICKLES", "comes_from", "from_factory", "from_file", "import_module", "named"]


def comes_from(model: Any, package: str) -> bool:
    """Return whether the class of a model, or one above it, is of a package."""
    return any(base.__module__.split(".")[0] == package for base in type(model).__mro__)


def import_module(module: str, option: str) -> Any:
    """Return a module, or say why it cannot be imported; messages call it ``option``."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise WhenceError(
            option,
            "a module that can be imported from the current folder, or that is installed",
            f"{module!r}, which fails with {_reason(error)}",
            "Check its name, and that it runs by itself.",
        ) from error


def named(text: str, option: str) -> Any:
    """Return the object that ``module:name`` names."""
    module, _, name = text.partition(":")
    found = import_module(module, option)
    for part in name.split("."):
        if not hasattr(found, part):
            raise WhenceError(option, f"a name in {module}", repr(name), "Check its spelling.")
        found = getattr(found, part)
    return found


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)[:300]}"


# -------------------------------------------------------------------------------------- factories


def from_factory(name: str, weights: str | None) -> tuple[Any, str]:
    """Return what the factory makes, with the weights that were given."""
    factory = named(name, "MODEL")
    if not callable(factory):
        expected = "a function that returns the model"
        raise WhenceError(f"MODEL {name}", expected, described(factory), "Write one.")
    try:
        model = factory()
    except Exception as error:
        raise WhenceError(
            f"MODEL {name}",
            "a function that returns the model when it is called without arguments",
            f"one that fails with {_reason(error)}",
            "Write a function without arguments.",
        ) from error
    if comes_from(model, "keras") and weights is None:
        return model, digest_of_arrays((v.path, np.asarray(v)) for v in model.variables)
    if not comes_from(model, "torch"):
        raise WhenceError(
            f"MODEL {name}",
            "a function that returns a torch.nn.Module" + (" or a keras.Model" if weights is None else ""),
            f"one that returns {described(model)}",
            "Save other models to a file.",
        )
    torch = import_extra("torch", "torch")
    if weights is not None:
        _load_state(torch, model, Path(weights))
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in model.state_dict().values()):
        raise WhenceError(
            f"MODEL {name}",
            "a function that returns a model with weights",
            "one with layers whose weights are not there yet",
            "Give the trained weights: --weights FILE.",
        )
    tensors = model.state_dict().items()
    flat = ((name, t.detach().cpu().contiguous().reshape(-1).view(torch.uint8)) for name, t in tensors)
    return model, digest_of_arrays((name, tensor.numpy()) for name, tensor in flat)


def _load_state(torch: Any, model: Any, path: Path) -> None:
    if not path.is_file():
        raise WhenceError(f"--weights {str(path)!r}", "a file", "none there", "Check the path.")
    try:
        if path.suffix.lower() == ".safetensors":
            state = import_extra("safetensors.torch", "torch").load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WhenceError(
            f"--weights {str(path)!r}",
            "a state dict of tensors",
            f"a file that cannot be read as one ({_reason(error)})",
            "Save it with torch.save(model.state_dict(), path): a whole pickled model is not loaded.",
        ) from error
    for key in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise WhenceError(
            f"--weights {str(path)!r}",
            f"the weights of the {type(model).__name__} that the factory returns",
            f"others ({_reason(error)})",
            "Check that the factory builds the model that was saved.",
        ) from error


# ------------------------------------------------------------------------------------------ files


def from_file(name: str, trusted: bool) -> tuple[Any, str]:
    """Return the model in a file, and a digest of the file."""
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix in ADVICE:
        raise WhenceError(f"MODEL {name!r}", KNOWN, f"a {suffix} file", ADVICE[suffix])
    if suffix not in LOADERS:
        raise WhenceError(f"MODEL {name!r}", KNOWN, "something else", "See whence index --help.")
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        raise WhenceError(f"MODEL {name!r}", "a file", got, "Check the path.")
    load, described = LOADERS[suffix]
    if suffix in PICKLES and not trusted:
        raise WhenceError(
            f"MODEL {name!r}",
            "your word that you trust it, since loading a pickle runs whatever code it holds",
            "none",
            "If you made the file, or know who did, add --trust-model.",
        )
    digest = digest_of_file(path)
    try:
        return load(path, trusted), digest
    except (WhenceError, ImportError):
        raise
    except Exception as error:
        fix = "Check the file, or save it again."
        if suffix == ".keras":
            fix = (
                "Layers of your own are registered by a module: --import it. A Lambda layer is code: "
                "--trust-model loads it."
            )
        raise WhenceError(
            f"MODEL {name!r}", described, f"a file that cannot be loaded ({_reason(error)})", fix
        ) from error


def _load_keras(path: Path, trusted: bool) -> Any:
    keras = _quiet_keras()
    return keras.models.load_model(path, safe_mode=not trusted)


def _quiet_keras() -> Any:
    """Import Keras; what TensorFlow writes on stderr of its own start is left out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            return import_extra("keras", "tensorflow")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _load_pickle(path: Path, trusted: bool) -> Any:
    return import_extra("joblib", "sklearn").load(path)


def _load_xgboost(path: Path, trusted: bool) -> Any:
    xgboost = import_extra("xgboost", "trees")
    booster = xgboost.Booster()
    booster.load_model(path)
    # A wrapper predicts with the trees up to the best round, a booster with all.
    for kind in ("Classifier", "Regressor"):
        if kind.lower() in (booster.attr("scikit_learn") or ""):
            wrapper = getattr(xgboost, f"XGB{kind}")()
            wrapper.load_model(path)
            return wrapper
    return booster


def _load_lightgbm(path: Path, trusted: bool) -> Any:
    lightgbm = import_extra("lightgbm", "trees")
    lightgbm.register_logger(_Quiet())  # it would write to stdout
    return lightgbm.Booster(model_file=path)


class _Quiet:
    """A logger that says nothing: what is wrong comes as an error."""

    def info(self, message: str) -> None:
        pass

    warning = info


#: Suffix -> loader, and what the file should have been.
LOADERS: dict[str, tuple[Callable[[Path, bool], Any], str]] = {
    ".keras": (_load_keras, "a model saved by Keras 3"),
    ".joblib": (_load_pickle, "a model saved with joblib"),
    ".pickle": (_load_pickle, "a pickled model"),
    ".pkl": (_load_pickle, "a pickled model"),
    ".json": (_load_xgboost, "a model saved by XGBoost"),
    ".ubj": (_load_xgboost, "a model saved by XGBoost"),
    ".txt": (_load_lightgbm, "a model saved by LightGBM"),
}
PICKLES = (".joblib", ".pickle", ".pkl")
KNOWN = (
    "a file that ends in .keras, .joblib, .json or .ubj (XGBoost) or .txt (LightGBM), or module:factory "
    "(PyTorch)"
)
#: What to do with files that hold no whole model.
ADVICE = {
    ".h5": "Save the model as .keras.",
    ".onnx": "whence needs the model in its framework.",
    ".pt": "It holds weights alone: name what builds the model, module:factory --weights FILE.",
    ".pth": "It holds weights alone: name what builds the model, module:factory --weights FILE.",
    ".safetensors": "It holds weights alone: name what builds the model, module:factory --weights FILE.",
}
