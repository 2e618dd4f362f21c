"""The adapter for PyTorch modules: any ``torch.nn.Linear`` of any ``torch.nn.Module``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from whence._errors import WhenceError, warn
from whence.arrays.base import Array, as_numpy, check_number, import_extra
from whence.data.base import concatenate, leaves, take_rows
from whence.models.adapter import Adapter, LossSpec, Reading, Weights, check_callable, register_adapter
from whence.models.differentiated import DifferentiatedLoss, identity_of
from whence.models.state import Part
from whence.models.torch.calls import Caller, Watched
from whence.models.torch.derivatives import TorchDerivatives, torch_output
from whence.models.torch.form import Form, checked_weights, form_of, spread, stands_for_units
from whence.models.torch.hooks import HookedLoss
from whence.models.torch.layers import Dense, calls_in_order, dense_layers, used_behind
from whence.models.torch.losses import read_loss
from whence.models.torch.module import check_device, device_named, takes, tensor_part, unwrapped
from whence.models.torch.own import CalledLoss, check_is_that_of_training, own_loss
from whence.models.torch.replica import inference, try_replica
from whence.models.torch.rows import TorchRows
from whence.models.torch.tail import TorchTail, repeated

__all__ = ["TorchAdapter"]

#: Samples on which a model is called twice, to see that it does not draw random numbers.
TRIED_ROWS = 8


@register_adapter("torch.", before=("sklearn.",))
class TorchAdapter(Adapter):
    """Reads a PyTorch module. Its input to the target layer is recorded by a hook, in eval mode.

    Modules wrapped by ``torch.compile`` or ``torch.nn.DataParallel`` are run unwrapped. Modes, hooks and
    gradients are afterwards what they were before.

    Parameters
    ----------
    model : torch.nn.Module
    start_layer : int or str, default=-1
        A name of ``named_modules()``, or an index among the linear modules in the order of their calls.
    loss_function : torch.nn.Module or callable, optional
        ``loss(output, target)``, with any reduction over the batch. ``None`` takes the loss that the
        model returns when it is called with ``labels``.
    classes : bool, optional
        Whether a loss without a closed form is on classes. ``None`` knows it of PyTorch's own losses and
        takes functions to be on values.
    weight_decay : float or (float, float), default=0.0
        That of the optimiser, which is no part of a module: the second derivative of the penalty
        ``weight_decay / 2 * sum(theta**2)``, on weights and bias as PyTorch's optimisers have it. A pair is
        of the weights and of the bias, where these are groups of their own.
    device : str or torch.device, optional
        Where features, Hessian and scores are kept and computed, as tensors; the model must be there.
        ``None``: on the host, as NumPy arrays.
    label_key : str, optional
        Where batches are dicts, the key of the labels; ``labels`` or ``label`` by default.
    forward : callable, optional
        ``forward(model, batch)`` runs the model in the user's way and returns its output, a tensor
        ``(n, ...)``. A batch is ``(inputs, labels)``, or for dicts the whole dict with the labels under
        ``label_key`` or ``"labels"``, as tensors on the model's device. Where there are none, labels are
        None, or no key.
    loss : callable, optional
        ``loss(outputs, batch)`` returns the training loss of each sample, ``(n,)``; of each position,
        ``(n, positions)``, where the layer is applied along a sequence. In place of ``loss_function``. What
        it reads of a batch is stored with each sample.

    Raises
    ------
    WhenceError
        If the layer, the loss or an option is none of these, or the model has no dense layer.
    """

    third_is_weight = False  # many datasets of PyTorch give an index or a name there

    def __init__(
        self,
        model: Any,
        start_layer: int | str = -1,
        loss_function: Any = None,
        *,
        classes: bool | None = None,
        weight_decay: float | tuple[float, float] = 0.0,
        device: Any = None,
        label_key: str | None = None,
        forward: Any = None,
        loss: Any = None,
    ) -> None:
        self._torch = import_extra("torch", "torch")
        self._given = model, start_layer, loss_function
        self._options = {
            "classes": classes,
            "weight_decay": weight_decay,
            "device": device,
            "label_key": label_key,
            "forward": forward,
            "loss": loss,
        }
        self.label_key = label_key
        self._model = unwrapped(model)
        self._dense = dense_layers(self._torch, self._model)
        self._start_layer = start_layer
        pair = weight_decay if isinstance(weight_decay, list | tuple) else (weight_decay, weight_decay)
        for number in pair if len(pair) == 2 else (weight_decay,):
            check_number(number, "weight_decay")
        self._weight_decay = float(pair[0]), float(pair[1])
        self._classes = classes
        self._loss: Any = None if loss_function is None else read_loss(loss_function)
        if loss is not None:
            if loss_function is not None:
                raise WhenceError(
                    "loss", "None, since there is a loss_function", repr(loss), "Give one of the two."
                )
            check_callable(loss, "loss", "loss(outputs, batch)")
            self._loss = HookedLoss(self._torch, loss, label_key or "labels")
        self._device = check_device(self._torch, self._model, device)
        self._layer: Dense | None = None
        self._layer_name = ""
        self._form: Form | None = None  # with what follows from it, learned from the first batch
        self._of_mean: Any = None
        #: A batch whose labels are all alike, from which the model's own loss is known until others come.
        self._lone: Any = None
        if self._loss is None and not takes(self._model, "labels"):
            raise WhenceError(
                "loss_function",
                "a loss, since a module does not hold the one that it was trained with",
                "None",
                "Pass loss_function=torch.nn.CrossEntropyLoss(), or whatever it was.",
            )
        self._caller = Caller(
            self._torch,
            self._model,
            self._at,
            check_callable(forward, "forward", "forward(model, batch)"),
            label_key,
            self._loss is None,
        )
        if isinstance(start_layer, str):
            self._choose(start_layer)
        elif isinstance(start_layer, bool) or not isinstance(start_layer, int):
            raise WhenceError("target layer", "an index or a name", repr(start_layer), self._listing())

    # ------------------------------------------------------------------------------- the layer

    @property
    def layer_name(self) -> str:  # type: ignore[override]
        """The target layer's name in ``named_modules()``."""
        self._chosen_layer()
        return self._layer_name

    def with_layer(self, layer: int | str) -> TorchAdapter:
        """Return an adapter of the same model for another target layer."""
        model, _, loss = self._given
        return TorchAdapter(model, layer, loss, **self._options)

    def weights(self) -> Weights:
        """Return the target layer's weights as they are now."""
        layer = self._chosen_layer()
        return Weights(layer.kernel().T, layer.bias(), *self._weight_decay)

    def state(self) -> Mapping[str, Part]:
        """Return all parameters and buffers that are saved with the module."""
        parts: dict[str, Part | None] = {}
        for prefix, module in self._model.named_modules():
            for name, tensor in module.named_parameters(recurse=False):
                parts[f"{prefix}.{name}".lstrip(".")] = tensor_part(tensor)
            for name, tensor in module.named_buffers(recurse=False):
                # How many batches training has seen plays no part; what is not saved is made by use.
                if name != "num_batches_tracked" and name not in module._non_persistent_buffers_set:
                    parts[f"{prefix}.{name}".lstrip(".")] = tensor_part(tensor, may_count=True)
        return {name: part for name, part in parts.items() if part is not None}

    def _chosen_layer(self) -> Dense:
        if self._layer is None and len(self._dense) == 1 and self._start_layer in (0, -1):
            self._choose(next(iter(self._dense)))
        if self._layer is None:
            raise WhenceError(
                "target layer",
                "a batch first, since linear layers are numbered in the order of their calls",
                f"index {self._start_layer}",
                "Index the training set, or name the layer.",
            )
        return self._layer

    def _choose(self, name: str) -> None:
        modules = dict(self._model.named_modules())
        if name not in modules:
            raise WhenceError("target layer", "a name of named_modules()", repr(name), self._listing())
        if name not in self._dense:
            got = f"{name!r}, a {type(modules[name]).__name__}"
            raise WhenceError("target layer", "a torch.nn.Linear", got, self._listing())
        layer = self._dense[name]
        twins = [
            n for n, x in self._dense.items() if x is not layer and x.linear.weight is layer.linear.weight
        ]
        if twins:
            raise WhenceError(
                f"layer {name!r}",
                "a layer with weights of its own",
                f"weights shared with {', '.join(twins)}",
                "Choose a layer whose weights are used once in a forward pass.",
            )
        self._layer, self._layer_name = layer, name

    def _choose_by_calls(self, batch: Any) -> None:
        """Give the linear layers numbers in the order in which a forward pass calls them."""
        order = calls_in_order(self._torch, self._model, self._dense, lambda: self._run(batch))
        wanted = int(self._start_layer)
        if not -len(order) <= wanted < len(order):
            raise WhenceError(
                "target layer",
                f"an index from {-len(order)} to {len(order) - 1}" if order else "a linear layer",
                f"{wanted}" if order else "none that a forward pass calls",
                f"Called are, in this order: {', '.join(order)}." if order else self._listing(),
            )
        if wanted == -1:
            order = [name for name in order if self._reaches_output(name, batch)] or order
        self._choose(order[wanted])

    def _listing(self) -> str:
        return f"The linear layers are: {', '.join(self._dense)}."

    # --------------------------------------------------------------------------- what it gives

    def place(self, array: np.ndarray) -> Array:
        """Return an array of the host where the library is to compute with it."""
        return array if self._device is None else self._torch.tensor(array, device=self._device)

    def loss_spec(self) -> LossSpec:
        """Return what is known of the loss; of a model's own loss nothing before a batch with labels."""
        return LossSpec(None, "", "of the model itself") if self._loss is None else self._loss.spec()

    def features(self, inputs: Any) -> Array:
        """Return the input of the target layer, shape ``(n, d)`` or ``(n, ..., d)``."""
        return self.read(inputs, None).features

    def read(self, inputs: Any, labels: Any) -> Reading:
        """Return the input of the target layer, and labels as the loss takes them."""
        batch = self._caller.batch(inputs, labels)
        if self._form is None:
            self._learn(batch)
        elif self._lone is not None and labels is not None:
            self._learn_again(batch)
        features, watched = self._record(batch)
        mask = self._mask_of(inputs, features)
        if self._device is None:
            features = as_numpy(features)
        elif features.dtype not in (self._torch.float32, self._torch.float64):
            features = features.float()
        if labels is not None:
            positions = tuple(int(size) for size in features.shape[1:-1])
            if isinstance(self._loss, HookedLoss):
                labels = self._loss.target_of(self._caller.as_given(batch))
            labels = self._labels_of(labels, watched, int(features.shape[0]), positions)
        return Reading(features, mask, labels, batch, not isinstance(self._loss, CalledLoss))

    def probe(self, inputs: Any, labels: Any) -> list[np.ndarray]:
        """Return what the target layer takes in and what the model gives, of one pass."""
        if self._form is None or isinstance(self._loss, CalledLoss):
            return super().probe(inputs, labels)
        features, watched = self._record(self._caller.batch(inputs, labels))
        return [_on_host(features), _on_host(self._form.units_last(self._caller.output(watched.result)))]

    def output(self, batch: Any) -> np.ndarray:
        """Return what the loss is on, as the model gives it."""
        watched = self._run(batch)
        if isinstance(self._loss, CalledLoss):
            n = int(leaves(batch)[0].shape[0])
            return _on_host(self._loss.input_of(watched, n, self._pre_activations(batch)))
        assert self._form is not None  # read comes first
        return _on_host(self._form.units_last(self._caller.output(watched.result)))

    def tail(self, batch: Any, pre_activations: np.ndarray) -> np.ndarray:
        """Return what the loss is on if the target layer gave these pre-activations."""
        tail, u = self._tail(), self._torch.tensor(pre_activations, device=self._at())
        with self._torch.no_grad():
            try:  # layers in half precision would hide what the tail is
                return _on_host(tail(batch, u, "float32"))
            except WhenceError:
                raise
            except Exception:  # code in a layer that fixes another dtype: as the layers are, then
                return _on_host(tail(batch, u.to(self._chosen_layer().dtype)))

    def differentiated(self, batch: Any) -> DifferentiatedLoss:
        """Return the loss and everything after the target layer, differentiated by PyTorch."""
        if self._form is None:
            self._learn(batch)
        loss, layer = self._loss, self._chosen_layer()
        assert loss is not None  # which the constructor or the first batch found
        at_rows, loss_at_rows = self._tail().for_rows(batch)
        output = torch_output(at_rows, self._at())
        boundary = loss.boundary if self._classes is None else None
        if self._classes:  # of probabilities or of logits: what large pre-activations lead to tells
            extremes = as_numpy(output(np.linspace(-30, 30, 8)[:, None] * np.ones(layer.n_outputs)))
            boundary = 0.5 if extremes.min() >= 0 and extremes.max() <= 1 else 0.0
        weights = [as_numpy(tensor) for tensor in self._model.state_dict().values()]
        own = self._given[2] or loss.unreduced
        config = {k: as_numpy(v) if hasattr(v, "detach") else v for k, v in loss.settings.items()}
        code = getattr(own, "forward", own), config, loss.described, loss.factor, self._options["forward"]
        return DifferentiatedLoss(
            loss.described,
            TorchDerivatives(loss_at_rows, loss.described, self._at()),
            output,
            identity_of(code, weights),
            boundary,
            layer.n_outputs,
            loss.is_on_tags,
            getattr(loss, "n_label_columns", None),
        )

    def check_layers(self, wanted: Any) -> None:
        """Raise for names that are neither a module's nor a parameter's."""
        if wanted == "all":
            return
        known = {name for name, _ in self._model.named_modules()}
        known |= {name for name, _ in self._model.named_parameters(remove_duplicate=False)}
        known |= {f"{name}.in_proj" for name in known}
        for name in wanted:
            if isinstance(name, str) and name not in known:
                raise WhenceError("layers", "names of named_modules()", repr(name), self._listing())

    def row_source(self, wanted: Any) -> TorchRows:
        """Return what records rows of several layers."""
        layer = self._chosen_layer()
        if layer.module is not layer.linear:
            raise WhenceError(
                "layers",
                "an output layer that is a torch.nn.Linear by itself",
                f"{self._layer_name!r}, with an adapter upon it",
                "Merge the adapter: model.merge_and_unload().",
            )
        named = self._model.named_parameters()
        output = next(name for name, p in named if p is layer.linear.weight)
        return TorchRows(
            self._torch,
            self._model,
            self._caller,
            output,
            wanted,
            keeps_tensors=self._device is not None,
            weight_decay=self._weight_decay,
            pooling=self._pooling if self._form is not None and self._form.is_pooled else None,
        )

    def _pooling(self, batch: Any) -> Any:
        """Return what each position of the target layer counts where the model brings them together."""
        torch, tail = self._torch, self._tail()
        with torch.enable_grad():
            point = self._pre_activations(batch).requires_grad_()
            output = self._caller.output(tail.run(batch, point).result)
            return checked_weights(torch, output, point, self._layer_name, self._of_mean).detach()

    @contextmanager
    def on_device(self, device: str | None) -> Iterator[None]:
        """Run the model on a device inside this context; it is moved there and back."""
        if device is None:
            yield
            return
        before, wanted = self._at(), device_named(self._torch, device)
        if wanted == before or self._device is not None:
            if self._device is not None and wanted != self._device:
                raise WhenceError(
                    "device",
                    f"{self._device}, that of the InfluenceModel",
                    repr(device),
                    "Leave it out.",
                )
            yield
            return
        self._model.to(wanted)
        try:
            yield
        finally:
            self._model.to(before)

    # --------------------------------------------------------------------- the first batch

    def _learn(self, batch: Any) -> None:
        """Find out on the first batch what the model does behind its layer, and its loss."""
        n = int(leaves(batch)[0].shape[0])
        # Some rows, three at least: models that squeeze their output lose the batch's axis with one.
        batch = take_rows(batch, np.arange(max(3, min(TRIED_ROWS, n))) % n)
        try_replica(self._torch, self._model, lambda: self._caller(batch))
        if self._layer is None:
            self._choose_by_calls(batch)
        layer = self._chosen_layer()
        u = self._pre_activations(batch)
        self._check_layer(batch, u)
        raw = TorchTail(self._torch, self._model, layer, self._caller, Form(()))

        def run(batch: Any, u: Any) -> Watched:
            return raw.run(batch, u, "float64" if u.dtype == self._torch.float64 else "float32")

        probe = self._torch.tensor(
            np.random.default_rng(0).normal(size=tuple(u.shape)), dtype=self._torch.float64, device=u.device
        )
        try:
            run(batch, probe)
        except Exception:  # code that fixes a precision
            probe = probe.float()
        form = Form(tuple(int(size) for size in u.shape[1:-1]))
        if form.positions:
            form = form_of(
                self._torch,
                lambda u: self._caller.output(run(batch, u).result),
                probe,
                self._layer_name,
            )
        if self._start_layer == -1:
            self._check_default(run, batch, probe, form)
        if self._loss is None:
            if batch[1] is None:
                raise WhenceError(
                    "loss of the model itself",
                    "a batch with labels first, to see which loss the model computes of them",
                    "one without labels",
                    "Index the training set, or pass loss_function=...",
                )
            if form.is_pooled:
                probe = spread(probe.mean(dim=tuple(range(1, probe.ndim - 1))), form.positions)
            self._loss = own_loss(self._torch, run, self._caller.loss, batch, probe, form, self._model)
            self._check_penalty(batch, u)
            with inference(self._torch, self._model) as run_now:
                check_is_that_of_training(
                    self._torch, run_now.model, lambda more: self._caller(batch, more), self._loss
                )
            labels = np.asarray(batch[1])
            self._lone = batch if (labels == labels[:1]).all() else None
        if isinstance(self._loss, HookedLoss):
            with self._torch.no_grad():
                output = self._caller.output(self._run(batch).result)
                self._loss.learn(output, self._caller.as_given(batch), len(form.positions) > form.is_pooled)
        self._form = form
        self._check_same_again(batch)
        if form.is_pooled:
            one = take_rows(batch, slice(0, 1))
            self._of_mean = lambda u: self._tail().output(repeated(one, len(u)), u)

    def _check_layer(self, batch: Any, u: Any) -> None:
        """Raise unless LoRA on the layer is a sum of weights; warn if its weights serve elsewhere too."""
        layer, name = self._chosen_layer(), self.layer_name
        if layer.module is not layer.linear:
            bias = 0.0 if layer.bias() is None else layer.bias()
            expected = as_numpy(self._record(batch)[0]) @ layer.kernel().T + bias
            scale = float(np.abs(expected).max(initial=0))
            if not np.allclose(as_numpy(u), expected, rtol=0.02, atol=0.02 * scale):
                raise WhenceError(
                    f"layer {name!r}",
                    "LoRA that adds to the layer's weights, which is merged to explain it",
                    f"a {type(layer.module).__name__} that computes something else, as DoRA does",
                    "Merge it first: model = model.merge_and_unload().",
                )
        shared = [
            f"{prefix!r} ({type(module).__name__})"
            for prefix, module in self._model.named_modules()
            for tensor in module.parameters(recurse=False)
            if tensor is layer.linear.weight and module is not layer.linear
        ]
        if shared:
            warn(
                f"layer {name!r}: expected weights of its own, got weights that {', '.join(shared)} uses "
                "too. What is explained is their use in this layer; what they do elsewhere is held fixed."
            )

    def _check_penalty(self, batch: Any, u: Any) -> None:
        """Raise if the model's own loss has a term of the layer's weights by themselves."""
        layer = self._chosen_layer()
        tail = TorchTail(self._torch, self._model, layer, self._caller, Form(()))

        def total(weights: dict[str, Any]) -> Any:
            return self._caller.loss(tail.run_with(batch, u, weights).result)

        named = dict(self._model.named_parameters())
        used = [named[name] for name in used_behind(self._torch, self._model, layer, total)]
        if any(parameter is own for parameter in used for own in layer.module.parameters()):
            raise WhenceError(
                "loss of the model itself",
                f"a loss of the output of layer {self._layer_name!r}",
                "one with a term of the layer's weights by themselves, such as an L2 penalty",
                "Pass the loss without it as loss_function=..., and an L2 penalty as weight_decay=...",
            )

    def _learn_again(self, batch: Any) -> None:
        """See whether the model's own loss is the same where labels differ, which they did not before."""
        n = int(leaves(batch)[0].shape[0])
        batch = take_rows(batch, np.arange(min(TRIED_ROWS, n)))
        first = take_rows(self._lone, slice(0, 1))
        try:
            both = concatenate([batch, first])
        except (ValueError, TypeError):  # samples that do not go into one batch
            return
        labels = np.asarray(both[1])
        if (labels == labels[:1]).all():
            return
        before = self._loss
        self._loss, self._form, self._lone = None, None, None
        self._learn(take_rows(both, np.arange(max(3, len(labels))) % len(labels)))
        now = self._loss
        if type(now) is type(before) and now.described == before.described and now.factor == before.factor:
            return
        raise WhenceError(
            "loss of the model itself",
            "the same loss whatever else is in the batch",
            "one that hinges on the batch: batches with labels that are all alike came first",
            "Give batches of several samples.",
        )

    def _reaches_output(self, name: str, batch: Any) -> bool:
        """Whether the model's output comes from a layer."""
        layer, torch = self._dense[name], self._torch
        tail = TorchTail(torch, self._model, layer, self._caller, Form(()))
        seen: list[Any] = []
        with inference(torch, self._model) as running:
            note = running[layer.module].register_forward_hook
            hook = note(lambda *parts: seen.append(parts[2].detach()))
            try:
                plain = self._caller.output(self._run(batch).result)
            finally:
                hook.remove()
        with torch.no_grad():
            moved = self._caller.output(tail.run(batch, 1.5 * seen[-1] + 1).result)
        atol = 1e-6 * float(plain.abs().max())
        return moved.shape != plain.shape or not bool(torch.allclose(moved, plain, rtol=1e-5, atol=atol))

    def _check_default(self, run: Any, batch: Any, u: Any, form: Form) -> None:
        """Raise unless the layer that is taken by default is the one that the output comes from."""
        layer, torch = self._chosen_layer(), self._torch

        def output(u: Any) -> Any:
            return form.units_last(self._caller.output(run(batch, u).result))

        if form.is_pooled:
            u = spread(u.mean(dim=tuple(range(1, u.ndim - 1))), form.positions)
        if stands_for_units(torch, output, u, form):
            return
        tail = TorchTail(torch, self._model, layer, self._caller, form)
        fixed = u.to(layer.dtype)
        behind = used_behind(
            torch,
            self._model,
            layer,
            lambda weights: self._caller.output(tail.run_with(batch, fixed, weights).result),
        )
        if not behind:
            return
        owners = sorted({name.rpartition(".")[0] or name for name in behind})
        modules = dict(self._model.named_modules())
        kinds = [f"{name!r} ({type(modules[name]).__name__})" for name in owners if name in modules]
        kinds += [f"parameter {name!r}" for name in owners if name not in modules]
        raise WhenceError(
            "target layer",
            "a model whose output comes from a torch.nn.Linear, to explain that by default",
            f"{self._layer_name!r} as the last one, with other weights at work on the output behind or "
            f"beside it: {', '.join(kinds[:4])}",
            "Name a layer if you want its units explained, which are not the model's outputs: "
            f"start_layer={self._layer_name!r}. Or write the last operation as a torch.nn.Linear. "
            + self._listing(),
        )

    # ------------------------------------------------------------------------------ the passes

    def _record(self, batch: Any) -> tuple[Any, Watched]:
        """Return what the target layer takes in, and what came of running the model."""
        torch, layer, form = self._torch, self._chosen_layer(), self._form
        seen: list[Any] = []
        given: list[Any] = []
        is_pooled = form is not None and form.is_pooled

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args[0] if args else next(iter(kwargs.values()))).detach())

        def after(_module: Any, _args: Any, result: Any) -> Any:
            if not is_pooled:
                return None
            torch.set_grad_enabled(True)  # until the pass ends, which is run without
            given.append(result.detach().requires_grad_())
            return given[-1]

        with inference(torch, self._model) as running, ExitStack() as hooks:
            module = running[layer.module]
            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(after).remove)
            watched = self._run(batch)
        if len(seen) != 1:
            raise WhenceError(
                f"layer {self.layer_name!r}",
                "a layer that the model calls once in a forward pass",
                f"{len(seen)} calls" if seen else "no call",
                "Choose a layer whose weights are not shared, and that the model calls as a module.",
            )
        if not is_pooled:
            return seen[0], watched
        output = self._caller.output(watched.result)
        weights = checked_weights(torch, output, given[0], self.layer_name, self._of_mean)
        rows = seen[0].reshape(*weights.shape, -1)
        return (weights[..., None].to(rows.dtype) * rows).sum(dim=1), watched

    def _pre_activations(self, batch: Any) -> Any:
        """Return what the target layer gives, shape ``(n, ..., C)``."""
        seen: list[Any] = []
        layer = self._chosen_layer()
        self._record(batch)  # raises unless there is one call
        with inference(self._torch, self._model) as running:
            note = running[layer.module].register_forward_hook
            hook = note(lambda *parts: seen.append(parts[2].detach()))
            try:
                self._run(batch)
            finally:
                hook.remove()
        return seen[0]

    def _check_same_again(self, batch: Any) -> None:
        first, again = (as_numpy(self._record(batch)[0]) for _ in range(2))
        scale = float(np.nan_to_num(np.abs(first)).max(initial=0))
        if not np.allclose(first, again, rtol=1e-3, atol=1e-5 * scale, equal_nan=True):
            raise WhenceError(
                "model",
                "a model that gives the same features for the same inputs in eval mode",
                "random ones",
                "Use modules such as nn.Dropout, or dropout(x, training=self.training).",
            )

    def _run(self, batch: Any) -> Watched:
        """Call the model in inference mode."""
        with inference(self._torch, self._model):
            return self._caller(batch)

    def _mask_of(self, inputs: Any, features: Any) -> Any:
        """Return the mask on the layer's positions, or None."""
        is_decoder = bool(getattr(getattr(self._model, "config", None), "is_encoder_decoder", False))
        key = "decoder_attention_mask" if is_decoder else "attention_mask"
        mask = inputs.get(key) if isinstance(inputs, Mapping) else None
        return None if mask is None or mask.shape != features.shape[:-1] else mask

    def _labels_of(self, labels: Any, watched: Watched, n: int, positions: tuple[int, ...]) -> Any:
        """Return labels as the loss takes them, with the axes of the layer's positions first."""
        form = self._form
        assert form is not None  # learned before
        if isinstance(self._loss, CalledLoss):
            return as_numpy(self._loss.target_of(watched, n, positions))
        if form.is_moved(labels):
            return np.moveaxis(as_numpy(labels), 1, -1)
        return labels

    def _at(self) -> Any:
        return next(iter(self._dense.values())).device

    def _tail(self) -> TorchTail:
        assert self._form is not None  # read comes first
        return TorchTail(
            self._torch, self._model, self._chosen_layer(), self._caller, self._form, self._loss
        )


def _on_host(tensor: Any) -> np.ndarray:
    array = as_numpy(tensor.detach())
    return array if array.dtype == np.float64 else array.astype(np.float32)
