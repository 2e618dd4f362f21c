"""The wrapped model that the rest of the library sees."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError, warn
from whence.arrays.base import Array, as_numpy, astype, check_finite, like, namespace
from whence.data.base import Batch, Dataset, leaves, map_leaves, open_dataset, take_rows
from whence.data.form import BatchForm
from whence.engine.chosen import as_engine
from whence.ihvp.collected import CurvaturePart
from whence.index import Index
from whence.indexing.base import index_of
from whence.indexing.observation import Observation
from whence.indexing.options import IndexOptions, changed, options_of
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import Loss
from whence.layers.rows import Rows
from whence.models.adapter import Adapter, Reading, adapter_for
from whence.models.differentiated import DifferentiatedLoss
from whence.models.recipe import Recipe
from whence.models.sequence import (
    check_mask,
    flat_positions,
    position_targets,
    position_weights,
)
from whence.models.several import SeveralLayers, layers_wanted
from whence.models.state import Digests, Watch
from whence.models.tail import decide_loss

__all__ = ["InfluenceModel"]


class _Read(NamedTuple):
    """Checked features, the mask on their positions, the positions' axes, and what the adapter gave."""

    phi: Array
    mask: np.ndarray | None
    positions: tuple[int, ...]
    given: Reading


class InfluenceModel:
    """A trained model, its loss, and the dense layer whose weights are explained.

    The model is read, never changed.

    Parameters
    ----------
    model : keras.Model, torch.nn.Module, estimator of scikit-learn, or booster of XGBoost or LightGBM
        The trained model; the adapter is picked by its type.
    start_layer : int, str, "all", or list of int and str, default=-1
        The dense layer, by index or by name. With Keras, an index that points at a layer without weights
        (Activation, Softmax, Dropout) means the nearest dense layer before it; with PyTorch, indices
        count the linear modules in the order of their calls. Of PyTorch modules several layers of many
        kinds can be explained together: a list of them, or ``"all"``.
    loss_function : loss of the framework, optional
        ``None`` takes the loss that the model was compiled with, or returns itself. Its reduction over
        the batch does not matter.
    batch : tuple or dict, optional
        What the elements of a batch are, of training sets and of samples alike: ``("x", "y", "id")``, or
        for batches that are dicts the keys, ``{"y": "target", "id": "file"}``. ``"x"`` are inputs, ``"y"``
        labels, ``"weight"`` sample weights, ``"id"`` what answers call the samples, None something to leave
        out; several ``"x"`` are a tuple of inputs. By default batches are ``(x, y)``, or
        ``(x, y, sample_weight)`` with Keras, and of whole arrays.
    **options
        Options of the adapter. ``classes`` (Keras, PyTorch): whether a loss without a closed form is on
        classes. PyTorch: ``weight_decay`` of the optimiser, ``device`` to compute on, ``label_key`` of
        batches that are dicts, ``forward`` and ``loss`` for what no rule can know; see
        :class:`whence.models.torch.adapter.TorchAdapter`. scikit-learn and boosters: ``class_weight``,
        ``reg_lambda``; see :func:`whence.models.sklearn.adapter.open_sklearn`.

    Attributes
    ----------
    model : object
        The user's own model.
    layer_name : str
        The target layer.

    Raises
    ------
    WhenceError
        If the layer does not exist or is not dense, the model was never built, or the loss is
        missing or not supported.
    """

    #: What the elements of a batch are, where the user says it.
    batch: Any = None
    #: Which layers are meant, where these are several.
    _wanted: str | tuple[str | int, ...] | None = None
    #: The layers that are explained, where these are several; known after the first batch.
    several: SeveralLayers | None = None

    def __init__(
        self,
        model: Any,
        start_layer: int | str | Sequence[int | str] = -1,
        *,
        loss_function: Any = None,
        batch: Any = None,
        **options: Any,
    ) -> None:
        self.model = model
        self.batch = batch
        #: What was said of which datasets, so that it is said once.
        self._said: list[tuple[Any, str]] = []
        #: What it takes to wrap the model again, in another process.
        self.arguments: tuple[Any, Any, dict[str, Any]] = (start_layer, loss_function, options)
        BatchForm(batch)  # raises for what is no form
        self._start(start_layer, lambda layer: adapter_for(model, layer, loss_function, options))

    def _start(self, start_layer: Any, adapter_at: Callable[[Any], Adapter]) -> None:
        """Open the adapter at one layer, or at the output layer where several are explained."""
        self._wanted = layers_wanted(start_layer)
        self.several = None
        if self._wanted is not None and len(self._wanted) == 1:  # one dense layer is one layer
            try:
                self._open(adapter_at(self._wanted[0]))
            except WhenceError:
                pass
            else:
                self._wanted = None
                return
        self._open(adapter_at(start_layer if self._wanted is None else -1))
        if self._wanted is not None:
            self._adapter.check_layers(self._wanted)

    @property
    def explains_several(self) -> bool:
        """Whether several layers are explained together."""
        return self._wanted is not None

    def at_layer(self, target_layer: Any) -> InfluenceModel:
        """Return the same model with another target layer, or several."""
        other = InfluenceModel.__new__(InfluenceModel)
        other.model = self.model
        other.batch, other._said = self.batch, self._said
        other.arguments = (target_layer, *self.arguments[1:])
        other._start(target_layer, self._adapter.with_layer)
        return other

    def _with(self, adapter: Adapter, layer: int | str) -> InfluenceModel:
        other = InfluenceModel.__new__(InfluenceModel)
        other.model, other.batch, other._said = self.model, self.batch, self._said
        other.arguments = (layer, *self.arguments[1:])
        other._open(adapter)
        return other

    def is_at(self, layer_name: str) -> bool:
        """Return whether files call the target layer so; false as long as none is chosen."""
        try:
            return self.lasting_name == layer_name
        except WhenceError:  # some adapters choose it on the first batch
            return False

    def at_index(self, index: Index) -> InfluenceModel:
        """Return the same model at the layer that a stored training set is of.

        Raises
        ------
        WhenceError
            If there is no such layer, or it has other weights or another loss.
        """
        layers = index.identity.get("layers")
        if self._wanted is not None:
            other = self.at_layer(self._wanted if isinstance(self._wanted, str) else list(self._wanted))
        elif layers is not None:
            other = self.at_layer(list(layers))
        else:
            adapter = self._adapter.with_lasting_name(index.identity["layer"])
            other = self._with(adapter, adapter.layer_name)
        other.take(index)
        return other

    def take(self, index: Index) -> None:
        """Take an index that was made with this model for its training set.

        Raises
        ------
        WhenceError
            If it is of another layer, other weights or another loss.
        """
        self._refuse_other_layers(index)
        index.check(self.identity())
        if self._adapter.counts_classes:
            self._count_classes((as_numpy(block.target), None) for block in index)
        self._learn_from(index)

    def _refuse_other_layers(self, index: Index) -> None:
        """Raise if an index is of several layers and the model is wrapped at one; learn which they are."""
        if self._wanted is None:
            if index.identity.get("layers") is None:
                return
            raise WhenceError(
                "dataset",
                f"an index of layer {self.layer_name!r}",
                f"one of several: {', '.join(index.identity['layers'])}",
                "Wrap the model at these, InfluenceModel(model, [...]), or index the training set anew.",
            )
        if self.several is not None:
            return
        if index.source is None:
            raise WhenceError(
                "dataset",
                "the training set, since the layers of a model are seen on its first batch",
                "an index without it",
                "Give the training set, and index_path= the index's folder: what is stored is kept.",
            )
        self.observe(next(iter(self.open(index.source))))

    def _open(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._spec = adapter.loss_spec()
        self._loss: Loss | None = None  # decided on the first batch
        self._loss_was_assumed = False
        #: Rows on which the loss was tried, until that has settled how it depends on them; then None.
        self._tried: tuple[np.ndarray, np.ndarray] | None = (np.zeros(0), np.zeros(0))
        #: Digests of all that shapes features and output.
        self.digests: Digests = Digests(adapter.state)
        #: Two samples of the first batch, to see later what the model makes of them.
        self.kept_rows: Any = None
        self._n_samples: int | None = None  # known once a training set is indexed
        self._implied_l2 = 0.0  # the same

    @property
    def model_name(self) -> str:
        """What reports call the model: its type, and its name where it has one."""
        kind = type(self.model).__name__
        name = self._adapter.model_name or getattr(self.model, "name", None)
        return f"{name} ({kind})" if isinstance(name, str) and name else kind

    @property
    def class_names(self) -> list[Any] | None:
        """What the user calls the classes, if that is something else than 0, 1, ... and the model knows."""
        names = self._adapter.class_names
        return None if names is None or names == list(range(len(names))) else names

    @property
    def layer_name(self) -> str:
        """The target layer's name."""
        return self._adapter.layer_name

    @property
    def lasting_name(self) -> str:
        """What files call the target layer: the same for the same model, however often it is built."""
        return self._adapter.lasting_name

    @property
    def loss(self) -> Loss:
        """The loss as a function of the pre-activations.

        The closed form where there is one and the model's tail is the one that it takes; else the
        loss differentiated by the framework. Which of the two is seen on the first batch.
        """
        if self._loss is not None:
            return self._loss
        if self._spec.loss is None:
            raise WhenceError(
                f"loss {self._spec.described}",
                "a batch first, since this loss has no closed form and the model must be traced",
                "none yet",
                "Index the training set, or call features(batch).",
            )
        self._loss_was_assumed = True
        return self._spec.loss

    @property
    def layer(self) -> LinearLayer:
        """The target layer with the weights that the model has now, in float64."""
        weights = self._adapter.weights()
        theta = weights.theta()
        l2, bias_l2 = weights.l2, weights.bias_l2
        if weights.l2_of_sum or weights.bias_l2_of_sum:
            l2 += weights.l2_of_sum / self._n_training_samples()
            bias_l2 += weights.bias_l2_of_sum / self._n_training_samples()
        if weights.was_held_back:
            self._n_training_samples()  # raises before one is known
            l2 = max(l2, self._implied_l2)
        return LinearLayer(theta, self.loss, weights.bias is not None, l2, bias_l2)

    def differentiated(self, inputs: Any) -> DifferentiatedLoss:
        """Return the loss differentiated by the framework, for inputs of such a form."""
        return self._adapter.differentiated(inputs)

    def theta(self) -> np.ndarray:
        """Return the target layer's weights ``(d, C)`` as they are now, in float64."""
        return self._adapter.weights().theta()

    def _n_training_samples(self) -> int:
        if self._n_samples is None:
            raise WhenceError(
                "layer",
                "a training set first, since the model's regulariser stands next to a sum over it",
                "none yet",
                "Index the training set, or pass the model to a method.",
            )
        return self._n_samples

    def on_device(self, device: str | None) -> AbstractContextManager[Any]:
        """Run the model on a device of the framework inside this context; ``None`` leaves it."""
        return self._adapter.on_device(device)

    def warn_once(self, message: str, dataset: Any) -> None:
        """Warn of something about a dataset, unless that was said of it before."""
        if any(known() is dataset and said == message for known, said in self._said):
            return
        with contextlib.suppress(TypeError):  # of what nothing can point to, each time
            self._said.append((weakref.ref(dataset), message))
        warn(message)

    def open(self, dataset: Any, argument: str = "dataset") -> Dataset:
        """Return a dataset as batches of what this model takes."""
        adapter = self._adapter
        form = BatchForm(self.batch, adapter.label_key, adapter.third_is_weight)
        return open_dataset(dataset, argument, form)

    def features(self, batch: Batch) -> Array:
        """Return ``phi (n, d)``: the target layer's input, with a constant 1 if it has a bias.

        A layer applied along a sequence gives ``(n, L, d)``.

        Raises
        ------
        WhenceError
            If inputs or features are not finite, or the features have the wrong width.
        """
        return self._read(batch).phi

    def targets(self, batch: Batch) -> np.ndarray:
        """Return the labels of a batch in the loss's form, checked; one a sample."""
        return self._targets(batch.labels, batch.where)

    def _targets(self, labels: Any, where: str) -> np.ndarray:
        labels = self._adapter.encode_labels(labels, where)
        check_finite(labels, "labels", where, "Clean or drop the samples.")
        return self.loss.encode(labels, self._n_outputs, where)

    def sample_weights(self, batch: Batch) -> np.ndarray | None:
        """Return the sample weights of a batch, checked, or None; one a sample."""
        weight = self._weights_given(batch)
        if weight is None:
            return None
        if weight.ndim == 2 and weight.shape[1] == 1:
            weight = weight[:, 0]
        if weight.ndim != 1:
            raise WhenceError(
                f"sample weights in {batch.where}",
                "one number a sample",
                f"shape {weight.shape}",
                "Give weights of shape (batch,).",
            )
        return weight

    def observe(self, batch: Batch) -> Observation:
        """Return features, targets and weights of a batch, per sample or per position.

        Raises
        ------
        WhenceError
            If any of them is not what the model was trained with.
        """
        seen, call = self._observe(batch)
        if self._wanted is None:
            return seen
        if self.several is None:
            source = self._adapter.row_source(self._wanted)
            source.learn(call, batch.n_samples)
            self.several = SeveralLayers(self._wanted, source)
        return seen._replace(inputs=call)

    def training_rows(self, seen: Observation) -> tuple[Rows | None, CurvaturePart | None]:
        """Return gradient and curvature rows of a batch where several layers are explained."""
        if self.several is None:
            return None, None
        weights = self._adapter.weights()  # how strong their regulariser is may depend on N
        layer = LinearLayer(weights.theta(), self.loss, weights.bias is not None)
        return self.several.training_rows(layer, seen)

    def _observe(self, batch: Batch) -> tuple[Observation, Any]:
        """Return what the layer sees of a batch, and the batch as the model is called with it."""
        phi, mask, positions, given = self._read(batch)
        if not positions:
            target = None if given.labels is None else like(self._targets(given.labels, batch.where), phi)
            weight = self.sample_weights(batch)
            by_class = None if target is None else self._adapter.class_weights(as_numpy(target))
            if by_class is not None:
                weight = by_class if weight is None else weight * by_class
            weight = None if weight is None else astype(like(weight, phi), phi.dtype)
            return Observation(phi, target, weight), given.call
        counted = np.ones(phi.shape[:2], dtype=bool)
        if mask is not None:
            counted = flat_positions(mask, len(positions))
            check_mask(counted, batch.where)
        visible, target = counted, None
        if given.labels is not None:
            labels = as_numpy(given.labels)
            counted = counted if given.mask_counts else np.ones_like(counted)
            counted = self._without_ignored(labels, counted)
            target = position_targets(self.loss, labels, positions, counted, self._n_outputs, batch.where)
        weights = self._weights_given(batch)
        weight = position_weights(counted, weights, positions, np.float64, batch.where)
        target = None if target is None else like(target, phi)
        return Observation(phi, target, astype(like(weight, phi), phi.dtype), visible), given.call

    def index(
        self,
        dataset: Any,
        *,
        ids: Any = None,
        progress: bool | None = None,
        argument: str = "dataset",
        path: str | Path | None = None,
        feature_dtype: Any = None,
        engine: Any = None,
        on_error: str = "raise",
        options: IndexOptions | None = None,
    ) -> Index:
        """Pass over a training set once and store what the layer sees of it.

        Give the index to methods in place of the training set: they share it, and the model is run once.

        Parameters
        ----------
        dataset : dataset
        ids, progress, path, feature_dtype, engine, on_error : optional
            See :class:`~whence.IndexOptions`.
        argument : str, default="dataset"
            What messages call the dataset.
        options : IndexOptions, optional
            All of these as one object.

        Returns
        -------
        Index
        """
        named = {
            "ids": ids,
            "progress": progress,
            "index_path": path,
            "feature_dtype": feature_dtype,
            "engine": engine,
            "on_error": on_error,
        }
        wanted = options_of({"index_options": options, **changed(named)})
        wanted = replace(wanted, engine=as_engine(wanted.engine))
        if self._adapter.counts_classes:
            batches = self.open(dataset, argument)
            self._count_classes((self.targets(b), self.sample_weights(b)) for b in batches)
        filled = index_of(self, dataset, argument, wanted)
        filled.engine, filled.progress = wanted.engine, wanted.progress
        filled.source = dataset
        self._learn_from(filled)
        return filled

    def _learn_from(self, index: Index) -> None:
        """Take from a training set what the layer's regularisers depend on."""
        self._n_samples = index.n_samples
        self._implied_l2 = 0.0
        weights = self._adapter.weights()
        if weights.was_held_back:
            l1 = weights.l1_of_sum / index.n_samples
            self._implied_l2 = self.layer.implied_l2(index, l1)

    def _count_classes(self, labelled: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> None:
        """Let the adapter learn what each class counts; workers, who see a part, are told."""
        found = self._adapter.count_classes(labelled)
        start_layer, loss_function, options = self.arguments
        self.arguments = (start_layer, loss_function, {**options, "class_weight": found})

    def map_samples(self, dataset: Any, function: Callable[[Block], Array]) -> Any:
        """Return a dataset of the user's kind: ``function`` of each batch as the layer sees it."""
        opened = self.open(dataset, "group")
        return opened.results(lambda batch: function(Block(*self.observe(batch)[:3])))

    def map_arrays(self, dataset: Any, function: Callable[[Array], Array]) -> Any:
        """Return a dataset of the user's kind: ``function`` of each batch, which is one array."""
        opened = self.open(dataset, "group")
        opened.labels_are_needed = False
        place = self._adapter.place
        return opened.results(lambda batch: function(place(as_numpy(batch.inputs))))

    def linear_system(self, dataset: Any) -> tuple[LinearLayer, Index]:
        """Return the layer and the stored training set, for a solver that is built by hand."""
        index = self.index(dataset)
        layer = self.layer
        return layer.at(like(layer.theta, index.shards[0].phi)), index

    def fingerprint(self) -> str:
        """Return a text that changes with the layer's weights, its name and the loss."""
        return hashlib.blake2b(json.dumps(self.identity()).encode(), digest_size=16).hexdigest()

    def state(self) -> dict[str, str]:
        """Return digests of all that shapes features and output, by name."""
        return self.digests()

    def watch(self, before: dict[str, str] | None = None) -> Watch:
        """Return who sees whether the model stays what it is, or was ``before``; see :meth:`state`."""
        return Watch(self, before)

    def probe(self, rows: Any) -> list[np.ndarray]:
        """Return what the model makes of samples, to see later whether it still does."""
        return self._adapter.probe(*map_leaves(copy.copy, rows))  # copies, which some steps write into

    @property
    def probe_tolerance(self) -> float:
        """How far two passes of the same samples may differ, relative to the largest number."""
        return self._adapter.probe_tolerance

    def short_identity(self) -> str:
        """Return a text that changes with the layer, where :meth:`state` does not hold its weights."""
        if self._adapter.state():
            return ""
        return json.dumps(self._identity_of_layer())

    def identity(self) -> dict[str, Any]:
        """Return what stored features belong to: the layer, digests of the weights, and the loss."""
        state = self.digests.portable()
        return self._identity_of_layer() | ({"state": state} if state else {})

    def _identity_of_layer(self) -> dict[str, Any]:
        weights = self._adapter.weights()
        theta = weights.theta()
        digest = hashlib.blake2b(np.ascontiguousarray(theta).tobytes(), digest_size=16)
        digest.update(f"{weights.l2} {weights.bias_l2}".encode())
        if weights.l2_of_sum or weights.bias_l2_of_sum:
            digest.update(f" {weights.l2_of_sum} {weights.bias_l2_of_sum}".encode())
        return {
            "layer": self._adapter.lasting_name,
            "model_weights": digest.hexdigest(),
            "loss": self.loss.fingerprint(),
            "n_features": theta.shape[0],
            "n_outputs": theta.shape[1],
            **({} if self.several is None else self.several.identity()),
        }

    def differs_in(self, identity: dict[str, Any]) -> list[str]:
        """Return the names of what differs from a model in another process."""
        mine = self.identity()
        if isinstance(self.loss, DifferentiatedLoss):  # its mark changes with pickling
            identity = identity | {"loss": mine["loss"]}
        return [key for key in identity if mine.get(key) != identity[key]]

    def pickled(self, make: Any = None) -> Recipe:
        """Return what makes the wrapped model again in another process, by ``make()`` if it is given."""
        return Recipe(self, make)

    @property
    def _n_outputs(self) -> int:
        return int(self._adapter.weights().kernel.shape[1])

    def _read(self, batch: Batch) -> _Read:
        """Return checked features, and what else the adapter reads of a batch."""
        self._adapter.check_inputs(batch.inputs, batch.where)
        given = self._extract(batch)
        phi, mask = given.features, given.mask
        xp = namespace(phi)
        if not xp.isdtype(phi.dtype, ("bool", "integral", "real floating")):
            raise WhenceError(
                f"features (the input of layer {self.layer_name!r}) in {batch.where}",
                "real numbers",
                f"dtype {phi.dtype}",
                "Give the inputs that the model was trained with.",
            )
        phi = astype(phi, xp.float64 if phi.dtype == xp.float64 else xp.float32)
        check_finite(
            phi,
            f"features (the input of layer {self.layer_name!r})",
            batch.where,
            "The model overflows on these samples: look at them, or at its weights.",
        )
        weights = self._adapter.weights()
        expected = (batch.n_samples, weights.kernel.shape[0])
        if (phi.shape[0], phi.shape[-1]) != expected:
            raise WhenceError(
                f"features of layer {self.layer_name!r} in {batch.where}",
                f"shape {expected}, or positions in between",
                f"shape {tuple(phi.shape)}",
                "Choose a dense layer whose input keeps samples on its first axis.",
            )
        if weights.bias is not None:
            ones = xp.ones_like(phi[..., :1])
            phi = xp.concat([phi, ones], axis=-1)
        if self._loss is None:
            self._adapter.learn_loss(batch.inputs, batch.labels)
            self._spec = self._adapter.loss_spec()
            self._loss = decide_loss(self._adapter, given.call, phi, self._loss_was_assumed)
            if isinstance(self._loss, DifferentiatedLoss):
                self._loss.remember(self.pickled, take_rows(given.call, slice(0, 8)))
        if self.kept_rows is None:  # copies: the batch may be filled anew
            kept = take_rows((batch.inputs, batch.labels), slice(0, 2))
            self.kept_rows = map_leaves(copy.copy, kept)
        positions = tuple(int(size) for size in phi.shape[1:-1])
        if positions:
            phi = flat_positions(phi, len(positions))
        mask = None if mask is None else as_numpy(mask).astype(bool)
        return _Read(phi, mask, positions, given)

    def _extract(self, batch: Batch) -> Reading:
        try:
            return self._adapter.read(batch.inputs, batch.labels)
        except WhenceError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves(batch.inputs))
            reason = _reason(error)[:300]
            raise WhenceError(
                f"inputs of {batch.where}",
                "a batch that the model accepts",
                f"shapes {shapes}, refused with {type(error).__name__}: {reason}",
                "Give the model's own inputs, batched.",
            ) from error

    def _weights_given(self, batch: Batch) -> np.ndarray | None:
        if batch.weight is None:
            return None
        weight = as_numpy(batch.weight)
        if weight.dtype.kind not in "iufb":
            raise WhenceError(
                f"sample weights in {batch.where}",
                "numbers",
                f"dtype {weight.dtype}",
                "Clean them.",
            )
        check_finite(weight, "sample weights", batch.where, "Clean them.")
        if weight.min(initial=0) < 0:
            raise WhenceError(
                f"sample weights in {batch.where}",
                "numbers >= 0",
                f"{weight.min():g}",
                "A sample cannot count less than nothing.",
            )
        return weight

    def _without_ignored(self, labels: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Return which positions count, those left out whose label the loss ignores."""
        ignored = self._spec.ignored_class
        if ignored is None or labels.size != counted.size:
            return counted
        return counted & (labels.reshape(counted.shape) != ignored)

    def check_losses(self, seen: Observation, theta: np.ndarray, where: str) -> None:
        """Raise unless every sample of a batch has a finite loss."""
        phi, target = seen.phi, seen.target
        assert target is not None  # the data layer refuses a training batch without labels
        if seen.weight is not None and phi.ndim == 3:
            counts = np.flatnonzero(seen.weight)
            phi, target = flat_positions(phi[None], 2)[0], flat_positions(target[None], 2)[0]
            phi, target = phi[counts], target[counts]
        u = phi @ astype(like(theta, phi), phi.dtype)
        try:
            if self._tried is not None and isinstance(self.loss, DifferentiatedLoss):
                self._try_loss(as_numpy(u), as_numpy(target), where)
            check_finite(
                self.loss.value(u, target),
                f"losses ({self.loss.name})",
                where,
                "Drop these samples.",
            )
        except WhenceError as error:
            if where in str(error):
                raise
            raise WhenceError(
                f"{error.argument} in {where}", error.expected, error.got, error.fix
            ) from error

    def _try_loss(self, u: np.ndarray, target: np.ndarray, where: str) -> None:
        """Try the loss on a batch and the one before it, until labels were seen that differ."""
        assert self._tried is not None
        assert isinstance(self.loss, DifferentiatedLoss)
        before = self._tried if self._tried[1].shape[1:] == target.shape[1:] else (u[:0], target[:0])
        if len(before[0]):
            u, target = np.concatenate([u, before[0]]), np.concatenate([target, before[1]])
        is_settled = self.loss.check(u, target, where)
        self._tried = None if is_settled else (u[-1:], target[-1:])


def _reason(error: Exception) -> str:
    """Return what an error says, on one line, without TensorFlow's list of the places it passed."""
    skipped = ("Graph execution error", "Detected at node", "  File", "\t [[")
    lines = [line for line in str(error).splitlines() if not line.startswith(skipped)]
    return " ".join(" ".join(lines).split())
