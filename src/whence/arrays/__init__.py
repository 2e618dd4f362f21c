"""Arrays of any library: namespaces, devices, dtypes, sparse rows, symmetric matrices."""
