import os

os.environ["KERAS_BACKEND"] = "jax"  # or "torch": before Keras is imported

import keras
from sklearn.datasets import load_digits

import whence

x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
net = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
net.fit(x[:1500], y[:1500], epochs=20, verbose=0)

train = (x[:1500], y[:1500])  # arrays, a keras.utils.PyDataset, a DataLoader, ...
lje = whence.RepresenterPointLJE(whence.InfluenceModel(net), train, whence.ExactIHVPFactory())
print(lje.explain((x[1500:1508], y[1500:1508]), k=5).ids)
print(lje.suspects(train, k=10).ids)
