"""Which training samples XGBoost's predictions come from: python examples/xgboost_breast_cancer.py."""

import xgboost
from sklearn.datasets import load_breast_cancer

import whence

frame, y = load_breast_cancer(return_X_y=True, as_frame=True)
train, test = (frame[:500], y[:500]), (frame[500:505], y[500:505])
booster = xgboost.XGBClassifier(n_estimators=50, max_depth=4, learning_rate=0.1).fit(*train)

model = whence.InfluenceModel(booster)
lje = whence.RepresenterPointLJE(model, train, whence.WoodburyIHVPFactory())

print(lje.explain(test, k=3).to_frame())  # ids are the frame's index
print(lje.suspects(train, k=5).to_frame())  # labels to look at first
