# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads the native core and passes tensors and arrays to its plain C functions."""

from __future__ import annotations

import ctypes
import logging
import os
from numbers import Integral
from pathlib import Path
from typing import Any

from unified_lift.protocol import JobError
from unified_lift.rendering.native.targets import host_targets, is_whole, library_path

log = logging.getLogger(__name__)

ABI_VERSION = 2  # of the C functions; the same number stands in core.cpp
TENSOR_TYPES = ("torch.float32", "torch.int64")  # read by the core


class Core:
    """The loaded library and the number of threads that it uses."""

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        self.library = library
        self.num_threads = num_threads

    def call(self, name: str, *arguments: Any, returns: Any = None) -> Any:
        """Call a C function; the interpreter lock is free meanwhile.

        Args:
            name: the exported function.
            arguments: int (C int), float (C float), None (null), tensors and numpy arrays
                (pointers to their data), or ctypes values.
            returns: ctypes type of the result.
        """
        function = getattr(self.library, name)
        function.restype = returns
        return function(*map(_to_c, arguments))


def load_core(num_threads: int | None = None) -> Core:
    """Load the fastest library that this machine can run.

    Raises:
        JobError: no library fits this machine, or it was built from other sources.
    """
    names = host_targets()
    paths = [path for path in map(library_path, names) if path.exists()]
    if not paths:
        raise JobError(
            f"No native core for this machine (looked for {', '.join(names) or 'none'} in "
            f"{library_path('linux-x86_64-v3').parent}). Build it with "
            "'python -m unified_lift.rendering.native.compile'."
        )
    num_threads = num_threads or os.cpu_count() or 1
    for path in paths[:-1]:
        try:
            return Core(_load_library(path), num_threads)
        except JobError as error:
            log.warning("%s A slower one takes its place.", error)
    return Core(_load_library(paths[-1]), num_threads)


def _load_library(path: Path) -> ctypes.CDLL:
    if not is_whole(path):
        raise JobError(f"The native core {path} is damaged. Reinstall it.")
    try:
        library = ctypes.CDLL(str(path))
        version = library.abi_version()
    except (OSError, AttributeError) as error:  # AttributeError: the library of something else
        raise JobError(f"The native core {path} does not load: {error}. Reinstall it.") from error
    if version != ABI_VERSION:
        raise JobError(
            f"The native core {path} has version {version}, not {ABI_VERSION}. Build it again with "
            "'python -m unified_lift.rendering.native.compile'."
        )
    return library


def _to_c(value: Any) -> Any:
    if isinstance(value, Integral):
        return ctypes.c_int(int(value))
    if isinstance(value, float):
        return ctypes.c_float(value)
    if hasattr(value, "data_ptr"):
        assert value.is_contiguous() and value.device.type == "cpu"
        assert str(value.dtype) in TENSOR_TYPES, value.dtype
        return ctypes.c_void_p(value.data_ptr())
    if hasattr(value, "__array_interface__"):
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.ctypes.data)
    return value
