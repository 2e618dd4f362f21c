"""From a trained Keras model to a page that shows what its predictions come from.

Run: python examples/keras_digits.py
It writes whence-digits.html and whence-digits-labels.html into the current folder.
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import whence

# Images of digits; ten in a hundred training labels are replaced by wrong ones.
keras.utils.set_random_seed(0)
images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
x_train, x_test, y_test = images[:1500], images[1500:], digits[1500:]

rng = np.random.default_rng(0)
is_wrong = rng.random(1500) < 0.1
y_train = np.where(is_wrong, (digits[:1500] + rng.integers(1, 10, 1500)) % 10, digits[:1500])

# A classifier, trained as usual.
net = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ]
)
net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
net.fit(x_train, y_train, batch_size=64, epochs=15, verbose=0)

# The training set in a fixed order: ids are positions in it.
train = tf.data.Dataset.from_tensor_slices((x_train, y_train)).batch(64)
lje = whence.RepresenterPointLJE(whence.InfluenceModel(net), train, whence.ExactIHVPFactory())

# Which training images speak for and against the first five test images?
test = tf.data.Dataset.from_tensor_slices((x_test[:5], y_test[:5])).batch(5)
explanation = lje.explain(test, k=4)
for t in range(len(explanation)):
    best, worst = explanation.ids[t, 0], explanation.opponent_ids[t, 0]
    print(
        f"test image {t}, predicted {explanation.predictions[t]}: "
        f"most for it is training image {best} ({explanation.values[t, 0]:+.3f}), "
        f"most against it {worst} ({explanation.opponent_values[t, 0]:+.3f})"
    )

# Which labels should be looked at first?
suspects = lje.suspects(train, k=100)
print(f"{is_wrong[suspects.ids].mean():.0%} of the first 100 suspects are wrong labels")

# Pages to look at and to pass on; images as ink on paper.
print(explanation.save_html("whence-digits.html", samples=1 - x_test[:5], training_samples=1 - x_train))
print(suspects.save_html("whence-digits-labels.html", training_samples=1 - x_train))
