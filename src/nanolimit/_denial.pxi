# Part of _core.pyx: what a store beyond this machine has refused, in a table that all processes of the machine read
# (core/denial.h).

@cython.final
cdef class DenialTable:
    """Denials by their keys' places, as place() of a limiter with the table's secret gives them. Thread-safe.

    Times are nanoseconds of the table's clock. Looking takes no lock, waits for nobody and writes nothing. Who writes waits
    for another process for a few milliseconds, and if that one is stopped, does not wait again for a second.
    """

    cdef Limiter limiter
    cdef uint64_t salt, most, patient_from_ns

    def __cinit__(self, Limiter limiter not None, salt, cap_ns):
        """salt: 64 bits, others for each set of limits: what one refuses says nothing of another. cap_ns: how long a denial
        stands at most."""
        cdef nl_table *t = table_of(limiter)
        if t.us.members == NULL or t.rule.algorithm != <uint32_t>NL_GCRA or t.rule.tick_ns != NL_RECORD_TICK_NS:
            raise SharedTableError(f"{limiter.where()}: it does not keep denials")
        self.limiter = limiter
        self.salt = salt
        self.most = cap_ns // NL_RECORD_TICK_NS
        self.patient_from_ns = 0

    cdef nl_fingerprint at(self, bytes place) except *:
        cdef nl_fingerprint fp
        if PyBytes_GET_SIZE(place) != sizeof(fp):
            raise ValueError(f"a place has {sizeof(fp)} bytes, got {PyBytes_GET_SIZE(place)}")
        memcpy(&fp, PyBytes_AS_STRING(place), sizeof(fp))
        fp.hi ^= self.salt
        return fp

    def now_ns(self):
        """The time."""
        return nl_clock_ns(table_of(self.limiter).clock)

    def left_s(self, bytes place not None, uint64_t cost):
        """Seconds for which so much is denied yet; 0.0: the store must be asked."""
        cdef nl_table *t = table_of(self.limiter)
        cdef nl_fingerprint fp = self.at(place)
        cdef nl_now now = nl_rule_now(&t.rule, nl_clock_ns(t.clock))
        cdef nl_denial d
        if not nl_denial_find(t, fp, now, <uint32_t>min(cost, 0xffffffffu), self.most, &d):
            return 0.0
        return <double>(d.end * NL_RECORD_TICK_NS - now.ns) / 1e9

    def decision(self, bytes place not None, uint64_t cost, tuple quotas not None):
        """What the store told of exactly this cost, counted down from when it came; None if it must be asked."""
        cdef nl_table *t = table_of(self.limiter)
        cdef nl_fingerprint fp = self.at(place)
        cdef nl_now now = nl_rule_now(&t.rule, nl_clock_ns(t.clock))
        cdef nl_denial d
        cdef Decision made
        cdef uint64_t told_ns
        cdef uint32_t nth
        if not nl_denial_find(t, fp, now, <uint32_t>min(cost, 0xffffffffu), self.most, &d) or d.cost != cost:
            return None
        if not nl_denial_answer(t, fp, now, &d):
            return None
        nth = <uint32_t>(d.answer[0] >> ANSWER_SHIFT)
        told_ns = (d.end - d.told) * NL_RECORD_TICK_NS
        if nth >= <uint32_t>len(quotas):
            return None  # (a damaged file's)
        quota = quotas[nth]
        made = Decision.__new__(Decision)
        made.quota = quota
        made.tick_ns = NL_RECORD_TICK_NS
        made.window = (quota.window_ns + NL_RECORD_TICK_NS - 1) // NL_RECORD_TICK_NS
        made.seconds = EXACT
        # As if the answer had come a window after time began: so a stamp is what it has yet to go.
        made.view.now_ns = made.window * NL_RECORD_TICK_NS + (now.ns - told_ns if now.ns > told_ns else 0)
        made.view.deciding_tick = d.answer[0] & ANSWER_MASK
        made.view.newest_tick = d.answer[1] & ANSWER_MASK
        made.view.oldest_tick = d.answer[2] & ANSWER_MASK
        made.view.used = <uint32_t>(d.answer[1] >> ANSWER_SHIFT | (d.answer[2] >> ANSWER_SHIFT) << ANSWER_SPARE)
        made.view.limit = quota.limit
        return made

    def put(self, bytes place not None, uint64_t cost, uint64_t sent_ns, uint64_t retry_ns, Decision decision=None, nth=0):
        """Keeps that the store, asked after sent_ns, has refused so much for retry_ns. nth: the decision's quota. False: it is
        not kept, for want of room, or because a stopped process is in the way."""
        cdef nl_table *t
        cdef nl_fingerprint fp = self.at(place)
        cdef nl_now now, sent
        cdef nl_denial d
        cdef nl_outcome outcome
        self.limiter.be_ready()
        t = table_of(self.limiter)
        now = nl_rule_now(&t.rule, nl_clock_ns(t.clock))
        sent = nl_rule_now(&t.rule, sent_ns)
        d.end = (sent_ns + min(retry_ns, self.most * NL_RECORD_TICK_NS)) // NL_RECORD_TICK_NS
        d.cost = <uint32_t>min(cost, 0xffffffffu)
        d.told = 0
        if decision is not None and d.end > now.tick + 1 and answer_of(decision, nth, &d):
            d.told = <uint32_t>(d.end - now.tick - 1)  # rounded up: the rest is never counted down too far
        outcome = nl_denial_put(t, fp, now, sent.tick, self.most, &d, NL_QUICKLY)
        if outcome == NL_WOULD_WAIT and now.ns >= self.patient_from_ns:
            with nogil:
                outcome = nl_denial_put(t, fp, now, sent.tick, self.most, &d, NL_WAITING)
            if outcome == NL_WOULD_WAIT:  # it was asked last whether that process lives, and may be found dead
                outcome = nl_denial_put(t, fp, now, sent.tick, self.most, &d, NL_QUICKLY)
            if outcome == NL_WOULD_WAIT:
                self.patient_from_ns = now.ns + 1_000_000_000u
        return outcome == NL_ALLOWED

    def forget(self, bytes place not None, uint64_t keep_ns):
        """Forgets a key's denial, for all; and for so long, what was asked for before now. False: not all could be done."""
        cdef nl_table *t
        cdef nl_fingerprint fp = self.at(place)
        cdef nl_now now
        cdef uint32_t keep = <uint32_t>min(keep_ns // NL_RECORD_TICK_NS, 0xffffffffu)
        cdef nl_outcome outcome
        self.limiter.be_ready()
        t = table_of(self.limiter)
        now = nl_rule_now(&t.rule, nl_clock_ns(t.clock))
        outcome = nl_denial_forget(t, fp, now, keep, NL_QUICKLY)
        if outcome == NL_WOULD_WAIT:
            with nogil:
                outcome = nl_denial_forget(t, fp, now, keep, NL_WAITING)
            if outcome == NL_WOULD_WAIT:
                outcome = nl_denial_forget(t, fp, now, keep, NL_QUICKLY)
        return outcome == NL_ALLOWED

    def __reduce__(self):
        raise TypeError("cannot pickle a table: open it in each process")


# A part of an answer is a time to go, in microseconds, and some bits of a number. A window of ten years has 49 bits of them.
cdef enum:
    ANSWER_SHIFT = 50
    ANSWER_SPARE = 14
cdef uint64_t ANSWER_MASK = (<uint64_t>1 << ANSWER_SHIFT) - 1


cdef bint answer_of(Decision made, nth, nl_denial *d) except -1:
    """Writes what the store told, as times from then on. False: there is something in it that these words don't hold."""
    cdef uint64_t clock
    cdef uint64_t go[3]
    cdef uint32_t i
    if made.allowed or made.untracked or made.would_deny or made.blocked_ns:
        return False
    if made.tick_ns != NL_RECORD_TICK_NS or made.seconds != EXACT:
        return False
    clock = made.view.now_ns // NL_RECORD_TICK_NS
    go[0] = made.view.deciding_tick + made.window - clock
    go[1] = made.view.newest_tick + made.window - clock
    go[2] = made.view.oldest_tick + made.window - clock
    for i in range(3):
        if go[i] > ANSWER_MASK:  # (below zero too)
            return False
        d.answer[i] = go[i]
    d.answer[0] |= <uint64_t>nth << ANSWER_SHIFT
    d.answer[1] |= <uint64_t>made.view.used << ANSWER_SHIFT
    d.answer[2] |= <uint64_t>(made.view.used >> ANSWER_SPARE) << ANSWER_SHIFT
    return made.view.used >> 2 * ANSWER_SPARE == 0
