"""Attribution methods: each scores training samples for a prediction."""

from whence.attribution.contract import Attribution
from whence.attribution.lje import RepresenterPointLJE

__all__ = ["Attribution", "RepresenterPointLJE"]
