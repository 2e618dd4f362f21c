"""Scores of training samples, and the strongest of them."""
