"""PyTorch modules, and models of transformers."""
