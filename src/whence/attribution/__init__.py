"""Attribution methods: each scores training samples for a prediction."""

from whence.attribution.base import Attribution
from whence.attribution.lje import RepresenterPointLJE

__all__ = ["Attribution", "RepresenterPointLJE"]
