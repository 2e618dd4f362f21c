"""The two colours of values, the same in figures, notebooks and pages."""

__all__ = ["AGAINST", "FOR"]

#: Blue and orange, apart for every kind of colour vision, which stand out from white and black alike.
FOR, AGAINST = "#2b89ae", "#cf6a35"
