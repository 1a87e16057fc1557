"""`cimport nanolimit`: checks from other Cython code, without the GIL. See docs/cython.md."""

from nanolimit._core cimport NANOLIMIT_ABI, Limiter, abi_version, allow_bytes, allow_int

cdef inline int import_nanolimit() except -1:
    """Call once, at import: raises ImportError where the installed nanolimit has another ABI than this was built for."""
    if abi_version() != NANOLIMIT_ABI:
        raise ImportError(
            f"built for nanolimit ABI {NANOLIMIT_ABI}, but the installed nanolimit has ABI {abi_version()}: rebuild against it"
        )
    return 0
