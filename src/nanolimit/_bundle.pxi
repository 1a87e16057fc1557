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
    """Would all fit? Each has its view. NL_WOULD_WAIT: one could not be read; NL_MOVED: one has a successor."""
    cdef int outcome = NL_ALLOWED
    cdef uint32_t i
    for i in range(n):
        claims[i].outcome = nl_peek_within(&claims[i], now_ns, patience)
        if claims[i].outcome & (NL_WOULD_WAIT | NL_MOVED):
            return claims[i].outcome
        if claims[i].outcome == NL_DENIED:
            outcome = NL_DENIED
    return outcome


cdef extern from *:
    """
    typedef struct { /* one request on its way through a Bundle */
        nl_standing standing;
        uint64_t now_ns;
        double seconds;
        uint32_t units;
        uint32_t own_limits; /* bit i: claim i's limit is another one than its table's */
        int governed;        /* there are records to be asked */
        int exempt;
    } nl_request;
    static inline nl_outcome nl_peek_within(nl_claim *c, uint64_t now_ns, nl_patience patience) {
        return nl_peek_at(c->table, c->fp, now_ns, c->limit, c->cost, patience, &c->view);
    }
    """
    ctypedef struct nl_request:
        nl_standing standing
        uint64_t now_ns
        double seconds
        uint32_t units, own_limits
        bint governed, exempt
    nl_outcome nl_peek_within(nl_claim *, uint64_t, int) noexcept nogil


def stats_of(every):
    """Of a limiter's tables: the first one's decisions; keys of the fullest; sums of the others."""
    first = every[0]
    stats = Stats(
        first.allowed, first.denied, max([each.keys for each in every]), sum([each.evicted for each in every]), first.overflowed,
        sum([each.memory_bytes for each in every]), first.capacity,
    )
    stats.would_deny = first.would_deny
    stats.stalled = first.stalled
    stats.log_bytes = sum([each.log_bytes for each in every])
    stats.log_capacity_bytes = sum([each.log_capacity_bytes for each in every])
    return stats


@cython.final
cdef class Bundle:
    """Several quotas for each key, as one limiter: a Limiter for each; and what stands of keys besides their logs
    (core/record.h). Private ones have one secret, so that a key is hashed once; files each have their own.

    It has a Limiter's methods. A request counts in all or in none (core/claim.h). The counters are those of the first.

    A Limiter by itself has one of these, `alone`, as soon as there is more to it than its logs, and hands its checks on to it.
    """

    def __cinit__(self, limiters, *, bint alone=False):
        self.limiters = tuple(limiters)
        if not (1 if alone else 2) <= len(self.limiters) <= NL_QUOTAS_MOST:
            raise ValueError(f"a bundle has 2 to {NL_QUOTAS_MOST} quotas, got {len(self.limiters)}")
        self.policy = calloc(1, sizeof(nl_policy))
        if self.policy == NULL:
            raise MemoryError()
        self.n = <uint32_t>len(self.limiters)
        self.first = self.limiters[0]
        self.name = self.first.name
        self.longest = self.first
        self.enforces = True
        self.alone = alone
        cdef Limiter limiter
        cdef uint32_t number = 0
        for limiter in self.limiters:
            if memcmp(&table_of(limiter).head.secret, &table_of(self.first).head.secret, 16) != 0:
                self.hashes_each = True
            if not alone:
                table_of(limiter).number = number
            number += 1
            if table_of(limiter).head.window_ns > table_of(self.longest).head.window_ns:
                self.longest = limiter
        nl_defer_refcount(self)

    def __dealloc__(self):
        free(self.policy)

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

    def allow(self, key, cost=1, *, quota=None):
        """Counts the request in all quotas, if it fits in all. True: it did."""
        cdef nl_claim claims[NL_QUOTAS_MOST]
        cdef nl_request r
        ask(self, key, cost, quota, claims, &r)
        if r.units == 0:
            return True
        return settle_all(self, judge(self, claims, &r, False), key, claims, &r, False) & NL_ALLOWED != 0

    def check(self, key, cost=1, *, quota=None):
        """As allow(), and tells more: a Decision, of the quota that binds."""
        cdef nl_claim claims[NL_QUOTAS_MOST]
        cdef nl_request r
        ask(self, key, cost, quota, claims, &r)
        if r.units == 0:
            return glance(self, claims, &r)
        return decision_of(self, claims, settle_all(self, judge(self, claims, &r, True), key, claims, &r, True), &r)

    def peek(self, key, cost=1, *, quota=None):
        """Would it fit? A Decision; nothing is counted, nothing is changed."""
        cdef nl_claim claims[NL_QUOTAS_MOST]
        cdef nl_request r
        ask(self, key, cost, quota, claims, &r)
        return glance(self, claims, &r)

    cdef int be_ready(self) except -1:
        cdef Limiter limiter
        for limiter in self.limiters:
            limiter.be_ready()
        if self.records is not None:
            self.records.be_ready()
        elif nl_load32(&table_of(self.first).head.policies):
            self.keep_records()  # another process has said something of a key
        return 0

    # -- units given back (core/refund.h)

    def count(self, key, cost):
        """As check(); and, if it was counted, a token for give_back(), else None."""
        cdef nl_claim claims[NL_QUOTAS_MOST]
        cdef nl_request r
        cdef uint32_t i
        ask(self, key, cost, None, claims, &r)
        if r.units == 0:
            return glance(self, claims, &r), None
        cdef int outcome = settle_all(self, judge(self, claims, &r, True), key, claims, &r, True)
        token = None
        if outcome & NL_ALLOWED and not outcome & (NL_EXEMPT | NL_UNDECIDED):
            token = tuple([
                None if claims[i].outcome & NL_UNTRACKED else token_of(claims[i].table, &claims[i].view) for i in range(self.n)
            ])
        return decision_of(self, claims, outcome, &r), token[0] if self.alone and token is not None else token

    def give_back(self, key, units, token=None):
        """Gives back up to so many units: those of a token, or (None) the last ones. How many still counted somewhere."""
        cdef Limiter limiter
        many = self.records is not None or token is not None
        if not many:
            for limiter in self.limiters:
                limiter.units(units)
        given = 0
        for i in range(self.n):
            limiter = self.limiters[i]
            if token is None or token[i] is not None:
                given = max(given, limiter.give_back(key, units, None if token is None else token[i], many=many))
        return given

    # -- batches

    def allow_many(self, keys, cost=1):
        """allow() for each key, in order: as Limiter.allow_many."""
        cdef double seconds
        cdef uint64_t now_ns
        cdef Py_ssize_t n, i
        cdef uint32_t units
        cdef unsigned char *outcomes
        cdef nl_table *tables[NL_QUOTAS_MOST]
        cdef nl_fingerprint *fps[NL_QUOTAS_MOST]
        cdef Limiter limiter
        memset(fps, 0, sizeof(fps))
        whole = whole_cost(cost)
        self.be_ready()
        of_words = PyObject_CheckBuffer(keys) and not isinstance(keys, (str, bytes, bytearray))
        if of_words:
            keys = words_of(keys)
        keys = checked_keys(keys)
        n = len(keys)
        if self.records is not None or not self.enforces:
            result = many_governed(self, keys, whole)
            return memoryview(result).cast("?") if of_words else [outcome != 0 for outcome in result]
        units = 0
        for limiter in self.limiters:
            units = limiter.units(whole)
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
                if flags_of(tables[0]) & NL_FLAG_TOP:
                    for i in range(n):
                        if not outcomes[i] & NL_ALLOWED:
                            note_denial(tables[0], fps[0][i], now_ns, <PyObject *>keys[i])
                if flags_of(tables[0]) & NL_FLAG_EVENTS:
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
        """Forgets the key in all, and what it is charged with. True: one had a log."""
        had = any([limiter.reset(key) for limiter in self.limiters])
        self.unblock(key)
        return had

    def clear(self):
        """Forgets all keys, and what they are charged with."""
        for limiter in self.limiters:
            limiter.clear()
        self.forgive_all()

    def evict(self):
        """Drops idle keys of all. The number of those that were idle in the longest window."""
        cdef double seconds
        dropped = [limiter.evict() for limiter in self.limiters]
        if self.records is not None:
            self.records.drop_idle(self.first.now(&seconds))
        return dropped[self.limiters.index(self.longest)]

    def stats(self):
        """As stats_of."""
        return stats_of([limiter.stats() for limiter in self.limiters])

    @property
    def track_top(self) -> int:
        return self.first.track_top

    def denied_most(self):
        """As of a Limiter."""
        return self.first.denied_most()

    def __len__(self):
        return len(self.longest)

    def __contains__(self, key):
        return key in self.longest

    def close(self):
        """Ends the use of all."""
        for limiter in self.limiters:
            limiter.close()
        if self.records is not None:
            self.records.close()

    def __reduce__(self):
        raise TypeError("cannot pickle a limiter: make one in each process")

    def place(self, key):
        return self.first.place(key)

    def _is_heard(self):
        return self.first._is_heard()

    def _fingerprint(self, key):
        return self.first._fingerprint(key)

    def _verify(self):
        return sum([limiter._verify() for limiter in self.limiters])

    # -- policies: see _policy.pxi

    cdef int keep_records(self) except -1:
        """Makes or opens the table of records."""
        cdef nl_policy *policy = <nl_policy *>self.policy
        cdef Limiter first = self.first
        if self.records is not None:
            return 0
        with first.updating:
            if self.records is not None:
                return 0
            if table_of(first).us.members != NULL:
                if first.open_records is None:
                    raise SharedTableError(f"{first.where()} has no records: make the limiter anew")
                records = <Limiter?>first.open_records()
                policy.quotas = policy.penalties = True  # by other processes, perhaps
            else:
                records = Limiter(
                    None, limit=1, window_ns=NL_RECORD_WINDOW_NS, name=self.name, max_keys=table_of(first).slab.most,
                    on_full="deny", clock=None, algorithm="gcra", kin=first,
                )
            policy.records = table_of(records)
            self.records = records
        self.look_first()
        if table_of(first).us.members != NULL and not nl_load32(&table_of(first).head.policies):
            nl_shared_tell_of_policies(table_of(first))
        return 0

    def governing(self):
        """As of a Limiter."""
        self.be_ready()
        return self

    cdef int look_first(self) except -1:
        """Whether blocks may be looked for first, by the logs' fingerprints (nl_policy_blocks)."""
        cdef nl_table *t = table_of(self.first)
        t.policy = NULL
        if self.alone and self.enforces and self.records is not None and t.us.members == NULL:
            t.policy = self.policy
        return 0

    def govern(self, *, enforces=None, after=0, base=0.0, factor=1.0, maximum=0.0, forgive_ms=0, prolong=False):
        """Sets whether denials are enforced; and, with `after`, the penalty for denials in a row."""
        cdef nl_policy *policy = <nl_policy *>self.policy
        if enforces is not None:
            self.enforces = enforces
            self.look_first()
        if after:
            self.keep_records()
            policy.base_s, policy.factor, policy.maximum_s = base, factor, maximum
            policy.forgive_ms, policy.prolong, policy.penalties = forgive_ms, bool(prolong), True
            policy.after = after

    def set_quota(self, key, given):
        """Gives the key limits of its own: given is a tuple of quotas, each with a window of one of the limiter's; or None: none
        any more."""
        cdef uint32_t i
        cdef Limiter limiter
        own = [None] * self.n
        if given is not None:
            own = in_order(self, given)
            for i in range(self.n):
                if own[i] is not None:
                    (<Limiter>self.limiters[i]).make_room(own[i])
        self.keep_records()
        for i in range(self.n):
            if given is None or own[i] is not None:
                set_word(self, key, i, 0 if own[i] is None else own[i].limit, ~NL_RECORD_FLAG)

    def exempt(self, key, bint yes):
        """Lifts all limits of the key, or puts them back."""
        if not yes and self.records is None:
            return
        self.keep_records()
        set_word(self, key, 0, NL_RECORD_FLAG if yes else 0, NL_RECORD_FLAG)

    def block(self, key, duration_ns, seconds):
        """Denies all requests of the key for so long."""
        cdef uint64_t ticks = (duration_ns + NL_RECORD_TICK_NS - 1) // NL_RECORD_TICK_NS
        self.keep_records()
        (<nl_policy *>self.policy).penalties = True
        set_block(self, key, ticks)
        if event_mask & EVENT_BLOCKED and flags_of(table_of(self.first)) & NL_FLAG_EVENTS:
            emit("blocked", seconds, self.name, key)

    def unblock(self, key):
        """Ends the key's block, and forgets its denials. True: it was blocked."""
        self.be_ready()
        return self.records is not None and set_block(self, key, 0)

    def forgive_all(self):
        """Ends all blocks, and forgets all denials."""
        if self.records is not None:
            self.records.drop_idle(NL_TIME_END_NS - NL_RECORD_TICK_NS)  # all but what has no end


cdef Decision decision_of(Bundle bundle, nl_claim *claims, int outcome, nl_request *r):
    """Of claims that have their views. Not the claims' own is, of the outcome: that it was blocked, exempt, or not enforced."""
    cdef bint fits = outcome & NL_ALLOWED != 0 and not outcome & NL_UNDECIDED
    cdef uint32_t i, best
    if r.standing.blocked_ns and not fits:  # a block denies whatever the logs say
        fits = True
        for i in range(bundle.n if not r.exempt else 0):
            if not claims[i].outcome & NL_ALLOWED:
                fits = False
    best = <uint32_t>binding_of(claims, bundle.n, fits)
    cdef Decision d = new_decision(<Limiter>bundle.limiters[best], claims[best].table,
                                   (outcome & NL_ALLOWED) | (claims[best].outcome & NL_UNTRACKED), &claims[best].view, r.seconds)
    d.fits = fits
    d.blocked_ns = r.standing.blocked_ns
    d.would_deny = outcome & NL_UNDECIDED != 0
    return d


cdef int stalled_all(Bundle bundle, nl_claim *claims, nl_request *r) noexcept:
    """The answer where a process that is stopped keeps all others waiting."""
    cdef int outcome = NL_DENIED
    cdef uint32_t i
    for i in range(bundle.n):
        claims[i].outcome = outcome = nl_untracked(bundle.first.stall_allows, claims[i].limit, r.units, r.now_ns, &claims[i].view)
    return outcome


cdef int settle_all(Bundle bundle, int outcome, object key, nl_claim *claims, nl_request *r, bint views) except -1:
    """What is left to do after a check: wait where it would have waited, count, tell. NL_UNDECIDED: denied, and let pass."""
    cdef nl_table *t
    cdef bint stalled = False
    cdef int displaced
    while outcome & (NL_WOULD_WAIT | NL_MOVED):
        displaced = outcome & NL_DISPLACED
        if outcome & NL_MOVED:
            follow(bundle, claims, r)
        with nogil:
            outcome = judge(bundle, claims, r, views, NL_WAITING)
        outcome |= displaced
        if outcome & NL_WOULD_WAIT:
            stalled = True
            outcome = stalled_all(bundle, claims, r) | (outcome & NL_DISPLACED)
    if views and outcome & (NL_BLOCKED | NL_EXEMPT):
        look(bundle, claims, r)
    t = table_of(bundle.first)
    if outcome & NL_ALLOWED == 0 and not bundle.enforces:
        NL_TALLY(t, NL_COUNT_WOULD_DENY, 1)
        NL_TALLY(t, NL_COUNT_ALLOWED, 1)
    else:
        NL_TALLY(t, NL_COUNT_ALLOWED if outcome & NL_ALLOWED else NL_COUNT_DENIED, 1)
    if outcome & NL_UNTRACKED:
        NL_TALLY(t, NL_COUNT_STALLED if stalled else NL_COUNT_OVERFLOWED, 1)
    if flags_of(t) & NL_FLAG_TOP and not outcome & NL_ALLOWED:
        note_denial(t, claims[0].fp, r.now_ns, <PyObject *>key)
    if flags_of(t) & NL_FLAG_EVENTS:
        bundle.first.tell(outcome & ~NL_UNTRACKED if stalled else outcome, r.units, key, bundle.enforces)
        if r.standing.blocks and event_mask & EVENT_BLOCKED:
            emit("blocked", (r.standing.blocked_ns - r.now_ns) / 1e9, bundle.name, key)
    if outcome & NL_ALLOWED == 0 and not bundle.enforces:
        outcome |= NL_ALLOWED | NL_UNDECIDED
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
        while outcome & NL_MOVED:
            for i in range(quotas):
                if nl_table_after(tables[i]) != NULL:
                    tables[i] = nl_table_after(tables[i])
                claim_of(&claims[i], tables[i], claims[i].fp, now_ns, units)
            outcome = nl_claims_check(claims, quotas, False, NL_WAITING) | (outcome & NL_DISPLACED)
        if outcome & NL_WOULD_WAIT:
            tally.stalled += 1
            outcome = (outcome & NL_DISPLACED) | (NL_ALLOWED if stalled_allows else NL_DENIED)
        outcomes[at] = <unsigned char>outcome
        nl_tally_add(&tally, outcome)
    nl_tally_count(&tables[0].head.counters, nl_my_stripe(), &tally)


include "_policy.pxi"


# --- several limiters ---------------------------------------------------------------------------------------------------

cdef struct Part:  # one of check_together's items
    PyObject *engine
    PyObject *bundle    # through which its checks go, or NULL
    nl_request request
    int number          # of its own claims, before those of the same key were added up


def check_together(items):
    """Decides on (limiter, key) or (limiter, key, cost) items, limiters being RateLimiters: counts all, or none. A Decision.

    The same key of the same limiter may stand there twice: the costs add up. A limiter that does not enforce has no say.
    """
    cdef nl_claim claims[NL_CLAIMS_MOST]
    cdef Part parts[NL_CLAIMS_MOST]
    cdef int part_of[NL_CLAIMS_MOST]  # which item a claim belongs to
    cdef uint32_t n = 0, place = 0, i
    cdef int outcome, best, displaced, blocked = -1
    cdef bint stalled = False
    cdef Limiter limiter
    if type(items) is not list and type(items) is not tuple:
        if not isinstance(items, Iterable):
            raise TypeError(f"items must be (limiter, key) or (limiter, key, cost) tuples, got one {type(items).__name__}")
        items = list(items)
    if not items:
        raise ValueError("check_all needs at least one (limiter, key, cost), got none")
    if len(items) > NL_CLAIMS_MOST:
        raise too_many()
    items, watching = those_that_enforce(items)
    for item in items:
        n = add_part(&parts[place], item, claims, part_of, n, place)
        if parts[place].request.standing.blocked_ns and parts[place].request.units:
            if blocked < 0 or parts[place].request.standing.blocked_ns > parts[blocked].request.standing.blocked_ns:
                blocked = <int>place
        place += 1
    outcome = peek_claims(claims, n) if blocked >= 0 else nl_claims_check(claims, n, True, NL_QUICKLY) if n else NL_ALLOWED
    while outcome & (NL_WOULD_WAIT | NL_MOVED):
        if outcome & NL_MOVED:  # a limiter was given another quota in this very moment: ask for all anew
            return check_together(items + watching)
        displaced = outcome & NL_DISPLACED
        if blocked >= 0:
            with nogil:
                outcome = peek_claims(claims, n, NL_WAITING)
        else:
            with nogil:
                outcome = nl_claims_check(claims, n, True, NL_WAITING)
        outcome |= displaced
        if outcome & NL_WOULD_WAIT:
            stalled = True
            limiter = first_of(<object>parts[0].engine) if place else None
            for i in range(n):
                claims[i].outcome = outcome = nl_untracked(limiter.stall_allows, claims[i].limit, claims[i].cost,
                                                           claims[i].now.ns, &claims[i].view)
    if blocked >= 0:
        outcome = NL_DENIED
    for i in range(place):
        tell_part(&parts[i], items[i][1], claims, part_of, n, <int>i, outcome & NL_ALLOWED != 0, stalled)
    if outcome & NL_ALLOWED:
        for item in watching:
            item[0].check(*item[1:])
    if n == 0 or (blocked >= 0 and not denies(claims, n)):
        return speak_for(items, watching, blocked)
    best = binding_of(claims, n, outcome & NL_ALLOWED != 0)
    limiter = limiter_with(<object>parts[part_of[best]].engine, claims[best].table)
    cdef Decision d = new_decision(limiter, claims[best].table, (outcome & NL_ALLOWED) | (claims[best].outcome & NL_UNTRACKED),
                                   &claims[best].view, parts[part_of[best]].request.seconds)
    for i in range(place if not d.allowed else 0):
        d.blocked_ns = max(d.blocked_ns, parts[i].request.standing.blocked_ns)
    return d


cdef object speak_for(list items, list watching, int blocked):
    """A Decision of items without a claim: the key is blocked, or exempt, or nobody enforces."""
    item = items[blocked] if blocked >= 0 else (items + watching)[0]
    return item[0].peek(*item[1:])


cdef tuple those_that_enforce(object items):
    """The items of limiters that enforce, and the others."""
    enforced, watching = [], []
    for place, item in enumerate(items):
        engine = engine_of(item, <uint32_t>place)
        bundle = bundle_of(engine)
        (enforced if bundle is None or (<Bundle>bundle).enforces else watching).append(item)
    return enforced, watching


cdef Bundle bundle_of(object engine):
    """Through which its checks go, if through any."""
    if type(engine) is Bundle:
        return engine
    return (<Limiter>engine).governed() if (<Limiter>engine).is_governed() else None


cdef uint32_t add_part(Part *part, tuple item, nl_claim *claims, int *part_of, uint32_t n, uint32_t place) except? 0xffffffff:
    """Adds an item's claims to the first n; how many there are then."""
    cdef nl_claim own[NL_QUOTAS_MOST]
    cdef uint32_t number, i, before
    cdef int blocked
    cdef Limiter limiter
    cdef nl_request *r = &part.request
    engine = engine_of(item, place)
    cdef Bundle bundle = bundle_of(engine)
    cost = item[2] if len(item) == 3 else 1
    part.engine = <PyObject *>engine
    part.bundle = <PyObject *>bundle if bundle is not None else NULL
    part.number = 1 if bundle is None else <int>bundle.n
    if bundle is None:
        limiter = <Limiter>engine
        memset(r, 0, sizeof(nl_request))
        r.units = limiter.units(cost)
        limiter.be_ready()
        fingerprint(table_of(limiter), item[1], &own[0].fp)
        r.now_ns = limiter.now(&r.seconds)
        limiter.be_ready()
        claim_of(&own[0], table_of(limiter), own[0].fp, r.now_ns, r.units)
    else:
        ask(bundle, item[1], cost, None, own, r)
        if r.governed:
            blocked = nl_policy_blocked(<nl_policy *>bundle.policy, &r.standing, NL_QUICKLY)
            if blocked == NL_WOULD_WAIT:
                with nogil:
                    blocked = nl_policy_blocked(<nl_policy *>bundle.policy, &r.standing, NL_WAITING)
    if r.exempt:
        part.number = 0
    for number in range(<uint32_t>part.number):
        if n == NL_CLAIMS_MOST:
            raise too_many()
        for i in range(n):
            if same_key(&claims[i], &own[number]):
                add_up(&claims[i], own[number].cost, item[1])
                break
        else:
            claims[n] = own[number]
            part_of[n] = <int>place
            n += 1
    return n


cdef int peek_claims(nl_claim *claims, uint32_t n, int patience=NL_QUICKLY) noexcept nogil:
    cdef int outcome = NL_ALLOWED, one
    cdef uint32_t i
    for i in range(n):
        one = peek_all(&claims[i], 1, claims[i].now.ns, patience)
        if one & (NL_WOULD_WAIT | NL_MOVED):
            return one
        outcome &= one
    return outcome


cdef bint denies(nl_claim *claims, uint32_t n) noexcept:
    cdef uint32_t i
    for i in range(n):
        if not claims[i].outcome & NL_ALLOWED:
            return True
    return False


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


cdef int tell_part(Part *part, object key, nl_claim *claims, int *part_of, uint32_t n, int place, bint allowed,
                   bint stalled) except -1:
    """Counts, charges and tells: a request that was allowed, to all; one that was denied, to those who denied it."""
    cdef int own = NL_ALLOWED
    cdef uint32_t i
    cdef nl_request *r = &part.request
    cdef Limiter limiter = first_of(<object>part.engine)
    cdef nl_policy *policy
    for i in range(n):
        if part_of[i] == place:
            own = (own & claims[i].outcome & NL_ALLOWED) | ((own | claims[i].outcome) & NL_UNTRACKED)
    if r.standing.blocked_ns:
        own = NL_DENIED
    if r.units == 0 or (not allowed and own & NL_ALLOWED):
        return 0
    NL_TALLY(table_of(limiter), NL_COUNT_ALLOWED if own & NL_ALLOWED else NL_COUNT_DENIED, 1)
    if own & NL_UNTRACKED:
        NL_TALLY(table_of(limiter), NL_COUNT_STALLED if stalled else NL_COUNT_OVERFLOWED, 1)
    if r.governed and not own & NL_UNTRACKED and not r.standing.blocked_ns and not r.exempt:
        policy = <nl_policy *>(<Bundle>part.bundle).policy
        if policy.after and not own & NL_ALLOWED:
            with nogil:
                nl_penalty_strike(policy, &r.standing, NL_WAITING)
        elif policy.after and r.standing.struck_before:
            with nogil:
                nl_penalty_absolve(policy, &r.standing, NL_WAITING)
    if flags_of(table_of(limiter)) & NL_FLAG_TOP and not own & NL_ALLOWED:
        note_key(table_of(limiter), r.now_ns, key)
    if flags_of(table_of(limiter)) & NL_FLAG_EVENTS:
        limiter.tell(own & ~NL_UNTRACKED if stalled else own, r.units, key)
        if r.standing.blocks and event_mask & EVENT_BLOCKED:
            emit("blocked", (r.standing.blocked_ns - r.now_ns) / 1e9, limiter.name, key)
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
    if bundle.records is not None or not bundle.enforces:
        return 0
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


cdef inline void of_one_unit(nl_request *r, uint64_t now_ns) noexcept:
    memset(r, 0, sizeof(nl_request))
    r.now_ns = now_ns
    r.seconds = EXACT
    r.units = 1


cdef PyObject *short_bundle_allow(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names) except NULL:
    cdef nl_claim claims[NL_QUOTAS_MOST]
    cdef nl_request r
    cdef uint64_t now_ns
    cdef int outcome
    cdef Bundle bundle = <Bundle>self
    if n != 1 or names != NULL or not claim_quickly(bundle, args[0], claims, &now_ns):
        return long_bundle_allow(self, args, n, names)
    outcome = nl_claims_check(claims, bundle.n, False, NL_QUICKLY)
    if outcome <= NL_ALLOWED:
        NL_TALLY(table_of(bundle.first), NL_COUNT_ALLOWED if outcome else NL_COUNT_DENIED, 1)
    else:
        of_one_unit(&r, now_ns)
        outcome = settle_all(bundle, outcome, <object>args[0], claims, &r, False)
    return new_bool(outcome & NL_ALLOWED)


cdef PyObject *short_bundle_check(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names) except NULL:
    cdef nl_claim claims[NL_QUOTAS_MOST]
    cdef nl_request r
    cdef uint64_t now_ns
    cdef int outcome
    cdef Bundle bundle = <Bundle>self
    if n != 1 or names != NULL or not claim_quickly(bundle, args[0], claims, &now_ns):
        return long_bundle_check(self, args, n, names)
    outcome = nl_claims_check(claims, bundle.n, True, NL_QUICKLY)
    if outcome <= NL_ALLOWED:
        NL_TALLY(table_of(bundle.first), NL_COUNT_ALLOWED if outcome else NL_COUNT_DENIED, 1)
    else:
        of_one_unit(&r, now_ns)
        outcome = settle_all(bundle, outcome, <object>args[0], claims, &r, True)
    of_one_unit(&r, now_ns)
    return new_ref(decision_of(bundle, claims, outcome, &r))


put_in_front(Bundle, "allow", <fastcall><void *>short_bundle_allow, &long_bundle_allow)
put_in_front(Bundle, "check", <fastcall><void *>short_bundle_check, &long_bundle_check)
