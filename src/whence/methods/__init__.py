"""Methods of attribution: what a rule is, and a file for each."""

from whence.methods.base import RULES, Rule

__all__ = ["RULES", "Rule"]
