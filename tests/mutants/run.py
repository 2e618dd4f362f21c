"""Faults written by hand, each of which a test must notice: ``python tests/mutants/run.py [NAME ...]``.

Each is a change of one place in ``src/whence``, of the kind that is made by mistake, with the tests that
are there to notice it. A fault that survives fails the run, and so does one whose place is no longer found.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, NamedTuple

from engine import SOURCE, Fault, judge, with_tests


class Mutant(NamedTuple):
    """``before`` stands once in the file; ``tests`` are the beginnings of the names of tests."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


ARRAYS = "tests/attribution/test_on_arrays.py::"
LAYER = "tests/layers/test_linear_layer.py::"
LOSSES = "tests/layers/test_losses.py::"
PRECISION = "tests/attribution/test_precision.py::"
SEARCH = "tests/search/test_scores.py::"
EXACT = "tests/ihvp/test_exact.py::"
SOLVERS = "tests/ihvp/test_solvers.py::"
WOODBURY = "tests/ihvp/test_woodbury.py::"
SEQUENCE = "tests/layers/test_linear_layer_sequence.py::"

DERIVATIVES = (f"{LAYER}test_derivatives_match_the_reference",)
BY_HAND = (f"{LOSSES}test_value_residual_and_curvature",)
EXPANSION = (f"{ARRAYS}test_expanded_weights",)
STEPS = (f"{SOLVERS}test_conjugate_gradient_takes_a_step",)
VALUES = (f"{ARRAYS}test_values_and_their_sum",)

LJE = "methods/lje.py"

MUTANTS = [
    # ---- what the tests of others do not notice
    Mutant(
        "the Hessian term is dropped",
        LJE,
        "Queries(-solved / n_samples,",
        "Queries(0 * solved / n_samples,",
        VALUES,
    ),
    Mutant(
        "the sign of the Hessian term is turned",
        LJE,
        "Queries(-solved / n_samples,",
        "Queries(solved / n_samples,",
        VALUES,
    ),
    Mutant(
        "labels are ignored in residuals",
        "layers/losses.py",
        "return (total - rows) * p - rows * rest",
        "return total * (p - 1 / u.shape[1]) + 0 * rows * rest",
        (f"{ARRAYS}test_labels_count", *VALUES),
    ),
    Mutant(
        "the mean gradient is the sum",
        "layers/linear_layer.py",
        'return total(blocks, of_part, "mean gradient") / blocks.n_samples',
        'return total(blocks, of_part, "mean gradient")',
        DERIVATIVES,
    ),
    Mutant(
        "a batch size stands for N in the values",
        LJE,
        "        n_samples = self.n_samples\n        directions",
        "        n_samples = 8\n        directions",
        VALUES,
    ),
    Mutant(
        "N is 1 in the values",
        LJE,
        "        n_samples = self.n_samples\n        directions",
        "        n_samples = 1\n        directions",
        VALUES,
    ),
    Mutant(
        "a block's size stands for N in the Hessian product",
        "layers/linear_layer.py",
        "        product /= blocks.n_samples\n",
        "        product /= next(iter(blocks)).phi.shape[0]\n",
        DERIVATIVES,
    ),
    Mutant(
        "a block's size stands for N in the Hessian of softmax",
        "layers/linear_layer.py",
        "scale = 1.0 / blocks.n_samples\n        matrix, n_to_fill",
        "scale = 1.0 / next(iter(blocks)).phi.shape[0]\n        matrix, n_to_fill",
        DERIVATIVES,
    ),
    Mutant(
        "the ascent step is left out",
        LJE,
        "layer.at(layer.theta + ascent)",
        "layer.at(layer.theta)",
        EXPANSION,
    ),
    Mutant(
        "the ascent step descends",
        LJE,
        "layer.at(layer.theta + ascent)",
        "layer.at(layer.theta - ascent)",
        EXPANSION,
    ),
    # ---- local Jacobian expansion
    Mutant(
        "residuals are those before the step",
        LJE,
        "        return self.expanded.residuals(block)\n",
        "        return self.layer.residuals(block)\n",
        VALUES,
    ),
    Mutant(
        "the weights before the step are decomposed",
        LJE,
        "question.under(self.expanded.theta) / n_samples",
        "question.under(self.layer.theta) / n_samples",
        VALUES,
    ),
    Mutant(
        "the totals leave the Hessian term out",
        LJE,
        "return question.under(self.theta_dagger)",
        "return question.under(self.expanded_layer.theta)",
        VALUES,
    ),
    Mutant(
        "self-influence has a sign",
        LJE,
        "        return np.abs(own - question.gather(moved)) / self.n_samples",
        "        return (own - question.gather(moved)) / self.n_samples",
        (f"{ARRAYS}test_self_influence",),
    ),
    Mutant(
        "self-influence adds the Hessian term",
        LJE,
        "np.abs(own - question.gather(moved))",
        "np.abs(own + question.gather(moved))",
        (f"{ARRAYS}test_self_influence",),
    ),
    Mutant(
        "leaving out moves the wrong way",
        LJE,
        "return like(self.layer.pre_activations(block.phi), moved) + moved / self.n_samples",
        "return like(self.layer.pre_activations(block.phi), moved) - moved / self.n_samples",
        (f"{ARRAYS}test_doubtful_labels",),
    ),
    Mutant(
        "what all outputs share stays in",
        "layers/linear_layer.py",
        "        if not (self.loss.is_shift_invariant or self.shift_invariant):\n            return array",
        "        return array",
        (f"{PRECISION}test_what_all_outputs_share_costs_no_digits[exact",),
    ),
    Mutant(
        "what all outputs share goes whatever the loss",
        "layers/linear_layer.py",
        "if not (self.loss.is_shift_invariant or self.shift_invariant):",
        "if not (self.loss.is_shift_invariant or self.curvature_is_dense):",
        (f"{PRECISION}test_a_loss_that_sees_a_shift",),
    ),
    Mutant(
        "scores stay in float32 whatever they lose",
        "search/scores.py",
        "    return not bool(enough.all())  # nor is NaN",
        "    return False",
        (f"{PRECISION}test_the_contract_has_the_digits_too",),
    ),
    Mutant(
        "sums of values are believed",
        "answers/questions.py",
        "            if not is_sum(",
        "            if False and not is_sum(",
        (f"{PRECISION}test_a_part_of_a_shard",),
    ),
    Mutant(
        "a solver without digits is believed",
        "answers/reading.py",
        "        if solver.is_direct and doubtful.size:",
        "        if False and doubtful.size:",
        (f"{PRECISION}test_what_float64_has_no_digits_for",),
    ),
    Mutant(
        "the largest value is that of the samples that are tried",
        "answers/reading.py",
        "            scale[doubtful] = np.abs(",
        "            scale[doubtful] += 0 * np.abs(",
        (f"{PRECISION}test_queries_that_share_nothing",),
    ),
    Mutant(
        "the Hessian's precision is decided by the first rows",
        "ihvp/exact.py",
        "if damping and not self._in_double and self._rounding() > ASSEMBLY_RESIDUAL:",
        "if False:",
        (f"{PRECISION}test_sorted_training_samples",),
    ),
    Mutant(
        "epsilon guards nothing",
        LJE,
        "reciprocal = 1 / (self.n_samples * phi + self.epsilon)",
        "reciprocal = 1 / (self.n_samples * phi)",
        (f"{ARRAYS}test_the_printed_formula",),
    ),
    Mutant(
        "epsilon is added before the factor N",
        LJE,
        "reciprocal = 1 / (self.n_samples * phi + self.epsilon)",
        "reciprocal = 1 / (self.n_samples * (phi + self.epsilon))",
        (f"{ARRAYS}test_the_printed_formula",),
    ),
    Mutant(
        "the wrong label is the predicted one",
        "answers/reading.py",
        "    return np.argmax(u, axis=-1)\n",
        "    return np.argmin(u, axis=-1)\n",
        (f"{ARRAYS}test_self_influence", *VALUES),
    ),
    Mutant(
        "the given label is the predicted one",
        "answers/reading.py",
        'if label == "given" and target is not None:',
        'if label == "predicted" and target is not None:',
        (f"{ARRAYS}test_self_influence",),
    ),
    Mutant(
        "a single sigmoid is not turned to its class",
        "answers/questions.py",
        "signs = np.where(is_turned & (said[..., 0] < 0), -1.0, 1.0)",
        "signs = np.where(is_turned & (said[..., 0] < 0), 1.0, 1.0)",
        (f"{ARRAYS}test_both_ends_of_the_values",),
    ),
    Mutant(
        "a single sigmoid is turned the other way",
        "answers/questions.py",
        "signs = np.where(is_turned & (said[..., 0] < 0), -1.0, 1.0)",
        "signs = np.where(is_turned & (said[..., 0] > 0), -1.0, 1.0)",
        (f"{ARRAYS}test_both_ends_of_the_values",),
    ),
    Mutant(
        "suspects are the least doubtful",
        "answers/questions.py",
        'np.argsort(-every[rows], kind="stable")',
        'np.argsort(every[rows], kind="stable")',
        (f"{ARRAYS}test_doubtful_labels",),
    ),
    Mutant(
        "the output in question is another one",
        "methods/question.py",
        "units = np.eye(n_outputs)[self.outputs]",
        "units = np.eye(n_outputs)[self.outputs - 1]",
        VALUES,
    ),
    # ---- the siblings
    Mutant(
        "influence on the loss has the sign of the gradient",
        "methods/gradient.py",
        "            return -wide[:, :, None] * r[:, None, :]",
        "            return wide[:, :, None] * r[:, None, :]",
        (f"{ARRAYS}test_gradients", f"{ARRAYS}test_influence_functions"),
    ),
    Mutant(
        "leverage raises the residual by too little",
        "methods/leverage.py",
        "kept = np.eye(q.shape[1]) - k @ q / n_samples",
        "kept = np.eye(q.shape[1]) - k @ q / (2 * n_samples)",
        (f"{ARRAYS}test_leverage",),
    ),
    Mutant(
        "leverage multiplies in the other order",
        "methods/leverage.py",
        "- k @ q / n_samples",
        "- q @ k / n_samples",
        (f"{ARRAYS}test_leverage",),
    ),
    Mutant(
        "alpha has the sign of the residual",
        "methods/l2.py",
        "return -r / (2",
        "return r / (2",
        (f"{ARRAYS}test_representer_points",),
    ),
    Mutant(
        "RelatIF normalises by the square",
        "methods/influence.py",
        "return like(np.sqrt(np.maximum(squared, 0)), r)",
        "return like(np.maximum(squared, 0), r)",
        (f"{ARRAYS}test_influence_functions",),
    ),
    # ---- losses
    Mutant(
        "softmax is curved without -pp^T",
        "layers/losses.py",
        "one = Curvature(diagonal=p, root=p, rows_sum_to_zero=True)",
        "one = Curvature(diagonal=p)",
        BY_HAND,
    ),
    Mutant(
        "softmax is curved as independent outputs",
        "layers/losses.py",
        "one = Curvature(diagonal=p, root=p, rows_sum_to_zero=True)",
        "one = Curvature(diagonal=p * (1 - p))",
        BY_HAND,
    ),
    Mutant(
        "label smoothing is left out",
        "layers/losses.py",
        "        if self.label_smoothing:\n",
        "        if False:\n",
        BY_HAND,
    ),
    Mutant(
        "binary cross-entropy smooths towards 1/C",
        "layers/losses.py",
        "rows * (1 - self.label_smoothing) + self.label_smoothing / 2",
        "rows * (1 - self.label_smoothing) + self.label_smoothing / u.shape[1]",
        BY_HAND,
    ),
    Mutant(
        "binary cross-entropy sums over outputs",
        "layers/losses.py",
        "return ((1 - rows) * sigmoid(u) - rows * sigmoid(-u)) / u.shape[1]",
        "return (1 - rows) * sigmoid(u) - rows * sigmoid(-u)",
        BY_HAND,
    ),
    Mutant(
        "squared error without its factor of two",
        "layers/losses.py",
        "return 2 * (u - astype(target, u.dtype)) / u.shape[1]",
        "return (u - astype(target, u.dtype)) / u.shape[1]",
        BY_HAND,
    ),
    Mutant(
        "the sigmoid overflows",
        "layers/losses.py",
        "    return xp.where(u >= 0, 1 / (1 + small), small / (1 + small))",
        "    return 1 / (1 + xp.exp(-u))",
        (f"{LOSSES}test_extreme_pre_activations",),
    ),
    Mutant(
        "the margin is taken to the best of all, the given one included",
        "layers/losses.py",
        "return mine - xp.max(xp.where(given, lowest, u), axis=1)",
        "return mine - xp.max(u, axis=1)",
        (f"{LOSSES}test_margins_by_hand",),
    ),
    Mutant(
        "a class one too large is taken",
        "layers/losses.py",
        "labels.max() >= n_outputs):",
        "labels.max() > n_outputs):",
        (f"{LOSSES}test_labels_of_the_wrong_kind",),
    ),
    # ---- the layer
    Mutant(
        "theta is transposed, where it can be",
        "layers/linear_layer.py",
        "        u = flat @ astype(like(self.theta, phi), phi.dtype)\n",
        "        w = astype(like(self.theta, phi), phi.dtype)\n"
        "        u = flat @ namespace(phi).reshape(w.T, w.shape)\n",
        DERIVATIVES,
    ),
    Mutant(
        "the bias is dropped",
        "layers/linear_layer.py",
        "        u = flat @ astype(like(self.theta, phi), phi.dtype)\n",
        "        u = flat[:, :-1] @ astype(like(self.theta, phi), phi.dtype)[:-1, :]\n",
        DERIVATIVES,
    ),
    Mutant(
        "sample weights are ignored in gradients",
        "layers/linear_layer.py",
        "            r = r * astype(rows.weight, r.dtype)[:, None]\n",
        "            r = r * 1\n",
        DERIVATIVES,
    ),
    Mutant(
        "sample weights are ignored in the Hessian",
        "layers/linear_layer.py",
        "self.loss.curvature(u, rows.target).scaled(weight)",
        "self.loss.curvature(u, rows.target).scaled(None)",
        DERIVATIVES,
    ),
    Mutant(
        "sample weights scale a root that is not taken",
        "layers/curvature.py",
        "self.root * xp.sqrt(column)",
        "self.root * column",
        DERIVATIVES,
    ),
    Mutant(
        "damping is dropped",
        "layers/linear_layer.py",
        "lam = xp.full((self.n_features,), damping + self.l2, **kind)",
        "lam = xp.full((self.n_features,), self.l2, **kind)",
        (f"{LAYER}test_l2_lies_on_the_rows",),
    ),
    Mutant(
        "the bias is regularised like the kernel",
        "layers/linear_layer.py",
        "            lam = assign(lam, -1, damping + self.bias_l2)\n",
        "            pass\n",
        (f"{LAYER}test_l2_lies_on_the_rows",),
    ),
    Mutant(
        "the product leaves the regulariser out",
        "layers/linear_layer.py",
        "        product += lam[None, :, None] * vectors\n",
        "",
        DERIVATIVES,
    ),
    Mutant(
        "the diagonal blocks of softmax miss those to the right",
        "layers/linear_layer.py",
        "                elif b > a:\n",
        "                elif b > a + 1:\n",
        DERIVATIVES,
    ),
    Mutant(
        "matrices are laid out input by input",
        "layers/linear_layer.py",
        "    return xp.reshape(xp.matrix_transpose(matrices), (*lead, d * n_outputs))",
        "    return xp.reshape(matrices, (*lead, d * n_outputs))",
        (f"{LAYER}test_the_layout", f"{EXACT}test_solve"),
    ),
    Mutant(
        "positions that are hidden count",
        "engine/blocks.py",
        "        if kept.shape[0] == weight.shape[0]:\n",
        "        if True:\n",
        (f"{SEQUENCE}test_what_is_hidden",),
    ),
    # ---- solvers
    Mutant(
        "the exact solver forgets the damping",
        "ihvp/exact.py",
        "lam = _in_double(self.layer.regulariser(self.damping))",
        "lam = _in_double(self.layer.regulariser(0.0))",
        (f"{EXACT}test_solve",),
    ),
    Mutant(
        "the pseudo-inverse keeps what is next to nothing",
        "ihvp/spectrum.py",
        "kept = xp.abs(values) > cutoff * xp.max(xp.abs(values))",
        "kept = xp.abs(values) > 0 * xp.max(xp.abs(values))",
        (f"{EXACT}test_without_damping", f"{EXACT}test_a_cutoff"),
    ),
    Mutant(
        "leverages are those of the lower triangle",
        "ihvp/exact.py",
        "return lower + xp.matrix_transpose(xp.tril(lower, k=-1))",
        "return lower",
        (f"{EXACT}test_self_products_and_leverages",),
    ),
    Mutant(
        "conjugate gradient takes one step more than it may",
        "ihvp/conjugate_gradient.py",
        "        while alive.size and steps < max_iterations:\n",
        "        while alive.size and steps <= max_iterations:\n",
        STEPS,
    ),
    Mutant(
        "conjugate gradient takes one step fewer than it may",
        "ihvp/iterative.py",
        "        tolerance, limit = self.options.tolerance, self.options.max_iterations\n",
        "        tolerance, limit = self.options.tolerance, self.options.max_iterations - 1\n",
        STEPS,
    ),
    Mutant(
        "conjugate gradient notices convergence a step late",
        "ihvp/conjugate_gradient.py",
        "done = as_numpy(norms(residual) <= targets) | ~usable",
        "done = as_numpy(norms(residual + step * product) <= targets) | ~usable",
        STEPS,
    ),
    Mutant(
        "conjugate gradient forgets the last direction",
        "ihvp/conjugate_gradient.py",
        "search = image + (size / before)[:, None, None] * search",
        "search = image",
        STEPS,
    ),
    Mutant(
        "a missed tolerance is no failure",
        "ihvp/iterative.py",
        "converged = residual <= self.options.tolerance",
        "converged = True",
        (f"{SOLVERS}test_not_converging",),
    ),
    Mutant(
        "LiSSA takes half its scale",
        "ihvp/lissa.py",
        "self.scale: float = SAFETY * self._largest_eigenvalue()",
        "self.scale: float = 0.4 * self._largest_eigenvalue()",
        (f"{SOLVERS}test_lissa_s_scale",),
    ),
    Mutant(
        "EK-FAC is K-FAC",
        "ihvp/kronecker.py",
        "        if corrected:\n",
        "        if False:\n",
        (f"{SOLVERS}test_corrected_eigenvalues",),
    ),
    Mutant(
        "Woodbury's matrix misses its identity",
        "ihvp/woodbury.py",
        "matrix[np.diag_indices(n * k)] += 1.0",
        "matrix[np.diag_indices(n * k)] += 0.5",
        (f"{WOODBURY}test_more_features", f"{WOODBURY}test_every_loss"),
    ),
    # ---- the search
    Mutant(
        "the order of the best is turned",
        "search/top_k.py",
        "self.sign: float = -1.0 if order is ORDER.DESCENDING else 1.0",
        "self.sign: float = 1.0 if order is ORDER.DESCENDING else -1.0",
        (f"{SEARCH}test_the_running_best",),
    ),
    Mutant(
        "equals at the cut are taken as they come",
        "search/top_k.py",
        "    tied = (keys <= cut).sum(axis=1) > k\n",
        "    tied = (keys <= cut).sum(axis=1) > len(keys) * k + 10**9\n",
        (f"{SEARCH}test_long_blocks", f"{SEARCH}test_the_running_best"),
    ),
    Mutant(
        "blocks are numbered from one",
        "search/scores.py",
        "best.add(block, start + rows.start)",
        "best.add(block, start + rows.start + 1)",
        (f"{SEARCH}test_the_result_does_not_depend",),
    ),
    Mutant(
        "the offset is left out of the scores",
        "search/scores.py",
        "    result += queries.offsets[:, None]\n",
        "",
        (f"{SEARCH}test_scores",),
    ),
    # ---- what first survived of faults drawn at random
    Mutant(
        "a warning points elsewhere",
        "_errors.py",
        "frame, level = sys._getframe(1), 2",
        "frame, level = sys._getframe(1), 1",
        (f"{ARRAYS}test_a_warning_points",),
    ),
    Mutant(
        "too many ids are taken",
        "answers/reading.py",
        "if names.shape != (n_samples,):",
        "if names.shape < (n_samples,):",
        (f"{ARRAYS}test_as_many_ids",),
    ),
    Mutant(
        "one batch has a bar",
        "ihvp/iterative.py",
        '"solving", n_batches, show)',
        '"solving", n_batches, True)',
        (f"{SOLVERS}test_batches_of_right_hand_sides",),
    ),
    Mutant(
        "a default is another than documented",
        "answers/questions.py",
        "        k: int = 5,\n",
        "        k: int = 6,\n",
        ("tests/test_api_reference.py::test_defaults",),
    ),
    Mutant(
        "an epoch has no batches",
        "ihvp/lissa.py",
        "for start in range(0, n_rows, batch_rows):",
        "for start in []:",
        (f"{SOLVERS}test_the_batches_of_an_epoch",),
    ),
    Mutant(
        "Woodbury's residual is not measured",
        "ihvp/woodbury.py",
        "relative_residual=self._relative_residual or 0.0)",
        "relative_residual=0.0)",
        (f"{WOODBURY}test_the_residual_is_measured",),
    ),
    Mutant(
        "Woodbury lets negative curvature pass",
        "ihvp/woodbury.py",
        "if smallest < -1e-5 * max(",
        "if smallest < -1e-5 // max(",
        (f"{WOODBURY}test_a_loss_that_is_not_convex",),
    ),
    Mutant(
        "a second method does not wait for the lock",
        "index/methods.py",
        "with Lock(index_folder, wait=True):",
        "with Lock(index_folder, wait=False):",
        ("tests/attribution/test_caches.py::test_a_method_waits",),
    ),
]


def faults(chosen: list[str], items: list[Any]) -> list[Fault]:
    """Make the faults; raise if the place of one, or a test of one, is not there."""
    found = []
    for mutant in MUTANTS:
        if chosen and not any(text in mutant.name for text in chosen):
            continue
        source = (SOURCE / mutant.file).read_text(encoding="utf-8")
        if source.count(mutant.before) != 1:
            times = source.count(mutant.before)
            raise SystemExit(f"{mutant.name}: {mutant.file} holds its place {times} times, not once")
        tests = [item for start in mutant.tests for item in items if item.nodeid.startswith(start)]
        for start in mutant.tests:
            if not any(item.nodeid.startswith(start) for item in items):
                raise SystemExit(f"{mutant.name}: there is no test {start}")
        changed = source.replace(mutant.before, mutant.after)
        found.append(Fault(mutant.name, mutant.file, changed, tests))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the names of the faults to try; all by default")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()

    def work(items: list[Any]) -> int:
        start = time.monotonic()
        todo = faults(given.names, items)
        every = {id(test): test for fault in todo for test in fault.tests}
        (sound,) = judge([Fault("none", "", None, list(every.values()), 600)], 1)
        if not sound.survived:
            print(f"Without any fault fails {sound.how}")
            return 1
        survivors = 0
        for verdict in judge(todo, given.jobs):
            survivors += verdict.survived
            mark = "SURVIVED" if verdict.survived else "killed  "
            print(f"{mark} {verdict.fault.name:60s} {verdict.how.split('::', 1)[-1][:70]}", flush=True)
        print(f"{len(todo)} faults, {survivors} survived; {time.monotonic() - start:.0f} s")
        return 1 if survivors else 0

    files = sorted({test.split("::")[0] for mutant in MUTANTS for test in mutant.tests})
    return with_tests(files, work)


if __name__ == "__main__":
    sys.exit(main())
