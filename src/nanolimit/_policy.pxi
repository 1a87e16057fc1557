# Part of _core.pyx: what stands of a key besides its log: limits of its own, exemptions, penalties, blocks (core/record.h).

from nanolimit.errors import NanolimitError


cdef int ask(Bundle b, object key, object cost, object quota, nl_claim *claims, nl_request *r, bint timed=False) except -1:
    """What the key claims of each table, by the limits that hold for it. quota: those that take their place in this call. timed:
    the clock was read already."""
    cdef nl_fingerprint fp
    cdef Limiter limiter
    cdef uint32_t i
    cdef int outcome = NL_UNDECIDED
    whole = whole_cost(cost)
    own = in_order(b, as_quotas(quota)) if quota is not None else None
    if own is not None:
        for i in range(b.n):
            if own[i] is not None:
                (<Limiter>b.limiters[i]).make_room(own[i])
    b.be_ready()
    fingerprint(table_of(b.first), key, &fp)
    if not timed:
        r.now_ns = b.first.now(&r.seconds)
        b.be_ready()
    for i in range(b.n):
        limiter = <Limiter>b.limiters[i]
        if i and b.hashes_each:
            fingerprint(table_of(limiter), key, &fp)
        claim_of(&claims[i], table_of(limiter), fp, r.now_ns, 0)
    r.own_limits = 0
    r.exempt = False
    stand(b, key, claims[0].fp, r)
    if r.governed:
        outcome = NL_WOULD_WAIT
        while outcome & NL_WOULD_WAIT:
            outcome = nl_policy_limits(<nl_policy *>b.policy, claims, b.n, &r.standing, NL_QUICKLY)
            if outcome & NL_WOULD_WAIT:
                with nogil:
                    outcome = nl_policy_limits(<nl_policy *>b.policy, claims, b.n, &r.standing, NL_WAITING)
                (<Limiter>b.records).refuse_if_stalled(outcome & NL_WOULD_WAIT != 0)
        r.exempt = r.standing.exempt = outcome & NL_EXEMPT != 0
        r.standing.limits_known = True
    for i in range(b.n):
        if own is not None and own[i] is not None:
            claims[i].limit = own[i].limit
        if claims[i].limit != nl_load32(&claims[i].table.head.limit):
            r.own_limits |= 1u << i
        if whole > claims[i].limit and not r.exempt:
            raise above_limit(whole, claims[i].limit)
    r.units = min(whole, 0xffffffff)
    for i in range(b.n):
        claims[i].cost = min(r.units, claims[i].limit)
    return 0


cdef inline int stand(Bundle b, object key, nl_fingerprint fp, nl_request *r) except -1:
    """Fills in what the records are asked with."""
    memset(&r.standing, 0, sizeof(nl_standing))
    r.governed = b.records is not None
    if not r.governed:
        return 0
    if table_of(b.records).us.members != NULL:  # a file: with a secret of its own
        fingerprint(table_of(b.records), key, &fp)
    r.standing.fp = fp
    r.standing.now = nl_rule_now(&table_of(b.records).rule, r.now_ns)
    return 0


cdef int judge(Bundle b, nl_claim *claims, nl_request *r, bint views, int patience=NL_QUICKLY) noexcept nogil:
    if r.governed:
        return nl_policy_check(<nl_policy *>b.policy, claims, b.n, &r.standing, views, patience)
    return nl_claims_check(claims, b.n, views, patience)


cdef int follow(Bundle b, nl_claim *claims, nl_request *r) except -1:
    """Claims of the tables that have taken the place of theirs."""
    cdef nl_table *after
    cdef uint32_t i
    for i in range(b.n):
        after = nl_table_after(claims[i].table)
        if after == NULL:
            continue
        claims[i].table = after
        claims[i].now = nl_rule_now(&after.rule, r.now_ns)
        claims[i].outcome = NL_ALLOWED
        if not r.own_limits >> i & 1:
            claims[i].limit = nl_load32(&after.head.limit)
    return 0


cdef int look(Bundle b, nl_claim *claims, nl_request *r) except -1:
    """Views of all, and whether all would fit."""
    cdef int outcome = peek_all(claims, b.n, r.now_ns, NL_QUICKLY)
    while outcome & (NL_WOULD_WAIT | NL_MOVED):
        if outcome & NL_MOVED:
            follow(b, claims, r)
        with nogil:
            outcome = peek_all(claims, b.n, r.now_ns, NL_WAITING)
        if outcome & NL_WOULD_WAIT:
            outcome = stalled_all(b, claims, r)
            NL_TALLY(table_of(b.first), NL_COUNT_STALLED, 1)
    return outcome


cdef Decision glance(Bundle b, nl_claim *claims, nl_request *r):
    """The Decision of a peek."""
    cdef int blocked = NL_UNDECIDED
    cdef int outcome = look(b, claims, r)
    if r.governed:
        blocked = nl_policy_blocked(<nl_policy *>b.policy, &r.standing, NL_QUICKLY)
        if blocked == NL_WOULD_WAIT:
            with nogil:
                blocked = nl_policy_blocked(<nl_policy *>b.policy, &r.standing, NL_WAITING)
    if r.exempt:
        outcome = NL_ALLOWED
    if blocked == NL_BLOCKED and r.units:
        outcome &= ~NL_ALLOWED
    if not outcome & NL_ALLOWED and not b.enforces:
        outcome |= NL_ALLOWED | NL_UNDECIDED
    return decision_of(b, claims, outcome, r)


cdef tuple as_quotas(object quota):
    """What was given as a quota: one, or several."""
    several = tuple(quota) if isinstance(quota, (tuple, list)) else (quota,)
    for one in several:
        if not (hasattr(one, "window_ns") and hasattr(one, "limit")):
            raise TypeError(
                f"quota must be a Quota, or a tuple of them, not {type(one).__name__}: parse it once, with Quota.parse"
            )
    return several


cdef list in_order(Bundle b, tuple given):
    """The quotas in the places of the limiter's quotas with the same window; None where there is none."""
    cdef Limiter limiter
    cdef uint32_t i
    own = [None] * b.n
    for quota in given:
        for i in range(b.n):
            limiter = <Limiter>b.limiters[i]
            if own[i] is None and table_of(limiter).head.window_ns == quota.window_ns:
                own[i] = quota
                break
        else:
            windows = " or ".join([f"{limiter.quota.per} s" for limiter in b.limiters])
            raise ValueError(
                f"quota must have the window of one of the limiter's quotas, {windows}, got {quota}: a key's log is kept for that"
                " long; give the limiter a quota with this window as well"
            )
    return own


cdef int told(Bundle b, object key, nl_request *r) except -1:
    """The key and the time, for a word on it."""
    cdef nl_fingerprint fp
    b.be_ready()
    fingerprint(table_of(b.first), key, &fp)
    r.now_ns = b.first.now(&r.seconds)
    b.be_ready()
    return stand(b, key, fp, r)


cdef int require_room(Bundle b, int outcome) except -1:
    (<Limiter>b.records).refuse_if_stalled(outcome & NL_WOULD_WAIT != 0)
    if outcome != NL_ALLOWED:
        raise NanolimitError(
            f"limiter {b.name!r} has no room to keep more of its keys' quotas and blocks: max_keys is "
            f"{table_of(b.records).slab.most}"
        )
    return 0


cdef int set_word(Bundle b, object key, uint32_t number, uint32_t word, uint32_t mask) except -1:
    cdef nl_request r
    told(b, key, &r)
    (<nl_policy *>b.policy).quotas = True
    cdef nl_table *t = table_of(b.records)
    cdef int outcome = nl_record_set_quota(t, r.standing.fp, number, r.standing.now, word, mask, NL_QUICKLY)
    if outcome & NL_WOULD_WAIT:
        with nogil:
            outcome = nl_record_set_quota(t, r.standing.fp, number, r.standing.now, word, mask, NL_WAITING)
    return require_room(b, outcome)


cdef bint set_block(Bundle b, object key, uint64_t ticks) except -1:
    cdef nl_request r
    cdef c_bool was = 0
    told(b, key, &r)
    cdef nl_table *t = table_of(b.records)
    cdef int outcome = nl_record_set_block(t, r.standing.fp, r.standing.now, ticks, NL_QUICKLY, &was)
    if outcome & NL_WOULD_WAIT:
        with nogil:
            outcome = nl_record_set_block(t, r.standing.fp, r.standing.now, ticks, NL_WAITING, &was)
    if ticks or outcome & NL_WOULD_WAIT:
        require_room(b, outcome)
    return was


cdef bytearray many_governed(Bundle b, tuple keys, object cost):
    """A batch, one by one: each key may have limits of its own. All keys are looked at before the first is counted."""
    cdef nl_claim claims[NL_QUOTAS_MOST]
    cdef nl_request r
    cdef Py_ssize_t i
    result = bytearray(len(keys))
    if not keys:
        return result
    b.be_ready()
    r.now_ns = b.first.now(&r.seconds)
    for i in range(len(keys)):
        try:
            ask(b, keys[i], cost, None, claims, &r, True)
        except (TypeError, ValueError) as error:
            raise type(error)(f"keys[{i}]: {error}") from None
    for i in range(len(keys)):
        ask(b, keys[i], cost, None, claims, &r, True)
        result[i] = r.units == 0 or settle_all(b, judge(b, claims, &r, False), keys[i], claims, &r, False) & NL_ALLOWED != 0
    return result


# --- the short way ------------------------------------------------------------------------------------------------------

cdef PyObject *policy_allow "nl_policy_allow" (PyObject *self, nl_table *t, PyObject *key) except NULL:
    """allow(key) of a Limiter by itself that has policies."""
    cdef nl_request r
    cdef nl_fingerprint fp
    r.now_ns = nl_clock_ns(t.clock)
    if is_str(key):
        fp = hash_of_str(t, key)
    else:
        fingerprint_of_other(t, <object>key, &fp)
    if t.policy != NULL and nl_policy_blocks(<const nl_policy *>t.policy, fp, r.now_ns):
        NL_TALLY(t, NL_COUNT_DENIED, 1)
        if flags_of(t) & NL_FLAG_TOP:
            note_denial(t, fp, r.now_ns, key)
        return new_bool(False)
    return govern_allow(self, t, key, fp, &r)


cdef PyObject *govern_allow(PyObject *self, nl_table *t, PyObject *key, nl_fingerprint fp, nl_request *r) except NULL:
    """The same with all policies."""
    cdef nl_claim claim
    cdef int outcome
    cdef Bundle b = (<Limiter>self).governed()
    if b.records is None or not b.enforces or flags_of(table_of(b.records)) & ~NL_FLAG_ALGORITHM:
        return new_bool(b.allow(<object>key))
    r.seconds = EXACT
    r.units = 1
    r.own_limits = 0
    r.exempt = False
    stand(b, <object>key, fp, r)
    claim_of(&claim, t, fp, r.now_ns, 1)
    outcome = nl_policy_check(<nl_policy *>b.policy, &claim, 1, &r.standing, False, NL_QUICKLY)
    if outcome & NL_MOVED:
        return new_bool(b.allow(<object>key))
    if outcome == NL_BLOCKED or (outcome <= NL_ALLOWED and not r.standing.blocks):
        NL_TALLY(t, NL_COUNT_ALLOWED if outcome == NL_ALLOWED else NL_COUNT_DENIED, 1)
        if outcome != NL_ALLOWED and flags_of(t) & NL_FLAG_TOP:
            note_denial(t, fp, r.now_ns, key)
        return new_bool(outcome == NL_ALLOWED)
    return new_bool(settle_all(b, outcome, <object>key, &claim, r, False) & NL_ALLOWED)
