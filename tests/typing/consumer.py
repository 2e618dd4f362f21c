"""The public interface as a user's type checker sees it: not run, but read by ``mypy --strict``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import numpy as np

import whence
from whence import evaluation
from whence.layers.linear_layer import Block
from whence.layers.losses import SoftmaxCrossEntropy


class Blocks:
    """Training samples behind a layer, as solvers take them."""

    n_samples = 2

    def __iter__(self) -> Iterator[Block]:
        yield Block(np.ones((2, 3)), np.asarray([0, 1]))


class Halved(whence.InverseHessianVectorProduct):
    """A solver of the user's own."""

    def solve(self, right: Any) -> whence.Solution:
        return whence.Solution(right / 2, converged=True, iterations=0, relative_residual=0.0)


class HalvedFactory(whence.InverseHessianVectorProductFactory):
    """Its factory."""

    def build(self, model: Any, dataset: Any) -> Halved:
        return Halved(model, dataset, damping=1.0)


def explain(net: object, train: object, test: object) -> whence.Explanation:
    model = whence.InfluenceModel(net, start_layer=-1, loss_function=None)
    lje = whence.RepresenterPointLJE(
        model,
        train,
        whence.ExactIHVPFactory(damping=1e-3),
        n_samples_for_hessian=None,
        target_layer="head",
        shuffle_buffer_size=10_000,
        epsilon=1e-5,
        decomposition="exact",
        label="given",
        seed=0,
        index_path=Path("train.index"),
        feature_dtype="float16",
    )
    assert_type(lje.suspects(train, k=50, score="self_influence"), whence.Suspects)
    influences: np.ndarray[Any, Any] = lje.influences(test)
    assert influences.ndim == 2
    lje.compute_top_k_from_training_dataset(train, 5, whence.ORDER.DESCENDING)
    lje.estimate_influence_values_in_batches(test, train, whence.CACHE.MEMORY)
    search = whence.LinearNearestNeighbors()
    lje.top_k(test, train, k=3, nearest_neighbors=search, order=whence.ORDER.ASCENDING)
    return lje.explain(test, k=5, outputs=1)


def siblings(model: whence.InfluenceModel, train: object) -> list[whence.Attribution]:
    factory: whence.InverseHessianVectorProductFactory = HalvedFactory()
    return [
        whence.RepresenterPointLJE(model, train, factory),
        whence.RepresenterPointL2(model, train, l2=0.01),
        whence.InfluenceFunctions(model, train, factory),
        whence.GradientDotProduct(model, train),
        whence.GradientCosine(model, train),
        whence.FeatureSimilarity(model, train),
        whence.TrainingLoss(model, train),
        whence.load_index("train.index"),
    ]


def answers(explanation: whence.Explanation, suspects: whence.Suspects) -> None:
    ids: np.ndarray[Any, Any] = explanation.ids
    labels: np.ndarray[Any, Any] | None = explanation.labels
    assert labels is None or labels.shape == ids.shape[:1]
    assert_type(len(explanation), int)
    assert_type(explanation.save_html("page.html", class_names=["no", "yes"]), Path)
    assert_type(suspects.save_html(Path("page.html")), Path)
    explanation.to_frame()
    explanation.plot(0)


def solvers() -> None:
    layer = whence.LinearLayer(np.zeros((3, 2)), SoftmaxCrossEntropy(), has_bias=True)
    factories: list[whence.InverseHessianVectorProductFactory] = [
        whence.ExactIHVPFactory(),
        whence.CGDIHVPFactory(n_cgd_iters=100, tolerance=1e-6),
        whence.LissaIHVPFactory(),
        whence.KroneckerIHVPFactory(),
        whence.WoodburyIHVPFactory(damping=1e-2, curvature="gauss_newton"),
    ]
    for factory in factories:
        solution = factory.build(layer, Blocks()).solve(np.ones((1, 3, 2)))
        assert_type(solution, whence.Solution)
        assert_type(solution.relative_residual, float)
        assert_type(solution.converged, bool)


def errors() -> None:
    try:
        whence.ExactIHVPFactory(damping=-1)
    except whence.NotConvergedError as error:
        assert_type(error.relative_residual, float)
    except whence.NotPositiveDefiniteError as error:
        assert_type(error.smallest_eigenvalue, float)
    except whence.WhenceError as error:
        assert_type(error.argument, str)
        assert_type(error.fix, str)
    except whence.MissingExtraError:
        pass


def measures(method: whence.Attribution, samples: object) -> None:
    assert_type(evaluation.roc_auc([1.0, 0.0], [True, False]), float)
    evaluation.leave_one_out(method, samples, rows=[0, 1])
    evaluation.completeness(method, samples)
    retraining = evaluation.LayerRetraining(method, samples)
    assert_type(retraining.damping, float)
