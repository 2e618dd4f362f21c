"""What influences predict of leaving single training samples out, with the whole training repeated.

    python benchmarks/leave_one_out.py [--write benchmarks/results]

A linear model is the one layer that there is, so that training it again is training the model again: a
logistic and a ridge regression of the classes, at three strengths of L2, trained to a gradient of 1e-10,
then again without every sample of breast cancer and without 300 of digits, by Newton steps that share no
code with the library. Printed are Pearson's and Spearman's correlation of what each method predicts with
what happened to the pre-activation of the predicted class and to the loss of 20 samples: the mean over
them, and the lowest; and the mean again without the 1 % of samples with the highest leverage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _common import parser
from _data import data_of

N_FOLLOWED = 20
LEFT_OUT = {"breast cancer": None, "digits": 300}
#: Damping, the second derivative of the regulariser of the mean loss. scikit-learn's ``C=1`` is 1 / N.
STRENGTHS = {"1e-2": 1e-2, "1e-3": 1e-3, "1/N": None}
GRADIENT_NORM = 1e-10
#: What is compared: on what, the column's name, and the options of the method.
COLUMNS = (
    ("pre_activation", "first order", {}),
    ("pre_activation", "leverage", {"leverage": True}),
    ("pre_activation", "LJE", None),
    ("loss", "linear", {}),
    ("loss", "linear, leverage", {"leverage": True}),
    ("loss", "finite", {"change": "finite"}),
    ("loss", "finite, leverage", {"leverage": True, "change": "finite"}),
)


class Retrained:
    """Weights without each row, by Newton steps, and what is asked of them."""

    def __init__(self, theta: np.ndarray, x: np.ndarray, y: np.ndarray, head: str, lam: float) -> None:
        self.phi = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        self.target, self.head, self.lam = y, head, lam
        self.known = {None: self.newton(theta, np.ones(len(x)))}

    def residuals(self, u: np.ndarray) -> np.ndarray:
        """Return the slopes of the losses with respect to the pre-activations."""
        if self.head == "ridge":
            return 2 * (u - self.target) / u.shape[1]
        return self.probabilities(u) - self.target

    def probabilities(self, u: np.ndarray) -> np.ndarray:
        """Return what the logistic head says."""
        if u.shape[1] == 1:
            return 1 / (1 + np.exp(-u))
        raised = np.exp(u - u.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)

    def curvatures(self, theta: np.ndarray) -> np.ndarray:
        """Return the second derivatives of the losses, (N, C, C)."""
        u = self.phi @ theta
        eye = np.eye(u.shape[1])
        if self.head == "ridge":
            return np.broadcast_to(2 * eye / len(eye), (len(u), *eye.shape))
        p = self.probabilities(u)
        if len(eye) == 1:
            return (p * (1 - p))[:, :, None]
        return p[:, :, None] * (eye - p[:, None, :])

    def hessian(self, theta: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the damped Hessian of the mean loss, output by output."""
        (n, d), k = self.phi.shape, self.curvatures(theta) * weight[:, None, None]
        c = k.shape[1]
        blocks = [[self.phi.T @ (self.phi * k[:, a, b, None]) / n for b in range(c)] for a in range(c)]
        return np.block(blocks) + self.lam * np.eye(c * d)

    def leverages(self) -> np.ndarray:
        """Return the largest share that each sample has in its own curvature, from 0 to 1."""
        theta = self.known[None]
        k, (n, d) = self.curvatures(theta), self.phi.shape
        c = k.shape[1]
        inverse = np.linalg.inv(self.hessian(theta, np.ones(n))).reshape(c, d, c, d)
        q = np.empty((n, c, c))
        for a in range(c):
            for b in range(c):
                q[:, a, b] = ((self.phi @ inverse[a, :, b]) * self.phi).sum(axis=1)
        return np.linalg.eigvals(k @ q / n).real.max(axis=1)

    def slope(self, theta: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the gradient of the objective."""
        r = self.residuals(self.phi @ theta) * weight[:, None]
        return self.phi.T @ r / len(r) + self.lam * theta

    def newton(self, theta: np.ndarray, weight: np.ndarray, factor: Any = None) -> np.ndarray:
        """Return the minimum; the Hessian is renewed where an old one does not halve the gradient."""
        import scipy.linalg

        slope = self.slope(theta, weight)
        for _ in range(500):
            if np.abs(slope).max() <= GRADIENT_NORM:
                return theta
            is_fresh = factor is None
            if is_fresh:
                factor = scipy.linalg.cho_factor(self.hessian(theta, weight))
            step = scipy.linalg.cho_solve(factor, slope.T.ravel()).reshape(slope.T.shape).T
            moved = self.slope(theta - step, weight)
            while is_fresh and not np.linalg.norm(moved) < np.linalg.norm(slope):
                step = step / 2
                moved = self.slope(theta - step, weight)
            if not is_fresh and np.linalg.norm(moved) > 0.5 * np.linalg.norm(slope):
                factor = None
                continue
            theta, slope = theta - step, moved
        raise RuntimeError(f"the gradient is still {np.abs(slope).max():.1e}")

    def leave_out(self, rows: np.ndarray) -> None:
        """Train again without each of some rows."""
        import scipy.linalg

        start = self.known[None]
        factor = scipy.linalg.cho_factor(self.hessian(start, np.ones(len(self.phi))))
        for row in rows:
            weight = np.ones(len(self.phi))
            weight[row] = 0
            self.known[int(row)] = self.newton(start, weight, factor)

    def asking(self, ask: Any) -> Any:
        """Return it as ``leave_one_out`` wants it, ``ask(theta)`` being what is followed."""
        known = self.known

        class Asked:
            full = ask(known[None])

            def __call__(self, removed: np.ndarray) -> np.ndarray:
                return ask(known[int(removed[0])])

        return Asked()


def problem_of(name: str, head: str) -> tuple[Any, Any, Any]:
    """Return inputs, targets as rows, and the loss."""
    import torch

    x, y = data_of(name)
    several = int(y.max()) > 1
    rows = np.eye(int(y.max()) + 1)[y] if several else y[:, None].astype(np.float64)
    if head == "ridge":
        return x.astype(np.float64), rows, torch.nn.MSELoss()
    return (
        x.astype(np.float64),
        rows,
        torch.nn.CrossEntropyLoss() if several else torch.nn.BCEWithLogitsLoss(),
    )


def row_of(name: str, head: str, strength: str, smoke: bool) -> list[dict[str, Any]]:
    """Return one observation for each column."""
    import torch

    import whence
    from whence import evaluation

    x, y, loss = problem_of(name, head)
    damping = STRENGTHS[strength] or 1 / len(y)
    new = np.random.default_rng(0).permutation(len(y))[:N_FOLLOWED]
    count = 10 if smoke else (LEFT_OUT[name] or len(y))
    left = np.sort(np.random.default_rng(1).permutation(len(y))[:count])
    train, followed = (x, y), (x[new], y[new])
    factory = whence.ExactIHVPFactory(damping)
    module = torch.nn.Sequential(torch.nn.Linear(x.shape[1], y.shape[1], dtype=torch.float64))
    method = whence.InfluenceFunctions(
        whence.InfluenceModel(module, loss_function=loss), train, factory, progress=False
    )
    theta = evaluation.LayerRetraining(method, followed, gradient_norm=1e-6).theta
    retrained = Retrained(theta, x, y, head, damping)
    theta = retrained.known[None]
    with torch.no_grad():
        module[0].weight.copy_(torch.from_numpy(theta[:-1].T))
        module[0].bias.copy_(torch.from_numpy(theta[-1]))
    model = whence.InfluenceModel(module, loss_function=loss)
    retrained.leave_out(left)
    shares = retrained.leverages()[left]
    usual = left[np.argsort(-shares)[int(np.ceil(count / 100)) :]]
    rows = []
    for on, label, options in COLUMNS:
        chosen = dict(options or {})
        change = chosen.pop("change", "linear")
        if options is None:
            method = whence.RepresenterPointLJE(model, train, factory, progress=False)
        else:
            method = whence.InfluenceFunctions(
                model, train, factory, effect_on=on, progress=False, **chosen
            )
        asked = evaluation.LayerRetraining(method, followed).asked
        frame = evaluation.leave_one_out(
            method, followed, rows=left, change=change, retraining=retrained.asking(asked), progress=False
        )
        found = evaluation.agreement(frame)
        without = evaluation.agreement(frame[frame["training_id"].isin(usual)])
        row = {"data": name, "head": head, "L2": strength, "left out": count, "on": on, "method": label}
        row |= {"highest leverage": shares.max(), "pearson of 99 %": without["pearson"].mean()}
        for measure in ("pearson", "spearman"):
            row[measure] = found[measure].mean()
            row[f"lowest {measure}"] = found[measure].min()
        rows.append(row)
        print(
            ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else str(v) for k, v in row.items()),
            flush=True,
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return one line for each head and strength, ``Pearson / Spearman`` in the cells, as Markdown."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        cell = " / ".join(f"{row[measure]:.4f}" for measure in ("pearson", "spearman"))
        lines.setdefault((row["data"], row["head"], row["L2"]), []).append(cell.replace("0.", "."))
    titles = ["", *(f"{on.replace('_', '-')}: {label}" for on, label, _ in COLUMNS)]
    text = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    text += [f"| {', '.join(name)} | " + " | ".join(cells) + " |" for name, cells in lines.items()]
    return "\n".join(text) + "\n"


def leverage_table(rows: list[dict[str, Any]]) -> str:
    """Return the highest leverage, and the correlation to first order with and without it."""
    text = [
        "| | highest leverage | Pearson, all | without the 1 % of highest leverage |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        if (row["on"], row["method"]) == COLUMNS[0][:2]:
            name = ", ".join((row["data"], row["head"], row["L2"]))
            cells = (row[key] for key in ("highest leverage", "pearson", "pearson of 99 %"))
            text.append(
                f"| {name} | " + " | ".join(f"{cell:.4f}".replace("0.", ".") for cell in cells) + " |"
            )
    return "\n".join(text) + "\n"


def main() -> None:
    """Print one line for each data set, head, strength and method."""
    import pandas

    options = parser(__doc__.split("\n\n")[0])
    options.add_argument("--write", type=Path, help="a folder for the table")
    chosen = options.parse_args()
    rows = []
    for name in ["breast cancer"] if chosen.smoke else LEFT_OUT:
        for head in ("logistic", "ridge"):
            for strength in ["1e-2"] if chosen.smoke else STRENGTHS:
                rows += row_of(name, head, strength, chosen.smoke)
    if chosen.write:
        chosen.write.mkdir(parents=True, exist_ok=True)
        pandas.DataFrame(rows).to_csv(chosen.write / "leave-one-out.csv", index=False, float_format="%.5f")
        (chosen.write / "leave-one-out.md").write_text(table(rows))
        (chosen.write / "leave-one-out-leverage.md").write_text(leverage_table(rows))


if __name__ == "__main__":
    main()
