import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import whence

x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
train = tf.data.Dataset.from_tensor_slices((x[:1500], y[:1500])).batch(64)
test = tf.data.Dataset.from_tensor_slices((x[1500:1508], y[1500:1508])).batch(8)
net = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
net.fit(x[:1500], y[:1500], epochs=20, verbose=0)

lje = whence.RepresenterPointLJE(whence.InfluenceModel(net), train, whence.ExactIHVPFactory())
print(lje.explain(test, k=5).ids)
print(lje.suspects(train, k=10).ids)
