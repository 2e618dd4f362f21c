"""Time and memory of RepresenterPointLJE against the floor of the machine.

    python benchmarks/lje.py
    python benchmarks/lje.py --workloads W2 --profile     where the time of one goes

Constructor, self-influence of all N samples, and the top 5 of 100 samples, each with its floor (see
``floor.py``) measured in the same process, just before. Start-up (importing TensorFlow, tracing the
model once) is left out. Medians of ``--repeats`` runs; one process for each workload.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
from collections.abc import Callable

from _common import (
    BATCH,
    N_QUERIES,
    SMOKE,
    WORKLOADS,
    data_of,
    floor_of,
    in_process,
    measured_rates,
    median_seconds,
    parser,
    peak_megabytes,
)
from floor import dense_model, forward_seconds, reading_seconds


def run(name: str, repeats: int, profiled: bool = False) -> dict:
    """Time one workload in this process; or print where its time goes."""
    import tensorflow as tf

    import whence

    work = next(w for w in [*WORKLOADS, *SMOKE] if w.name == name)
    rates = measured_rates(repeats, 256 if name == "smoke" else 2048)
    x, y = data_of(work)
    train = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    test = tf.data.Dataset.from_tensor_slices((x[:N_QUERIES], y[:N_QUERIES])).batch(N_QUERIES)
    model = dense_model(work)
    forward = forward_seconds(model, train, repeats)
    reading = reading_seconds(train, repeats)
    floor = floor_of(work, rates, forward, forward_seconds(model, test, repeats), reading)
    wrapped = whence.InfluenceModel(model)
    whence.RepresenterPointLJE(wrapped, test, whence.ExactIHVPFactory())  # traces the model

    def constructor() -> whence.RepresenterPointLJE:
        return whence.RepresenterPointLJE(wrapped, train, whence.ExactIHVPFactory())

    def self_influence() -> None:
        lje = made.pop()
        for _ in lje.compute_influence_values(train):
            pass

    def top_k() -> None:
        for _ in lje.top_k(test, train, k=5):
            pass

    if profiled:
        for show in (lambda step: step(), print_profile):  # first without, so that all is traced
            made = [lje := constructor()]
            for step in (constructor, self_influence, top_k):
                show(step)
        return {}
    seconds = {"constructor": median_seconds(constructor, repeats)}
    made = [constructor() for _ in range(repeats)] if work.size < 2000 else []
    if made:
        lje = made[0]
        seconds["self_influence"] = median_seconds(self_influence, repeats)
    else:  # large factors: one at a time
        times = []
        for _ in range(repeats):
            made = [constructor()]
            lje = made[0]
            times.append(median_seconds(self_influence, 1))
        seconds["self_influence"] = sorted(times)[len(times) // 2]
    seconds["top_k"] = median_seconds(top_k, repeats)
    return {
        "seconds": seconds,
        "floor": vars(floor),
        "peak_mb": peak_megabytes(),
        "gflops": {key: value / 1e9 for key, value in vars(rates).items()},
    }


def print_profile(step: Callable[[], object], n_lines: int = 12) -> None:
    """Print the functions in which a step spends its time, themselves, without what they call."""
    profiler = cProfile.Profile()
    profiler.runcall(step)
    entries = pstats.Stats(profiler).stats.items()
    total = sum(own for _, (_, _, own, _, _) in entries)
    print(f"{step.__name__}: {total:.3f} s under the profiler")
    ranked = sorted(entries, key=lambda entry: -entry[1][2])
    for (file, line, function), (_, calls, own, _, _) in ranked[:n_lines]:
        where = function if file == "~" else f"{'/'.join(file.split('/')[-2:])}:{line} {function}"
        print(f"{own:9.3f} s {own / total:6.1%} {calls:8d} calls  {where}")


def main() -> None:
    """Print one line for each workload and step."""
    options = parser(__doc__)
    options.add_argument("--one", help="(run one workload in this process)")
    options.add_argument("--profile", action="store_true", help="print where the time goes instead")
    options.add_argument("--workloads", nargs="*", help="which of W1 ... W4")
    chosen = options.parse_args()
    if chosen.profile:
        for name in chosen.workloads or ["W2"]:
            run(name, 1, profiled=True)
        return
    if chosen.one:
        print(json.dumps(run(chosen.one, chosen.repeats)))
        return
    works = SMOKE if chosen.smoke else WORKLOADS
    if chosen.workloads:
        works = [work for work in WORKLOADS if work.name in chosen.workloads]
    repeats = 2 if chosen.smoke else chosen.repeats
    print(f"{'workload':22s}{'step':16s}{'seconds':>10s}{'floor':>10s}{'ratio':>8s}{'peak MB':>9s}")
    for work in works:
        result = in_process(sys.argv[0], "--one", work.name, "--repeats", str(repeats))
        label = f"{work.name} {work.n}x{work.d}x{work.c}"
        total = [0.0, 0.0]
        for step, seconds in result["seconds"].items():
            floor = result["floor"][step]
            total = [total[0] + seconds, total[1] + floor]
            print(f"{label:22s}{step:16s}{seconds:10.3f}{floor:10.3f}{seconds / floor:8.2f}")
            label = ""
        print(
            f"{'':22s}{'all three':16s}{total[0]:10.3f}{total[1]:10.3f}"
            f"{total[0] / total[1]:8.2f}{result['peak_mb']:9.0f}"
        )


if __name__ == "__main__":
    main()
