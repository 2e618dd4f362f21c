"""The version of the library, which files and reports name."""

__version__ = "0.1.0"
