# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True, subinterpreters_compatible=no
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The seam: Python objects on one side, the C core (core/*.h) on the other.

It turns keys into fingerprints, reads the clock, calls the core, and turns outcomes into bools and Decisions. A check that the
core can't finish at once (somebody else is at the same key) is asked again without the GIL. Nothing here holds a lock
while it runs Python.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyObject_CheckBuffer, PyObject_GetBuffer, PyBuffer_Release,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact
from libc.math cimport INFINITY, floor, fma, isfinite, nextafter, rint
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

import os
import sys
import threading
import time
import weakref
from collections import namedtuple
from collections.abc import Iterable, Sequence
from operator import index

from nanolimit.errors import LimiterClosedError, SharedTableError


cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int *) except? -1
    int Py_EnterRecursiveCall(const char *)
    void Py_LeaveRecursiveCall()
    ctypedef struct PyObject
    ctypedef PyObject *(*PyCFunction)(PyObject *, PyObject *)
    ctypedef struct PyMethodDef:
        PyCFunction ml_meth
        int ml_flags
    ctypedef struct PyMethodDescrObject:
        PyMethodDef *d_method
    int METH_FASTCALL, METH_KEYWORDS
    void PyErr_WriteUnraisable(object)


cdef extern from "errno.h" nogil:
    int errno, EACCES, EBADF, ENOENT, EPERM

cdef extern from "stdbool.h":
    ctypedef unsigned char c_bool "bool"

cdef extern from "core/batch.h" nogil:
    ctypedef struct nl_fingerprint:
        uint64_t lo, hi
    ctypedef struct nl_hash_seed:
        pass
    ctypedef struct nl_rule:
        uint64_t tick_ns
        uint32_t window, limit, algorithm, max_log
    ctypedef struct nl_counters:
        pass
    ctypedef struct nl_head:
        uint64_t secret[2]
        uint32_t limit, policies
        uint64_t window_ns
        nl_counters counters
    ctypedef struct nl_region:
        unsigned char *base
        uint64_t bytes, committed
    ctypedef struct nl_member:
        uint64_t word, pid
    ctypedef struct nl_party:
        nl_member *members
    ctypedef struct nl_slab:
        uint32_t most
        nl_region slots
    ctypedef struct nl_chunks:
        nl_region chunks
    ctypedef struct nl_top:
        unsigned char *base
        uint32_t keys
    ctypedef struct nl_table:
        uint32_t *flags
        uint32_t own_flags, on_full
        int clock
        nl_rule rule
        nl_head *head
        uint64_t *stripe
        nl_party us
        nl_slab slab
        nl_chunks chunks
        nl_top top
        nl_region bucket_region, memory
        uint32_t number
        nl_table *former
        const void *policy
        nl_hash_seed *seeds
    ctypedef struct nl_config:
        uint32_t limit
        uint64_t window_ns
        uint32_t max_keys, on_full
        uint64_t *secret
        uint32_t typical, algorithm, max_log, track_top
    ctypedef struct nl_view:
        uint64_t now_ns, newest_tick, oldest_tick, deciding_tick
        uint32_t used, limit
    ctypedef struct nl_tally:
        uint64_t allowed, denied, untracked, stalled
    ctypedef int nl_outcome
    enum:
        NL_DENIED, NL_ALLOWED, NL_UNTRACKED, NL_DISPLACED, NL_WOULD_WAIT, NL_BLOCKED, NL_EXEMPT, NL_MOVED, NL_UNDECIDED
        NL_QUICKLY, NL_WAITING
        NL_FLAG_CLOSED, NL_FLAG_CLOCK, NL_FLAG_EVENTS, NL_FLAG_CHILD, NL_FLAG_ALGORITHM, NL_FLAG_POLICY, NL_FLAG_TOP
        NL_RUNS_LIMIT_MOST, NL_METER_LIMIT_MOST, NL_MAX_LOG_LEAST
        NL_RUNS, NL_GCRA, NL_FIXED_WINDOW, NL_SLIDING_COUNTER
        NL_KEY_BYTES, NL_KEY_INT, NL_KEY_INT_NEGATIVE, NL_KEY_INT_LARGE, NL_KEY_UUID, NL_KEY_ADDRESS, NL_KEY_TUPLE
        NL_COUNT_ALLOWED, NL_COUNT_DENIED, NL_COUNT_OVERFLOWED, NL_COUNT_EVICTED, NL_COUNT_STALLED, NL_COUNT_WOULD_DENY
        NL_GROUP
    const uint64_t NL_TIME_END_NS
    nl_hash_seed nl_hash_seed_of(uint64_t, uint64_t)
    nl_fingerprint nl_hash_raw(const nl_hash_seed *, const void *, size_t)
    nl_fingerprint nl_hash_bytes(const nl_hash_seed *, const void *, size_t)
    nl_fingerprint nl_hash_word(const nl_hash_seed *, uint64_t)
    int nl_process_init()
    bint nl_table_open(nl_table *, const nl_config *)
    void nl_table_close(nl_table *)
    void nl_flags_set(nl_table *, uint32_t, bint)
    uint32_t nl_table_keys(const nl_table *)
    uint64_t nl_table_bytes(const nl_table *)
    uint64_t nl_table_log_bytes(const nl_table *)
    uint64_t nl_table_places(const nl_table *)
    uint64_t nl_table_count(const nl_table *, uint32_t)
    uint32_t nl_load32(const uint32_t *)
    uint64_t nl_load64(const uint64_t *)
    void nl_store32(uint32_t *, uint32_t)
    nl_outcome nl_untracked(bint, uint32_t, uint32_t, uint64_t, nl_view *)
    nl_outcome nl_check(nl_table *, nl_fingerprint, uint64_t, uint32_t, int, nl_view *)
    nl_outcome nl_meter_check_as(uint32_t, nl_table *, nl_fingerprint, uint64_t, uint32_t, int, nl_view *)
    nl_outcome nl_runs_check(nl_table *, nl_fingerprint, uint64_t, uint32_t, int, nl_view *)
    nl_outcome nl_check_any(nl_table *, nl_fingerprint, uint64_t, uint32_t, int, nl_view *)
    uint32_t nl_limit_most(uint32_t)
    nl_outcome nl_peek(nl_table *, nl_fingerprint, uint64_t, uint32_t, int, nl_view *)
    nl_outcome nl_reset(nl_table *, nl_fingerprint, uint64_t, int)
    void nl_check_group(nl_table *, const nl_fingerprint *, uint32_t, uint64_t, uint32_t, bint, unsigned char *, nl_tally *)
    void nl_tally_add(nl_tally *, nl_outcome)
    void nl_tally_count(nl_counters *, uint32_t, const nl_tally *)
    void nl_count(nl_counters *, uint32_t, uint32_t, uint64_t)
    void nl_count_serial(uint64_t *, uint32_t, uint64_t)
    uint32_t nl_rule_most(const nl_rule *)
    uint32_t nl_limit_rounded(uint32_t)
    nl_table *nl_table_after(const nl_table *)
    uint32_t nl_my_stripe()
    void nl_drop(void *, size_t)

cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030C0000
    #define NL_STR_READY(s) ((void)0)
    #else
    #define NL_STR_READY(s) ((void)PyUnicode_READY(s)) /* a legacy string, which only C code makes */
    #endif
    /* The str's own bytes: as few for a character (kind: 1, 2 or 4) as its widest needs, so equal strs have equal bytes. */
    NL_ALWAYS_INLINE nl_fingerprint hash_of_str(nl_table *t, PyObject *s) {
        NL_STR_READY(s);
        if (PyUnicode_IS_COMPACT_ASCII(s))
            return nl_hash_bytes(&t->seeds[NL_KEY_STR1], ((PyASCIIObject *)s) + 1, (size_t)((PyASCIIObject *)s)->length);
        size_t kind = (size_t)PyUnicode_KIND(s);
        return nl_hash_bytes(&t->seeds[kind >> 1], PyUnicode_DATA(s), (size_t)PyUnicode_GET_LENGTH(s) * kind);
    }
    """
    nl_fingerprint hash_of_str(nl_table *, PyObject *) noexcept
    bint is_str "PyUnicode_CheckExact" (PyObject *) noexcept

cdef extern from "core/clock.h" nogil:
    uint64_t nl_clock_ns(int)
    int NL_CLOCK_PRIVATE

cdef extern from "core/claim.h" nogil:
    ctypedef struct nl_now:
        uint64_t ns, tick
    ctypedef struct nl_claim:
        nl_table *table
        nl_fingerprint fp
        uint32_t limit, cost
        nl_now now
        nl_outcome outcome
        nl_view view
    enum:
        NL_CLAIMS_MOST, NL_QUOTAS_MOST
    nl_now nl_rule_now(const nl_rule *, uint64_t)
    uint64_t nl_now_rounded_up(nl_now, uint64_t)
    nl_outcome nl_claims_check(nl_claim *, uint32_t, bint, int)

cdef extern from "core/refund.h" nogil:
    const uint64_t NL_NEWEST
    nl_outcome nl_refund(nl_table *, nl_fingerprint, uint64_t, uint64_t, uint32_t, int, uint32_t *)

cdef extern from "core/successor.h" nogil:
    void nl_succeed(nl_table *, nl_table *, uint64_t)
    void nl_move_all(nl_table *, nl_table *)
    void nl_table_drop(nl_table *)

cdef extern from "core/record.h" nogil:
    ctypedef struct nl_policy:
        nl_table *records
        uint32_t after, forgive_ms, prolong, quotas, penalties
        double base_s, factor, maximum_s
    ctypedef struct nl_standing:
        nl_fingerprint fp
        nl_now now
        bint limits_known, exempt, struck_before, blocks
        uint64_t blocked_ns
    const uint64_t NL_RECORD_WINDOW_NS, NL_RECORD_NEVER, NL_RECORD_TICK_NS
    const uint32_t NL_RECORD_FLAG
    nl_outcome nl_policy_check(const nl_policy *, nl_claim *, uint32_t, nl_standing *, bint, int)
    nl_outcome nl_policy_limits(const nl_policy *, nl_claim *, uint32_t, const nl_standing *, int)
    bint nl_policy_blocks(const nl_policy *, nl_fingerprint, uint64_t)
    nl_outcome nl_policy_blocked(const nl_policy *, nl_standing *, int)
    nl_outcome nl_penalty_strike(const nl_policy *, nl_standing *, int)
    nl_outcome nl_penalty_absolve(const nl_policy *, const nl_standing *, int)
    nl_outcome nl_record_set_quota(nl_table *, nl_fingerprint, uint32_t, nl_now, uint32_t, uint32_t, int)
    nl_outcome nl_record_set_block(nl_table *, nl_fingerprint, nl_now, uint64_t, int, c_bool *)

cdef extern from "core/denial.h" nogil:
    ctypedef struct nl_denial:
        uint64_t end
        uint32_t cost, told
        uint64_t answer[3]
    bint nl_denial_find(const nl_table *, nl_fingerprint, nl_now, uint32_t, uint64_t, nl_denial *)
    bint nl_denial_answer(const nl_table *, nl_fingerprint, nl_now, nl_denial *)
    nl_outcome nl_denial_put(nl_table *, nl_fingerprint, nl_now, uint64_t, uint64_t, const nl_denial *, int)
    nl_outcome nl_denial_forget(nl_table *, nl_fingerprint, nl_now, uint32_t, int)

cdef extern from "core/walk.h" nogil:
    uint64_t nl_walk_count(const nl_table *, uint64_t)
    uint64_t nl_walk_evict(nl_table *, uint64_t, bint, c_bool *)

cdef extern from "core/top.h" nogil:
    enum:
        NL_TOP_PANES, NL_TOP_TEXT, NL_TOP_KEYS_MOST
    const uint64_t NL_TOP_PANE_NS
    ctypedef struct nl_top_pane:
        uint64_t epoch, missed
        uint32_t used
    ctypedef struct nl_top_entry:
        nl_fingerprint fp
        uint64_t word, last_ns
        uint32_t error, form
        uint64_t text[16]
    uint64_t nl_top_bytes(uint32_t)
    nl_top nl_top_at(void *, uint32_t)
    uint64_t nl_top_epoch(const nl_top *, uint64_t)
    nl_top_pane *nl_top_pane_of(const nl_top *, uint64_t)
    bint nl_top_count(const nl_top *, nl_fingerprint, uint64_t)
    void nl_top_add(const nl_top *, const nl_party *, nl_fingerprint, uint64_t, uint32_t, const uint64_t *)
    bint nl_top_read(const nl_top *, nl_top_pane *, uint32_t, nl_top_entry *)

cdef extern from "core/shared.h" nogil:
    int NL_HAS_SHARED, NL_LAYOUT_VERSION, NL_SHARED_KEYS_MOST, NL_MEMBERS, NL_STATE_REPLACED
    int NL_MEMBER_STATE, NL_MEMBER_ALIVE
    ctypedef struct nl_origin:
        unsigned char *boot_id
        uint64_t pid_namespace, time_namespace, created_ns
        uint32_t own_clock
        unsigned short number, quotas
    ctypedef struct nl_header:
        char *magic
        uint32_t version, byte_order, word_bytes, page_bytes, header_bytes, state
        uint64_t file_bytes, window_ns
        uint32_t max_keys, layout_limit, typical, algorithm, max_log, track_top
        nl_origin origin
        uint64_t digest
    uint64_t nl_header_digest(const nl_header *)
    uint64_t nl_shared_bytes(const nl_config *)
    bint nl_shared_holds(uint32_t, uint32_t, uint64_t, uint32_t, uint32_t)
    void nl_shared_tell_of_policies(nl_table *)
    void nl_shared_format(void *, const nl_config *, const nl_origin *)
    const char *nl_shared_open(nl_table *, int, const char *, uint32_t, uint64_t, bint)
    int nl_shared_register(nl_table *)
    void nl_shared_close(nl_table *)
    int NL_NO_PLACE
    bint nl_place_is_locked(int, uint64_t, uint32_t)

cdef extern from "core/verify.h" nogil:
    const char *nl_verify(nl_table *, uint32_t *, char *, size_t)

cdef extern from *:
    """
    /* With a GIL, whoever holds it is alone on the process's stripe. */
    #ifdef Py_GIL_DISABLED
    #define NL_TALLY(t, what, n) nl_count(&(t)->head->counters, nl_my_stripe(), (what), (n))
    #else
    #define NL_TALLY(t, what, n) nl_count_serial((t)->stripe, (what), (n))
    #endif
    /* 3.14t: objects that all threads call through need not share a reference count. */
    static int nl_defer_refcount(PyObject *o) {
    #if defined(Py_GIL_DISABLED) && PY_VERSION_HEX >= 0x030E0000
        return PyUnstable_Object_EnableDeferredRefcount(o);
    #else
        (void)o;
        return 0;
    #endif
    }
    static inline PyObject *nl_new_ref(PyObject *o) { Py_INCREF(o); return o; }
    #define nl_new_bool(yes) nl_new_ref((yes) ? Py_True : Py_False)
    """
    void NL_TALLY(nl_table *, uint32_t, uint64_t) noexcept nogil
    PyObject *new_ref "nl_new_ref" (object) noexcept
    PyObject *new_bool "nl_new_bool" (bint) noexcept
    int nl_defer_refcount(object)


if nl_process_init() != 0:
    raise MemoryError("nanolimit: pthread_atfork failed")

ABI_VERSION = NANOLIMIT_ABI
EVENT_BITS = {
    "allowed": 1, "denied": 2, "overflow": 4, "evicted": 8,
    "blocked": 16, "degraded": 32, "recovered": 64, "handler_detached": 128,
}
cdef enum:
    EVENT_ALLOWED = 1
    EVENT_DENIED = 2
    EVENT_OVERFLOW = 4
    EVENT_EVICTED = 8
    EVENT_BLOCKED = 16

ALGORITHMS = ("sliding-log", "gcra", "fixed-window", "sliding-counter")  # in the order of log.h's numbers
MAX_LOG_LIMIT = NL_RUNS_LIMIT_MOST
MAX_LOG_LEAST = NL_MAX_LOG_LEAST
MAX_METER_LIMIT = NL_METER_LIMIT_MOST
RECORD_WINDOW_NS = NL_RECORD_WINDOW_NS
MAX_TRACK_TOP = NL_TOP_KEYS_MOST
TOP_PANE_NS = NL_TOP_PANE_NS
TOP_PANES = NL_TOP_PANES

cdef double EXACT = INFINITY  # in place of a clock's float seconds: the time is known in nanoseconds


# --- telemetry: who wants to hear of what ----------------------------------------------------------------------------

cdef unsigned int event_mask = 0
cdef object event_names = None
cdef object live_limiters = weakref.WeakSet()
# Reentrant: a finalizer that runs in the middle may make limiters and detach handlers. New in a child, whose parent's
# threads may have held it.
cdef object registry_lock = threading.RLock()


def _renew_lock():
    global registry_lock
    cdef Limiter limiter
    registry_lock = threading.RLock()
    for limiter in list(live_limiters):
        limiter.updating = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)


include "_event.pxi"


cdef extern from *:
    """
    #define flags_of(t) nl_load32((t)->flags)
    """
    uint32_t flags_of(nl_table *) noexcept nogil


cdef inline nl_table *table_of(Limiter limiter) noexcept nogil:
    return <nl_table *>limiter.table


# --- keys ------------------------------------------------------------------------------------------------------------

cdef inline int fingerprint(nl_table *t, object key, nl_fingerprint *fp) except -1:
    """The key's fingerprint: SipHash-1-3-128 of its value, under the secret of its kind. Nothing is kept of the key."""
    if PyUnicode_CheckExact(key):
        fp[0] = hash_of_str(t, <PyObject *>key)
        return 0
    return fingerprint_of_other(t, key, fp)


cdef int fingerprint_of_other(nl_table *t, object key, nl_fingerprint *fp) except -1:
    cdef int overflow = 0
    cdef long long value
    if PyLong_CheckExact(key):
        value = PyLong_AsLongLongAndOverflow(key, &overflow)
        if not overflow:
            if value >= 0:
                fp[0] = nl_hash_word(&t.seeds[<int>NL_KEY_INT], <uint64_t>value)
            else:
                fp[0] = nl_hash_word(&t.seeds[<int>NL_KEY_INT_NEGATIVE], <uint64_t>value)
        elif 0 < key < 1 << 64:
            fp[0] = nl_hash_word(&t.seeds[<int>NL_KEY_INT], <uint64_t>key)
        else:
            of_bytes(t, NL_KEY_INT_LARGE, key.to_bytes(key.bit_length() // 8 + 1, "little", signed=True), fp)
        return 0
    if PyBytes_CheckExact(key):
        return of_bytes(t, NL_KEY_BYTES, key, fp)
    if isinstance(key, tuple):
        return fingerprint_of_tuple(t, <tuple?>tuple(key), fp)
    # Subclasses (bool, IntEnum, StrEnum, numpy.str_ ...) count by their value, as in a dict.
    if isinstance(key, str):
        return fingerprint(t, str.__str__(key), fp)
    if isinstance(key, int):
        return fingerprint_of_other(t, int.__index__(key), fp)
    if isinstance(key, bytes):
        return of_bytes(t, NL_KEY_BYTES, bytes.__getitem__(key, slice(None)), fp)
    return fingerprint_of_library_type(t, key, fp)


cdef int of_bytes(nl_table *t, int kind, bytes data, nl_fingerprint *fp) except -1:
    fp[0] = nl_hash_bytes(&t.seeds[kind], PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))
    return 0


cdef int fingerprint_of_tuple(nl_table *t, tuple key, nl_fingerprint *fp) except -1:
    """A chain: the length, then each part's fingerprint hashed together with what came before."""
    cdef nl_fingerprint pair[2]
    pair[0] = nl_hash_word(&t.seeds[<int>NL_KEY_TUPLE], <uint64_t>len(key))
    if Py_EnterRecursiveCall(b" while reading a rate limiter's key"):
        return -1
    try:
        for part in key:
            fingerprint(t, part, &pair[1])
            pair[0] = nl_hash_bytes(&t.seeds[<int>NL_KEY_TUPLE], pair, sizeof(pair))
    finally:
        Py_LeaveRecursiveCall()
    fp[0] = pair[0]
    return 0


cdef int fingerprint_of_library_type(nl_table *t, object key, nl_fingerprint *fp) except -1:
    """uuid and ipaddress: whoever has such a key has imported the module."""
    uuid = sys.modules.get("uuid")
    if uuid is not None and isinstance(key, uuid.UUID):
        return of_bytes(t, NL_KEY_UUID, key.bytes, fp)
    ip = sys.modules.get("ipaddress")
    if ip is not None and isinstance(
        key, (ip.IPv4Address, ip.IPv6Address, ip.IPv4Network, ip.IPv6Network)
    ):
        # An interface is an address with a network, a network one with a prefix: three different keys, as for ==.
        if isinstance(key, (ip.IPv4Network, ip.IPv6Network)):
            address = key.network_address
            text = f"network {address.packed.hex()} {key.prefixlen} {getattr(address, 'scope_id', None)}"
        elif isinstance(key, (ip.IPv4Interface, ip.IPv6Interface)):
            text = f"interface {key.packed.hex()} {key.network.prefixlen} {getattr(key, 'scope_id', None)}"
        else:
            text = f"address {key.packed.hex()} {getattr(key, 'scope_id', None)}"
        return of_bytes(t, NL_KEY_ADDRESS, text.encode("utf-8", "surrogatepass"), fp)
    raise TypeError(
        f"key must be a str, bytes, int, uuid.UUID, ipaddress object or a tuple of these, got {type(key).__name__}"
    )


# --- numbers ---------------------------------------------------------------------------------------------------------

cdef uint64_t ns_of_seconds(double seconds) noexcept:
    """The nearest nanosecond of a float in [0, 2^62 ns), which float arithmetic alone would miss beyond 104 days."""
    cdef double whole = floor(seconds), part = seconds - whole, ns = rint(part * 1e9)
    cdef double rest = fma(part, 1e9, -ns)
    if rest > 0.5:
        ns += 1
    elif rest < -0.5:
        ns -= 1
    return <uint64_t>whole * 1_000_000_000u + <uint64_t>ns


cdef double seconds_up(uint64_t ns) noexcept:
    """The least float that is not less than so many nanoseconds."""
    cdef uint64_t whole = ns // 1_000_000_000u, part = ns % 1_000_000_000u
    cdef double seconds = nextafter(<double>ns / 1e9, INFINITY), less = nextafter(seconds, 0)
    # seconds is at most two floats too high: go down while the next one is still enough, told exactly
    while fma(less - <double>whole, 1e9, -<double>part) >= 0 and ns:
        seconds = less
        less = nextafter(seconds, 0)
    while fma(seconds - <double>whole, 1e9, -<double>part) < 0:
        seconds = nextafter(seconds, INFINITY)
    return seconds


# --- results ---------------------------------------------------------------------------------------------------------

class Stats(namedtuple("Stats", "allowed denied keys evicted overflowed memory_bytes capacity")):
    """What a limiter has done so far, and what it holds.

    allowed, denied: decisions. keys: occupied slots (some may be idle). evicted: live keys displaced, and keys dropped by
    evict(). overflowed: decisions made by on_full. memory_bytes: pages in use; of a shared table, the file's size. capacity:
    max_keys.

    Besides, as attributes that are no items of the tuple: would_deny, the requests among the allowed ones that enforce=False let
    pass; stalled, the calls that on_stall answered; log_bytes, the memory in use
    for logs that don't fit into a slot (to within 16 KiB for each process that was killed); log_capacity_bytes, how much of it
    there can be.
    """

    would_deny = 0
    stalled = 0
    log_bytes = 0
    log_capacity_bytes = 0


@cython.final
@cython.freelist(16)
@cython.no_gc  # it refers to a Quota, which refers to nothing
cdef class Decision:
    """The answer to one check. Truthy if allowed. Immutable; seconds are floats, computed when asked for."""

    cdef readonly bint allowed
    cdef readonly bint would_deny
    cdef readonly bint degraded  # of a distributed limiter, whose store could not be asked
    cdef readonly object quota
    cdef bint untracked
    cdef bint fits  # where it is denied or would be: by a block alone
    cdef uint64_t tick_ns, window
    cdef uint64_t blocked_ns  # until when the key is blocked; 0: it is not
    cdef double seconds
    cdef nl_view view

    def __init__(self):
        raise TypeError("Decisions are made by check() and peek()")

    def __bool__(self):
        return self.allowed

    cdef double until(self, uint64_t tick):
        """Seconds from now until the stamp at `tick` has left the window."""
        return self.until_ns((tick + self.window) * self.tick_ns)

    cdef double until_ns(self, uint64_t out_ns):
        if out_ns <= self.view.now_ns:
            return 0.0
        cdef double wait = seconds_up(out_ns - self.view.now_ns)
        if self.seconds != EXACT:  # a clock of float seconds must get there too, by float addition
            while ns_of_seconds(self.seconds + wait) < out_ns:
                wait = nextafter(wait + nextafter(self.seconds + wait, INFINITY) - (self.seconds + wait), INFINITY)
        return wait

    @property
    def limit(self) -> int:
        """The binding quota's limit, in units."""
        return self.view.limit

    @property
    def violated(self):
        """The quota that denied, or would deny: of several, the one that makes one wait longest. None if it fits."""
        return self.quota if not self.fits and (self.would_deny or not self.allowed) else None

    @property
    def blocked(self) -> bool:
        """Is the key blocked, by its penalty or by block()?"""
        return self.blocked_ns != 0

    @property
    def remaining(self) -> int:
        """Units that would still fit now, after this decision."""
        if self.blocked_ns and not self.allowed:
            return 0
        return self.view.limit - self.view.used if self.view.used < self.view.limit else 0

    @property
    def retry_after(self) -> float:
        """Seconds until the same cost would fit, if nobody else comes; 0.0 if allowed."""
        if self.allowed:
            return 0.0
        cdef double wait = 0.0
        if not self.fits:
            wait = self.quota.per if self.untracked else self.until(self.view.deciding_tick)
        return max(wait, self.until_ns(self.blocked_ns)) if self.blocked_ns else wait

    @property
    def reset_after(self) -> float:
        """Seconds until the whole quota is back: until the key's newest stamp leaves the window; 0.0 if it is unused."""
        if self.untracked:
            return 0.0 if self.allowed else self.quota.per
        return self.until(self.view.newest_tick) if self.view.used else 0.0

    @property
    def refill_after(self) -> float:
        """Seconds until a unit more than now is free: until the key's oldest stamp leaves; 0.0 if it is unused."""
        if self.untracked:
            return 0.0 if self.allowed else self.quota.per
        return self.until(self.view.oldest_tick) if self.view.used else 0.0

    def __repr__(self):
        return (
            f"Decision(allowed={self.allowed}, limit={self.limit}, remaining={self.remaining}, "
            f"retry_after={self.retry_after!r}, reset_after={self.reset_after!r}, refill_after={self.refill_after!r}"
            f"{', blocked=True' if self.blocked_ns else ''}{', would_deny=True' if self.would_deny else ''}"
            f"{', degraded=True' if self.degraded else ''})"
        )

    def __reduce__(self):
        return _decision, (
            self.allowed, self.untracked, self.quota, self.tick_ns, self.window, self.seconds, self.view.now_ns,
            self.view.newest_tick, self.view.oldest_tick, self.view.deciding_tick, self.view.used, self.view.limit,
            self.would_deny, self.fits, self.blocked_ns, self.degraded,
        )


def _decision(allowed, untracked, quota, tick_ns, window, seconds, now_ns, newest_tick, oldest_tick, deciding_tick, used, limit,
              would_deny=False, fits=False, blocked_ns=0, degraded=False):
    """A Decision that travelled between processes, such as that of a RateLimitExceeded; or one that a distributed store made."""
    cdef Decision d = Decision.__new__(Decision)
    d.allowed, d.untracked, d.quota, d.tick_ns, d.window, d.seconds = allowed, untracked, quota, tick_ns, window, seconds
    d.view.now_ns, d.view.newest_tick, d.view.oldest_tick, d.view.deciding_tick = now_ns, newest_tick, oldest_tick, deciding_tick
    d.view.used, d.view.limit = used, limit
    d.would_deny, d.fits, d.blocked_ns, d.degraded = would_deny, fits, blocked_ns, degraded
    return d


cdef Decision new_decision(Limiter limiter, nl_table *t, int outcome, nl_view *view, double seconds):
    cdef Decision d = Decision.__new__(Decision)
    d.allowed = outcome & NL_ALLOWED
    d.untracked = (outcome & NL_UNTRACKED) != 0
    d.quota = limiter.quota_now if view.limit == limiter.quota_limit else limiter.quota_with(view.limit)
    d.tick_ns = t.rule.tick_ns
    d.window = t.rule.window
    d.seconds = seconds
    d.view = view[0]
    return d


# --- the limiter -----------------------------------------------------------------------------------------------------

cdef dict ON_FULL = {"allow": 0, "deny": 1, "evict": 2}

# Without the GIL a thread may be about to take a reference to what another one puts something else in the place of: there a quota
# that was in force once stays, some 200 bytes for each update(). (With it, nothing is kept.)
cdef list kept = []


cdef int keep_alive(object replaced) except -1:
    if not NL_HAS_GIL and replaced is not None:
        kept.append(replaced)
    return 0


@cython.final
cdef class Limiter:
    """A table, a clock and a name. RateLimiter (limiter.py) validates, holds one, and hands out its methods.

    Thread-safe throughout. The table's memory is unmapped when the last reference goes, so a call that meets close() in
    another thread finds pages, not a fault.
    """

    def __cinit__(self, quota, *, limit, window_ns, str name not None, max_keys, str on_full not None, clock, table=None,
                  path=None, stall_ns=0, str on_stall not None="allow", make_quota=None, str algorithm not None="sliding-log",
                  Limiter kin=None, max_log=0, track_top=0):
        """table: the descriptor of a shared table's file, which says what limit, window_ns, max_keys and algorithm are. kin:
        whose secret it shares, in a Bundle. track_top: keep so many of the keys that are denied most."""
        cdef nl_config config
        cdef bytes secret = os.urandom(16)
        self.quota_now = quota
        self.make_quota = make_quota
        self.updating = threading.RLock()
        self.name = name
        self.about = about(name)
        self.clock = clock
        self.clock_ns = getattr(clock, "now_ns", None)
        self.path = path
        self.stall_allows = on_stall != "deny"
        cdef nl_table *t = <nl_table *>calloc(1, sizeof(nl_table))
        if t == NULL:
            raise MemoryError()
        if table is None:
            config.limit = limit
            config.window_ns = window_ns
            config.max_keys = max_keys
            config.on_full = ON_FULL[on_full]
            config.algorithm = ALGORITHMS.index(algorithm)
            config.max_log = max_log
            config.track_top = 0
            if kin is not None:
                memcpy(config.secret, &table_of(kin).head.secret, 16)
            else:
                memcpy(config.secret, PyBytes_AS_STRING(secret), 16)
            if not nl_table_open(t, &config):
                free(t)
                raise MemoryError(f"no address space for a limiter of max_keys={max_keys}: choose a smaller one")
            nl_store32(&t.head.limit, limit)
            self.table = t
        else:
            try:
                open_shared(t, table, path, ON_FULL[on_full], (1 << 64) - 1 if on_stall == "wait" else stall_ns, False)
            except BaseException:
                free(t)
                raise
            self.table = t
            self.register()
        self.quota_limit = nl_load32(&t.head.limit)
        if self.quota_limit != limit and make_quota is not None:
            self.quota_now = make_quota(self.quota_limit)
        nl_defer_refcount(self)
        if clock is not None:
            nl_flags_set(t, NL_FLAG_CLOCK, True)
        if track_top:
            if table is None:
                self.top_memory = calloc(1, nl_top_bytes(track_top))
                if self.top_memory == NULL:
                    raise MemoryError()
                t.top = nl_top_at(self.top_memory, track_top)
            if t.top.base != NULL:
                nl_flags_set(t, NL_FLAG_TOP, True)
        with registry_lock:
            live_limiters.add(self)
            if is_heard(name):
                nl_flags_set(t, NL_FLAG_EVENTS, True)

    def __dealloc__(self):
        cdef nl_table *t = <nl_table *>self.table
        cdef nl_table *former
        while t != NULL:
            former = t.former
            if t.us.members != NULL:
                nl_shared_close(t)
            else:
                nl_table_close(t)
            free(t)
            t = former
        free(self.top_memory)

    cdef int register(self) except -1:
        """Makes this process one of the shared table's: after opening it, and in the child of a fork at its first call."""
        cdef int error
        with nogil:
            error = nl_shared_register(<nl_table *>self.table)
        if not error:
            return 0
        if error == NL_NO_PLACE:
            raise SharedTableError(f"{self.where()}: {NL_MEMBERS - 2} processes are at it already, and there is no room for more")
        hint = ""
        if error in (EACCES, EPERM):
            hint = "; for workers that run as another user than the one who made it: mode=0o660 and group="
        elif error in (ENOENT, EBADF):
            hint = "; its file was removed, or its descriptor closed: make the limiter again in this process"
        raise SharedTableError(f"{self.where()}: this process can't join it: {os.strerror(error)}{hint}")

    cdef str where(self):
        return f"shared table {self.path}" if self.path is not None else f"shared table of limiter {self.name!r}"

    @property
    def quota(self):
        """The quota in force. Of a shared table, the limit may be changed by others."""
        cdef uint32_t limit = nl_load32(&(<nl_table *>self.table).head.limit)
        if limit != self.quota_limit and self.make_quota is not None:
            keep_alive(self.quota_now)
            self.quota_now = self.make_quota(limit)
            self.quota_limit = limit
        return self.quota_now

    cdef object quota_with(self, unsigned int limit):
        """The quota in force, or if that has another limit, one for this limit and its window: some key's own."""
        quota = self.quota
        if quota is None or quota.limit == limit or self.make_quota is None:
            return quota
        other = self.other_quota
        if other is None or other.limit != limit or other.window_ns != quota.window_ns:
            keep_alive(other)
            self.other_quota = other = self.make_quota(limit)
        return other

    @property
    def limiters(self):
        """As of a Bundle: itself."""
        return (self,)

    @property
    def quotas(self):
        """As of a Bundle: the one there is."""
        return (self.quota,)

    @property
    def algorithm(self) -> str:
        """How it counts; of a shared table, what the file says."""
        return ALGORITHMS[file_algorithm(<nl_table *>self.table)]

    @property
    def max_limit(self) -> int:
        """The largest limit that the table has room for as it is."""
        return nl_rule_most(&table_of(self).rule)

    def set_limit(self, limit):
        """Changes the limit in force, at once and for all who use the table."""
        cdef nl_table *t = <nl_table *>self.table
        cdef uint32_t most = nl_rule_most(&t.rule)
        self.be_ready()
        whole = index(limit)
        if not 1 <= whole <= most:
            raise ValueError(f"limit must be from 1 to {most}, which the table is laid out for, got {short(whole)}")
        nl_store32(&t.head.limit, whole)

    def update(self, quota, make_quota):
        """Puts another quota in the place of the one in force, and loses no log. make_quota: as for the constructor."""
        cdef nl_table *t = <nl_table *>self.table
        cdef uint32_t limit = quota.limit
        self.be_ready()
        with self.updating:
            t = <nl_table *>self.table
            if quota.window_ns == t.head.window_ns and limit <= nl_rule_most(&t.rule):
                keep_alive(self.quota_now)
                keep_alive(self.make_quota)
                self.quota_now = quota
                self.make_quota = make_quota
                self.quota_limit = limit
                nl_store32(&t.head.limit, limit)
            else:
                self.refuse_if_fixed(quota)
                self.replace(limit, quota.window_ns, limit, quota, make_quota)

    def make_room(self, quota):
        """Sees to it that a key can have this limit as its own."""
        if quota.limit <= nl_rule_most(&table_of(self).rule):
            return
        with self.updating:
            if quota.limit > nl_rule_most(&table_of(self).rule):
                self.refuse_if_fixed(quota)
                self.replace(nl_load32(&table_of(self).head.limit), table_of(self).head.window_ns, quota.limit, self.quota,
                             self.make_quota)

    def governing(self):
        """The Bundle that says what else there is to its keys; made now, if there was nothing."""
        self.be_ready()
        return self.governed()

    def require_room(self, quota):
        """Raises what update() would, if it can't be given that quota."""
        self.be_ready()
        if quota.window_ns != table_of(self).head.window_ns or quota.limit > nl_rule_most(&table_of(self).rule):
            self.refuse_if_fixed(quota)

    def refuse_if_fixed(self, quota):
        if table_of(self).us.members != NULL:
            raise SharedTableError(
                f"{self.where()} has no room for {quota}: it was made for windows of {self.quota.per} s and limits up to "
                f"{self.max_limit}; make it with max_limit={quota.limit}, or replace it (on_mismatch='replace')"
            )

    cdef int replace(self, unsigned int limit, unsigned long long window_ns, unsigned int most, object quota,
                     object make_quota) except -1:
        """Has another private table take this one's keys (core/successor.h). The caller holds the lock `updating`."""
        cdef nl_table *old
        cdef nl_table *new
        cdef nl_config config
        cdef double seconds
        cdef uint64_t now_ns = self.now(&seconds)
        self.be_ready()
        old = table_of(self)  # not earlier: the clock is somebody's Python
        config.limit = max(most, nl_rule_most(&old.rule))  # its logs must fit
        if file_algorithm(old) == 0:
            config.limit = nl_limit_rounded(config.limit)  # what costs no more: the next change needs no table
        config.window_ns = window_ns
        config.max_keys = old.slab.most
        config.on_full = old.on_full
        config.algorithm = file_algorithm(old)
        config.max_log = old.rule.max_log
        config.track_top = 0
        memcpy(config.secret, &old.head.secret, 16)
        new = <nl_table *>calloc(1, sizeof(nl_table))
        if new == NULL:
            raise MemoryError()
        if not nl_table_open(new, &config):
            free(new)
            raise MemoryError(f"no address space for another table of max_keys={config.max_keys}")
        nl_store32(&new.head.limit, limit)
        new.former = old
        new.policy = old.policy
        new.top = old.top
        with registry_lock:  # whoever changes the flags holds it as well
            new.own_flags = (flags_of(old) & ~NL_FLAG_ALGORITHM) | (new.own_flags & NL_FLAG_ALGORITHM)
            nl_succeed(old, new, now_ns)
            self.table = new
            keep_alive(self.quota_now)
            keep_alive(self.make_quota)
            keep_alive(self.other_quota)
            self.quota_now = quota
            self.make_quota = make_quota
            self.quota_limit = limit
            self.other_quota = None
        with nogil:
            nl_move_all(old, new)
            nl_table_drop(old)
        return 0

    cdef bint is_governed(self) noexcept:
        """Is there more to this limiter than its logs? Of a shared table, another process may say so."""
        return flags_of(table_of(self)) & NL_FLAG_POLICY != 0

    cdef Bundle governed(self):
        """What the checks go through then."""
        if self.policy is None:
            with registry_lock:
                if self.policy is None:
                    self.policy = Bundle((self,), alone=True)
                    nl_flags_set(table_of(self), NL_FLAG_POLICY, True)
        return self.policy

    # -- checks. allow(key) and check(key) have a short way in front of these: see "the short way" below.

    def allow(self, key, cost=1, *, quota=None):
        """Counts the request if it fits. True: it did. One C call; thread-safe."""
        cdef double seconds
        if quota is not None or self.is_governed():
            return self.governed().allow(key, cost, quota=quota)
        cdef nl_table *t = NULL
        return self.decide(key, cost, NULL, True, &seconds, <void **>&t) & NL_ALLOWED != 0

    def check(self, key, cost=1, *, quota=None):
        """As allow(), and tells more: a Decision."""
        cdef nl_view view
        cdef double seconds = EXACT
        cdef nl_table *t = NULL
        if quota is not None or self.is_governed():
            return self.governed().check(key, cost, quota=quota)
        cdef nl_outcome outcome = self.decide(key, cost, &view, True, &seconds, <void **>&t)
        return new_decision(self, t, outcome, &view, seconds)

    def peek(self, key, cost=1, *, quota=None):
        """Would it fit? A Decision; nothing is counted, nothing is changed."""
        cdef nl_view view
        cdef double seconds = EXACT
        cdef nl_table *t = NULL
        if quota is not None or self.is_governed():
            return self.governed().peek(key, cost, quota=quota)
        cdef nl_outcome outcome = self.decide(key, cost, &view, False, &seconds, <void **>&t)
        return new_decision(self, t, outcome, &view, seconds)

    cdef int decide(self, object key, object cost, void *view, bint counts, double *seconds, void **where) except -1:
        """The long way: any cost, any clock, handlers attached, closed. *where: the table that decided."""
        cdef nl_table *t
        cdef nl_view own
        cdef nl_view *into = <nl_view *>view if view != NULL else &own
        cdef nl_fingerprint fp
        cdef uint32_t units = self.units(cost)
        cdef nl_outcome outcome
        cdef uint64_t now_ns
        self.be_ready()
        fingerprint(table_of(self), key, &fp)
        now_ns = self.now(seconds)
        self.be_ready()  # the clock is somebody's Python
        t = table_of(self)
        if not counts or units == 0:
            outcome = nl_peek(t, fp, now_ns, units, NL_QUICKLY, into)
            while outcome & (NL_WOULD_WAIT | NL_MOVED):
                if outcome & NL_MOVED:
                    t = nl_table_after(t)
                with nogil:
                    outcome = nl_peek(t, fp, now_ns, units, NL_WAITING, into)
                if outcome == NL_WOULD_WAIT:
                    NL_TALLY(t, NL_COUNT_STALLED, 1)
                    outcome = nl_untracked(self.stall_allows, nl_load32(&t.head.limit), units, now_ns, into)
            where[0] = t
            return outcome
        outcome = nl_check_any(t, fp, now_ns, units, NL_QUICKLY, <nl_view *>view)
        outcome = settle(self, fp, outcome, key, units, now_ns, <nl_view *>view, &t)
        where[0] = t
        return outcome

    cdef int be_ready(self) except -1:
        cdef uint32_t flags = flags_of(<nl_table *>self.table)
        if flags & NL_FLAG_CLOSED:
            raise LimiterClosedError(f"limiter {self.name!r} is closed")
        if flags & NL_FLAG_CHILD:
            self.register()
        return 0

    cdef unsigned int units(self, object cost) except? 0xffffffff:
        """cost as a number of units: 0 .. limit."""
        cdef uint32_t limit = nl_load32(&(<nl_table *>self.table).head.limit)
        whole = whole_cost(cost)
        if whole > limit:
            raise above_limit(whole, limit)
        return whole

    cdef unsigned long long now(self, double *seconds) except? 0xffffffffffffffff:
        """Nanoseconds of the limiter's clock. *seconds: what a clock of float seconds said, else EXACT."""
        cdef double value
        seconds[0] = EXACT
        if self.clock is None:
            return nl_clock_ns((<nl_table *>self.table).clock)
        if self.clock_ns is not None:
            told = self.clock_ns()
            if not isinstance(told, int):
                raise TypeError(f"the clock's now_ns() must return an int, got {told!r:.100} ({type(told).__name__})")
            if not 0 <= told < NL_TIME_END_NS:
                raise ValueError(f"the clock's now_ns() must return 0 <= ns < 2**62, got {short(told)}")
            return told
        told = self.clock()
        if isinstance(told, (str, bytes, bytearray)):
            raise TypeError(f"the clock must return seconds as a number, got {told!r:.100} ({type(told).__name__})")
        try:
            value = float(told)
        except TypeError:
            raise TypeError(f"the clock must return seconds as a number, got {type(told).__name__}") from None
        except OverflowError:
            value = INFINITY
        if not isfinite(value) or value < 0 or value >= NL_TIME_END_NS / 1e9:
            raise ValueError(f"the clock must return 0 <= seconds < 2**62 / 1e9, got {value!r}")
        seconds[0] = value
        return ns_of_seconds(value)

    cdef int tell(self, int outcome, object count, object key, bint enforced=True) except -1:
        """Runs the handlers, after the decision, holding nothing."""
        if outcome & NL_UNTRACKED and event_mask & EVENT_OVERFLOW:
            emit("overflow", count, self.name, key)
        if outcome & NL_DISPLACED and event_mask & EVENT_EVICTED:
            emit("evicted", 1, self.name, key)
        if outcome & NL_ALLOWED:
            if event_mask & EVENT_ALLOWED:
                emit_allowed(self, count, key)
        elif event_mask & EVENT_DENIED:
            emit_denied(self, count, key, None if enforced else {"enforced": False})
        return 0

    # -- batches

    def allow_many(self, keys, cost=1):
        """allow() for each key, in order. list[bool]; for a buffer of (u)int64, a memoryview of format '?'.

        All keys are looked at first: a bad one raises, and nothing is counted. The GIL is released while the checks run.
        """
        if self.is_governed():
            return self.governed().allow_many(keys, cost)
        cdef uint32_t units = self.units(cost)
        self.be_ready()
        if PyObject_CheckBuffer(keys) and not isinstance(keys, (bytes, bytearray)):
            return self.many_of_buffer(keys, units)
        return self.many_of_sequence(checked_keys(keys), units)

    cdef object many_of_sequence(self, object keys, unsigned int units):
        cdef nl_table *t = <nl_table *>self.table
        cdef Py_ssize_t n = len(keys), i
        cdef double seconds
        cdef uint64_t now_ns
        if n == 0:
            return []
        cdef nl_fingerprint *fps = fingerprints_of(t, keys)
        cdef unsigned char *outcomes = <unsigned char *>&fps[n]
        try:
            now_ns = self.now(&seconds)
            self.be_ready()
            t = table_of(self)
            if units:
                with nogil:
                    check_all(t, self.stall_allows, fps, NULL, 0, 0, n, now_ns, units, outcomes)
                if flags_of(t) & NL_FLAG_TOP:
                    for i in range(n):
                        if not outcomes[i] & NL_ALLOWED:
                            note_denial(t, fps[i], now_ns, <PyObject *>keys[i])
                if flags_of(t) & NL_FLAG_EVENTS:
                    for i in range(n):
                        self.tell(outcomes[i], units, keys[i])
                return [outcomes[i] & NL_ALLOWED != 0 for i in range(n)]
            return [True] * n
        finally:
            free(fps)

    cdef object many_of_buffer(self, object keys, unsigned int units):
        cdef nl_table *t = <nl_table *>self.table
        cdef Py_buffer buffer
        cdef double seconds
        cdef uint64_t now_ns
        cdef Py_ssize_t n, i, stride
        cdef bint is_unsigned
        cdef unsigned char *outcomes
        PyObject_GetBuffer(keys, &buffer, PyBUF_STRIDES | PyBUF_FORMAT)
        try:
            is_unsigned = words_are_unsigned(&buffer)
            n = buffer.shape[0]
            stride = buffer.strides[0] if buffer.strides != NULL else buffer.itemsize
            result = bytearray(n)
            now_ns = self.now(&seconds)
            self.be_ready()
            t = table_of(self)
            outcomes = result
            if units == 0:
                for i in range(n):
                    outcomes[i] = 1
            elif n:
                with nogil:
                    check_all(t, self.stall_allows, NULL, <const char *>buffer.buf, stride, is_unsigned, n, now_ns, units,
                              outcomes)
                if flags_of(t) & NL_FLAG_TOP:
                    view = memoryview(keys)
                    for i in range(n):
                        if not outcomes[i] & NL_ALLOWED:
                            note_key(t, now_ns, int(view[i]))
                if flags_of(t) & NL_FLAG_EVENTS:
                    view = memoryview(keys)
                    for i in range(n):
                        self.tell(outcomes[i], units, int(view[i]))
                for i in range(n):
                    outcomes[i] &= NL_ALLOWED
            return memoryview(result).cast("?")
        finally:
            PyBuffer_Release(&buffer)

    # -- the rest

    def reset(self, key):
        """Forgets the key. True: it had a log."""
        cdef nl_table *t = <nl_table *>self.table
        cdef nl_fingerprint fp
        cdef double seconds
        cdef uint64_t now_ns
        self.be_ready()
        fingerprint(t, key, &fp)
        now_ns = self.now(&seconds)
        self.be_ready()
        t = table_of(self)
        cdef nl_outcome outcome = nl_reset(t, fp, now_ns, NL_QUICKLY)
        while outcome & (NL_WOULD_WAIT | NL_MOVED):
            if outcome & NL_MOVED:
                t = nl_table_after(t)
            with nogil:
                outcome = nl_reset(t, fp, now_ns, NL_WAITING)
            self.refuse_if_stalled(outcome == NL_WOULD_WAIT)
        if self.is_governed():
            self.governed().unblock(key)
        return outcome == NL_ALLOWED

    def count(self, key, cost):
        """As check(); and, if it was counted, a token for give_back(), else None."""
        if self.is_governed():
            return self.governed().count(key, cost)
        decision = self.check(key, cost)
        cdef Decision d = decision
        if not d.allowed or d.untracked or not index(cost):
            return d, None
        return d, token_of(table_of(self), &d.view)

    def give_back(self, key, units, token=None, *, bint many=False):
        """Gives back up to so many units of a token, or (None) of those counted last. How many still counted. many: it may be
        more than the limit, for the key may have another one."""
        cdef nl_table *t = <nl_table *>self.table
        cdef nl_fingerprint fp
        cdef double seconds
        cdef uint64_t now_ns, tick = NL_NEWEST
        cdef uint32_t wanted, given = 0
        if not many and token is None and not self.is_governed():
            wanted = self.units(units)
        else:
            wanted = min(whole_cost(units), nl_rule_most(&t.rule))
        self.be_ready()
        fingerprint(t, key, &fp)
        now_ns = self.now(&seconds)
        self.be_ready()
        t = table_of(self)
        if token is not None:
            counted_at, tick_ns = token
            tick = (counted_at * tick_ns + t.rule.tick_ns - 1) // t.rule.tick_ns  # it may be of a table that had other ticks
        cdef nl_outcome outcome = nl_refund(t, fp, now_ns, tick, wanted, NL_QUICKLY, &given)
        while outcome & (NL_WOULD_WAIT | NL_MOVED):
            if outcome & NL_MOVED:
                t = nl_table_after(t)
            with nogil:
                outcome = nl_refund(t, fp, now_ns, tick, wanted, NL_WAITING, &given)
            self.refuse_if_stalled(outcome == NL_WOULD_WAIT)
        return given

    def clear(self):
        """Forgets all keys and hands their memory back. Walks the table in small steps, without the GIL."""
        cdef nl_table *t = <nl_table *>self.table
        cdef c_bool stalled = 0
        self.be_ready()
        with self.updating:
            t = table_of(self)
            with nogil:
                nl_walk_evict(t, 0, True, &stalled)
        self.refuse_if_stalled(stalled)
        if self.is_governed():
            self.governed().forgive_all()

    def evict(self):
        """Drops idle keys and hands their memory back. The number of keys dropped. Walks in small steps, without the GIL."""
        cdef nl_table *t = <nl_table *>self.table
        cdef double seconds
        cdef uint64_t now_ns, dropped
        cdef c_bool stalled = 0
        self.be_ready()
        now_ns = self.now(&seconds)
        self.be_ready()
        with self.updating:
            t = table_of(self)
            with nogil:
                dropped = nl_walk_evict(t, now_ns, False, &stalled)
                nl_count(&t.head.counters, nl_my_stripe(), NL_COUNT_EVICTED, dropped)
        if self.policy is not None and self.policy.records is not None:
            (<Limiter>self.policy.records).drop_idle(now_ns)
        if dropped and event_mask & EVENT_EVICTED and flags_of(table_of(self)) & NL_FLAG_EVENTS:
            emit("evicted", dropped, self.name, None)
        self.refuse_if_stalled(stalled)
        return dropped

    def drop_idle(self, now_ns):
        """Drops keys that are idle at that time, and tells nobody."""
        cdef nl_table *t = table_of(self)
        cdef uint64_t at_ns = now_ns
        cdef c_bool stalled = 0
        with nogil:
            nl_walk_evict(t, at_ns, False, &stalled)
        self.refuse_if_stalled(stalled)

    cdef int refuse_if_stalled(self, bint stalled) except -1:
        """For verbs whose answer on_stall can't give."""
        if stalled:
            NL_TALLY(<nl_table *>self.table, NL_COUNT_STALLED, 1)
            raise SharedTableError(
                f"{self.where()}: a process that is stopped (SIGSTOP, a debugger, a frozen container) holds a part of it; "
                f"not all was done. Let it go on, or end it, and call again"
            )
        return 0

    def stats(self):
        """Counters and sizes: Stats. O(1)."""
        cdef nl_table *t = <nl_table *>self.table
        self.be_ready()
        stats = Stats(
            self.counted(NL_COUNT_ALLOWED), self.counted(NL_COUNT_DENIED), nl_table_keys(t), self.counted(NL_COUNT_EVICTED),
            self.counted(NL_COUNT_OVERFLOWED), nl_table_bytes(t) + (nl_top_bytes(t.top.keys) if self.top_memory != NULL else 0),
            t.slab.most,
        )
        stats.would_deny = self.counted(NL_COUNT_WOULD_DENY)
        stats.stalled = self.counted(NL_COUNT_STALLED)
        stats.log_bytes = nl_table_log_bytes(t)
        stats.log_capacity_bytes = t.chunks.chunks.bytes
        return stats

    @property
    def track_top(self) -> int:
        """How many of the keys that are denied most it keeps; 0: none."""
        cdef nl_table *t = table_of(self)
        return t.top.keys if flags_of(t) & NL_FLAG_TOP else 0

    def denied_most(self):
        """What it kept of them, as panes_of() gives it; and the time in nanoseconds, or None by a clock in Python."""
        cdef double seconds
        self.be_ready()
        cdef uint64_t now_ns = self.now(&seconds)
        self.be_ready()
        return panes_of(&table_of(self).top, now_ns), now_ns if self.clock is None else None

    cdef object counted(self, uint32_t what):
        """A counter; with those of the tables that this one took the place of."""
        cdef nl_table *t = table_of(self)
        sum = 0
        while t != NULL:
            sum += nl_table_count(t, what)
            t = t.former
        return sum

    def __len__(self):
        cdef nl_table *t
        cdef double seconds
        cdef uint64_t now_ns, live
        self.be_ready()
        now_ns = self.now(&seconds)
        with self.updating:
            t = table_of(self)
            with nogil:
                live = nl_walk_count(t, now_ns)
        return live

    def __contains__(self, key):
        cdef nl_view view
        cdef double seconds
        cdef nl_table *t = NULL
        self.decide(key, 0, &view, False, &seconds, <void **>&t)
        return view.used != 0

    def close(self):
        """Ends the limiter's use and hands its memory back; later calls raise LimiterClosedError."""
        cdef nl_table *t = <nl_table *>self.table
        if flags_of(t) & NL_FLAG_CLOSED:
            return
        with registry_lock:
            t = table_of(self)
            nl_flags_set(t, NL_FLAG_CLOSED, True)
        if self.policy is not None and self.policy.records is not None:
            self.policy.records.close()
        if t.us.members != NULL:
            return  # the file stays; this process signs off when nobody can be inside any more
        with nogil:  # the pages go, the address space stays until nobody can be inside any more
            nl_table_drop(t)

    @property
    def closed(self) -> bool:
        """Has close() been called?"""
        return flags_of(<nl_table *>self.table) & NL_FLAG_CLOSED != 0

    def __reduce__(self):
        raise TypeError("cannot pickle a limiter: make one in each process")

    def place(self, key):
        """The key's 128 bits, as a name for its line of waiters: bytes are made and hashed quickest."""
        cdef nl_fingerprint fp
        fingerprint(<nl_table *>self.table, key, &fp)
        return PyBytes_FromStringAndSize(<const char *>&fp, sizeof(fp))

    # -- doors for tests

    def _is_heard(self):
        """Do its checks go by way of the handlers?"""
        return flags_of(table_of(self)) & NL_FLAG_EVENTS != 0

    def _fingerprint(self, key):
        """The key's 128 bits, low word first."""
        cdef nl_fingerprint fp
        fingerprint(<nl_table *>self.table, key, &fp)
        return int(fp.lo) | int(fp.hi) << 64

    def _verify(self):
        """Walks the whole table and raises AssertionError where an invariant does not hold. Nobody else may be at it.

        The number of slots that dead owners left in nobody's hand.
        """
        cdef char message[200]
        cdef uint32_t orphans
        self.be_ready()
        cdef const char *broken = nl_verify(<nl_table *>self.table, &orphans, message, sizeof(message))
        if broken != NULL:
            raise AssertionError((<bytes>broken).decode())
        return orphans


cdef uint32_t file_algorithm(nl_table *t) noexcept nogil:
    """The number in ALGORITHMS: runs are another way to keep a sliding log."""
    return 0 if t.rule.algorithm == NL_RUNS else t.rule.algorithm


cdef tuple token_of(nl_table *t, const nl_view *view):
    """By what the units of a request that was just counted are known (core/refund.h): their stamp, with a meter the time; and the
    length of its ticks in nanoseconds."""
    cdef uint64_t tick = view.newest_tick
    if t.rule.algorithm and t.rule.algorithm != NL_RUNS:
        now = nl_rule_now(&t.rule, view.now_ns)
        tick = now.tick if t.rule.algorithm == NL_GCRA else nl_now_rounded_up(now, t.rule.tick_ns)
    return tick, t.rule.tick_ns


cdef frozenset UNSIGNED = frozenset("QLN")


cdef bint words_are_unsigned(const Py_buffer *buffer) except -1:
    """Of a buffer that must be one-dimensional and hold 64-bit integers."""
    if buffer.ndim != 1:
        raise ValueError(f"keys must be a 1-D buffer, got {buffer.ndim} dimensions: flatten it first")
    form = (<bytes>buffer.format).decode() if buffer.format != NULL else "B"
    code = form[1:] if form[:1] in ("@", "=", "<" if sys.byteorder == "little" else ">") else form
    if buffer.itemsize != 8 or code not in ("q", "Q", "l", "L", "n", "N"):
        raise TypeError(f"keys must be a buffer of int64 or uint64, got format {form!r}: convert it, or pass a list")
    return code in UNSIGNED


cdef list words_of(object keys):
    """The integers of such a buffer."""
    cdef Py_buffer buffer
    cdef int64_t word
    cdef Py_ssize_t i, stride
    PyObject_GetBuffer(keys, &buffer, PyBUF_STRIDES | PyBUF_FORMAT)
    try:
        is_unsigned = words_are_unsigned(&buffer)
        stride = buffer.strides[0] if buffer.strides != NULL else buffer.itemsize
        words = []
        for i in range(buffer.shape[0]):
            memcpy(&word, <const char *>buffer.buf + i * stride, 8)
            words.append(<uint64_t>word if is_unsigned else word)
        return words
    finally:
        PyBuffer_Release(&buffer)


cdef tuple checked_keys(object keys):
    """A copy, for other threads may change a list."""
    if isinstance(keys, (str, bytes, bytearray)):
        raise TypeError(f"keys must be a sequence of keys, got one {type(keys).__name__}: use [key]")
    if not isinstance(keys, (list, tuple)) and not isinstance(keys, Sequence):
        raise TypeError(f"keys must be a sequence or a buffer of int64, got {type(keys).__name__}: use list(keys)")
    return tuple(keys)


cdef nl_fingerprint *fingerprints_of(nl_table *t, tuple keys) except NULL:
    """To be freed; with a byte for each key behind them. len(keys) > 0."""
    cdef Py_ssize_t n = len(keys), i = 0
    cdef nl_fingerprint *fps = <nl_fingerprint *>malloc(n * (sizeof(nl_fingerprint) + 1))
    if fps == NULL:
        raise MemoryError()
    try:
        for i in range(n):
            fingerprint(t, keys[i], &fps[i])
    except Exception as error:
        free(fps)
        if isinstance(error, (TypeError, ValueError)):
            raise type(error)(f"keys[{i}]: {error}") from None
        raise
    return fps


cdef object whole_cost(object cost):
    if isinstance(cost, bool):
        raise TypeError(f"cost must be an int, got {cost!r} (bool)")
    try:
        whole = index(cost)
    except TypeError:
        raise TypeError(f"cost must be an int, got {cost!r:.100} ({type(cost).__name__})") from None
    if whole < 0:
        raise ValueError(f"cost must be >= 0, got {short(whole)}")
    return whole


cdef object above_limit(object whole, uint32_t limit):
    return ValueError(f"cost must be <= the limit of {limit}, got {short(whole)}: it could never pass")


cdef str short(object number):
    text = str(number) if number.bit_length() < 200 else f"an int of {number.bit_length()} bits"
    return text


cdef int settle(Limiter limiter, nl_fingerprint fp, int outcome, object key, uint32_t units, uint64_t now_ns,
                nl_view *view, nl_table **where) except -1:
    """What is left to do after a check: wait where it would have waited, ask the table's successor, count, tell. *where: the
    table that was asked; then the one that decided."""
    cdef nl_table *t = where[0]
    cdef int displaced
    cdef bint stalled = False
    while outcome & (NL_WOULD_WAIT | NL_MOVED) and not stalled:
        displaced = outcome & NL_DISPLACED  # it may have made room already
        if outcome & NL_MOVED:
            where[0] = t = nl_table_after(t)
        with nogil:
            outcome = nl_check_any(t, fp, now_ns, units, NL_WAITING, view)
        outcome |= displaced
        if outcome & NL_WOULD_WAIT:
            stalled = True
            displaced = outcome & NL_DISPLACED
            outcome = nl_untracked(limiter.stall_allows, nl_load32(&t.head.limit), units, now_ns, view) | displaced
    NL_TALLY(t, NL_COUNT_ALLOWED if outcome & NL_ALLOWED else NL_COUNT_DENIED, 1)
    if outcome & NL_UNTRACKED:
        NL_TALLY(t, NL_COUNT_STALLED if stalled else NL_COUNT_OVERFLOWED, 1)
    if flags_of(t) & NL_FLAG_TOP and not outcome & NL_ALLOWED:
        note_denial(t, fp, now_ns, <PyObject *>key)
    if flags_of(t) & NL_FLAG_EVENTS:
        limiter.tell(outcome & ~NL_UNTRACKED if stalled else outcome, units, key)
    return outcome


# --- who is denied most (core/top.h) -------------------------------------------------------------------------------------

cdef extern from *:
    """
    enum { NL_TEXT_STR, NL_TEXT_BYTES, NL_TEXT_INT, NL_TEXT_REPR, NL_TEXT_CUT = 128 };
    static void nl_note(const nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t kind, const char *data, size_t length) {
        uint64_t text[NL_TOP_TEXT / 8] = {0};
        if (length > NL_TOP_TEXT) kind |= NL_TEXT_CUT, length = NL_TOP_TEXT;
        memcpy(text, data, length);
        nl_top_add(&t->top, &t->us, fp, now_ns, kind | (uint32_t)length << 16, text);
    }
    static void nl_note_int(const nl_table *t, nl_fingerprint fp, uint64_t now_ns, long long value) {
        char text[24];
        nl_note(t, fp, now_ns, NL_TEXT_INT, text, (size_t)snprintf(text, sizeof text, "%lld", value));
    }
    static inline bool nl_is_ascii(PyObject *s) { return PyUnicode_CheckExact(s) && PyUnicode_IS_COMPACT_ASCII(s); }
    static void nl_note_ascii(const nl_table *t, nl_fingerprint fp, uint64_t now_ns, PyObject *s) {
        nl_note(t, fp, now_ns, NL_TEXT_STR, (const char *)(((PyASCIIObject *)s) + 1), (size_t)((PyASCIIObject *)s)->length);
    }
    """
    enum:
        NL_TEXT_STR, NL_TEXT_BYTES, NL_TEXT_INT, NL_TEXT_REPR, NL_TEXT_CUT
    void nl_note(const nl_table *, nl_fingerprint, uint64_t, uint32_t, const char *, size_t) noexcept nogil
    void nl_note_int(const nl_table *, nl_fingerprint, uint64_t, long long) noexcept nogil
    bint nl_is_ascii(PyObject *) noexcept
    void nl_note_ascii(const nl_table *, nl_fingerprint, uint64_t, PyObject *) noexcept


cdef inline int note_denial(nl_table *t, nl_fingerprint fp, uint64_t now_ns, PyObject *key) except -1:
    """A denial of a key, in a table that keeps those that are denied most. Its text is looked at only if it is new among them."""
    if nl_top_count(&t.top, fp, now_ns):
        return 0
    if nl_is_ascii(key):
        nl_note_ascii(t, fp, now_ns, key)
        return 0
    return note_newcomer(t, fp, now_ns, <object>key)


cdef int note_newcomer(nl_table *t, nl_fingerprint fp, uint64_t now_ns, object key) except -1:
    cdef uint32_t kind
    cdef bytes text
    if isinstance(key, str):
        kind, text = NL_TEXT_STR, str.encode(key, "utf-8", "surrogatepass")
    elif isinstance(key, bytes):
        kind, text = NL_TEXT_BYTES, bytes.__getitem__(key, slice(NL_TOP_TEXT + 1))
    elif isinstance(key, int) and int.bit_length(key) < 8 * NL_TOP_TEXT:
        kind, text = NL_TEXT_INT, int.__repr__(int.__index__(key)).encode()
    else:
        kind = NL_TEXT_REPR
        try:
            text = ascii(key).encode()
        except Exception:  # of a part's own __repr__: the decision stands
            text = f"a key of type {type(key).__name__}".encode("utf-8", "replace")
            kind |= NL_TEXT_CUT
    nl_note(t, fp, now_ns, kind, PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
    return 0


cdef int note_key(nl_table *t, uint64_t now_ns, object key) except -1:
    """As note_denial, where the fingerprint is not at hand."""
    cdef nl_fingerprint fp
    fingerprint(t, key, &fp)
    return note_denial(t, fp, now_ns, <PyObject *>key)


cdef list panes_of(nl_top *top, uint64_t now_ns):
    """The panes that count now, as tuples: the denials that are nobody's; the least denials of an entry, 0 while there are free
    ones; and the entries: fingerprint, denials, error, nanoseconds of the last one, kind of the text, is it cut, text."""
    cdef nl_top_entry entry
    cdef nl_top_pane *pane
    cdef uint64_t newest, epoch
    cdef uint32_t used, id
    panes = []
    if top.base == NULL:
        return panes
    newest = max(nl_load64(<uint64_t *>top.base), now_ns // NL_TOP_PANE_NS + 1)
    for epoch in range(newest, newest - NL_TOP_PANES if newest > <uint64_t>NL_TOP_PANES else 0, -1):
        pane = nl_top_pane_of(top, epoch)
        if nl_load64(&pane.epoch) != epoch:
            continue
        used = min(nl_load32(&pane.used), top.keys)
        entries = []
        for id in range(used):
            if nl_top_read(top, pane, id, &entry):
                length = min(entry.form >> 16, <uint32_t>NL_TOP_TEXT)
                entries.append((
                    (entry.fp.lo, entry.fp.hi), <uint32_t>entry.word, entry.error, entry.last_ns, entry.form & 127,
                    entry.form & NL_TEXT_CUT != 0, PyBytes_FromStringAndSize(<const char *>entry.text, length),
                ))
        least = min([each[1] for each in entries]) if entries and used == top.keys else 0
        missed = nl_load64(&pane.missed)
        if nl_load64(&pane.epoch) == epoch:  # else it was emptied meanwhile
            panes.append((missed, least, entries))
    return panes


# --- the short way ---------------------------------------------------------------------------------------------------
#
# Nearly every call is allow(key): one argument, no handlers, the system's clock. Cython's wrapper of a method with an optional
# argument costs as much as the whole check (docs/design.md has the counts), so these stand in front of the wrappers, with the
# same C signature, and pass on what is not theirs: front_allow() and front_check() only jump.

cdef extern from *:
    """
    /* Out of line: else the fronts would save registers for them before they know which way to go. */
    static NL_NOINLINE PyObject *nl_short_allow(PyObject *, nl_table *, PyObject *);
    static NL_NOINLINE PyObject *nl_short_check(PyObject *, nl_table *, PyObject *);
    NL_ALWAYS_INLINE PyObject *nl_meter_allow_as(uint32_t, PyObject *, nl_table *, PyObject *);
    static NL_NOINLINE PyObject *nl_policy_allow(PyObject *, nl_table *, PyObject *);
    static NL_NOINLINE PyObject *nl_seen_allow(PyObject *, nl_table *, PyObject *);
    """

ctypedef PyObject *(*fastcall)(PyObject *, PyObject **, Py_ssize_t, PyObject *) noexcept  # NULL: an error is set
ctypedef PyObject *(*short_way)(PyObject *, nl_table *, PyObject *) noexcept  # as above
cdef fastcall long_allow = NULL
cdef fastcall long_check = NULL


cdef PyObject *short_allow "nl_short_allow" (PyObject *self, nl_table *t, PyObject *key) except NULL:
    cdef nl_fingerprint fp
    cdef uint64_t now_ns
    cdef int outcome
    now_ns = nl_clock_ns(t.clock)  # first: the processor hashes while it waits for the clock, but not the other way round
    if is_str(key):  # without touching its reference count, which threads may fight over
        fp = hash_of_str(t, key)
    else:
        fingerprint_of_other(t, <object>key, &fp)
    outcome = nl_check(t, fp, now_ns, 1, NL_QUICKLY, NULL)
    if outcome == NL_DENIED:
        NL_TALLY(t, NL_COUNT_DENIED, 1)
        return new_bool(False)
    if outcome != NL_ALLOWED:
        return new_bool(settle(<Limiter>self, fp, outcome, <object>key, 1, now_ns, NULL, &t) & NL_ALLOWED)
    NL_TALLY(t, NL_COUNT_ALLOWED, 1)
    return new_bool(True)


cdef PyObject *short_check "nl_short_check" (PyObject *self, nl_table *t, PyObject *key) except NULL:
    cdef nl_fingerprint fp
    cdef uint64_t now_ns
    cdef int outcome
    cdef nl_view view
    now_ns = nl_clock_ns(t.clock)
    if is_str(key):
        fp = hash_of_str(t, key)
    else:
        fingerprint_of_other(t, <object>key, &fp)
    outcome = nl_check(t, fp, now_ns, 1, NL_QUICKLY, &view)
    if outcome <= NL_ALLOWED:
        NL_TALLY(t, NL_COUNT_ALLOWED if outcome else NL_COUNT_DENIED, 1)
    else:
        outcome = settle(<Limiter>self, fp, outcome, <object>key, 1, now_ns, &view, &t)
    return new_ref(new_decision(<Limiter>self, t, outcome, &view, EXACT))


# The same for tables that count in runs, or by meters, in code of its own for each algorithm.

cdef inline PyObject *meter_allow "nl_meter_allow_as" (uint32_t algorithm, PyObject *self, nl_table *t,
                                                       PyObject *key) except NULL:
    cdef nl_fingerprint fp
    cdef uint64_t now_ns = nl_clock_ns(t.clock)
    cdef int outcome
    if is_str(key):
        fp = hash_of_str(t, key)
    else:
        fingerprint_of_other(t, <object>key, &fp)
    if algorithm == NL_RUNS:
        outcome = nl_runs_check(t, fp, now_ns, 1, NL_QUICKLY, NULL)
    else:
        outcome = nl_meter_check_as(algorithm, t, fp, now_ns, 1, NL_QUICKLY, NULL)
    if outcome == NL_DENIED:
        NL_TALLY(t, NL_COUNT_DENIED, 1)
        return new_bool(False)
    if outcome != NL_ALLOWED:
        return new_bool(settle(<Limiter>self, fp, outcome, <object>key, 1, now_ns, NULL, &t) & NL_ALLOWED)
    NL_TALLY(t, NL_COUNT_ALLOWED, 1)
    return new_bool(True)


cdef PyObject *runs_allow(PyObject *self, nl_table *t, PyObject *key) except NULL:
    return meter_allow(NL_RUNS, self, t, key)

cdef PyObject *gcra_allow(PyObject *self, nl_table *t, PyObject *key) except NULL:
    return meter_allow(NL_GCRA, self, t, key)

cdef PyObject *fixed_window_allow(PyObject *self, nl_table *t, PyObject *key) except NULL:
    return meter_allow(NL_FIXED_WINDOW, self, t, key)

cdef PyObject *sliding_counter_allow(PyObject *self, nl_table *t, PyObject *key) except NULL:
    return meter_allow(NL_SLIDING_COUNTER, self, t, key)


cdef short_way meter_allows[5]
meter_allows[<int>NL_RUNS] = <short_way><void *>runs_allow
meter_allows[<int>NL_GCRA] = <short_way><void *>gcra_allow
meter_allows[<int>NL_FIXED_WINDOW] = <short_way><void *>fixed_window_allow
meter_allows[<int>NL_SLIDING_COUNTER] = <short_way><void *>sliding_counter_allow


cdef PyObject *meter_check(PyObject *self, nl_table *t, PyObject *key) except NULL:
    cdef nl_fingerprint fp
    cdef uint64_t now_ns = nl_clock_ns(t.clock)
    cdef int outcome
    cdef nl_view view
    if is_str(key):
        fp = hash_of_str(t, key)
    else:
        fingerprint_of_other(t, <object>key, &fp)
    outcome = nl_check_any(t, fp, now_ns, 1, NL_QUICKLY, &view)
    if outcome <= NL_ALLOWED:
        NL_TALLY(t, NL_COUNT_ALLOWED if outcome else NL_COUNT_DENIED, 1)
    else:
        outcome = settle(<Limiter>self, fp, outcome, <object>key, 1, now_ns, &view, &t)
    return new_ref(new_decision(<Limiter>self, t, outcome, &view, EXACT))


cdef PyObject *seen_allow "nl_seen_allow" (PyObject *self, nl_table *t, PyObject *key) except NULL:
    """allow(key) where handlers are attached, or those that are denied most are kept."""
    cdef nl_fingerprint fp
    cdef uint64_t now_ns = nl_clock_ns(t.clock)
    cdef int outcome
    if is_str(key):
        fp = hash_of_str(t, key)
    else:
        fingerprint_of_other(t, <object>key, &fp)
    if t.rule.algorithm == 0:  # here, in line
        outcome = nl_check(t, fp, now_ns, 1, NL_QUICKLY, NULL)
    else:
        outcome = nl_check_any(t, fp, now_ns, 1, NL_QUICKLY, NULL)
    if outcome == NL_DENIED:
        NL_TALLY(t, NL_COUNT_DENIED, 1)
        if flags_of(t) & NL_FLAG_TOP:
            note_denial(t, fp, now_ns, key)
        if event_mask & EVENT_DENIED and flags_of(t) & NL_FLAG_EVENTS:
            emit_denied(<Limiter>self, 1, <object>key)
        return new_bool(False)
    if outcome != NL_ALLOWED:
        return new_bool(settle(<Limiter>self, fp, outcome, <object>key, 1, now_ns, NULL, &t) & NL_ALLOWED)
    NL_TALLY(t, NL_COUNT_ALLOWED, 1)
    if event_mask & EVENT_ALLOWED and flags_of(t) & NL_FLAG_EVENTS:
        emit_allowed(<Limiter>self, 1, <object>key)
    return new_bool(True)


cdef PyObject *front_allow(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names) noexcept:
    cdef nl_table *t = <nl_table *>(<Limiter>self).table
    if n == 1 and names == NULL:
        if flags_of(t) == 0:
            return (<short_way><void *>short_allow)(self, t, args[0])
        if flags_of(t) == NL_FLAG_ALGORITHM:
            return meter_allows[t.rule.algorithm](self, t, args[0])
        if not flags_of(t) & ~(NL_FLAG_ALGORITHM | NL_FLAG_TOP | NL_FLAG_EVENTS):
            return (<short_way><void *>seen_allow)(self, t, args[0])
        if flags_of(t) & ~(NL_FLAG_ALGORITHM | NL_FLAG_TOP) == NL_FLAG_POLICY:
            return (<short_way><void *>policy_allow)(self, t, args[0])
    return long_allow(self, args, n, names)


cdef PyObject *front_check(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names) noexcept:
    cdef nl_table *t = <nl_table *>(<Limiter>self).table
    if n == 1 and names == NULL:
        if flags_of(t) == 0:
            return (<short_way><void *>short_check)(self, t, args[0])
        if flags_of(t) == NL_FLAG_ALGORITHM:
            return (<short_way><void *>meter_check)(self, t, args[0])
    return long_check(self, args, n, names)


cdef int put_in_front(type of, str name, fastcall front, fastcall *long_way) except -1:
    """Bound methods keep a pointer to their type's method record; the record gets the short way, which knows the long one."""
    cdef PyMethodDef *method = (<PyMethodDescrObject *><PyObject *>of.__dict__[name]).d_method
    if method.ml_flags == METH_FASTCALL | METH_KEYWORDS:  # else this Python calls methods in another way: it goes the long one
        long_way[0] = <fastcall><void *>method.ml_meth
        method.ml_meth = <PyCFunction><void *>front
    return 0


put_in_front(Limiter, "allow", front_allow, &long_allow)
put_in_front(Limiter, "check", front_check, &long_check)


cdef void check_all(nl_table *t, bint stalled_allows, const nl_fingerprint *fps, const char *words, Py_ssize_t stride,
                    bint unsigned_, Py_ssize_t n, uint64_t now_ns, uint32_t units, unsigned char *outcomes) noexcept nogil:
    """A batch, group by group: of fingerprints, or (fps NULL) of 64-bit integers."""
    cdef nl_fingerprint group[64]
    cdef nl_tally tally
    cdef int64_t word
    cdef int kind
    cdef Py_ssize_t done = 0
    cdef uint32_t i, size
    tally.allowed = tally.denied = tally.untracked = tally.stalled = 0
    while done < n:
        size = NL_GROUP if n - done > NL_GROUP else <uint32_t>(n - done)
        if fps == NULL:
            for i in range(size):
                memcpy(&word, words + (done + i) * stride, 8)
                kind = NL_KEY_INT if unsigned_ or word >= 0 else NL_KEY_INT_NEGATIVE
                group[i] = nl_hash_word(&t.seeds[kind], <uint64_t>word)
            nl_check_group(t, group, size, now_ns, units, stalled_allows, outcomes + done, &tally)
        else:
            nl_check_group(t, fps + done, size, now_ns, units, stalled_allows, outcomes + done, &tally)
        done += size
    nl_tally_count(&t.head.counters, nl_my_stripe(), &tally)


include "_bundle.pxi"
include "_denial.pxi"


# --- for Cython (__init__.pxd) ----------------------------------------------------------------------------------------

cdef int abi_version() noexcept nogil:
    return NANOLIMIT_ABI


cdef int allow_fingerprint(Limiter limiter, nl_fingerprint fp, long long cost, const char *data, size_t length,
                           long long key) noexcept nogil:
    """The key itself, as data or (data NULL) as an integer, is for telemetry only."""
    cdef nl_table *t = <nl_table *>limiter.table
    cdef uint32_t flags = flags_of(t)
    cdef nl_outcome outcome
    cdef uint64_t now_ns
    if flags & NL_FLAG_CLOSED:
        return -2
    if flags & (NL_FLAG_CLOCK | NL_FLAG_POLICY) or (flags & NL_FLAG_CHILD and nl_shared_register(t) != 0):
        return -3
    if cost < 0 or cost > nl_load32(&t.head.limit):
        return -1
    if cost == 0:
        return 1
    now_ns = nl_clock_ns(t.clock)
    outcome = nl_check_any(t, fp, now_ns, <uint32_t>cost, NL_WAITING, NULL)
    while outcome & NL_MOVED:
        t = nl_table_after(t)
        outcome = nl_check_any(t, fp, nl_clock_ns(t.clock), <uint32_t>cost, NL_WAITING, NULL) | (outcome & NL_DISPLACED)
    if outcome & NL_WOULD_WAIT:
        nl_count(&t.head.counters, nl_my_stripe(), NL_COUNT_STALLED, 1)
        outcome = (outcome & NL_DISPLACED) | (NL_ALLOWED if limiter.stall_allows else NL_DENIED)
    nl_count(&t.head.counters, nl_my_stripe(), NL_COUNT_ALLOWED if outcome & NL_ALLOWED else NL_COUNT_DENIED, 1)
    if outcome & NL_UNTRACKED:
        nl_count(&t.head.counters, nl_my_stripe(), NL_COUNT_OVERFLOWED, 1)
    if flags & NL_FLAG_TOP and not outcome & NL_ALLOWED and not nl_top_count(&t.top, fp, now_ns):
        if data == NULL:
            nl_note_int(t, fp, now_ns, key)
        else:
            nl_note(t, fp, now_ns, NL_TEXT_BYTES, data, length)
    if flags & NL_FLAG_EVENTS:
        with gil:
            try:
                limiter.tell(outcome, cost, key if data == NULL else data[:length])
            except BaseException:
                PyErr_WriteUnraisable(limiter)
    return outcome & NL_ALLOWED


cdef int allow_bytes(Limiter limiter, const char *data, size_t length, long long cost) noexcept nogil:
    cdef nl_table *t = <nl_table *>limiter.table
    return allow_fingerprint(limiter, nl_hash_bytes(&t.seeds[<int>NL_KEY_BYTES], data, length), cost, data, length, 0)


cdef int allow_int(Limiter limiter, long long key, long long cost) noexcept nogil:
    cdef nl_table *t = <nl_table *>limiter.table
    cdef int kind = NL_KEY_INT if key >= 0 else NL_KEY_INT_NEGATIVE
    return allow_fingerprint(limiter, nl_hash_word(&t.seeds[kind], <uint64_t>key), cost, NULL, 0, key)


# --- shared tables: the files' insides ---------------------------------------------------------------------------------

SHARED = bool(NL_HAS_SHARED)
LAYOUT_VERSION = NL_LAYOUT_VERSION
HEADER_BYTES = sizeof(nl_header)


cdef int open_shared(nl_table *t, int fd, path, uint32_t on_full, uint64_t stall_ns, bint read_only) except -1:
    cdef bytes name = os.fsencode(path) if path is not None else None
    cdef const char *text = NULL
    if name is not None:
        text = PyBytes_AS_STRING(name)
    cdef const char *wrong
    with nogil:
        wrong = nl_shared_open(t, fd, text, on_full, stall_ns, read_only)
    if wrong != NULL:
        more = f": {os.strerror(errno)}" if errno else ""
        raise SharedTableError(f"shared table {path if path is not None else '(anonymous)'}: {(<bytes>wrong).decode()}{more}")
    return 0


cdef nl_config config_of(limit, window_ns, max_keys, typical, str algorithm, max_log, track_top) except *:
    cdef nl_config config
    if not 1 <= max_keys <= NL_SHARED_KEYS_MOST:
        raise ValueError(f"max_keys must be from 1 to 2**30 for a shared table, got {max_keys}")
    if not 1 <= typical <= limit:
        raise ValueError(f"typical must be from 1 to the limit of {limit}, got {typical}")
    config.limit = limit
    config.window_ns = window_ns
    config.max_keys = max_keys
    config.on_full = 0
    config.secret[0] = config.secret[1] = 0
    config.typical = typical
    config.algorithm = ALGORITHMS.index(algorithm)
    config.max_log = max_log
    config.track_top = track_top
    return config


def table_bytes(*, limit, window_ns, max_keys, typical, str algorithm not None="sliding-log", max_log=0, track_top=0):
    """How many bytes the file of such a table has."""
    cdef nl_config config = config_of(limit, window_ns, max_keys, typical, algorithm, max_log, track_top)
    return nl_shared_bytes(&config)


def has_room(layout_limit, limit, window_ns, str algorithm not None="sliding-log", max_log=0):
    """Has a table that was laid out for one limit room for the other?"""
    return bool(nl_shared_holds(layout_limit, limit, window_ns, ALGORITHMS.index(algorithm), max_log))


def format_table(int fd, *, limit, in_force, window_ns, max_keys, typical, own_clock, bytes boot_id not None, pid_namespace,
                 time_namespace, number=0, quotas=1, str algorithm not None="sliding-log", max_log=0, track_top=0):
    """Makes a table of a file that has exactly its size, and zeros in it: with room for one limit, and with another, or the same,
    in force. Nobody has the file yet but the caller."""
    cdef nl_config config = config_of(limit, window_ns, max_keys, typical, algorithm, max_log, track_top)
    cdef nl_origin origin
    cdef bytes secret = os.urandom(16)
    cdef uint64_t size = nl_shared_bytes(&config)
    if len(boot_id) != 16:
        raise ValueError(f"boot_id must have 16 bytes, got {len(boot_id)}")
    if os.fstat(fd).st_size != size:
        raise ValueError(f"the file must have {size} bytes, got {os.fstat(fd).st_size}")
    memcpy(config.secret, PyBytes_AS_STRING(secret), 16)
    memset(&origin, 0, sizeof(origin))
    memcpy(origin.boot_id, PyBytes_AS_STRING(boot_id), 16)
    origin.pid_namespace = pid_namespace
    origin.time_namespace = time_namespace
    origin.created_ns = time.time_ns()
    origin.own_clock = bool(own_clock)
    origin.number = number
    origin.quotas = quotas
    from mmap import mmap  # here, where it is needed

    with mmap(fd, size) as mapping:
        format_into(mapping, &config, &origin)
        offset = head_offset(&config) + HEAD_LIMIT
        mapping[offset : offset + 4] = int(in_force).to_bytes(4, sys.byteorder)


cdef int format_into(object mapping, const nl_config *config, const nl_origin *origin) except -1:
    cdef unsigned char[::1] view = mapping
    with nogil:
        nl_shared_format(&view[0], config, origin)
    return 0


def read_header(int fd):
    """What a file's header says, unchecked."""
    cdef nl_header header
    cdef bytes data = os.pread(fd, sizeof(nl_header), 0)
    if len(data) < HEADER_BYTES:
        raise ValueError(f"the file must begin with a header of {HEADER_BYTES} bytes, got {len(data)}")
    memcpy(&header, PyBytes_AS_STRING(data), sizeof(header))
    limit = header.layout_limit
    intact = nl_header_digest(&header) == header.digest
    if intact:
        limit = limit_in_force(fd, &header)
    return {
        "magic": data[:8], "version": header.version, "byte_order": header.byte_order, "word_bytes": header.word_bytes,
        "page_bytes": header.page_bytes, "header_bytes": header.header_bytes, "file_bytes": header.file_bytes, "intact": intact,
        "state": header.state, "boot_id": <bytes>header.origin.boot_id[:16], "pid_namespace": header.origin.pid_namespace,
        "time_namespace": header.origin.time_namespace, "window_ns": header.window_ns, "limit": limit,
        "layout_limit": header.layout_limit, "max_keys": header.max_keys, "typical": header.typical, "max_log": header.max_log,
        "algorithm": ALGORITHMS[header.algorithm] if header.algorithm < <uint32_t>len(ALGORITHMS) else header.algorithm,
        "own_clock": bool(header.origin.own_clock), "created_ns": header.origin.created_ns, "number": header.origin.number,
        "quotas": header.origin.quotas, "track_top": header.track_top,
    }


cdef object limit_in_force(int fd, const nl_header *header):
    """The word of the head, if the file is long enough to have one."""
    cdef nl_config config
    if header.algorithm >= <uint32_t>len(ALGORITHMS):
        return header.layout_limit
    try:
        config = config_of(header.layout_limit, header.window_ns, header.max_keys, header.typical, ALGORITHMS[header.algorithm],
                           header.max_log, header.track_top)
    except ValueError:
        return header.layout_limit
    cdef uint64_t offset = head_offset(&config) + HEAD_LIMIT
    data = os.pread(fd, 4, offset)
    return int.from_bytes(data, sys.byteorder) if len(data) == 4 else header.layout_limit


cdef extern from *:
    """
    static uint64_t nl_head_offset(const nl_config *config) {
        nl_layout l = nl_layout_of(config);
        return l.sizes[NL_REGION_HEADER] + l.sizes[NL_REGION_MEMBERS];
    }
    #define NL_HEAD_LIMIT offsetof(nl_head, limit)
    #define NL_HEADER_STATE offsetof(nl_header, state)
    """
    uint64_t head_offset "nl_head_offset" (const nl_config *) noexcept
    uint64_t HEAD_LIMIT "NL_HEAD_LIMIT"
    uint64_t HEADER_STATE "NL_HEADER_STATE"


def mark_replaced(int fd):
    """Says in a header that another file has taken this one's place. Who has it mapped goes on with it."""
    os.pwrite(fd, int(NL_STATE_REPLACED).to_bytes(4, sys.byteorder), HEADER_STATE)


@cython.final
cdef class Reader:
    """A shared table that is only looked at: nothing in it changes, and who looks is none of its users. O(1) each."""

    cdef void *table
    cdef readonly bint own_clock

    def __cinit__(self, int fd):
        """ValueError: it is no table that can be read."""
        cdef nl_table *t = <nl_table *>calloc(1, sizeof(nl_table))
        if t == NULL:
            raise MemoryError()
        try:
            open_shared(t, fd, None, 0, 0, True)
        except SharedTableError as error:
            free(t)
            raise ValueError(str(error).partition(": ")[2]) from None
        self.table = t
        self.own_clock = (<nl_header *>t.memory.base).origin.own_clock != 0

    def __dealloc__(self):
        cdef nl_table *t = <nl_table *>self.table
        if t != NULL:
            nl_shared_close(t)
            free(t)

    @property
    def limit(self) -> int:
        """The limit in force."""
        return nl_load32(&(<nl_table *>self.table).head.limit)

    @property
    def track_top(self) -> int:
        """How many of the keys that are denied most there is room for."""
        cdef nl_table *t = <nl_table *>self.table
        return t.top.keys if t.top.base != NULL else 0

    @property
    def replaced(self) -> bool:
        """Has another table taken its name?"""
        return nl_load32(&(<nl_header *>(<nl_table *>self.table).memory.base).state) == NL_STATE_REPLACED

    def stats(self):
        """As of a Limiter."""
        cdef nl_table *t = <nl_table *>self.table
        stats = Stats(
            nl_table_count(t, NL_COUNT_ALLOWED), nl_table_count(t, NL_COUNT_DENIED), nl_table_keys(t),
            nl_table_count(t, NL_COUNT_EVICTED), nl_table_count(t, NL_COUNT_OVERFLOWED), t.memory.bytes, t.slab.most,
        )
        stats.would_deny = nl_table_count(t, NL_COUNT_WOULD_DENY)
        stats.stalled = nl_table_count(t, NL_COUNT_STALLED)
        stats.log_bytes = nl_table_log_bytes(t)
        stats.log_capacity_bytes = t.chunks.chunks.bytes
        return stats

    def denied_most(self):
        """As of a Limiter; where its users bring a clock, by the newest time that one of them said."""
        cdef nl_table *t = <nl_table *>self.table
        cdef uint64_t now_ns = 0 if self.own_clock else nl_clock_ns(t.clock)
        return panes_of(&t.top, now_ns), None if self.own_clock else now_ns

    def _fingerprint(self, key):
        """The key's 128 bits, low word first."""
        cdef nl_fingerprint fp
        fingerprint(<nl_table *>self.table, key, &fp)
        return int(fp.lo) | int(fp.hi) << 64


def inspect_table(int fd):
    """What a table holds and who is at it: read_header's items and more. Reads only; walks the slots."""
    cdef nl_table *t = <nl_table *>calloc(1, sizeof(nl_table))
    cdef uint64_t live, word
    cdef uint32_t place
    if t == NULL:
        raise MemoryError()
    try:
        try:
            open_shared(t, fd, None, 0, 0, True)
        except SharedTableError as error:
            raise ValueError(str(error).partition(": ")[2]) from None
        try:
            with nogil:
                live = nl_walk_count(t, nl_clock_ns(t.clock))
            processes = []
            for place in range(1, nl_table_places(t) + 1):
                word = nl_load64(&t.us.members[place].word)
                if word & NL_MEMBER_STATE == NL_MEMBER_ALIVE:
                    processes.append((place, t.us.members[place].pid, bool(nl_place_is_locked(fd, t.memory.bytes, place))))
            return {
                **read_header(fd),
                "allowed": nl_table_count(t, NL_COUNT_ALLOWED), "denied": nl_table_count(t, NL_COUNT_DENIED),
                "evicted": nl_table_count(t, NL_COUNT_EVICTED), "overflowed": nl_table_count(t, NL_COUNT_OVERFLOWED),
                "stalled": nl_table_count(t, NL_COUNT_STALLED), "keys": nl_table_keys(t), "live_keys": live,
                "log_bytes": nl_table_log_bytes(t), "log_capacity_bytes": t.chunks.chunks.bytes, "processes": processes,
            }
        finally:
            nl_shared_close(t)
    finally:
        free(t)


# --- for benchmarks and tests -------------------------------------------------------------------------------------------

@cython.final
cdef class Control:
    """The floor that a check stands on: an empty method, and the same with one reading of the clock."""

    def empty(self, key):
        return True

    def clock(self, key):
        return nl_clock_ns(NL_CLOCK_PRIVATE) != 0


def _siphash128(bytes key16 not None, bytes data not None):
    """SipHash-1-3-128 of data, as 16 bytes: for the tests of hash.h."""
    cdef uint64_t k[2]
    cdef nl_hash_seed seed
    cdef nl_fingerprint fp
    if len(key16) != 16:
        raise ValueError(f"key16 must have 16 bytes, got {len(key16)}")
    k[0] = int.from_bytes(key16[:8], "little")
    k[1] = int.from_bytes(key16[8:], "little")
    seed = nl_hash_seed_of(k[0], k[1])
    fp = nl_hash_raw(&seed, PyBytes_AS_STRING(data), len(data))
    return int(fp.lo).to_bytes(8, "little") + int(fp.hi).to_bytes(8, "little")


cdef extern from *:
    """
    #ifdef NL_KILL_POINTS
    static int arm_point(const char *name, uint32_t passings, int signal) {
        for (int i = 0; i < NL_POINT_COUNT; i++)
            if (!strcmp(nl_point_names[i], name)) {
                nl_armed.at = -1;
                nl_armed.passings = passings;
                nl_armed.signal = signal;
                nl_armed.at = i;
                return 0;
            }
        return -1;
    }
    static const char *point_name(int i) { return i < NL_POINT_COUNT ? nl_point_names[i] : NULL; }
    #else
    static int arm_point(const char *name, uint32_t passings, int signal) { (void)name; (void)passings; (void)signal; return -1; }
    static const char *point_name(int i) { (void)i; return NULL; }
    #endif
    """
    int arm_point(const char *, uint32_t, int) noexcept
    const char *point_name(int) noexcept


def _kill_points():
    """The labels of the core's points, in a build that has them (NANOLIMIT_KILL_POINTS=1); else an empty list."""
    names = []
    while point_name(<int>len(names)) != NULL:
        names.append((<bytes>point_name(<int>len(names))).decode())
    return names


def _signal_at(str name not None, passings, signal):
    """Has this process sent the signal at its n-th passing of that point."""
    if arm_point(name.encode(), passings, signal) != 0:
        raise ValueError(f"no such point in this build: {name!r}")


def _kill_at(str name not None, passings=1):
    _signal_at(name, passings, 9)


def _stop_at(str name not None, passings=1):
    _signal_at(name, passings, 19)


def _defer_refcount(obj):
    """On free-threaded CPython 3.14+: spares threads that share obj its reference count. True: done; else no harm."""
    return nl_defer_refcount(obj) == 1
