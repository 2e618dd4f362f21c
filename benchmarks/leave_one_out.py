"""What influences predict of leaving single training samples out, with the whole training repeated.

    python benchmarks/leave_one_out.py [--write benchmarks/results]

A linear model is the one layer that there is, so that training it again is training the model again: a
logistic and a ridge regression of the classes, trained to a gradient of 1e-10 with damping 0.01, then again
without every sample of breast cancer and without 300 of digits. Printed is the correlation of influences
with the actual change of the loss and of the pre-activation of the predicted class of 20 samples: the mean
over them, and the smallest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _common import parser
from _data import data_of

DAMPING = 0.01
N_FOLLOWED = 20
LEFT_OUT = {"breast cancer": None, "digits": 300}


def at_minimum(name: str, head: str) -> tuple[Any, Any, Any]:
    """Return a model at the minimum of its damped loss, its training set, and samples to follow."""
    import torch

    import whence
    from whence.evaluation import LayerRetraining

    x, y = data_of(name)
    x = x.astype(np.float64)
    loss: Any = torch.nn.CrossEntropyLoss()
    if head == "ridge":
        loss, y = torch.nn.MSELoss(), np.eye(y.max() + 1)[y]
    n_outputs = y.shape[1] if y.ndim == 2 else int(y.max()) + 1
    module = torch.nn.Sequential(torch.nn.Linear(x.shape[1], n_outputs, dtype=torch.float64))
    new = np.random.default_rng(0).permutation(len(y))[:N_FOLLOWED]
    train, followed = (x, y), (x[new], y[new])
    method = whence.InfluenceFunctions(
        whence.InfluenceModel(module, loss_function=loss),
        train,
        whence.ExactIHVPFactory(DAMPING),
        progress=False,
    )
    theta = torch.from_numpy(LayerRetraining(method, followed).theta)
    with torch.no_grad():
        module[0].weight.copy_(theta[:-1].T)
        module[0].bias.copy_(theta[-1])
    return whence.InfluenceModel(module, loss_function=loss), train, followed


def rows_of(name: str, head: str, smoke: bool, jobs: int) -> list[dict[str, Any]]:
    """Return one row for each method."""
    import whence
    from whence import evaluation

    model, train, followed = at_minimum(name, head)
    n_samples = len(train[1])
    count = 10 if smoke else (LEFT_OUT[name] or n_samples)
    left = np.sort(np.random.default_rng(1).permutation(n_samples)[:count])
    factory, rows = whence.ExactIHVPFactory(DAMPING), []
    for effect_on in ("loss", "pre_activation"):
        on = {"effect_on": effect_on, "progress": False}
        methods = {
            "influence": whence.InfluenceFunctions(model, train, factory, **on),
            "influence, leverage": whence.InfluenceFunctions(model, train, factory, leverage=True, **on),
        }
        if effect_on == "pre_activation":
            methods["LJE"] = whence.RepresenterPointLJE(model, train, factory, progress=False)
        # What training again gives is the same for all of them.
        frame = evaluation.leave_one_out(
            methods["influence"], followed, rows=left, n_jobs=jobs, progress=False
        )
        for label, method in methods.items():
            values = method.influences(followed, progress=False)[:, left]
            frame = frame.assign(predicted=values.astype(np.float64).ravel())
            found = evaluation.agreement(frame)
            row = {"data": name, "head": head, "left out": count, "on": effect_on, "method": label}
            for measure in ("pearson", "spearman"):
                row[measure.capitalize()] = found[measure].mean()
                row[f"lowest {measure.capitalize()}"] = found[measure].min()
            rows.append(row)
            print(", ".join(f"{k} {v:.4f}" if isinstance(v, float) else str(v) for k, v in row.items()))
    return rows


def main() -> None:
    """Print one line for each data set, head and method."""
    import pandas

    options = parser(__doc__.split("\n\n")[0])
    options.add_argument("--jobs", type=int, default=1, help="retrainings at once")
    options.add_argument("--write", type=Path, help="a folder for the table")
    chosen = options.parse_args()
    rows = []
    for name in ["breast cancer"] if chosen.smoke else LEFT_OUT:
        for head in ("logistic", "ridge"):
            rows += rows_of(name, head, chosen.smoke, chosen.jobs)
    if chosen.write:
        frame = pandas.DataFrame(rows)
        from quality import markdown

        names = frame[["data", "head", "on", "method"]].agg(", ".join, axis=1)
        text = markdown(frame.drop(columns=["data", "head", "on", "method"]).set_index(names), 4)
        chosen.write.mkdir(parents=True, exist_ok=True)
        (chosen.write / "leave-one-out.md").write_text(text.replace("pre_activation", "pre-activation"))


if __name__ == "__main__":
    main()
