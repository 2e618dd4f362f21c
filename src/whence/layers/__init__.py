"""The mathematics of layers: losses, curvature, one dense layer in closed form."""
