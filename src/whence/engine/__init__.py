"""Where work on a training set is done: here, in threads, or on Dask."""
