"""One pass of a training set through a model, into an index."""
