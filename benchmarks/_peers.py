"""What ``peers.py`` runs, one method in a process of its own: python _peers.py SETTING METHOD RESULT.

A peer's interpreter need not have whence, nor whence's the peers: each method imports what it needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

DAMPING = 1e-3
BATCH = 256


class Setting:
    """A trained layer without bias, its training samples, and the first of them as queries."""

    def __init__(self, path: str | Path, rows: int | None = None) -> None:
        with np.load(path) as arrays:
            self.x, self.y = arrays["x"][:rows], arrays["y"][:rows]
            self.theta = arrays["theta"]
            self.n_queries = min(int(arrays["n_queries"]), len(self.x))
        self.queries = self.x[: self.n_queries], self.y[: self.n_queries]

    @property
    def path(self) -> str:
        return os.environ["PEERS_FOLDER"]

    def torch_model(self) -> Any:
        import torch

        model = torch.nn.Sequential()
        model.add_module("fc", torch.nn.Linear(*self.theta.shape, bias=False))
        with torch.no_grad():
            model.fc.weight.copy_(torch.tensor(self.theta.T))
        return model.eval()

    def loader(self, size: int = BATCH) -> Any:
        return _loader(self.x, self.y, size)

    def query_loader(self) -> Any:
        return _loader(*self.queries, self.n_queries)


def _tensors(*arrays: np.ndarray) -> Any:
    import torch

    return torch.utils.data.TensorDataset(*map(torch.tensor, arrays))


def _loader(x: np.ndarray, y: np.ndarray, size: int) -> Any:
    import torch

    return torch.utils.data.DataLoader(_tensors(x, y), size)


# ---------------------------------------------------------------------------------------- whence


def _whence(setting: Setting, make: Any) -> dict[str, Any]:
    import torch

    import whence

    model = whence.InfluenceModel(setting.torch_model(), loss_function=torch.nn.CrossEntropyLoss())
    method = make(whence, model, (setting.x, setting.y))
    scores = method.influences(setting.queries, progress=False)
    own = [values for _, values in method.compute_influence_values((setting.x, setting.y))]

    def totals() -> np.ndarray:  # what the scores sum to; not timed
        return method.explain(setting.queries, k=1, progress=False).totals

    return {"scores": scores, "own": np.concatenate(own), "claimed": totals}


def whence_lje(setting: Setting) -> dict[str, Any]:
    return _whence(
        setting,
        lambda w, model, data: w.RepresenterPointLJE(
            model, data, w.ExactIHVPFactory(damping=DAMPING), progress=False
        ),
    )


def whence_exact(setting: Setting) -> dict[str, Any]:
    return _whence(
        setting,
        lambda w, model, data: w.InfluenceFunctions(
            model, data, w.ExactIHVPFactory(damping=DAMPING), progress=False
        ),
    )


def whence_kronecker(setting: Setting) -> dict[str, Any]:
    return _whence(
        setting,
        lambda w, model, data: w.InfluenceFunctions(
            model, data, w.KroneckerIHVPFactory(damping=DAMPING), progress=False
        ),
    )


def whence_gradient(setting: Setting) -> dict[str, Any]:
    return _whence(setting, lambda w, model, data: w.GradientDotProduct(model, data, progress=False))


# --------------------------------------------------------------------------------- closed form, torch


def reference(setting: Setting) -> dict[str, Any]:
    """Influence functions in float64 by hand: blocks of the Hessian, Cholesky, whitened gradients."""
    import torch

    x, y = torch.tensor(setting.x).double(), torch.tensor(setting.y)
    p = (x @ torch.tensor(setting.theta).double()).softmax(1)
    r = p - torch.nn.functional.one_hot(y, p.shape[1])
    (n, d), c, t = x.shape, p.shape[1], setting.n_queries
    hessian = torch.zeros(c * d, c * d, dtype=torch.float64)
    for a in range(c):
        for b in range(a + 1):
            k = p[:, a] * (float(a == b) - p[:, b])
            block = (x * k[:, None]).T @ x / n
            hessian[a * d : (a + 1) * d, b * d : (b + 1) * d] = block
            hessian[b * d : (b + 1) * d, a * d : (a + 1) * d] = block.T
    hessian.diagonal().add_(DAMPING)
    factor = torch.linalg.cholesky(hessian)
    g = (r[:t, :, None] * x[:t, None, :]).reshape(t, -1)
    solved = torch.cholesky_solve(g.T, factor).T.reshape(t, c, d)
    images = (x @ solved.permute(2, 0, 1).reshape(d, -1)).reshape(n, t, c)
    scores = (images * r[:, None, :]).sum(2).T
    own = []
    for rows in range(0, n, 1000):
        part = (r[rows : rows + 1000, :, None] * x[rows : rows + 1000, None, :]).reshape(-1, c * d)
        own.append((torch.linalg.solve_triangular(factor, part.T, upper=False) ** 2).sum(0))
    return {"scores": scores.numpy(), "own": torch.cat(own).numpy()}


# ----------------------------------------------------------------------------------------- peers


def captum_tracin_fast(setting: Setting) -> dict[str, Any]:
    import torch
    from captum.influence import TracInCPFast

    model, path = setting.torch_model(), f"{setting.path}/captum.pt"
    torch.save(model.state_dict(), path)

    def load(model: Any, file: str) -> float:
        model.load_state_dict(torch.load(file))
        return 1.0

    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    method = TracInCPFast(
        model, "fc", setting.loader(), [path], load, loss, batch_size=None, vectorize=True
    )
    queries = tuple(map(torch.tensor, setting.queries))
    return {"scores": method.influence(queries).numpy(), "own": method.self_influence().numpy()}


def captum_arnoldi(setting: Setting) -> dict[str, Any]:
    import torch
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    model, path = setting.torch_model(), f"{setting.path}/captum.pt"
    torch.save(model.state_dict(), path)

    def load(model: Any, file: str) -> float:
        model.load_state_dict(torch.load(file))
        return 1.0

    loss = torch.nn.CrossEntropyLoss(reduction="none")
    method = ArnoldiInfluenceFunction(
        model, setting.loader(), path, load, loss_fn=loss, batch_size=None, hessian_reg=DAMPING
    )
    queries = tuple(map(torch.tensor, setting.queries))
    return {"scores": method.influence(queries).numpy(), "own": method.self_influence().numpy()}


def _pydvl(setting: Setting, method: Any) -> dict[str, Any]:
    import torch

    queries = tuple(map(torch.tensor, setting.queries))
    scores, own = [], []
    with torch.no_grad():
        factors = method.influence_factors(*queries)
        for x, y in setting.loader():
            scores.append(method.influences_from_factors(factors, x, y))
            mine = method.influence_factors(x, y)
            own.append(method.influences_from_factors(mine, x, y).diagonal())
    return {"scores": torch.cat(scores, dim=1).numpy(), "own": torch.cat(own).numpy()}


def pydvl_direct(setting: Setting) -> dict[str, Any]:
    import torch
    from pydvl.influence.torch import DirectInfluence

    loss = torch.nn.functional.cross_entropy
    method = DirectInfluence(setting.torch_model(), loss, regularization=DAMPING)
    return _pydvl(setting, method.fit(setting.loader()))


def pydvl_cg(setting: Setting) -> dict[str, Any]:
    import torch
    from pydvl.influence.torch import CgInfluence

    loss = torch.nn.functional.cross_entropy
    method = CgInfluence(
        setting.torch_model(), loss, regularization=DAMPING, rtol=1e-4, solve_simultaneously=True
    )
    return _pydvl(setting, method.fit(setting.loader()))


def _dattri_task(setting: Setting, loss: Any) -> Any:
    from dattri.task import AttributionTask

    model = setting.torch_model()
    return AttributionTask(loss(model), model, model.state_dict())


def dattri_explicit(setting: Setting) -> dict[str, Any]:
    import torch
    from dattri.algorithm.influence_function import IFAttributorExplicit

    def loss_of(model: Any) -> Any:
        def loss(parameters: Any, data: Any) -> Any:
            x, y = data
            output = torch.func.functional_call(model, parameters, (x,))
            return torch.nn.functional.cross_entropy(output, y.long())

        return loss

    method = IFAttributorExplicit(_dattri_task(setting, loss_of), regularization=DAMPING)
    whole = setting.loader(len(setting.x))
    method.cache(whole)
    with torch.no_grad():
        scores = method.attribute(setting.loader(), setting.query_loader())
        return {"scores": scores.T.numpy(), "own": method.self_attribute(whole).numpy()}


def dattri_rps(setting: Setting) -> dict[str, Any]:
    """Representer points by L2; it has no self-influence, so that there is nothing to compare of it."""
    import torch
    from dattri.algorithm.rps import RPSAttributor

    loss = torch.nn.CrossEntropyLoss()
    method = RPSAttributor(_dattri_task(setting, lambda _: loss), "fc", l2_strength=DAMPING)
    method.cache(setting.loader())
    with torch.no_grad():
        return {"scores": method.attribute(setting.loader(), setting.query_loader()).T.numpy()}


def kronfluence_ekfac(setting: Setting) -> dict[str, Any]:
    import torch
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
            x, y = batch
            output = model(x)
            if sample:
                y = torch.multinomial(output.softmax(1), 1).flatten()
            return torch.nn.functional.cross_entropy(output, y, reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return self.compute_train_loss(batch, model)

    task = Classification()
    analyzer = Analyzer(
        "peers",
        prepare_model(setting.torch_model(), task),
        task,
        cpu=True,
        disable_tqdm=True,
        disable_model_save=True,
        output_dir=tempfile.mkdtemp(dir=setting.path),
    )
    train, queries = _tensors(setting.x, setting.y), _tensors(*setting.queries)
    analyzer.fit_all_factors("ekfac", train, BATCH, factor_args=FactorArguments(strategy="ekfac"))
    arguments = ScoreArguments(damping_factor=DAMPING)
    analyzer.compute_pairwise_scores(
        "pairs", "ekfac", queries, train, setting.n_queries, BATCH, score_args=arguments
    )
    analyzer.compute_self_scores("own", "ekfac", train, BATCH, score_args=arguments)
    found = analyzer.load_pairwise_scores("pairs"), analyzer.load_self_scores("own")
    scores, own = (part["all_modules"].numpy() for part in found)
    return {"scores": scores, "own": own}


def influenciae_lje(setting: Setting) -> dict[str, Any]:
    """Its own formula, divisions by single features and all, with N the size of a batch.

    Its scores take batches of queries and of training samples of one size only.
    """
    import tensorflow as tf
    from deel.influenciae.common import ExactIHVPFactory, InfluenceModel
    from deel.influenciae.rps import RepresenterPointLJE

    d, c = setting.theta.shape
    inputs = tf.keras.Input((d,))
    features = tf.keras.layers.Activation("linear")(inputs)
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(c, use_bias=False)(features))
    model.layers[-1].set_weights([setting.theta])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=tf.keras.losses.Reduction.NONE
    )
    train = tf.data.Dataset.from_tensor_slices((setting.x, setting.y)).batch(setting.n_queries)
    queries = tf.data.Dataset.from_tensor_slices(setting.queries).batch(setting.n_queries)
    method = RepresenterPointLJE(InfluenceModel(model, -1, loss_function=loss), train, ExactIHVPFactory())
    own = [values.numpy().ravel() for _, values in method.compute_influence_values(train)]
    for _, nested in method.estimate_influence_values_in_batches(queries, train):
        scores = [values.numpy() for _, values in nested]
    logits = setting.queries[0] @ setting.theta
    axis = 1 if scores[0].shape[0] == setting.n_queries else 0
    scores = np.concatenate(scores, axis=axis)
    scores = scores if axis else scores.T
    return {"scores": scores, "own": np.concatenate(own), "claimed": logits.max(axis=1)}


#: What each method is called, the package that it needs, what it is compared with, and the function.
METHODS = {
    "reference": ("torch", "influence", reference),
    "whence exact": ("whence", "influence", whence_exact),
    "whence LJE": ("whence", "expansion", whence_lje),
    "whence Kronecker": ("whence", "influence", whence_kronecker),
    "whence gradient": ("whence", "gradient", whence_gradient),
    "Captum TracInCPFast": ("captum", "gradient", captum_tracin_fast),
    "Captum Arnoldi": ("captum", "influence", captum_arnoldi),
    "pyDVL DirectInfluence": ("pydvl", "influence", pydvl_direct),
    "pyDVL CgInfluence": ("pydvl", "influence", pydvl_cg),
    "dattri IFAttributorExplicit": ("dattri", "influence", dattri_explicit),
    "dattri RPSAttributor": ("dattri", "", dattri_rps),
    "kronfluence EK-FAC": ("kronfluence", "influence", kronfluence_ekfac),
    "influenciae LJE": ("deel.influenciae", "expansion", influenciae_lje),
}


def peak_megabytes() -> float:
    """Return the peak of resident memory since it was last reset, where the system says."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run one method on a few rows, for imports and first calls, then on all, and store what it gives."""
    path, method, result = sys.argv[1:4]
    limit = int(float(os.environ["PEERS_MEMORY"]) * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    warnings.simplefilter("ignore")
    n_threads = int(os.environ["OMP_NUM_THREADS"])
    if method == "influenciae LJE":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(n_threads)
        tf.config.threading.set_inter_op_parallelism_threads(n_threads)
    else:
        import torch

        torch.set_num_threads(n_threads)
    compute = METHODS[method][2]
    compute(Setting(path, 500))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the imports
    before = peak_megabytes()
    setting = Setting(path)
    wall, cpu = time.perf_counter(), time.process_time()
    found = compute(setting)
    figures = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    figures["peak"] = peak_megabytes() - before
    arrays = {name: np.asarray(array() if callable(array) else array) for name, array in found.items()}
    np.savez(result, **arrays)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
