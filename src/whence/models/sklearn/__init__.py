"""scikit-learn's estimators, and ensembles of trees."""
