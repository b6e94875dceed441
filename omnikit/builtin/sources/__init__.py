"""The sources of the core: the formats in which people keep their data, all read as the same samples.

A source type is a container (lines of JSON, parquet, an Arrow folder, tar shards, a folder); the shape of its records
is recognised, by `shapes`, and is the same business for all. No torch here, and pyarrow only where it is needed.
"""

from omnikit.builtin.sources.arrow import HFDataset, Parquet
from omnikit.builtin.sources.folder import Folder
from omnikit.builtin.sources.jsonl import Jsonl
from omnikit.builtin.sources.webdataset import WebDataset

__all__ = ["Folder", "HFDataset", "Jsonl", "Parquet", "WebDataset"]
