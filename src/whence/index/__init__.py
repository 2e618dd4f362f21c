"""The store of a training set, in memory or on disk."""

from whence.index.base import CACHE, Index, Shard, shuffle_buffer_sample
from whence.index.methods import Method, StoredMethod, stored_methods
from whence.index.store import StoredIndex, Writer, check_folder, holds_index, write_index

__all__ = [
    "CACHE",
    "Index",
    "Method",
    "Shard",
    "StoredIndex",
    "StoredMethod",
    "Writer",
    "check_folder",
    "holds_index",
    "shuffle_buffer_sample",
    "stored_methods",
    "write_index",
]
