"""How many labels are wrong, and which: a model of label noise, fitted to evidence for each class.

Each training sample has a true class that nobody sees and a given label. Evidence ``z_m`` are scores
``(n, C)`` for each class that were computed without the sample: what a ridge regression of the labels says
of it, and what the layer does (:mod:`whence.methods.ridge`, ``leave_one_out`` of a rule). Then::

    P(true class of i = k)          = softmax_k(sum_m a_m z_mik + b_k)
    P(given label = c | true = k)   = T_kc
    P(given label is true | given)  = P(k = y_i) T_(y_i y_i) / sum_k P(k) T_(k y_i)

``a``, ``b`` and ``T`` are fitted by expectation maximisation: no label is taken for right or wrong. The
learned ``T`` tells classes that are mistaken often from classes that seldom are. It needs many wrong labels
to be learned from: so a second model, in which every class is mistaken equally often and for every other,
is fitted beside it, and both have their say (:class:`LabelNoise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, log_expit, log_softmax, logsumexp

from whence.arrays.base import one_hot, row_slices

__all__ = ["LabelNoise", "NoiseModel", "as_two_classes"]

#: Samples that a model is fitted to, and numbers of evidence, at most; all samples are judged.
FITTED_ROWS = 20_000
FITTED_CELLS = 1_000_000
#: Samples that the noise of a class to each other class is worth before any was seen.
PSEUDO_COUNTS = 20.0
#: Standard deviation of a class's bias, and of a slope around 1, before any sample was seen. Evidence of a
#: layer knows how frequent classes are; that of the ridge regression does not, if it is alone.
BIAS_SPREAD = 0.3
WIDE_BIAS_SPREAD = 2.0
SLOPE_SPREAD = 10.0
LONGEST_STEP = 3.0
#: Share of wrong labels that the fit starts from.
FIRST_SHARE = 0.03
ROUNDS = 40
#: Newton steps a round; one is enough, and cheaper, where there are many classes.
STEPS, MANY_CLASSES = 3, 50
#: The fit ends when no entry of the noise moves further than this.
STEADY = 1e-4


@dataclass(frozen=True)
class NoiseModel:
    """A fitted model: what evidence is worth, and how labels are mistaken.

    Attributes
    ----------
    scales : array of shape (M,)
        What each piece of evidence is divided by, once its mean over the classes is taken off.
    slopes : array of shape (M,)
    bias : array of shape (C,)
    noise : array of shape (C, C)
        ``T``: the share of the samples of each true class (row) that are given each label (column).
    bias_spread : float
        The standard deviation of the bias before any sample was seen.
    fit : float
        The log likelihood of the given labels, with the prior.
    """

    scales: np.ndarray
    slopes: np.ndarray
    bias: np.ndarray
    noise: np.ndarray
    bias_spread: float = BIAS_SPREAD
    fit: float = 0.0

    @classmethod
    def fitted(
        cls,
        evidence: Sequence[np.ndarray],
        labels: np.ndarray,
        *,
        differs: bool = True,
        bias_spread: float = BIAS_SPREAD,
    ) -> NoiseModel:
        """Return the model that fits best.

        Parameters
        ----------
        evidence : sequence of arrays of shape (n, C)
        labels : array of shape (n,), integers
        differs : bool, default=True
            Whether noise differs from class to class.
        bias_spread : float
        """
        n_classes = evidence[0].shape[1]
        scales = np.asarray([max(float(_centred(z).std()), 1e-12) for z in evidence])
        z, noise = _standard(evidence, scales), _even(FIRST_SHARE, n_classes)
        model = cls(scales, np.ones(len(z)), np.zeros(n_classes), noise, bias_spread)
        model = model._moved(z, one_hot(labels, n_classes, np.float64), 15)
        steps = STEPS if n_classes <= MANY_CLASSES else 1
        for _ in range(ROUNDS):
            posterior = np.exp(_normalised(model._joint(z, labels)))
            noise = _noise_of(posterior, labels, differs)
            moved = float(np.abs(noise - model.noise).max())
            model = replace(model, noise=noise)._moved(z, posterior, steps)
            if moved < STEADY:
                break
        return replace(model, fit=model._penalised(z, labels, differs))

    def log_true(self, evidence: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
        """Return the log probability of each class to be the true one, shape ``(n, C)``."""
        return _normalised(self._joint(_standard(evidence, self.scales), labels))

    def _joint(self, z: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
        """Return the log probability of each class together with the given label, ``(n, C)``."""
        return log_softmax(_sum(self.slopes, z) + self.bias, axis=1) + np.log(self.noise.T[labels])

    def _moved(self, z: Sequence[np.ndarray], target: np.ndarray, steps: int) -> NoiseModel:
        """Return the model after Newton steps of the slopes and the bias towards soft targets.

        With ``p = softmax(u)``, the derivatives of the loss by a slope and by the bias are
        ``sum_i (p_i - t_i) . z_mi`` and ``sum_i (p_i - t_i)``; the second ones follow from
        ``dp_i = p_i * (du_i - p_i . du_i)``.
        """
        a, b, n_slopes = self.slopes, self.bias, len(z)
        strength = np.r_[np.full(n_slopes, SLOPE_SPREAD**-2), np.full(len(b), self.bias_spread**-2)]
        for _ in range(steps):
            p = np.exp(log_softmax(_sum(a, z) + b, axis=1))
            wrong = p - target
            gradient = np.r_[[float((wrong * s).sum()) for s in z], wrong.sum(axis=0)]
            gradient += strength * np.r_[a - 1, b]
            turned = [p * (s - (p * s).sum(axis=1, keepdims=True)) for s in z]
            second = np.diag(strength)
            second[:n_slopes, :n_slopes] += [[float((s * t).sum()) for t in turned] for s in z]
            second[:n_slopes, n_slopes:] = np.stack([t.sum(axis=0) for t in turned])
            second[n_slopes:, :n_slopes] = second[:n_slopes, n_slopes:].T
            second[n_slopes:, n_slopes:] += np.diag(p.sum(axis=0)) - p.T @ p
            step = np.linalg.solve(second, gradient)
            length = float(np.abs(step).max())
            step *= min(1.0, LONGEST_STEP / max(length, 1e-12))
            a, b = np.maximum(a - step[:n_slopes], 0), b - step[n_slopes:]
            if length < STEADY:
                break
        return replace(self, slopes=a, bias=b)

    def _penalised(self, z: Sequence[np.ndarray], labels: np.ndarray, differs: bool) -> float:
        """Return the log likelihood with the log prior, up to what all models have in common."""
        likelihood = float(logsumexp(self._joint(z, labels), axis=1).sum())
        likelihood -= 0.5 * float(((self.slopes - 1) ** 2).sum()) / SLOPE_SPREAD**2
        likelihood -= 0.5 * float((self.bias**2).sum()) / self.bias_spread**2
        if not differs:
            return likelihood
        n_classes = len(self.bias)
        even = _even(1 - float(np.diag(self.noise).mean()), n_classes)
        apart = even * (np.log(self.noise) - np.log(even))
        return likelihood + PSEUDO_COUNTS * (n_classes - 1) * float(apart.sum())


def _noise_of(posterior: np.ndarray, labels: np.ndarray, differs: bool) -> np.ndarray:
    """Return the noise that the posterior speaks for, drawn towards the same for all classes."""
    n, n_classes = posterior.shape
    counts = posterior.T @ one_hot(labels, n_classes, np.float64)
    share = (n - float(np.trace(counts)) + FIRST_SHARE) / (n + 1)
    even = _even(min(share, 1 - 1 / n_classes), n_classes)
    if not differs:
        return even
    drawn = PSEUDO_COUNTS * (n_classes - 1)
    return (counts + drawn * even) / (counts.sum(axis=1, keepdims=True) + drawn)


def _even(share: float, n_classes: int) -> np.ndarray:
    """Return the noise of ``share`` wrong labels, the same for all classes."""
    noise = np.full((n_classes, n_classes), max(share, 1e-12) / (n_classes - 1))
    np.fill_diagonal(noise, 1 - max(share, 1e-12))
    return noise


def _centred(z: np.ndarray) -> np.ndarray:
    wide = np.asarray(z, dtype=np.float64)
    return wide - wide.mean(axis=1, keepdims=True)


def _standard(evidence: Sequence[np.ndarray], scales: np.ndarray) -> list[np.ndarray]:
    return [_centred(z) / scale for z, scale in zip(evidence, scales, strict=True)]


def _sum(slopes: np.ndarray, z: Sequence[np.ndarray]) -> np.ndarray:
    result = slopes[0] * z[0]
    for slope, one in zip(slopes[1:], z[1:], strict=True):
        result += slope * one
    return result


def _normalised(joint: np.ndarray) -> np.ndarray:
    return joint - logsumexp(joint, axis=1, keepdims=True)


@dataclass(frozen=True)
class LabelNoise:
    """What several models of label noise say of every sample, together.

    Two pieces of evidence are weighed by four models: all of it, or the first alone; noise that differs
    from class to class, or not. Of two that differ in the noise alone, the learned one counts as its
    likelihood says: ``sigmoid(fit - fit' - log(n) / 2)``. The score of a sample is minus the log
    probability that its label is true, averaged: two parts for even noise, two for both together, and
    one for both on the first piece of evidence alone. With one piece of evidence, the first two.

    Attributes
    ----------
    scores : array of shape (N,)
        How doubtful each label is, from 0 on.
    suggestions : array of shape (N,), integers
        The class that is likeliest to be the true one, the given one aside.
    wrong : array of shape (models, N)
        The probability that a label is wrong, by each model.
    noise : array of shape (C, C)
        The share of the samples of each true class (row) that were given each label (column).

    Examples
    --------
    Twenty samples speak for class 0 and twenty for class 1, all alike. One label says otherwise:

    >>> evidence = np.repeat([[1.0, 0.0], [0.0, 1.0]], 20, axis=0)
    >>> labels = np.repeat([0, 1], 20)
    >>> labels[3] = 1
    >>> found = LabelNoise.of([evidence], labels)
    >>> int(found.scores.argmax()), int(found.suggestions[3]), found.count()[0]
    (3, 0, 1)
    """

    scores: np.ndarray
    suggestions: np.ndarray
    wrong: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(
        cls, evidence: Sequence[np.ndarray], labels: np.ndarray, *, centred: bool = False, seed: int = 0
    ) -> LabelNoise:
        """Fit the models and judge all samples.

        Parameters
        ----------
        evidence : sequence of one or two arrays of shape (N, C)
        labels : array of shape (N,), integers
        centred : bool
            Whether the first piece of evidence says nothing of how frequent classes are.
        seed : int
            Draws the samples that models are fitted to, where there are more than 20,000, or more than
            1,000,000 numbers of evidence.
        """
        n, n_classes = evidence[0].shape
        n_fitted = min(n, FITTED_ROWS, max(FITTED_CELLS // n_classes, 1))
        rows = (
            np.sort(np.random.default_rng(seed).permutation(n)[:n_fitted]) if n_fitted < n else slice(None)
        )
        first_spread = WIDE_BIAS_SPREAD if centred else BIAS_SPREAD
        groups = [(list(evidence), BIAS_SPREAD if len(evidence) > 1 else first_spread)]
        groups += [([evidence[0]], first_spread)] if len(evidence) > 1 else []
        weights = [(0.5, 0.5)] if len(groups) == 1 else [(0.4, 0.4), (0.0, 0.2)]
        scores, voices = np.zeros(n), np.zeros((n, n_classes))
        wrong: list[np.ndarray] = []
        for (some, spread), (of_even, of_both) in zip(groups, weights, strict=True):
            drawn = [z[rows] for z in some]
            even, learned = (
                NoiseModel.fitted(drawn, labels[rows], differs=differs, bias_spread=spread)
                for differs in (False, True)
            )
            if not wrong:
                first = learned
            lead = learned.fit - even.fit - 0.5 * np.log(n_fitted)
            judged = [_judged(model, some, labels) for model in (even, learned)]
            own = [one[np.arange(n), labels] for one in judged]
            both = np.logaddexp(log_expit(lead) + own[1], log_expit(-lead) + own[0])
            scores -= of_even * own[0] + of_both * both
            share = float(expit(lead))
            voices += (of_even + of_both * (1 - share)) * judged[0] + of_both * share * judged[1]
            wrong += [-np.expm1(one) for one in own]
        voices[np.arange(n), labels] = -np.inf
        return cls(scores, voices.argmax(axis=1), np.stack(wrong), first.noise)

    def count(self, rows: np.ndarray | slice = slice(None)) -> tuple[int, int, int]:
        """Return how many labels are wrong, and the ends of an interval around it.

        The estimate is the largest of those models whose noise is learned. The interval goes from the
        lowest to the highest of all models, and two standard deviations of a sum further on either side.
        """
        wrong = self.wrong[:, rows]
        counts = wrong.sum(axis=1)
        margins = 2 * np.sqrt((wrong * (1 - wrong)).sum(axis=1))
        lowest, highest = float((counts - margins).min()), float((counts + margins).max())
        estimate = round(float(counts[1::2].max()))
        n = wrong.shape[1]
        return (
            estimate,
            max(0, min(int(np.floor(lowest)), estimate)),
            min(n, max(int(np.ceil(highest)), estimate)),
        )


def as_two_classes(z: np.ndarray) -> np.ndarray:
    """Return the evidence for a yes, shape ``(N,)``, as that for no and yes, ``(N, 2)``."""
    return np.stack([-z / 2, z / 2], axis=1)


def _judged(model: NoiseModel, evidence: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Return the log probability of each class to be the true one of every sample, by blocks."""
    n, n_classes = evidence[0].shape
    blocks = row_slices(n, max(FITTED_CELLS // n_classes, 1))
    return np.concatenate([model.log_true([z[rows] for z in evidence], labels[rows]) for rows in blocks])
