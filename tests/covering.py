"""A few rows of a table of parameters, in place of all."""

from collections import Counter
from itertools import combinations


def covering(rows):
    """Return the positions of ``rows`` that hold together each pair of values that any row holds.

    Of two columns that would be every row: there, each value. The row that adds the most goes first, and of
    as many the one whose values were taken least, so that each run takes the same.
    """
    columns = [len(set(column)) > 1 for column in zip(*rows, strict=True)]
    kept = [tuple((i, value) for i, value in enumerate(row) if columns[i]) for row in rows]
    at_once = 2 if sum(columns) > 2 else 1
    held = [set(combinations(row, at_once)) for row in kept]
    missing, taken, chosen = set().union(*held), Counter(), []
    while missing:
        best = max(
            range(len(rows)), key=lambda n: (len(held[n] & missing), -sum(taken[v] for v in kept[n]))
        )
        missing -= held[best]
        taken.update(kept[best])
        chosen.append(best)
    return sorted(chosen)
