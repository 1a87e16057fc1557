# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""A consumer of nanolimit's Cython interface: single checks in a C loop, without the GIL.

batch.py builds it against the installed package and times it. The two control loops walk the same
buffer, so that what is left after taking them off is the check.
"""

cimport nanolimit

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* now)
    int CLOCK_MONOTONIC

nanolimit.import_nanolimit()


def check_each(limiter, const long long[::1] keys):
    """One single check for each key; returns how many were allowed."""
    cdef nanolimit.Limiter core = limiter.core
    cdef Py_ssize_t at, count = keys.shape[0]
    cdef long long allowed = 0
    with nogil:
        for at in range(count):
            if nanolimit.allow_int(core, keys[at], 1) > 0:
                allowed += 1
    return allowed


def walk(const long long[::1] keys):
    """The control loop: reads each key and nothing else."""
    cdef Py_ssize_t at, count = keys.shape[0]
    cdef unsigned long long mixed = 0
    with nogil:
        for at in range(count):
            mixed = mixed * 31 + <unsigned long long>keys[at]
    return mixed


def walk_and_read_clock(const long long[::1] keys):
    """The control loop with one clock read for each key."""
    cdef Py_ssize_t at, count = keys.shape[0]
    cdef unsigned long long mixed = 0
    cdef timespec now
    with nogil:
        for at in range(count):
            clock_gettime(CLOCK_MONOTONIC, &now)
            mixed = mixed * 31 + <unsigned long long>keys[at] + <unsigned long long>now.tv_nsec
    return mixed
