"""The store of a training set, in memory or on disk."""

from whence.index.base import CACHE, Index, IndexPart, shuffle_buffer_sample
from whence.index.building import Writer, write_index
from whence.index.methods import Method, StoredMethod, stored_methods
from whence.index.shard import Shard
from whence.index.store import StoredIndex, check_folder, holds_index

__all__ = [
    "CACHE",
    "Index",
    "IndexPart",
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
