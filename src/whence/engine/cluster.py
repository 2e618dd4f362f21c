"""Work on the parts of a training set on a Dask cluster, whatever brought its workers up.

A function goes to every worker once, with all that it refers to (the layer, the model, the queries), and
is unpickled there once. What goes to and fro for each part is the part's name and what comes of it. Sums
are added where they lie.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from whence._errors import WhenceError, described
from whence.arrays.base import import_extra
from whence.engine.base import Engine, Fold, in_order

__all__ = ["Cluster"]

#: How often work is begun anew whose workers, or the data that they were given, were lost. Dask itself
#: has tried it on several workers each time.
ATTEMPTS = 3

#: Bytes up to which a function travels with every part, instead of to every worker once.
SMALL_BYTES = 16 * 2**10

#: Functions that a worker keeps.
KEPT_FUNCTIONS = 2

_kept: OrderedDict[str, Callable[[Any], Any]] = OrderedDict()
_keeping = threading.Lock()


class Cluster(Engine):
    """A Dask cluster: ``engine=client`` is ``engine=Cluster(client)``.

    Parameters
    ----------
    client : dask.distributed.Client
        Of a cluster whose workers can import whence and reach the index's path. BLAS should have one
        thread for each thread of a worker, which is what Dask's own settings are.
    resources : dict, optional
        Which workers run the model, by Dask's resources: ``{"GPU": 1}`` takes workers that were started
        with ``--resources "GPU=1"``, and one batch of work at a time on each. All else runs anywhere.
    model : callable, optional
        Makes the model on a worker, where it cannot be pickled or lies on a disk that all workers reach:
        ``lambda: keras.models.load_model("/shared/net.keras")``. It must be the model that is
        explained, as far as indexing goes; the target layer's weights are compared.
    concurrent_reads : bool, default=False
        Whether several threads of a worker may read the training set at once; see
        :class:`~whence.engine.base.Threads`. Each worker process has one copy of it.

    Raises
    ------
    WhenceError
        If ``client`` is no client.
    MissingExtraError
        If Dask is not installed.
    """

    def __init__(
        self,
        client: Any,
        *,
        resources: dict[str, float] | None = None,
        model: Callable[[], Any] | None = None,
        concurrent_reads: bool = False,
    ) -> None:
        distributed = import_extra("distributed", "distributed")
        if not isinstance(client, distributed.Client):
            fix = "Connect to a cluster first: Client('tcp://scheduler:8786'), or Client() for one here."
            raise WhenceError("client", "a dask.distributed.Client", described(client), fix)
        if model is not None and not callable(model):
            fix = "Pass a function that loads the model: lambda: load(path)."
            raise WhenceError("model", "a function that makes the model", described(model), fix)
        self.client = client
        self.resources = resources
        self.model = model
        self.concurrent_reads: bool = bool(concurrent_reads)

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def n_threads(self) -> int:
        """How many parts the workers that are there now work on at a time."""
        return sum(self.client.ncores().values())

    def map(self, function: Callable[[Any], Any], parts: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Yield ``function(part)`` of each part, in their order.

        Parameters
        ----------
        function : callable
        parts : iterable
        **options
            ``runs_model``: whether to take workers with the engine's ``resources``.
        """
        sent = _Sent(self.client, function)
        chosen = {"resources": self.resources} if options.get("runs_model") and self.resources else {}

        def submit(part: Any) -> Any:
            key = f"whence-part-{uuid.uuid4().hex}"
            with self._scheduler_at_hand():
                return self.client.submit(_call, *sent.arguments(), part, key=key, pure=False, **chosen)

        def result(future: Any, part: Any) -> Any:
            return self._result(future, lambda: submit(part))

        yield from in_order(submit, parts, 2 * max(4, self.n_threads), result)

    def total(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Any:
        sent = _Sent(self.client, function)
        every = list(parts)

        def submit() -> Any:
            """Send all parts and all additions at once; nothing but the sum comes back."""
            arguments, token = sent.arguments(), uuid.uuid4().hex
            graph: dict[Any, Any] = {}

            def add(left: Any, right: Any) -> Any:
                key = (f"whence-sum-{token}", len(graph))
                graph[key] = (_added, left, right)
                return key

            fold = Fold(add)
            for number, part in enumerate(every):
                key = (f"whence-part-{token}", number)
                graph[key] = (_call, *arguments, part)
                fold.push(key)
            return self.client.get(graph, fold.result(), sync=False)

        with self._scheduler_at_hand():
            future = submit()
        return self._result(future, submit)

    def _result(self, future: Any, again: Callable[[], Any]) -> Any:
        """Return what comes of a future; of another, if Dask gave it up because workers were lost."""
        distributed = import_extra("distributed", "distributed")
        lost = (distributed.client.FutureCancelledError, distributed.KilledWorker)
        for attempt in range(ATTEMPTS):
            with self._scheduler_at_hand():
                try:
                    return future.result()
                except lost as error:
                    if attempt == ATTEMPTS - 1 and self._answers():
                        raise WhenceError(
                            "engine",
                            "workers that stay alive",
                            f"ones that were lost again and again over the same work ({error})",
                            "Look at a worker's own log: most often it ran out of memory.",
                        ) from error
                    future = again()
        raise AssertionError  # the last attempt returns or raises

    @contextlib.contextmanager
    def _scheduler_at_hand(self) -> Iterator[None]:
        """Say so where an error comes from a scheduler that is gone."""
        try:
            yield
        except WhenceError:
            raise
        except Exception as error:
            if self._answers():
                raise
            raise WhenceError(
                "engine",
                "a Dask scheduler that answers",
                f"none ({type(error).__name__}: {error})",
                "Start the cluster again and run the same: what is in the index's path is kept.",
            ) from error

    def _answers(self) -> bool:
        try:
            self.client.ncores()
        except Exception:
            return False
        return bool(self.client.status == "running")


class _Sent:
    """A function on its way to the workers, sent again if all that held it are lost."""

    def __init__(self, client: Any, function: Callable[[Any], Any]) -> None:
        cloudpickle = import_extra("cloudpickle", "distributed")
        try:
            with warnings.catch_warnings():  # as Keras 3.15 causes by pickling a model, with NumPy 2
                warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
                self._pickled: bytes = cloudpickle.dumps(function)
        except Exception as error:
            raise WhenceError(
                "engine",
                "work that can be sent to other processes",
                f"something in it that cannot be pickled ({type(error).__name__}: {error})",
                "If it is the model: Cluster(client, model=function that loads it). If it is a loss "
                "without a closed form: define it in a module that the workers can import.",
            ) from error
        self._client = client
        self._token = uuid.uuid4().hex
        self._future: Any = None

    def arguments(self) -> tuple[str, Any]:
        """Return the function's name and itself, as :func:`_call` takes them."""
        if len(self._pickled) <= SMALL_BYTES:
            return self._token, self._pickled
        if self._future is None or self._future.status in ("cancelled", "lost"):
            self._future = self._client.scatter(self._pickled, broadcast=True, hash=False)
        return self._token, self._future


def _call(token: str, pickled: bytes, part: Any) -> Any:
    """Call a function on a part, on a worker."""
    with _keeping:  # so that a model is loaded once, also where a worker has several threads
        if token in _kept:
            _kept.move_to_end(token)
        else:
            while len(_kept) >= KEPT_FUNCTIONS:
                _kept.popitem(last=False)
            import pickle

            _kept[token] = pickle.loads(pickled)
        function = _kept[token]
    return function(part)


def _added(left: Any, right: Any) -> Any:
    """Return a sum in memory of its own: what is added may be needed again, if a worker is lost."""
    if isinstance(left, tuple):
        return tuple(_added(*pair) for pair in zip(left, right, strict=True))
    return left + right
