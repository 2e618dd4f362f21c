"""Size of reports, and the time to write, to open and to use them.

    python benchmarks/report.py

200 predictions with 20 training samples of either sign, and 5,000 suspects with a picture each: as images
of 32 x 32 and of 224 x 224 pixels in colour, and as texts. Opened from disk in Chromium where that and
playwright are there: until the second frame is painted, then the filter and a sort of the whole list.
Writing is measured in seconds of the processor, the rest by the clock.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import parser

import whence

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
N_CLASSES = 10
#: Images that are made; to the report each id is an image of its own.
N_DISTINCT = 500
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def images(n: int, side: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return smooth colours with a little noise, as photographs have them, each ``(side, side, 3)``."""
    y, x = np.mgrid[:side, :side].astype(np.float32)[..., None] / side
    noise = rng.normal(0, 8, (side, side, 3)).astype(np.float32)
    waves = rng.uniform(0, 6, (min(n, N_DISTINCT), 3, 3)).astype(np.float32)
    made = [
        np.clip(127 + 127 * np.sin(a * x + b * y + c) + noise, 0, 255).astype(np.uint8) for a, b, c in waves
    ]
    return [made[i % len(made)] for i in range(n)]


def texts(n: int, rng: np.random.Generator) -> list[str]:
    """Return texts of 40 words."""
    return [" ".join(f"word{i}" for i in rng.integers(0, 1000, 40)) for _ in range(n)]


def answers(n: int, n_explained: int, k: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return an explanation and suspects that name training samples at random."""
    labels = rng.integers(0, N_CLASSES, n)
    ids = rng.integers(0, n, (2, n_explained, k))
    values = np.sort(rng.random((n_explained, k)))[:, ::-1]
    explanation = whence.Explanation(
        ids=ids[0],
        values=values,
        opponent_ids=ids[1],
        opponent_values=-values,
        sample_ids=np.arange(n_explained),
        outputs=np.zeros(n_explained, dtype=int),
        signs=np.ones(n_explained),
        predictions=rng.integers(0, N_CLASSES, n_explained),
        labels=labels[:n_explained],
        pre_activations=10 * rng.random(n_explained),
        totals=10 * rng.random(n_explained),
        training_labels=labels[ids[0]],
        opponent_labels=labels[ids[1]],
        about={"method": "RepresenterPointLJE", "n_samples": n, "decomposes_prediction": True},
    )
    ranked = rng.permutation(n)
    scores = np.sort(rng.normal(size=n))[::-1]
    suspects = whence.Suspects(
        ranked, scores, "leave_one_out", labels[ranked], rng.integers(0, N_CLASSES, n), {"n_samples": n}
    )
    return explanation, suspects


def seconds(action: Callable[[], Any]) -> float:
    """Return the time that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_browser(file: Path) -> dict[str, float]:
    """Return the seconds to open a page and, if it has a list, to filter and to sort it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    if chromium is None:
        return {}
    taken: dict[str, float] = {}
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=chromium, args=OPTIONS)
        for width, height in ((1280, 900), (390, 844)):
            page = browser.new_page(viewport={"width": width, "height": height}, offline=True)
            name = "open" if width > 1000 else "open (phone)"
            taken[name] = seconds(lambda page=page: (page.goto(file.as_uri()), page.evaluate(PAINTED)))
            if width > 1000 and page.locator(".list").count():
                field = page.get_by_label("Filter")
                taken["filter"] = seconds(lambda p=page, f=field: (f.fill("7"), p.evaluate(PAINTED)))
                head = page.locator(".list th button", has_text="Score")
                taken["sort"] = seconds(lambda p=page, h=head: (h.click(), p.evaluate(PAINTED)))
            page.close()
        browser.close()
    return taken


def measure(name: str, write: Callable[[Path], Any]) -> None:
    """Print the size of a page, and the times."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        start = time.process_time()
        write(file)
        taken = {"write": time.process_time() - start} | in_browser(file)
        size = file.stat().st_size / 1e6
    columns = "".join(f"{step:>14s} {took:6.2f} s" for step, took in taken.items())
    print(f"{name:46s}{size:7.1f} MB{columns}", flush=True)


def main() -> None:
    """Print one line for each page."""
    options = parser(__doc__)
    options.add_argument("--predictions", type=int, default=200)
    options.add_argument("--neighbours", type=int, default=20)
    options.add_argument("--suspects", type=int, default=5000)
    chosen = options.parse_args()
    t, k, n = chosen.predictions, chosen.neighbours, chosen.suspects
    if chosen.smoke:
        t, k, n = 30, 4, 150
    rng = np.random.default_rng(0)
    explanation, suspects = answers(n, t, k, rng)
    kinds = {"images 32 x 32": images(n, 32, rng), "images 224 x 224": images(n, 224, rng)}
    for kind, samples in {**kinds, "texts": texts(n, rng)}.items():
        measure(
            f"{t} predictions x 2 x {k}, {kind}",
            lambda file, s=samples: explanation.save_html(file, samples=s[:t], training_samples=s),
        )
        measure(
            f"{n} suspects, {kind}", lambda file, s=samples: suspects.save_html(file, training_samples=s)
        )


if __name__ == "__main__":
    main()
