# Part of _core.pyx: several quotas, and several limiters, in one check, all or nothing.


cdef int binding_of(nl_claim *claims, uint32_t n, bint allowed) noexcept:
    """Which of them a Decision speaks for: of those that deny, who makes one wait longest; else who has least left."""
    cdef int best = -1
    cdef uint32_t i
    cdef uint64_t wait, longest = 0
    cdef uint32_t left, least = 0
    cdef nl_claim *c
    for i in range(n):
        c = &claims[i]
        if allowed:
            left = c.view.limit - c.view.used if c.view.used < c.view.limit else 0
            if best < 0 or left < least:
                best, least = <int>i, left
        elif not c.outcome & NL_ALLOWED:
            wait = c.table.head.window_ns
            if not c.outcome & NL_UNTRACKED:
                wait = (c.view.deciding_tick + c.table.rule.window) * c.table.rule.tick_ns - c.view.now_ns
            if best < 0 or wait > longest:
                best, longest = <int>i, wait
    return best if best > 0 else 0


cdef inline void claim_of(nl_claim *c, nl_table *t, nl_fingerprint fp, uint64_t now_ns, uint32_t units) noexcept nogil:
    c.table = t
    c.fp = fp
    c.limit = nl_load32(&t.head.limit)
    c.cost = units
    c.now = nl_rule_now(&t.rule, now_ns)
    c.outcome = NL_ALLOWED


cdef int peek_all(nl_claim *claims, uint32_t n, uint64_t now_ns, int patience) noexcept nogil:
    """Would all fit? Each has its view. NL_WOULD_WAIT: one could not be read."""
    cdef int outcome = NL_ALLOWED
    cdef uint32_t i
    for i in range(n):
        claims[i].outcome = nl_peek(claims[i].table, claims[i].fp, now_ns, claims[i].cost, patience, &claims[i].view)
        if claims[i].outcome == NL_WOULD_WAIT:
            return NL_WOULD_WAIT
        if claims[i].outcome == NL_DENIED:
            outcome = NL_DENIED
    return outcome


@cython.final
cdef class Bundle:
    """Several quotas for each key, as one limiter: a Limiter for each. Private ones have one secret, so that a key is hashed
    once; files each have their own.

    It has a Limiter's methods. A request counts in all or in none (core/claim.h). The counters are those of the first.
    """

    def __cinit__(self, limiters):
        self.limiters = tuple(limiters)
        if not 2 <= len(self.limiters) <= NL_QUOTAS_MOST:
            raise ValueError(f"a bundle has 2 to {NL_QUOTAS_MOST} quotas, got {len(self.limiters)}")
        self.n = <uint32_t>len(self.limiters)
        self.first = self.limiters[0]
        self.name = self.first.name
        self.longest = self.first
        cdef Limiter limiter
        cdef uint32_t number = 0
        for limiter in self.limiters:
            if memcmp(&table_of(limiter).head.secret, &table_of(self.first).head.secret, 16) != 0:
                self.hashes_each = True
            table_of(limiter).number = number
            number += 1
            if table_of(limiter).head.window_ns > table_of(self.longest).head.window_ns:
                self.longest = limiter
        nl_defer_refcount(self)

    @property
    def quota(self):
        """The first of the quotas."""
        return self.first.quota

    @property
    def quotas(self):
        """The quotas in force, as they were named."""
        return tuple(limiter.quota for limiter in self.limiters)

    @property
    def algorithm(self) -> str:
        """How it counts, all quotas alike."""
        return self.first.algorithm

    @property
    def clock(self):
        return self.first.clock

    @property
    def closed(self) -> bool:
        """Has close() been called?"""
        return self.first.closed

    # -- checks. As with Limiter, allow(key) and check(key) have a short way in front of these.

    def allow(self, key, cost=1):
        """Counts the request in all quotas, if it fits in all. True: it did."""
        cdef nl_claim claims[NL_QUOTAS_MOST]
        cdef double seconds
        cdef unsigned int units
        cdef uint64_t now_ns = self.claim(key, cost, claims, &units, &seconds)
        if units == 0:
            return True
        cdef int outcome = nl_claims_check(claims, self.n, False, NL_QUICKLY)
        return settle_all(self, outcome, key, units, now_ns, claims, False) & NL_ALLOWED != 0

    def check(self, key, cost=1):
        """As allow(), and tells more: a Decision, of the quota that binds."""
        cdef nl_claim claims[NL_QUOTAS_MOST]
        cdef double seconds
        cdef unsigned int units
        cdef uint64_t now_ns = self.claim(key, cost, claims, &units, &seconds)
        if units == 0:
            return self.peek(key, 0)
        cdef int outcome = nl_claims_check(claims, self.n, True, NL_QUICKLY)
        outcome = settle_all(self, outcome, key, units, now_ns, claims, True)
        return decision_of(self, claims, outcome, seconds)

    def peek(self, key, cost=1):
        """Would it fit? A Decision; nothing is counted, nothing is changed."""
        cdef nl_claim claims[NL_QUOTAS_MOST]
        cdef double seconds
        cdef unsigned int units
        cdef uint64_t now_ns = self.claim(key, cost, claims, &units, &seconds)
        cdef int outcome = peek_all(claims, self.n, now_ns, NL_QUICKLY)
        if outcome == NL_WOULD_WAIT:
            with nogil:
                outcome = peek_all(claims, self.n, now_ns, NL_WAITING)
            if outcome == NL_WOULD_WAIT:
                outcome = stalled_all(self, claims, now_ns, units)
                NL_TALLY(table_of(self.first), NL_COUNT_STALLED, 1)
        return decision_of(self, claims, outcome, seconds)

    cdef unsigned long long claim(self, object key, object cost, void *into, unsigned int *units,
                                  double *seconds) except? 0xffffffffffffffff:
        """What the key claims of each table. The time in nanoseconds."""
        cdef nl_claim *claims = <nl_claim *>into
        cdef nl_fingerprint fp
        cdef uint32_t i
        cdef uint64_t now_ns
        cdef uint32_t fitting = self.units(cost)
        self.be_ready()
        fingerprint(table_of(self.first), key, &fp)
        now_ns = self.first.now(seconds)
        self.be_ready()
        for i in range(self.n):
            if i and self.hashes_each:
                fingerprint(table_of(<Limiter>self.limiters[i]), key, &fp)
            claim_of(&claims[i], table_of(<Limiter>self.limiters[i]), fp, now_ns, fitting)
        units[0] = fitting
        return now_ns

    cdef int be_ready(self) except -1:
        cdef Limiter limiter
        for limiter in self.limiters:
            limiter.be_ready()
        return 0

    cdef unsigned int units(self, object cost) except? 0xffffffff:
        """cost as a number of units: 0 .. the least limit."""
        cdef Limiter limiter
        cdef uint32_t units = 0
        for limiter in self.limiters:
            units = limiter.units(cost)
        return units

    # -- units given back (core/refund.h)

    def count(self, key, cost):
        """As check(); and, if it was counted, a token for give_back(), else None."""
        cdef nl_claim claims[NL_QUOTAS_MOST]
        cdef double seconds
        cdef uint32_t i
        cdef unsigned int units
        cdef uint64_t now_ns = self.claim(key, cost, claims, &units, &seconds)
        if units == 0:
            return self.peek(key, 0), None
        cdef int outcome = nl_claims_check(claims, self.n, True, NL_QUICKLY)
        outcome = settle_all(self, outcome, key, units, now_ns, claims, True)
        token = None
        if outcome & NL_ALLOWED:
            token = tuple([
                None if claims[i].outcome & NL_UNTRACKED else token_of(claims[i].table, &claims[i].view) for i in range(self.n)
            ])
        return decision_of(self, claims, outcome, seconds), token

    def give_back(self, key, units, token=None):
        """Gives back up to so many units: those of a token, or (None) the last ones. How many still counted somewhere."""
        given = 0
        for i in range(self.n):
            if token is None or token[i] is not None:
                given = max(given, (<Limiter>self.limiters[i]).give_back(key, units, None if token is None else (token[i],)))
        return given

    # -- batches

    def allow_many(self, keys, cost=1):
        """allow() for each key, in order: as Limiter.allow_many."""
        cdef uint32_t units = self.units(cost)
        cdef double seconds
        cdef uint64_t now_ns
        cdef Py_ssize_t n, i
        cdef unsigned char *outcomes
        cdef nl_table *tables[NL_QUOTAS_MOST]
        cdef nl_fingerprint *fps[NL_QUOTAS_MOST]
        memset(fps, 0, sizeof(fps))
        self.be_ready()
        of_words = PyObject_CheckBuffer(keys) and not isinstance(keys, (str, bytes, bytearray))
        if of_words:
            keys = words_of(keys)
        keys = checked_keys(keys)
        n = len(keys)
        result = bytearray(n)
        outcomes = result
        try:
            for i in range(self.n if n else 0):
                if i == 0 or self.hashes_each:
                    fps[i] = fingerprints_of(table_of(<Limiter>self.limiters[i]), keys)
            now_ns = self.first.now(&seconds)
            self.be_ready()
            for i in range(self.n):
                tables[i] = table_of(<Limiter>self.limiters[i])
            if units and n:
                with nogil:
                    claim_many(tables, self.n, self.first.stall_allows, fps, n, now_ns, units, outcomes)
                if event_mask:
                    for i in range(n):
                        self.first.tell(outcomes[i], units, keys[i])
            for i in range(n):
                outcomes[i] = outcomes[i] & NL_ALLOWED if units else 1
        finally:
            for i in range(self.n):
                free(fps[i])
        return memoryview(result).cast("?") if of_words else [outcome != 0 for outcome in result]

    # -- the rest

    def reset(self, key):
        """Forgets the key in all. True: one had a log."""
        return any([limiter.reset(key) for limiter in self.limiters])

    def clear(self):
        """Forgets all keys."""
        for limiter in self.limiters:
            limiter.clear()

    def evict(self):
        """Drops idle keys of all. The number of those that were idle in the longest window."""
        dropped = [limiter.evict() for limiter in self.limiters]
        return dropped[self.limiters.index(self.longest)]

    def stats(self):
        """The first one's decisions; keys of the fullest; sums of the others."""
        every = [limiter.stats() for limiter in self.limiters]
        first = every[0]
        stats = Stats(
            first.allowed, first.denied, max(each.keys for each in every), sum(each.evicted for each in every), first.overflowed,
            sum(each.memory_bytes for each in every), first.capacity,
        )
        stats.stalled = first.stalled
        stats.log_bytes = sum(each.log_bytes for each in every)
        stats.log_capacity_bytes = sum(each.log_capacity_bytes for each in every)
        return stats

    def __len__(self):
        return len(self.longest)

    def __contains__(self, key):
        return key in self.longest

    def close(self):
        """Ends the use of all."""
        for limiter in self.limiters:
            limiter.close()

    def __reduce__(self):
        raise TypeError("cannot pickle a limiter: make one in each process")

    def _fingerprint(self, key):
        return self.first._fingerprint(key)

    def _verify(self):
        return sum([limiter._verify() for limiter in self.limiters])


cdef Decision decision_of(Bundle bundle, nl_claim *claims, int outcome, double seconds):
    cdef int i = binding_of(claims, bundle.n, outcome & NL_ALLOWED != 0)
    cdef int own = (outcome & NL_ALLOWED) | (claims[i].outcome & NL_UNTRACKED)
    return new_decision(<Limiter>bundle.limiters[i], claims[i].table, own, &claims[i].view, seconds)


cdef int stalled_all(Bundle bundle, nl_claim *claims, uint64_t now_ns, uint32_t units) noexcept:
    """The answer where a process that is stopped keeps all others waiting."""
    cdef int outcome = NL_DENIED
    cdef uint32_t i
    for i in range(bundle.n):
        claims[i].outcome = outcome = nl_untracked(bundle.first.stall_allows, claims[i].limit, units, now_ns, &claims[i].view)
    return outcome


cdef int settle_all(Bundle bundle, int outcome, object key, uint32_t units, uint64_t now_ns, nl_claim *claims,
                    bint views) except -1:
    """What is left to do after a check: wait where it would have waited, count, tell."""
    cdef nl_table *t = table_of(bundle.first)
    cdef int displaced = outcome & NL_DISPLACED
    cdef bint stalled = False
    if outcome & NL_WOULD_WAIT:
        with nogil:
            outcome = nl_claims_check(claims, bundle.n, views, NL_WAITING)
        displaced |= outcome & NL_DISPLACED
        if outcome & NL_WOULD_WAIT:
            stalled = True
            outcome = stalled_all(bundle, claims, now_ns, units)
        outcome |= displaced
    NL_TALLY(t, NL_COUNT_ALLOWED if outcome & NL_ALLOWED else NL_COUNT_DENIED, 1)
    if outcome & NL_UNTRACKED:
        NL_TALLY(t, NL_COUNT_STALLED if stalled else NL_COUNT_OVERFLOWED, 1)
    if event_mask:
        bundle.first.tell(outcome & ~NL_UNTRACKED if stalled else outcome, units, key)
    return outcome


cdef void claim_many(nl_table **tables, uint32_t quotas, bint stalled_allows, nl_fingerprint **fps, Py_ssize_t n, uint64_t now_ns,
                     uint32_t units, unsigned char *outcomes) noexcept nogil:
    cdef nl_claim claims[NL_QUOTAS_MOST]
    cdef nl_tally tally
    cdef Py_ssize_t at
    cdef uint32_t i
    cdef int outcome
    tally.allowed = tally.denied = tally.untracked = tally.stalled = 0
    for at in range(n):
        for i in range(quotas):
            claim_of(&claims[i], tables[i], (fps[i] if fps[i] != NULL else fps[0])[at], now_ns, units)
        outcome = nl_claims_check(claims, quotas, False, NL_WAITING)
        if outcome & NL_WOULD_WAIT:
            tally.stalled += 1
            outcome = (outcome & NL_DISPLACED) | (NL_ALLOWED if stalled_allows else NL_DENIED)
        outcomes[at] = <unsigned char>outcome
        nl_tally_add(&tally, outcome)
    nl_tally_count(&tables[0].head.counters, nl_my_stripe(), &tally)


# --- several limiters ---------------------------------------------------------------------------------------------------

cdef struct Part:  # one of check_together's items: which claims are its own
    PyObject *engine
    uint32_t units, number
    double seconds


def check_together(items):
    """Decides on (limiter, key) or (limiter, key, cost) items, limiters being RateLimiters: counts all, or none. A Decision.

    The same key of the same limiter may stand there twice: the costs add up.
    """
    cdef nl_claim claims[NL_CLAIMS_MOST]
    cdef Part parts[NL_CLAIMS_MOST]
    cdef int part_of[NL_CLAIMS_MOST]  # which item a claim belongs to
    cdef uint32_t n = 0, place = 0, number, i
    cdef int outcome, best, displaced
    cdef uint64_t now_ns
    cdef nl_fingerprint fp
    cdef Limiter limiter
    cdef Part *part
    if type(items) is not list and type(items) is not tuple:
        if not isinstance(items, Iterable):
            raise TypeError(f"items must be (limiter, key) or (limiter, key, cost) tuples, got one {type(items).__name__}")
        items = list(items)
    if not items:
        raise ValueError("check_all needs at least one (limiter, key, cost), got none")
    if len(items) > NL_CLAIMS_MOST:
        raise too_many()
    for item in items:
        part = &parts[place]
        engine = engine_of(item, place)
        part.engine = <PyObject *>engine
        part.number = 1 if type(engine) is Limiter else (<Bundle>engine).n
        part.seconds = EXACT
        cost = (<tuple>item)[2] if len(<tuple>item) == 3 else 1
        now_ns = 0
        for number in range(part.number):
            limiter = <Limiter>engine if type(engine) is Limiter else <Limiter>(<Bundle>engine).limiters[number]
            part.units = limiter.units(cost)
            limiter.be_ready()
            if number == 0 or (<Bundle>engine).hashes_each:
                fingerprint(table_of(limiter), (<tuple>item)[1], &fp)
            if number == 0:
                now_ns = limiter.now(&part.seconds)
                limiter.be_ready()
            if n == NL_CLAIMS_MOST:
                raise too_many()
            claim_of(&claims[n], table_of(limiter), fp, now_ns, part.units)
            for i in range(n):
                if same_key(&claims[i], &claims[n]):
                    add_up(&claims[i], part.units, (<tuple>item)[1])
                    break
            else:
                part_of[n] = <int>place
                n += 1
        place += 1
    outcome = nl_claims_check(claims, n, True, NL_QUICKLY)
    if outcome & NL_WOULD_WAIT:
        displaced = outcome & NL_DISPLACED
        with nogil:
            outcome = nl_claims_check(claims, n, True, NL_WAITING)
        outcome |= displaced
    limiter = first_of(<object>parts[0].engine)
    cdef bint stalled = outcome & NL_WOULD_WAIT != 0
    if stalled:
        for i in range(n):
            claims[i].outcome = outcome = nl_untracked(limiter.stall_allows, claims[i].limit, claims[i].cost, claims[i].now.ns,
                                                       &claims[i].view)
    for i in range(place):
        tell_part(&parts[i], items[i][1], claims, part_of, n, <int>i, outcome & NL_ALLOWED != 0, stalled)
    best = binding_of(claims, n, outcome & NL_ALLOWED != 0)
    part = &parts[part_of[best]]
    limiter = limiter_with(<object>part.engine, claims[best].table)
    outcome = (outcome & NL_ALLOWED) | (claims[best].outcome & NL_UNTRACKED)
    return new_decision(limiter, claims[best].table, outcome, &claims[best].view, part.seconds)


cdef object engine_of(object item, uint32_t place):
    """The Limiter or Bundle of an item, if it is one that check_all takes."""
    if type(item) is not tuple or not 2 <= len(<tuple>item) <= 3:
        number = f" of {len(item)}" if isinstance(item, tuple) else ""
        raise TypeError(
            f"items[{place}] must be a tuple (limiter, key) or (limiter, key, cost), not {type(item).__name__}{number}"
        )
    engine = getattr((<tuple>item)[0], "_engine", None)
    if type(engine) is Limiter or type(engine) is Bundle:
        return engine
    if getattr(engine, "closed", False):
        raise LimiterClosedError(f"limiter {engine.name!r} is closed")
    raise TypeError(f"items[{place}] must begin with a RateLimiter, not {type(item[0]).__name__}")


cdef object too_many():
    return ValueError(f"check_all takes {NL_CLAIMS_MOST} quotas in all, got more: ask for fewer at once")


cdef inline bint same_key(const nl_claim *a, const nl_claim *b) noexcept:
    """Tables in files may be open twice: what they have in common is the secret."""
    return (a.fp.lo == b.fp.lo and a.fp.hi == b.fp.hi and a.table.number == b.table.number
            and memcmp(&a.table.head.secret, &b.table.head.secret, 16) == 0)


cdef int add_up(nl_claim *c, uint32_t units, object key) except -1:
    if c.cost + units > c.limit:
        raise ValueError(
            f"the costs of key {key!r:.100} add up to {c.cost + units}, above the limit of {c.limit}: they could never pass"
        )
    c.cost += units
    return 0


cdef int tell_part(const Part *part, object key, nl_claim *claims, int *part_of, uint32_t n, int place, bint allowed,
                   bint stalled) except -1:
    """Counts and tells: a request that was allowed, to all; one that was denied, to those who denied it."""
    cdef int own = NL_ALLOWED
    cdef uint32_t i
    for i in range(n):
        if part_of[i] == place:
            own = (own & claims[i].outcome & NL_ALLOWED) | ((own | claims[i].outcome) & NL_UNTRACKED)
    if part.units == 0 or (not allowed and own & NL_ALLOWED):
        return 0
    cdef Limiter limiter = first_of(<object>part.engine)
    NL_TALLY(table_of(limiter), NL_COUNT_ALLOWED if own & NL_ALLOWED else NL_COUNT_DENIED, 1)
    if own & NL_UNTRACKED:
        NL_TALLY(table_of(limiter), NL_COUNT_STALLED if stalled else NL_COUNT_OVERFLOWED, 1)
    if event_mask:
        limiter.tell(own & ~NL_UNTRACKED if stalled else own, part.units, key)
    return 0


cdef Limiter first_of(object engine):
    return <Limiter>engine if type(engine) is Limiter else (<Bundle>engine).first


cdef Limiter limiter_with(object engine, nl_table *t):
    cdef Limiter limiter
    if type(engine) is Bundle:
        for limiter in (<Bundle>engine).limiters:
            if table_of(limiter) == t:
                return limiter
    return first_of(engine)


# --- the short way, as of Limiter ---------------------------------------------------------------------------------------

cdef fastcall long_bundle_allow = NULL
cdef fastcall long_bundle_check = NULL


cdef inline int claim_quickly(Bundle bundle, PyObject *key, nl_claim *claims, uint64_t *now_ns) except -1:
    """1: the claims of one unit are there. 0: there is more to it than that."""
    cdef nl_table *t
    cdef nl_fingerprint fp
    cdef uint32_t i
    for i in range(bundle.n):
        if flags_of(table_of(<Limiter>bundle.limiters[i])):
            return 0
    t = table_of(bundle.first)
    now_ns[0] = nl_clock_ns(t.clock)
    if is_str(key):
        fp = hash_of_str(t, key)
    else:
        fingerprint_of_other(t, <object>key, &fp)
    for i in range(bundle.n):
        if i and bundle.hashes_each:
            fingerprint(table_of(<Limiter>bundle.limiters[i]), <object>key, &fp)
        claim_of(&claims[i], table_of(<Limiter>bundle.limiters[i]), fp, now_ns[0], 1)
    return 1


cdef PyObject *short_bundle_allow(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names) except NULL:
    cdef nl_claim claims[NL_QUOTAS_MOST]
    cdef uint64_t now_ns
    cdef int outcome
    cdef Bundle bundle = <Bundle>self
    if n != 1 or names != NULL or not claim_quickly(bundle, args[0], claims, &now_ns):
        return long_bundle_allow(self, args, n, names)
    outcome = nl_claims_check(claims, bundle.n, False, NL_QUICKLY)
    if outcome <= NL_ALLOWED:
        NL_TALLY(table_of(bundle.first), NL_COUNT_ALLOWED if outcome else NL_COUNT_DENIED, 1)
    else:
        outcome = settle_all(bundle, outcome, <object>args[0], 1, now_ns, claims, False)
    return new_bool(outcome & NL_ALLOWED)


cdef PyObject *short_bundle_check(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names) except NULL:
    cdef nl_claim claims[NL_QUOTAS_MOST]
    cdef uint64_t now_ns
    cdef int outcome
    cdef Bundle bundle = <Bundle>self
    if n != 1 or names != NULL or not claim_quickly(bundle, args[0], claims, &now_ns):
        return long_bundle_check(self, args, n, names)
    outcome = nl_claims_check(claims, bundle.n, True, NL_QUICKLY)
    if outcome <= NL_ALLOWED:
        NL_TALLY(table_of(bundle.first), NL_COUNT_ALLOWED if outcome else NL_COUNT_DENIED, 1)
    else:
        outcome = settle_all(bundle, outcome, <object>args[0], 1, now_ns, claims, True)
    return new_ref(decision_of(bundle, claims, outcome, EXACT))


put_in_front(Bundle, "allow", <fastcall><void *>short_bundle_allow, &long_bundle_allow)
put_in_front(Bundle, "check", <fastcall><void *>short_bundle_check, &long_bundle_check)
