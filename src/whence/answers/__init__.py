"""Answers: explanations and suspects, as arrays, frames and files."""
