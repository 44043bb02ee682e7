"""Ragged Zarr maps: the typicality maps of one unit, of many shapes, in one Zarr v3 group.

`values` and `m2` are float32 [Σ h·w], each one shard object with inner chunks of 131,072 values;
`offsets` int64 [n+1] and `hw` int32 [n, 2] say where map i lies and its shape; ids, labels and the
number of draws are attributes. 9 objects a unit, whatever n. One writer, never appended to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import dask.array as da
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import Attempt, CorruptFileError, Manifest, read_bytes
from diffmining_core.store.roots import Root, explained

INNER_CHUNK = 131_072
"""Values in an inner chunk of the shard: half a MiB, a quarter of an hour's choice in no place."""
