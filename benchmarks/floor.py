"""The floor on this machine: BLAS and LAPACK rates, the forward pass, and what they imply.

python benchmarks/floor.py
"""

from __future__ import annotations

from _common import (
    BATCH,
    N_QUERIES,
    SMOKE,
    WORKLOADS,
    Workload,
    data_of,
    floor_of,
    measured_rates,
    median_seconds,
    parser,
)


def dense_model(work: Workload):
    """Return a Keras model that is one dense layer with random weights."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((work.d,)), keras.layers.Dense(work.c)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def forward_seconds(model, dataset, repeats: int) -> float:
    """Return the time of the model's compiled forward pass over a dataset."""
    import tensorflow as tf

    step = tf.function(lambda x: model(x, training=False), reduce_retracing=True)

    def forward() -> None:
        for x, _ in dataset:
            step(x).numpy()

    forward()
    return median_seconds(forward, repeats)


def reading_seconds(dataset, repeats: int) -> float:
    """Return the time of one pass over a dataset."""

    def read() -> None:
        for _ in dataset:
            pass

    read()
    return median_seconds(read, repeats)


def main() -> None:
    """Print the rates and the floor of each workload."""
    import tensorflow as tf

    options = parser(__doc__).parse_args()
    rates = measured_rates(options.repeats, 256 if options.smoke else 2048)
    print("measured rates, GFLOP/s")
    for name, rate in vars(rates).items():
        print(f"  {name:8s} {rate / 1e9:8.1f}")
    print(f"{'workload':10s}{'forward':>10s}{'constructor':>13s}{'self':>10s}{'top-5':>10s}  seconds")
    for work in SMOKE if options.smoke else WORKLOADS:
        x, y = data_of(work)
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
        forward = forward_seconds(dense_model(work), dataset, options.repeats)
        reading = reading_seconds(dataset, options.repeats)
        floor = floor_of(work, rates, forward, forward * N_QUERIES / work.n, reading)
        print(
            f"{work.name:10s}{forward:10.3f}{floor.constructor:13.3f}"
            f"{floor.self_influence:10.3f}{floor.top_k:10.3f}"
        )


if __name__ == "__main__":
    main()
