# cython: language_level=3
"""What other Cython code may use of the engine: `cimport nanolimit` (docs/cython.md)."""

cimport cython

cdef enum:
    NANOLIMIT_ABI = 4  # grows whenever a declaration below changes its meaning or its layout


cdef class Bundle


@cython.final
cdef class Limiter:
    cdef void *table           # an nl_table, which only _core looks into
    cdef object quota_now      # the quota whose limit is quota_limit
    cdef object make_quota     # None, or (limit) -> the quota with that limit
    cdef unsigned int quota_limit
    cdef bint stall_allows
    cdef object path           # of a shared table's file, or None
    cdef Bundle policy         # None, or what the checks go through instead
    cdef public object open_records  # None, or () -> the Limiter that holds a shared table's records
    cdef void *top_memory      # of a private table that keeps who is denied most
    cdef object updating       # the lock of those who replace or walk the table
    cdef object other_quota    # the last one that was asked for and is not in force
    cdef readonly str name
    cdef dict about            # what its events' metadata are copied from
    cdef object clock          # None, or what tells the time: () -> float seconds
    cdef object clock_ns       # None, or () -> int nanoseconds, which is asked instead
    cdef object __weakref__

    cdef int be_ready(self) except -1
    cdef Bundle governed(self)
    cdef bint is_governed(self) noexcept
    cdef object quota_with(self, unsigned int limit)
    cdef int replace(self, unsigned int limit, unsigned long long window_ns, unsigned int most, object quota,
                     object make_quota) except -1
    cdef int register(self) except -1
    cdef int refuse_if_stalled(self, bint stalled) except -1
    cdef str where(self)
    cdef unsigned long long now(self, double *seconds) except? 0xffffffffffffffff
    cdef unsigned int units(self, object cost) except? 0xffffffff
    cdef int decide(self, object key, object cost, void *view, bint counts, double *seconds, void **where) except -1
    cdef object counted(self, unsigned int what)
    cdef int tell(self, int outcome, object count, object key, bint enforced=*) except -1
    cdef object many_of_buffer(self, object keys, unsigned int units)
    cdef object many_of_sequence(self, object keys, unsigned int units)


@cython.final
cdef class Bundle:
    cdef readonly tuple limiters
    cdef Limiter first, longest
    cdef unsigned int n
    cdef bint hashes_each      # the tables have secrets of their own
    cdef bint alone            # one limiter, whose checks go through this
    cdef bint enforces         # a denial is one
    cdef Limiter records       # what stands of keys besides their logs, or None
    cdef void *policy          # an nl_policy
    cdef readonly str name
    cdef object __weakref__

    cdef int be_ready(self) except -1
    cdef int keep_records(self) except -1
    cdef int look_first(self) except -1

# 1 allowed, 0 denied; -1: cost is negative or above the limit; -2: closed; -3: it has a clock in Python, or policies: call
# allow().
# Any thread, with or without the GIL (which they take only to run telemetry handlers).
cdef int allow_bytes(Limiter limiter, const char *data, size_t length, long long cost) noexcept nogil
cdef int allow_int(Limiter limiter, long long key, long long cost) noexcept nogil
cdef int abi_version() noexcept nogil
