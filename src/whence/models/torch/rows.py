"""Rows of PyTorch's layers: inputs seen on the way forward, derivatives of outputs by one pass back."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy
from whence.data.base import take_rows
from whence.layers.products import combined, inner_by_pairs, squared_norms
from whence.layers.rows import Factors, Matrices, Rows, Term, Tokens
from whence.models.torch.replica import inference
from whence.models.torch.uses import (
    Call,
    attention_arguments,
    gradients_of_parameters,
    known_call,
    term_of,
    unusual,
)

__all__ = ["LayerSpec", "Recorded", "TorchRows"]

#: Samples on which it is seen that rows are those of single samples, and that their sum is the gradient.
TRIED_ROWS = 3
#: Bytes that the inputs and derivatives of some samples may take before they are made smaller.
RECORDED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LayerSpec:
    """One layer: weights, and the biases that stand beside them.

    Attributes
    ----------
    name : str
        The module's name in ``named_modules()``; for weights of other names, theirs.
    parameters : tuple of str
        Its weights and biases in ``named_parameters()``.
    shape : (int, int, int)
        ``(G, d, C)`` of its rows.
    biases : tuple of str
        Those of them that are a constant input.
    is_table : bool
        Whether the weights are those of an embedding.
    axes : tuple of int
        The axis of the samples in each call.
    """

    name: str
    parameters: tuple[str, ...]
    shape: tuple[int, int, int]
    biases: tuple[str, ...]
    is_table: bool
    axes: tuple[int, ...]


@dataclass
class Recorded:
    """A pass forward, from which rows of any numbers ``sum_c w_ic u_ic`` follow.

    Attributes
    ----------
    u : tensor of shape (n, C) or (n, ..., C)
        What the network says: the pre-activations of its output layer.
    """

    u: Any
    _owner: TorchRows
    _calls: dict[str, list[Call]]
    _n_samples: int

    def rows(self, by_output: Any) -> Rows:
        """Return the rows of ``s_i = <by_output_i, u_i>``, for weights of the shape of ``u``."""
        return self._owner._rows(self.u, by_output, self._calls, self._n_samples)


class TorchRows:
    """Records rows of the chosen layers of a module; see :mod:`whence.layers.rows`.

    The module runs in eval mode with gradients; modes, hooks and gradients are afterwards what they were.

    Parameters
    ----------
    torch : module
    model : torch.nn.Module
    call : callable
        ``call(inputs, weights)`` runs the module with other weights in the place of its own.
    output : str
        The weights of the output layer in ``named_parameters()``.
    chosen : "all" or sequence of str or int
        Names of layers; an index counts the linear modules in the order of their calls.
    keeps_tensors : bool, default=False
        Whether rows are tensors where the module is; else NumPy arrays.
    weight_decay : (float, float), default=(0.0, 0.0)
        That of the optimiser on weights, and on biases.
    pooling : callable, optional
        ``pooling(inputs)`` gives what each position of the output layer counts, ``(n, L)``, where the
        module brings them together in a weighted mean.

    Attributes
    ----------
    layers : dict of str to LayerSpec
        The layers that rows are of, in the order of their calls; known after the first batch.
    left_out : dict of str to str
        Parameters that no row is of, each with the reason.
    """

    def __init__(
        self,
        torch: Any,
        model: Any,
        call: Callable[[Any, dict[str, Any]], Any],
        output: str,
        chosen: str | Sequence[str | int] = "all",
        *,
        keeps_tensors: bool = False,
        weight_decay: tuple[float, float] = (0.0, 0.0),
        pooling: Callable[[Any], Any] | None = None,
    ) -> None:
        self._torch = torch
        self._model = model
        self._call = call
        self._pooling = pooling
        self._output = output
        self._chosen = chosen if chosen == "all" else list(chosen)
        self._keeps_tensors = keeps_tensors
        self._weight_decay = weight_decay
        self._parameters: dict[str, str] = {}
        self._expands = True
        self._bytes_a_sample = 1
        self.layers: dict[str, LayerSpec] = {}
        self.left_out: dict[str, str] = {}

    # ----------------------------------------------------------------------------- recording

    @contextmanager
    def record(self, inputs: Any, n_samples: int) -> Iterator[Recorded]:
        """Run the module on samples; inside the context rows can be asked for.

        Parameters
        ----------
        inputs : tree of arrays
        n_samples : int
        """
        self.learn(inputs, n_samples)
        with self._run(inputs, n_samples) as (calls, _):
            for name, spec in self.layers.items():
                if len(calls.get(self._parameters[name], ())) != len(spec.axes):
                    raise self._called_otherwise(name)
            yield Recorded(self._pre_activations(calls, inputs), self, calls, n_samples)

    def learn(self, inputs: Any, n_samples: int) -> None:
        """Look at the first batch, to see which layers there are; later ones are left alone."""
        if self.layers:
            return
        some, n_samples = take_rows(inputs, slice(0, TRIED_ROWS)), min(n_samples, TRIED_ROWS)
        try:
            self._learn(some, n_samples)
        except Exception:  # as of code that takes what all samples share for one
            self._expands = False
            self.layers, self._parameters = {}, {}
            self._learn(some, n_samples)

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights of the layers as they are now, by name."""
        every = dict(self._model.named_parameters())
        return {p: as_numpy(every[p]) for spec in self.layers.values() for p in spec.parameters}

    def l2(self, n_samples: int) -> dict[str, np.ndarray]:
        """Return the second derivative of each layer's own L2 regulariser, by its inputs ``(d,)``."""
        found = {}
        for name, spec in self.layers.items():
            n_biases = 0 if spec.is_table else len(spec.biases)  # the last inputs
            found[name] = np.repeat(self._weight_decay, [spec.shape[1] - n_biases, n_biases])
        return found

    def samples_at_once(self) -> int:
        """Return how many samples to record at a time, known after the first batch."""
        return max(1, RECORDED_BYTES // self._bytes_a_sample)

    @contextmanager
    def _run(self, inputs: Any, n_samples: int) -> Iterator[tuple[dict[str, list[Call]], dict[str, Any]]]:
        """Call the module with leaves of autograd in the place of its parameters."""
        torch = self._torch
        with inference(torch, self._model), torch.enable_grad():
            leaves = {
                name: parameter.detach().requires_grad_(parameter.is_floating_point())
                for name, parameter in self._model.named_parameters()
            }
            recorder = _recorder(torch, leaves, n_samples if self._expands else 1)
            with recorder:
                self._call(inputs, leaves)
            yield recorder.calls, leaves

    def _pre_activations(self, calls: dict[str, list[Call]], inputs: Any) -> Any:
        """Return what the output layer gives; one row a sample where its positions are brought together."""
        found = [call for call in calls.get(self._output, []) if call.kind == "linear"]
        if len(found) != 1:
            raise WhenceError(
                f"output layer {_layer_of(self._output)!r}",
                "a layer that the model calls once in a forward pass",
                f"{len(found)} calls",
                "Choose an output layer whose weights are used once.",
            )
        u = found[0].output
        if self._pooling is None:
            return u
        weights = self._pooling(inputs)
        rows = u.reshape(*weights.shape, u.shape[-1])
        return (weights[..., None].to(u.dtype) * rows).sum(dim=1)

    # ---------------------------------------------------------------------------------- rows

    def _rows(self, u: Any, by_output: Any, calls: dict[str, list[Call]], n_samples: int) -> Rows:
        layers = {}
        used = [(name, call) for name in self.layers for call in calls[self._parameters[name]]]
        deltas = iter(self._deltas(u, by_output, [call for _, call in used]))
        for name, spec in self.layers.items():
            biases = [calls_bias(call) for call in calls[self._parameters[name]]]
            terms = [
                self._term(call, next(deltas), axis, spec, bias, n_samples)
                for call, axis, bias in zip(calls[self._parameters[name]], spec.axes, biases, strict=True)
            ]
            layers[name] = tuple(self._placed(term.smallest()) for term in _merged(self._torch, terms))
        return Rows(layers)

    def _deltas(self, u: Any, by_output: Any, calls: list[Call]) -> list[Any]:
        """Return the derivative of ``sum_i <by_output_i, u_i>`` with respect to the output of each call."""
        torch = self._torch
        weights = torch.as_tensor(as_numpy(by_output) if not self._keeps_tensors else by_output)
        weights = weights.to(u.device, u.dtype).reshape(u.shape)
        outputs = [call.output for call in calls]
        found = torch.autograd.grad(u, outputs, weights, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(z) if delta is None else delta for z, delta in zip(outputs, found, strict=True)
        ]

    def _term(
        self, call: Call, delta: Any, axis: int, spec: LayerSpec, bias: str | None, n_samples: int
    ) -> Term:
        column = (spec.biases.index(bias) if bias in spec.biases else -1, len(spec.biases))
        one = replace(call, inputs=call.inputs.detach().movedim(axis, 0))
        with self._torch.no_grad():
            return _by_samples(term_of(one, delta.movedim(axis, 0), column, spec.is_table), n_samples)

    def _placed(self, term: Term) -> Term:
        if self._keeps_tensors:
            return term
        return term.of([as_numpy(array) for array in term.arrays])

    # -------------------------------------------------------------------------------- learning

    def _learn(self, inputs: Any, n_samples: int) -> None:
        """See which layers there are, on a few samples, and that their rows are what they should be."""
        with self._run(inputs, n_samples) as (calls, leaves):
            u = self._pre_activations(calls, inputs)
            self.left_out = self._not_called(calls)
            candidates = self._candidates(calls)
            generator = self._torch.Generator().manual_seed(0)
            by_output = self._torch.randn(u.shape, generator=generator).to(u.device, u.dtype)
            kept = [(name, calls[name]) for name in candidates]
            deltas = iter(self._deltas(u, by_output, [call for _, found in kept for call in found]))
            of_batch = {name: [(call, next(deltas)) for call in found] for name, found in kept}
            names = [name for name, _ in kept]
            alone = self._alone(inputs, u.detach(), by_output, n_samples, names)
            gradients = self._gradients(u, by_output, leaves)
        bytes_a_sample = 1
        for name, spec in candidates.items():
            axes, size = self._axes(of_batch[name], [one[name] for one in alone], spec, n_samples)
            if axes is None:
                self._leave_out(spec, "it mixes the samples of a batch")
                continue
            spec = replace(spec, axes=axes)
            reason = self._frozen(spec) or self._differs(of_batch[name], spec, gradients, n_samples)
            if reason is not None:
                self._leave_out(spec, reason)
                continue
            self.layers[spec.name] = spec
            self._parameters[spec.name] = name
            bytes_a_sample += size
        self._bytes_a_sample = bytes_a_sample
        self._choose(candidates)

    def _frozen(self, spec: LayerSpec) -> str | None:
        """Return that training left a layer alone, if it trained others."""
        every = dict(self._model.named_parameters())
        is_trained = any(every[name].requires_grad for name in spec.parameters)
        if is_trained or not any(parameter.requires_grad for parameter in every.values()):
            return None
        return "it is frozen (requires_grad=False), where others are not"

    def _not_called(self, calls: dict[str, list[Call]]) -> dict[str, str]:
        """Return the parameters that no known call uses."""
        used: set[str | None] = set(calls)
        for found in calls.values():
            used |= {call.settings.get("bias name") for call in found}
        return {
            name: f"a weight of {type(_owner(self._model, name)).__name__}, used in a way that whence does "
            "not know, or not at all"
            for name, _ in self._model.named_parameters()
            if name not in used
        }

    def _candidates(self, calls: dict[str, list[Call]]) -> dict[str, LayerSpec]:
        result = {}
        for name, found in calls.items():
            biases = tuple(dict.fromkeys(b for call in found if (b := calls_bias(call)) is not None))
            spec = _spec_of(name, found, biases)
            reason = next((r for call in found if (r := unusual(call)) is not None), None)
            if not all(call.output.requires_grad for call in found):
                reason = "it is called without gradients, as under reentrant checkpointing"
            if spec is None or reason is not None:
                self.left_out |= {p: reason or "used in two ways" for p in (name, *biases)}
            else:
                result[name] = spec
        return result

    def _alone(
        self, inputs: Any, of_batch: Any, by_output: Any, n_samples: int, names: list[str]
    ) -> list[dict[str, list[tuple[Call, Any]]]]:
        """Return calls and derivatives of each sample alone."""
        result = []
        for i in range(n_samples if n_samples > 1 else 0):
            one = take_rows(inputs, slice(i, i + 1))
            with self._run(one, 1) as (calls, _):
                u = self._pre_activations(calls, one)
                if u.numel() * n_samples != by_output.numel():
                    raise WhenceError(
                        "model",
                        "an output layer with the samples on its first axis",
                        f"pre-activations of shape {tuple(u.shape)} for one sample, "
                        f"{tuple(by_output.shape)} for {n_samples}",
                        "Choose another output layer.",
                    )
                if not _close(u.detach().reshape(-1), of_batch[i].reshape(-1)):
                    raise WhenceError(
                        "model",
                        "outputs that depend on one sample each",
                        "others for a sample alone than in a batch",
                        "Take out what mixes the samples of a batch, or what is random in eval mode.",
                    )
                flat = [call for name in names for call in calls.get(name, ())]
                deltas = iter(self._deltas(u, by_output[i : i + 1], flat))
                result.append(
                    {name: [(call, next(deltas)) for call in calls.get(name, ())] for name in names}
                )
        return result

    def _axes(
        self,
        of_batch: list[tuple[Call, Any]],
        alone: list[list[tuple[Call, Any]]],
        spec: LayerSpec,
        n_samples: int,
    ) -> tuple[tuple[int, ...] | None, int]:
        """Return the axis of the samples in each call, or None, and the bytes that a sample takes."""
        axes, size = [], 0
        for number, (call, delta) in enumerate(of_batch):
            for axis in _possible_axes(call, n_samples):
                term = self._term(call, delta, axis, spec, calls_bias(call), n_samples)
                singles = []
                for one in alone:
                    if len(one) == len(of_batch) and axis < one[number][0].inputs.ndim:
                        single, slope = one[number]
                        bias = calls_bias(single)
                        singles.append(self._term(single, slope, axis, spec, bias, 1))
                if len(singles) == len(alone) and _same(term, singles):
                    axes.append(axis)
                    size += Rows({"": (term,)}).n_bytes // n_samples
                    break
            else:
                return None, 0
        return tuple(axes), size

    def _gradients(self, u: Any, by_output: Any, leaves: dict[str, Any]) -> dict[str, Any]:
        names = [name for name, leaf in leaves.items() if leaf.requires_grad]
        found = self._torch.autograd.grad(u, [leaves[name] for name in names], by_output, allow_unused=True)
        return dict(zip(names, found, strict=True))

    def _differs(
        self,
        of_batch: list[tuple[Call, Any]],
        spec: LayerSpec,
        gradients: dict[str, Any],
        n_samples: int,
    ) -> str | None:
        """Return why the sum of the rows is not the gradient, or None if it is."""
        if all(gradients.get(name) is None for name in spec.parameters):
            return (
                "nothing that the loss sees depends on it, or only through what is behind the output layer"
            )
        terms = tuple(
            self._term(call, delta, axis, spec, calls_bias(call), n_samples)
            for (call, delta), axis in zip(of_batch, spec.axes, strict=True)
        )
        ones = of_batch[0][1].new_ones((1, n_samples))
        sums = combined(Rows({"": terms}), ones).matrices("")[0]
        got: dict[str, Any] = {}
        for call, _ in of_batch:
            bias = calls_bias(call)
            column = spec.biases.index(bias) if bias in spec.biases else 0
            weight_part, bias_part = gradients_of_parameters(call, sums, spec.is_table, column)
            got |= {spec.parameters[0]: weight_part} if call.weight is not None else {}
            got |= {} if bias is None or bias_part is None else {bias: bias_part}
        # Relative to the whole layer: the gradient of an attention's key bias is rounding alone.
        found = [gradients[name] for name in spec.parameters if gradients.get(name) is not None]
        scale = max(float(gradient.double().abs().max()) for gradient in found)
        for name, value in got.items():
            expected = gradients.get(name)
            if value is None or expected is None or not _close(value, expected, scale):
                return "its weights are also used in a way that whence does not know"
        return None

    def _leave_out(self, spec: LayerSpec, reason: str) -> None:
        self.left_out |= {name: reason for name in spec.parameters}

    # -------------------------------------------------------------------------------- choosing

    def _choose(self, candidates: dict[str, LayerSpec]) -> None:
        known = dict(self.layers)
        if self._chosen == "all":
            if not known:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
                raise WhenceError("layers", "a layer that whence can take", reasons, self._listing(known))
            return
        wanted = [self._named(name, known) for name in self._chosen]
        twice = [name for name, count in Counter(wanted).items() if count > 1]
        if twice:
            raise WhenceError("layers", "each layer once", f"{twice[0]!r} twice", "Leave one out.")
        self.layers = {name: spec for name, spec in known.items() if name in wanted}
        for name, spec in known.items():
            if name not in wanted:
                self._leave_out(spec, "not chosen")

    def _named(self, name: str | int, known: dict[str, LayerSpec]) -> str:
        """Return the layer that a name or an index means."""
        if isinstance(name, int):
            linear = [
                layer
                for layer, spec in known.items()
                if isinstance(_owner(self._model, spec.parameters[0]), self._torch.nn.Linear)
            ]
            if -len(linear) <= name < len(linear):
                return linear[name]
            expected = f"an index from {-len(linear)} to {len(linear) - 1}"
            raise WhenceError("layers", expected, str(name), self._listing(known))
        if name in known:
            return name
        modules = dict(self._model.named_modules())
        if name in modules:
            own = {id(p) for p in modules[name].parameters(recurse=False)}
            every = dict(self._model.named_parameters())
            for other, spec in known.items():  # by another name of the same weights
                if id(every[spec.parameters[0]]) in own:
                    return other
            kind = type(modules[name]).__name__
            reasons = [
                reason
                for parameter, reason in self.left_out.items()
                if parameter.rpartition(".")[0] == name
            ]
            got = f"{name!r}, a {kind}" + (f": {reasons[0]}" if reasons else " without weights of its own")
            raise WhenceError("layers", "layers that whence can take", got, self._listing(known))
        raise WhenceError("layers", "names of named_modules()", repr(name), self._listing(known))

    @staticmethod
    def _listing(known: dict[str, LayerSpec]) -> str:
        return f"Layers that can be taken are: {', '.join(known) or 'none'}."

    def _called_otherwise(self, name: str) -> WhenceError:
        return WhenceError(
            f"layer {name!r}",
            f"{len(self.layers[name].axes)} calls in every forward pass, as for the first batch",
            "another number of calls",
            "Leave the layer out: what it is called with depends on the samples.",
        )


# ------------------------------------------------------------------------------------- the calls


def _recorder(torch: Any, leaves: dict[str, Any], n_samples: int) -> Any:
    """Return a mode that notes calls with weights among ``leaves``; see ``uses``.

    Embeddings of places that all samples share, ``(1, L)``, are called with one row for each of
    ``n_samples``.
    """
    names = {id(leaf): name for name, leaf in leaves.items()}

    class Recorder(torch.overrides.TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: dict[str, list[Call]] = {}

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function is torch.nn.functional.multi_head_attention_forward:
                return self._attention(args, kwargs)
            call = known_call(torch, function, args, kwargs)
            if call is None or not any(id(w) in names for w in (call.weight, call.bias) if w is not None):
                return function(*args, **kwargs)
            if call.kind == "embedding" and call.inputs.ndim == 2 and call.inputs.shape[0] == 1 < n_samples:
                call.inputs = call.inputs.expand(n_samples, -1)
                args = (call.inputs, *args[1:]) if args else args
                kwargs = {**kwargs, "input": call.inputs} if "input" in kwargs else kwargs
            return self._noted(call, function(*args, **kwargs))

        def _noted(self, call: Call, output: Any) -> Any:
            """Remember a call; return its output, to be changed in place by whoever wants to."""
            call.output = output
            weight = names.get(id(call.weight)) if call.weight is not None else None
            bias = names.get(id(call.bias)) if call.bias is not None else None
            if call.weight is not None and weight is None:
                return output  # weights that were computed from others
            call.settings["bias name"] = bias
            if bias is None:  # none, or one that was computed from other weights
                call.bias = None
            if call.kind == "transposed" and bias is not None:
                alone = Call("shift", None, call.bias, call.output.detach(), {"bias name": bias}, output)
                self.calls.setdefault(bias, []).append(alone)
                call.settings["bias name"] = None
                call.bias = None
            self.calls.setdefault(weight or bias or "", []).append(call)
            return output.clone()

        def _linear(self, inputs: Any, weight: Any, bias: Any, rows: slice) -> Any:
            """Return a dense layer of a run of rows of the weights."""
            own = weight[rows], None if bias is None else bias[rows]
            output = torch.nn.functional.linear(inputs, *own)
            is_part = own[0].shape[0] < weight.shape[0]
            part = (rows.start, weight.shape[0]) if is_part else (0, 0)
            return self._noted(Call("linear", weight, bias, inputs, {}, part=part), output)

        def _attention(self, args: Any, kwargs: Any) -> Any:
            """Compute projections here, and leave identities in their place to PyTorch's own attention."""
            given = attention_arguments(torch, args, kwargs)
            query, key, value = (given[name] for name in ("query", "key", "value"))
            unknown = given["bias_k"] is not None or given["use_separate_proj_weight"]
            if unknown or query.ndim != 3:
                return torch.nn.functional.multi_head_attention_forward(**given)
            weight, bias, width = given["in_proj_weight"], given["in_proj_bias"], query.shape[-1]
            if query is key and key is value:
                projected = self._linear(query, weight, bias, slice(0, 3 * width)).chunk(3, dim=-1)
            else:
                projected = [
                    self._linear(part, weight, bias, slice(number * width, (number + 1) * width))
                    for number, part in enumerate((query, key, value))
                ]
            eye = torch.eye(width, dtype=query.dtype, device=query.device)
            inside = dict(zip(("query", "key", "value"), projected, strict=True))
            inside |= {"in_proj_weight": torch.cat([eye] * 3), "in_proj_bias": None}
            inside |= {"out_proj_weight": eye, "out_proj_bias": None}
            mixed, shares = torch.nn.functional.multi_head_attention_forward(**(given | inside))
            behind = given["out_proj_weight"], given["out_proj_bias"]
            return self._linear(mixed, *behind, slice(0, behind[0].shape[0])), shares

    return Recorder()


_SCALES = ("batch_norm", "layer_norm", "group_norm", "rms_norm", "shift")


def calls_bias(call: Call) -> str | None:
    """Return the name of a call's bias in ``named_parameters()``, or None."""
    name: str | None = call.settings.get("bias name")
    return name


def _spec_of(name: str, calls: list[Call], biases: tuple[str, ...]) -> LayerSpec | None:
    """Return what is known of a layer by its calls, or None if these do not fit together."""
    kinds = {call.kind for call in calls}
    call = calls[0]
    is_table = bool(kinds & {"embedding", "bag"})
    if kinds <= set(_SCALES):
        if len(kinds) > 1 or len(biases) > 1:
            return None
        channels = (call.weight if call.weight is not None else call.bias).numel()
        shape = (channels, (call.weight is not None) + len(biases), 1)
        parameters = (name, *biases) if call.weight is not None else (name,)
        return LayerSpec(_layer_of(name, is_bias=call.weight is None), parameters, shape, biases, False, ())
    if is_table and kinds <= {"embedding", "bag", "linear"}:
        rows, width = call.weight.shape
        shape = (1, int(rows), int(width) + len(biases))
    elif kinds in ({"linear"}, {"product"}):
        d, n_outputs = call.weight.shape if call.kind == "product" else call.weight.shape[::-1]
        shape = (1, int(d) + len(biases), int(n_outputs))
    elif kinds in ({"conv"}, {"transposed"}) and len(biases) <= 1:
        groups = int(call.settings.get("groups", 1))
        n_outputs, size = int(call.weight.shape[0]), call.weight[0].numel()
        shape = (groups, size + len(biases), n_outputs // groups)
        if call.kind == "transposed":
            shape = (groups, n_outputs // groups, size)
    else:
        return None
    return LayerSpec(_layer_of(name), (name, *biases), shape, biases, is_table, ())


def _layer_of(parameter: str, is_bias: bool = False) -> str:
    """Return how the layer of a parameter is called."""
    module, _, name = parameter.rpartition(".")
    if name in ("weight", "in_proj_weight") and not is_bias:
        return f"{module}.in_proj" if name == "in_proj_weight" else module
    return parameter


def _owner(model: Any, parameter: str) -> Any:
    return model.get_submodule(parameter.rpartition(".")[0])


# ------------------------------------------------------------------------------------- samples


def _possible_axes(call: Call, n_samples: int) -> list[int]:
    """Return the axes of a call that may be that of the samples, the likelier first."""
    shape = call.inputs.shape
    axes = [0] if shape[0] % n_samples == 0 else []
    can_turn = call.kind in ("linear", "product", "embedding", "layer_norm", "rms_norm")
    second = [array.shape[1] if array.ndim > 1 else 0 for array in (call.inputs, call.output)]
    if can_turn and second == [n_samples, n_samples]:
        axes.append(1)
    return axes


def _by_samples(term: Term, n_samples: int) -> Term:
    """Return a term of ``n * k`` rows as one of ``n`` samples with ``k`` times as many positions."""
    n_rows = term.n_samples
    if n_rows == n_samples:
        return term
    k = n_rows // n_samples
    if isinstance(term, Matrices):
        return Matrices(term.values.reshape(n_samples, k, *term.values.shape[1:]).sum(dim=1))
    if isinstance(term, Tokens):
        width = term.right.shape[2]
        return term.of([term.tokens.reshape(n_samples, -1), term.right.reshape(n_samples, -1, width)])
    arrays = []
    for array in term.arrays:
        _, n_groups, n_positions, width = array.shape
        apart = array.reshape(n_samples, k, n_groups, n_positions, width).transpose(1, 2)
        arrays.append(apart.reshape(n_samples, n_groups, k * n_positions, width))
    return term.of(arrays)


def _merged(torch: Any, terms: list[Term]) -> list[Term]:
    """Return terms of one kind as one: calls of the same weights are further positions."""
    result: list[Term] = []
    for kind, group in itertools.groupby(sorted(terms, key=lambda t: type(t).__name__), key=type):
        some = list(group)
        if len(some) == 1:
            result.append(some[0])
        elif kind is Factors:
            parts = zip(*(term.arrays for term in some), strict=True)
            result.append(Factors(*(torch.cat(part, dim=2) for part in parts)))
        elif kind is Tokens:
            parts = zip(*(term.arrays for term in some), strict=True)
            result.append(some[0].of([torch.cat(part, dim=1) for part in parts]))
        else:
            result.append(Matrices(sum(term.matrices() for term in some)))
    return result


def _same(term: Term, singles: list[Term]) -> bool:
    """Whether the rows of some samples are those of each alone, to their precision."""
    if not singles:
        return True
    batch = Rows({"": (term,)})
    single = Rows.joined([Rows({"": (one,)}) for one in singles])
    if single.shapes != batch.shapes:
        return False
    both = inner_by_pairs(batch, single)
    first, second = squared_norms(batch), squared_norms(single)
    largest = max(float(first.max()), float(second.max()))
    return bool((first + second - 2 * both).abs().max() <= _tolerance(term.arrays[-1]) ** 2 * largest)


def _close(value: Any, expected: Any, scale: float | None = None) -> bool:
    gap = (value.double() - expected.double()).abs().max()
    scale = float(expected.double().abs().max()) if scale is None else scale
    return bool(gap <= _tolerance(expected) * scale)


def _tolerance(array: Any) -> float:
    """Return how far sums in another order may lie apart, relative to the largest."""
    import torch

    return min(0.1, max(1e-6, 50 * float(torch.finfo(array.dtype).eps) ** 0.75))
