"""Calls of PyTorch's functions with weights of a model, and what each says about their gradient.

A layer is known by the function that uses its weights, whatever module calls it: ``linear``, convolutions,
embeddings, normalisations. Weights that are used in another way are not known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from whence.layers.patches import patches
from whence.layers.rows import Factors, Matrices, Term, Tokens

__all__ = ["Call", "known_call"]


@dataclass
class Call:
    """One call of a function with weights.

    Attributes
    ----------
    kind : str
        A key of ``KINDS``.
    weight, bias : tensor or None
    inputs : tensor
    settings : dict
        What else the function was given.
    output : tensor
        What it returned, filled in by whoever makes the call.
    part : (int, int)
        Where its outputs start among those of the weights, and how many these have, for weights of which
        a run of rows is used; ``(0, 0)`` for all of them.
    """

    kind: str
    weight: Any
    bias: Any
    inputs: Any
    settings: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    part: tuple[int, int] = (0, 0)


def known_call(torch: Any, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """Return what a call of a function means, or None if it is not one that is known."""
    reader = _readers(torch).get(function)
    if reader is None:
        return None
    call: Call | None = reader(args, dict(kwargs))
    return call


# ----------------------------------------------------------------------- reading of arguments

_LINEAR = ("input", "weight", "bias")
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_EMBEDDING = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
_BAG = (
    "input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse",
    "per_sample_weights", "include_last_offset", "padding_idx",
)  # fmt: skip
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_LAYER_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
_RMS_NORM = ("input", "normalized_shape", "weight", "eps")
_GROUP_NORM = ("input", "num_groups", "weight", "bias", "eps")

_CACHE: dict[str, dict[Any, Callable[..., Call | None]]] = {}


def _readers(torch: Any) -> dict[Any, Callable[..., Call | None]]:
    if "readers" not in _CACHE:
        functional = torch.nn.functional
        plain = {
            functional.linear: ("linear", _LINEAR),
            functional.embedding: ("embedding", _EMBEDDING),
            functional.embedding_bag: ("bag", _BAG),
            functional.batch_norm: ("batch_norm", _BATCH_NORM),
            functional.layer_norm: ("layer_norm", _LAYER_NORM),
            functional.group_norm: ("group_norm", _GROUP_NORM),
        }
        if hasattr(functional, "rms_norm"):
            plain[functional.rms_norm] = ("rms_norm", _RMS_NORM)
        for n_dims in (1, 2, 3):
            plain[getattr(functional, f"conv{n_dims}d")] = ("conv", _CONV)
            plain[getattr(functional, f"conv_transpose{n_dims}d")] = ("transposed", _TRANSPOSED)
        readers = {function: _reader(kind, names) for function, (kind, names) in plain.items()}
        for function in (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__):
            readers[function] = _read_product
        for function in (torch.addmm, torch.Tensor.addmm):
            readers[function] = _read_sum_of_product
        _CACHE["readers"] = readers
    return _CACHE["readers"]


def _reader(kind: str, names: tuple[str, ...]) -> Callable[..., Call | None]:
    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        given = dict(zip(names, args, strict=False)) | kwargs
        inputs, weight, bias = (given.pop(name, None) for name in ("input", "weight", "bias"))
        if inputs is None or (weight is None and bias is None):
            return None
        return Call(kind, weight, bias, inputs, given)

    return read


def _read_product(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Read ``inputs @ weight``."""
    if len(args) != 2 or getattr(args[1], "ndim", 0) != 2 or args[0].ndim < 2:
        return None
    return Call("product", args[1], None, args[0])


def _read_sum_of_product(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Read ``bias + inputs @ weight``, as transformers' Conv1D."""
    if len(args) != 3 or kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1 or args[0].ndim != 1:
        return None
    return Call("product", args[2], args[0], args[1])


def attention_arguments(torch: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``multi_head_attention_forward`` by name, defaults filled in."""
    bound = inspect.signature(torch.nn.functional.multi_head_attention_forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


# ------------------------------------------------------------------------ rows of one call


def unusual(call: Call) -> str | None:
    """Return why the gradient of a call is not the one of its kind, or None."""
    settings = call.settings
    if settings.get("max_norm") is not None:
        return "an embedding with max_norm, which changes its weights when it is called"
    if settings.get("scale_grad_by_freq"):
        return "an embedding with scale_grad_by_freq, whose gradient depends on the batch"
    if call.kind == "bag" and (settings.get("mode", "mean") == "max" or call.inputs.ndim != 2):
        return "an embedding bag of maxima or of offsets"
    if call.kind == "batch_norm" and settings.get("training"):
        return "a normalisation over the batch"
    return None


def term_of(call: Call, delta: Any, bias_column: tuple[int, int], is_table: bool) -> Term:
    """Return the gradient of each row of a call: of its first axis.

    Parameters
    ----------
    call : Call
        With the samples on the first axis.
    delta : tensor
        The derivative with respect to its output, of the output's shape.
    bias_column : (int, int)
        Which of how many columns of the inputs is the constant of this call's bias.
    is_table : bool
        Whether the weights are those of an embedding too: ``(tokens, C)``, for a dense layer the other way
        round.
    """
    if call.kind in ("linear", "product"):
        left, right = _positions_behind(call.inputs), _positions_behind(delta)
        if call.part[1]:
            right = _placed(right, *call.part)
        if is_table:  # weights (tokens, C), of which the output is the first axis
            return Factors(right, _with_constant(left, *bias_column))
        return Factors(_with_constant(left, *bias_column), right)
    if call.kind in ("conv", "transposed"):
        return _of_convolution(call, delta, bias_column)
    if call.kind == "embedding":
        return _of_embedding(call, delta, bias_column[1])
    if call.kind == "bag":
        return _of_bag(call, delta, bias_column[1])
    return _of_scales(call, delta)


def _positions_behind(array: Any) -> Any:
    """Return ``(n, ..., d)`` as ``(n, 1, P, d)``."""
    return array.reshape(array.shape[0], 1, -1, array.shape[-1])


def _with_constant(array: Any, column: int, n_columns: int) -> Any:
    """Return an array ``(..., d)`` with columns behind it, of which one is 1 and the others 0."""
    if n_columns == 0:
        return array
    columns = array.new_zeros((*array.shape[:-1], n_columns))
    if column >= 0:
        columns[..., column] = 1
    return _concatenated([array, columns], -1)


def _placed(array: Any, start: int, size: int) -> Any:
    whole = array.new_zeros((*array.shape[:-1], size))
    whole[..., start : start + array.shape[-1]] = array
    return whole


def _concatenated(arrays: list[Any], axis: int) -> Any:
    import torch

    return torch.cat(arrays, dim=axis)


def _many(value: Any, n_dims: int, default: int) -> list[int]:
    if value is None:
        value = default
    if isinstance(value, int):
        return [value] * n_dims
    values = [int(v) for v in value]
    return values * n_dims if len(values) == 1 else values


def _of_convolution(call: Call, delta: Any, bias_column: tuple[int, int]) -> Term:
    n_dims = call.weight.ndim - 2
    settings = call.settings
    kernel = [int(size) for size in call.weight.shape[2:]]
    stride = _many(settings.get("stride"), n_dims, 1)
    dilation = _many(settings.get("dilation"), n_dims, 1)
    groups = int(settings.get("groups", 1))
    given = settings.get("padding", 0)
    if given == "valid":
        given = 0
    if given == "same":
        totals = [gap * (size - 1) for size, gap in zip(kernel, dilation, strict=True)]
        padding = [(total // 2, total - total // 2) for total in totals]
    else:
        padding = [(size, size) for size in _many(given, n_dims, 0)]
    if call.kind == "transposed":  # what the kernel spreads over the output it would gather from there
        right = patches(delta, kernel, stride, padding, dilation, groups)
        left = call.inputs.reshape(call.inputs.shape[0], groups, -1, right.shape[2]).transpose(2, 3)
        return Factors(left, right)
    left = patches(call.inputs, kernel, stride, padding, dilation, groups)
    right = delta.reshape(delta.shape[0], groups, -1, left.shape[2]).transpose(2, 3)
    return Factors(_with_constant(left, *bias_column), right)


def _of_embedding(call: Call, delta: Any, n_columns: int) -> Term:
    tokens = call.inputs.reshape(call.inputs.shape[0], -1)
    right = delta.reshape(*tokens.shape, delta.shape[-1])
    right = _without_padding(call, tokens, right)
    return Tokens(tokens, _with_constant(right, -1, n_columns), int(call.weight.shape[0]))


def _of_bag(call: Call, delta: Any, n_columns: int) -> Term:
    tokens = call.inputs
    padding = call.settings.get("padding_idx")
    counts = tokens != padding if padding is not None else tokens == tokens
    each = call.settings.get("per_sample_weights")
    each = counts.to(delta.dtype) if each is None else each * counts
    if call.settings.get("mode", "mean") == "mean":
        each = each / counts.sum(dim=1, keepdim=True).clamp(min=1)
    right = delta[:, None, :] * each[:, :, None]
    return Tokens(tokens, _with_constant(right, -1, n_columns), int(call.weight.shape[0]))


def _without_padding(call: Call, tokens: Any, right: Any) -> Any:
    padding = call.settings.get("padding_idx")
    if padding is None:
        return right
    padding = padding % call.weight.shape[0] if padding < 0 else padding
    return right * (tokens != padding)[:, :, None].to(right.dtype)


def _of_scales(call: Call, delta: Any) -> Term:
    """Return scale and shift as a dense layer with one output for each channel."""
    sums = []
    if call.weight is not None:
        sums.append(_over_positions(call, _normalised(call) * delta))
    if call.bias is not None:
        sums.append(_over_positions(call, delta))
    values = sums[0][:, :, None, None]
    if len(sums) == 2:
        values = _concatenated([values, sums[1][:, :, None, None]], 2)
    return Matrices(values)


def _normalised(call: Call) -> Any:
    """Return what the scales of a normalisation multiply."""
    import torch

    inputs, given = call.inputs, call.settings
    functional = torch.nn.functional
    eps = {} if given.get("eps") is None else {"eps": given["eps"]}
    if call.kind == "batch_norm":
        return functional.batch_norm(inputs, given["running_mean"], given["running_var"], **eps)
    if call.kind == "layer_norm":
        return functional.layer_norm(inputs, given["normalized_shape"], **eps)
    if call.kind == "rms_norm":
        return functional.rms_norm(inputs, given["normalized_shape"], **eps)
    return functional.group_norm(inputs, given["num_groups"], **eps)


def _over_positions(call: Call, products: Any) -> Any:
    """Sum products ``(n, ...)`` over everything but samples and channels, ``(n, channels)``."""
    n = products.shape[0]
    if call.kind in ("layer_norm", "rms_norm"):
        size = 1
        for length in call.settings["normalized_shape"]:
            size *= int(length)
        return products.reshape(n, -1, size).sum(dim=1)
    return products.reshape(n, products.shape[1], -1).sum(dim=2)


def gradients_of_parameters(call: Call, sums: Any, is_table: bool, bias_column: int) -> list[Any]:
    """Return the gradient ``sums (G, d, C)`` in the form of a call's own weight and bias.

    ``None`` stands for a bias that the layer does not hold.
    """
    if call.kind not in ("linear", "product", "conv", "transposed", "embedding", "bag"):
        columns = [sums[:, place, 0] for place in range(sums.shape[1])]
        weight = None if call.weight is None else columns.pop(0).reshape(call.weight.shape)
        return [weight, None if call.bias is None else columns.pop(0)]
    if call.kind in ("embedding", "bag") or is_table:
        width = call.weight.shape[1]
        bias = None if call.bias is None else sums[0, :, width + bias_column]
        return [sums[0, :, :width], bias]
    if call.kind == "transposed":
        return [sums.reshape(call.weight.shape), None]
    d = sums.shape[1]
    if call.kind == "conv":
        d = call.weight[0].numel()
        weight = sums[:, :d, :].transpose(1, 2).reshape(call.weight.shape)
        return [weight, None if call.bias is None else sums[:, d, :].reshape(-1)]
    d = call.inputs.shape[-1]
    weight = sums[0, :d, :] if call.kind == "product" else sums[0, :d, :].T
    return [weight, None if call.bias is None else sums[0, d + bias_column, :]]
