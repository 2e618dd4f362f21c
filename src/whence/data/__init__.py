"""Batches of every kind of dataset, and the way back."""
