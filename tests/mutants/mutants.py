"""Known bugs, each with the one test that must catch it. run.py plants them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old` must occur exactly once in `file`; `new` is what a mistaken author might write."""

    name: str
    file: str
    old: str
    new: str
    why: str
    test: str
    free_threaded: bool = False  # with a GIL it does no harm


CORE = "src/nanolimit/core/"
SEAM = "src/nanolimit/_core.pyx"


def weak(scenario: str) -> str:
    return f"tests/c/test_weak.py::test_every_schedule_gives_a_log_that_could_be[{scenario}]"


def step(scene: str) -> str:
    return f"tests/crash/test_step.py::test_killed_at_every_instruction[{scene}]"


SEMANTICS = "tests/unit/test_semantics.py::"
FULL = "tests/unit/test_full.py::"
RUNS = "tests/property/test_runs.py::"
ALGORITHMS = "tests/conformance/test_algorithms.py::"
MEETING = "tests/concurrency/test_linearizable.py::test_processes_on_a_shared_table[fork]"
RANDOM = "tests/c/test_core.py::test_every_answer_is_the_models[vector tags-gcc]"

# What nl_log_deny does before it says no: whose slot it is, what it read, whose slot it is still.
DENY_KEY = "    if (NL_UNLIKELY(!nl_slot_is(slot, fp))) return NL_UNDECIDED;"
DENY_UNCHANGED = (
    "    nl_fence_acquire(); /* what follows is read after the stamp, "
    "and after both halves of the fingerprint */\n"
    "    if (NL_UNLIKELY(nl_load64_acquire(&slot->meta) != meta)) return NL_UNDECIDED;\n"
    "    if (nl_meta_selector(meta) && "
    "nl_ring_of(rule, chunks, slot, meta).stamps != ring.stamps) return NL_UNDECIDED;\n"
)
DENY_CHECKS = DENY_KEY + "\n" + DENY_UNCHANGED + DENY_KEY

MUTANTS = [
    # --- the window -----------------------------------------------------------------------------
    Mutant(
        "exactly-one-window-still-counts",
        CORE + "ring.h",
        ">= window + (1u << NL_EPOCH_SHIFT)",
        "> window + (1u << NL_EPOCH_SHIFT)",
        "a stamp exactly one window old is out",
        SEMANTICS + "test_exactly_one_window_old_is_out",
    ),
    Mutant(
        "out-a-tick-early",
        CORE + "ring.h",
        ">= window + (1u << NL_EPOCH_SHIFT)",
        ">= window - 1 + (1u << NL_EPOCH_SHIFT)",
        "one request too many within a window",
        SEMANTICS + "test_each_stamp_leaves_on_its_own",
    ),
    Mutant(
        "now-rounded-up",
        CORE + "ring.h",
        "{ns, ns / tick_ns}",
        "{ns, (ns + tick_ns - 1) / tick_ns}",
        "a stamp leaves up to a tick early",
        RANDOM,
    ),
    Mutant(
        "stamps-rounded-down",
        CORE + "ring.h",
        "return now.tick + (now.tick * tick_ns != now.ns);",
        "(void)tick_ns; return now.tick;",
        "a stamp leaves up to a tick early",
        RANDOM,
    ),
    Mutant(
        "window-rounded-down",
        CORE + "log.h",
        "(uint32_t)((window_ns + rule.tick_ns - 1) / rule.tick_ns)",
        "(uint32_t)(window_ns / rule.tick_ns)",
        "the window is up to a tick too short",
        RANDOM,
    ),
    Mutant(
        "ticks-that-drift",
        CORE + "ring.h",
        "{ns, ns / tick_ns}",
        "{ns, (ns >> 24) * (((uint64_t)1 << 40) / tick_ns) >> 16}",
        "a multiplier in the division's place is off by seconds after days",
        SEMANTICS + "test_each_stamp_leaves_on_its_own",
    ),
    Mutant(
        "clock-back-not-clamped",
        CORE + "log.h",
        "tick = log->newest - 1; /* time",
        "(void)0; /* time",
        "a clock that goes back frees stamps, or wraps round",
        SEMANTICS + "test_time_never_runs_backwards_inside_a_key",
    ),
    Mutant(
        "stamps-out-of-order",
        CORE + "log.h",
        "if (log.used && tick < log.newest_tick) tick = log.newest_tick;",
        "",
        "a clock that goes back leaves stamps that don't ascend",
        RANDOM,
    ),
    Mutant(
        "era-not-moved-on",
        CORE + "log.h",
        "nl_store32(&slot->ring[NL_ERA], (uint32_t)epoch);",
        "",
        "the epoch bits run over, and an old log looks young",
        RANDOM,
    ),
    # --- costs and numbers ----------------------------------------------------------------------
    Mutant(
        "costs-in-part",
        CORE + "log.h",
        "    if (log.used + cost > limit) {\n",
        "    if (log.used + cost > limit && log.used < limit) cost = limit - log.used;\n"
        "    if (log.used + cost > limit) {\n",
        "a cost is all or nothing",
        weak("hot_key"),
    ),
    Mutant(
        "remaining-one-less",
        SEAM,
        "return self.view.limit - self.view.used if",
        "return self.view.limit - self.view.used - 1 if",
        "remaining is off by one",
        SEMANTICS + "test_what_a_decision_says",
    ),
    Mutant(
        "retry-after-rounded-down",
        SEAM,
        "cdef double wait = seconds_up(out_ns - self.view.now_ns)",
        "cdef double wait = (out_ns - self.view.now_ns) // 1000 / 1e6",
        "who waits as long as told comes a moment too early",
        SEMANTICS + "test_retry_after_is_kept_and_not_a_nanosecond_early",
    ),
    Mutant(
        "true-is-a-cost",
        SEAM,
        "if isinstance(cost, bool):",
        "if False:",
        "True as a cost is somebody's mistake",
        "tests/unit/test_bad_input.py::test_what_is_no_cost",
    ),
    Mutant(
        "decides-another-denial",
        CORE + "log.h",
        "i = count + cost - limit - 1;",
        "i = count - 1;",
        "the newest stamp is not the one that must leave",
        RANDOM,
    ),
    # --- keys -----------------------------------------------------------------------------------
    Mutant(
        "kinds-of-keys-mixed",
        CORE + "table.h",
        "nl_hash_derive(head->secret, (uint64_t)kind)",
        "nl_hash_derive(head->secret, 0)",
        '"1" and b"1" become one user',
        "tests/unit/test_keys.py::test_different_keys_are_different_users",
    ),
    Mutant(
        "tail-of-the-hash",
        CORE + "hash.h",
        ">> (64 - 8 * n);",
        ">> (56 - 8 * n);",
        "a byte before the tail is hashed twice",
        "tests/unit/test_hash.py::test_the_engine_agrees",
    ),
    Mutant(
        "short-tail-of-the-hash",
        CORE + "hash.h",
        "<< 8 * (n - 4);",
        "<< 8 * (n - 3);",
        "of keys of 4 to 7 bytes",
        "tests/unit/test_hash.py::test_the_engine_agrees",
    ),
    # --- the index ------------------------------------------------------------------------------
    Mutant(
        "passed-not-decremented",
        CORE + "segment.h",
        "nl_bucket_pass(&buckets[at], (uint64_t)-1);",
        "(void)0;",
        "walks get longer for ever",
        RANDOM,
    ),
    Mutant(
        "split-to-the-wrong-side",
        CORE + "segment.h",
        "if (fp.lo >> depth & 1) {",
        "if (!(fp.lo >> depth & 1)) {",
        "users are lost when the table grows",
        "tests/unit/test_many.py::test_a_batch_that_makes_the_table_grow",
    ),
    Mutant(
        "split-not-in-the-directory",
        CORE + "table.h",
        "nl_store32_release(&t->directory[i], to);",
        "(void)i;",
        "nobody finds the new segment",
        "tests/unit/test_many.py::test_a_batch_that_makes_the_table_grow",
    ),
    Mutant(
        "split-without-depth",
        CORE + "table.h",
        "    segment->depth = (uint16_t)(depth + 1);",
        "",
        "the old segment still claims what moved",
        "tests/unit/test_many.py::test_a_batch_that_makes_the_table_grow",
    ),
    # --- idle and full --------------------------------------------------------------------------
    Mutant(
        "evict-drops-the-living",
        CORE + "walk.h",
        "if (!live_too && !nl_slot_is_idle(",
        "if (0 && !nl_slot_is_idle(",
        "evict() forgets requests that count",
        "tests/unit/test_eviction.py::test_evict_drops_the_idle_and_only_them",
    ),
    Mutant(
        "hand-takes-the-living",
        CORE + "table.h",
        "if (seen && log.used) {",
        "if (seen && log.used && nl_remove(t, fp, slot, now, true)) {\n"
        "            id = at++;\n            break;\n        }\n        if (seen && log.used) {",
        "a newcomer displaces a live key",
        FULL + "test_on_full_deny",
    ),
    Mutant(
        "free-slot-not-zeroed",
        CORE + "table.h",
        "    for (int i = 0; i < stamps; i++) nl_store32(&slot->ring[i], 0);\n",
        "",
        "free slots are zeros, as dropped pages are",
        weak("reused_slot"),
    ),
    Mutant(
        "chunks-leak",
        CORE + "log.h",
        "    if (selector) nl_chunk_give(us, chunks, left); /* still owned",
        "    (void)left; /* still owned",
        "a log that grows leaves its chunk behind",
        weak("growth"),
    ),
    # --- batches and telemetry ------------------------------------------------------------------
    Mutant(
        "batch-counts-before-it-looks",
        SEAM,
        "            fingerprint(t, keys[i], &fps[i])\n",
        "            fingerprint(t, keys[i], &fps[i])\n"
        "            nl_check(t, fps[i], nl_clock_ns(t.clock), 1, 1, NULL)\n",
        "a bad key in the middle changes nothing",
        "tests/unit/test_bad_input.py::test_a_bad_key_in_the_middle",
    ),
    Mutant(
        "handler-errors-come-through",
        "src/nanolimit/_event.pxi",
        "    except Exception as error:",
        "    except ZeroDivisionError as error:",
        "a handler must not undo a decision",
        "tests/unit/test_telemetry.py::"
        "test_a_failing_handler_is_logged_once_and_detached_and_the_decision_stands",
    ),
    Mutant(
        "handlers-hear-themselves",
        "src/nanolimit/_event.pxi",
        "if here[0] != NULL and is_inside(",
        "if False and is_inside(",
        "a handler is not called for events that it causes itself",
        "tests/unit/test_telemetry.py::"
        "test_a_handler_may_use_the_limiter_and_is_not_called_for_what_it_causes",
    ),
    # --- threads --------------------------------------------------------------------------------
    Mutant(
        "purge-left-out",
        CORE + "log.h",
        "if (log.count + cost > capacity) /* the new",
        "if (0) /* the new",
        "stamps overwrite published ones",
        weak("death"),
    ),
    Mutant(
        "purge-after-the-overwrite",
        CORE + "log.h",
        "    if (log.count + cost > capacity) /* the new",
        "    nl_ring_put(log.ring, head, log.used, stamp, cost);\n"
        "    if (log.count + cost > capacity) /* the new",
        "stamps overwrite published ones",
        weak("death"),
    ),
    Mutant(
        "commit-before-the-stamps",
        CORE + "log.h",
        "    nl_ring_put(log.ring, head, log.used, stamp, cost);\n    NL_POINT(accept_stamped);\n"
        "    nl_slot_commit(slot, nl_meta_of(rule->shape, selector, head, stamps, epoch));",
        "    nl_slot_commit(slot, nl_meta_of(rule->shape, selector, head, stamps, epoch));\n"
        "    nl_ring_put(log.ring, head, log.used, stamp, cost);",
        "readers, and heirs of the dead, see stamps that are not there yet",
        weak("death"),
    ),
    Mutant(
        "slot-lock-released-early",
        CORE + "log.h",
        "    uint32_t head = log.head + log.expired;\n",
        "    nl_slot_commit(slot, meta);\n    uint32_t head = log.head + log.expired;\n",
        "two write one log",
        weak("hot_key"),
    ),
    Mutant(
        "slot-taken-without-cas",
        CORE + "slot.h",
        "return nl_cas64(&slot->meta, seen, *meta | nl_me(us));",
        "nl_store64(&slot->meta, *meta | nl_me(us)); return true;",
        "two own one slot",
        weak("hot_key"),
    ),
    Mutant(
        "commit-without-release",
        CORE + "slot.h",
        "nl_store64_release(&slot->meta, meta);",
        "nl_store64(&slot->meta, meta);",
        "meta is seen before its stamps",
        weak("hot_key"),
    ),
    Mutant(
        "publish-without-fence",
        CORE + "slot.h",
        "nl_store64_release(&slot->meta, meta | nl_me(us));\n    nl_fence_release();",
        "nl_store64_release(&slot->meta, meta | nl_me(us));",
        "overwritten stamps are seen before the purge",
        weak("hot_key"),
    ),
    Mutant(
        "allow-without-fence",
        CORE + "log.h",
        "nl_fence_release(); /* whoever",
        "/* whoever",
        "stamps are seen before the change of meta",
        weak("hot_key"),
    ),
    Mutant(
        "deny-without-fence",
        CORE + "log.h",
        "nl_fence_acquire(); /* what follows is read after the stamp, and",
        "/* what follows is read after the stamp, and",
        "the second look at meta may come before the stamp",
        weak("hot_key"),
    ),
    Mutant(
        "deny-without-acquire",
        CORE + "log.h",
        "nl_load64_acquire(&slot->meta); /* acquire: the stamps",
        "nl_load64(&slot->meta); /* acquire: the stamps",
        "stamps may be older than their meta",
        weak("reused_slot"),
    ),
    Mutant(
        "deny-forgets-whose-slot",
        CORE + "log.h",
        DENY_CHECKS,
        "    (void)fp;\n" + DENY_UNCHANGED,
        "a denial by another key's stamps",
        weak("stolen_slot"),
    ),
    Mutant(
        "allow-forgets-whose-slot",
        CORE + "log.h",
        "    if (NL_UNLIKELY(!nl_slot_is(slot, fp))) {\n",
        "    if ((void)fp, 0) {\n",
        "counted for another key",
        weak("reused_slot"),
    ),
    Mutant(
        "denied-by-one-log-shown-another",
        CORE + "table.h",
        "cost, view) && view->used + cost > limit)",
        "cost, view) && 1)",
        "denied, and something remains",
        weak("views"),
    ),
    Mutant(
        "lock-without-release",
        CORE + "lock.h",
        "{ nl_store32_release(lock, 0); }",
        "{ nl_store32(lock, 0); }",
        "what a lock guards is seen late",
        weak("reused_slot"),
    ),
    Mutant(
        "counters-lose-additions",
        CORE + "counters.h",
        "nl_add64(&counters->stripes[stripe % NL_STRIPES][what], n);",
        "uint64_t *word = &counters->stripes[stripe % NL_STRIPES][what];\n"
        "    nl_store64(word, nl_load64(word) + n);",
        "threads share stripes",
        "tests/concurrency/test_hot_key.py::test_a_key_that_nobody_knows",
        free_threaded=True,
    ),
    # --- forks ----------------------------------------------------------------------------------
    Mutant(
        "fork-generation-stays",
        CORE + "lock.h",
        "    nl_process.generation = nl_process.generation % 65535 + 1;\n",
        "",
        "the child waits for threads that it does not have",
        weak("death"),
    ),
    Mutant(
        "fork-does-not-wait",
        CORE + "lock.h",
        "    while (nl_load32_acquire(&nl_process.running)) nl_yield();\n",
        "",
        "the child sees work half done",
        weak("death"),
    ),
    Mutant(
        "gate-without-fence",
        CORE + "lock.h",
        "nl_fence_full(); /* our count",
        "/* our count",
        "a fork and an insert miss each other",
        weak("death"),
    ),
    Mutant(
        "gate-left-without-release",
        CORE + "lock.h",
        "    nl_fence_release();\n    nl_add32(&nl_process.running, (uint32_t)-1);",
        "    nl_add32(&nl_process.running, (uint32_t)-1);",
        "the child sees work half done",
        weak("death"),
    ),
    # --- runs -----------------------------------------------------------------------------------
    Mutant(
        "runs-overwritten-while-published",
        CORE + "run.h",
        "            meta = nl_runs_write(slot, meta, r, r->newest_tick);\n"
        "            nl_slot_publish(us, slot, meta);\n        }\n        uint32_t *at",
        "        }\n        uint32_t *at",
        "a death leaves the log before or the log after",
        step("accept over runs that have left"),
    ),
    Mutant(
        "runs-read-without-the-version",
        CORE + "run.h",
        " || nl_load32(r->root + head + NL_RUNS_VERSION) != r->version",
        "",
        "meta comes back to the same value when two others have counted",
        weak("runs"),
    ),
    Mutant(
        "runs-follow-what-a-dead-owner-took",
        CORE + "run.h",
        "    if (begins && !nl_runs_settle(us, chunks, patience)) return NL_WOULD_WAIT;\n",
        "    (void)begins;\n",
        "what was begun is ended before a field is followed",
        step("one more piece"),
    ),
    Mutant(
        "runs-refund-stops-at-the-piece",
        CORE + "run.h",
        "        if (below) nl_store32_release(below + 1, nl_load32(below + 1) - units);\n",
        "        (void)below;\n",
        "later pieces hold as many units as before",
        RUNS + "test_a_refund_in_the_middle_of_many_pieces_is_exact",
    ),
    Mutant(
        "runs-time-comes-as-far-as-a-moved-stamp",
        CORE + "run.h",
        "uint64_t earliest = r->flags & NL_RUNS_MOVED ? rule->slot : 1;",
        "uint64_t earliest = 1;",
        "with max_log nothing leaves early",
        RUNS + "test_max_log_never_takes_time_for_later_than_it_is",
    ),
    # --- deaths at a shared table ---------------------------------------------------------------
    Mutant(
        "freed-with-its-stamps",
        CORE + "table.h",
        "    nl_slot_publish(&t->us, slot, 0);\n",
        "",
        "what is in hand holds no stamps",
        step("reset"),
    ),
    Mutant(
        "slot-in-flight-lost",
        CORE + "slab.h",
        "nl_bits_add(&slab->free, id);\n        nl_store32(&slab->state->freed, (uint32_t)intent",
        "nl_store32(&slab->state->freed, (uint32_t)intent",
        "who inherits the slab's lock ends what was begun",
        step("insert into a slot that was freed"),
    ),
    Mutant(
        "chunk-in-flight-lost",
        CORE + "chunk.h",
        "nl_chunk_set_free(chunks, &place);\n        if (nl_load32(field) == (uint32_t)intent)",
        "if (nl_load32(field) == (uint32_t)intent)",
        "who inherits the chunks' lock ends what was begun",
        step("grow out of the slot"),
    ),
    Mutant(
        "chunk-in-flight-twice",
        CORE + "chunk.h",
        "        if (nl_load32(field) == (uint32_t)intent) nl_store32(field, 0);\n",
        "        (void)field;\n",
        "a chunk is free or in one field, not both",
        step("grow the chunk"),
    ),
    Mutant(
        "orphans-stay",
        CORE + "table.h",
        "t->us.members && nl_slab_claim(&t->us, &t->slab, at)",
        "false",
        "the hand claims what a dead owner had in hand",
        step("insert the first key"),
    ),
    Mutant(
        "segment-not-recounted",
        CORE + "segment.h",
        "    segment->used = used;\n    NL_POINT(repair_done);",
        "    segment->used += used - used;\n    NL_POINT(repair_done);",
        "an heir counts a segment's entries anew",
        step("insert past a full bucket"),
    ),
    Mutant(
        "forgotten-slot-not-looked-for",
        CORE + "slab.h",
        "    nl_store64(&slab->state->full_until, 0);\n}\n\nstatic inline void nl_slab_is_full",
        "}\n\nstatic inline void nl_slab_is_full",
        "a death in a reset must not hide the slot for a window",
        step("reset in a table that was found full"),
    ),
    # --- meters ---------------------------------------------------------------------------------
    Mutant(
        "meter-overwrites-its-state",
        CORE + "meter.h",
        "nl_meta_head(s, meta) ? 0 : NL_METER_OTHER;",
        "nl_meta_head(s, meta) ? NL_METER_OTHER : 0;",
        "a death leaves the state before or the one after",
        step("gcra: accept"),
    ),
    Mutant(
        "bucket-loses-a-bursts-last-unit",
        CORE + "meter.h",
        "if (m->word + cost <= limit) return true; /* (NL_GCRA_SPENT",
        "if (!m->word) return true; /* (NL_GCRA_SPENT",
        "off the grid the clock's rounding must cost no unit of a burst",
        ALGORITHMS + "test_a_burst_passes_up_to_the_limit[gcra-5 per 60 s]",
    ),
    Mutant(
        "bucket-before-time-began",
        CORE + "meter.h",
        "(uint64_t)((int64_t)m->stamp >> NL_EPOCH_SHIFT)",
        "m->stamp >> NL_EPOCH_SHIFT",
        "a stamp may lie before the clock's beginning",
        ALGORITHMS + "test_at_the_beginning_of_time[gcra]",
    ),
    Mutant(
        "full-for-longer-than-a-bucket",
        CORE + "table.h",
        "(t->rule.algorithm == NL_GCRA ? 0 : t->rule.window)",
        "t->rule.window",
        "a newcomer's bucket may be full again before all others are",
        "tests/unit/test_shared_algorithms.py::"
        "test_a_bucket_that_displaced_another_is_full_again_first",
    ),
    Mutant(
        "counter-late-by-nothing",
        CORE + "meter.h",
        "nl_counter_before(m) <= (uint64_t)(limit",
        "nl_counter_before(m) < (uint64_t)(limit",
        "a request fits at the very instant that retry_after named",
        ALGORITHMS + "test_retry_after_is_exact[sliding-counter-5 per 60 s]",
    ),
    Mutant(
        "refund-of-what-has-leaked",
        CORE + "meter.h",
        "        if (leaked < 0) leaked = 0;\n",
        "        leaked = 0;\n",
        "what has leaked is not given back once more",
        "tests/c/test_core.py::test_races[2-meters]",
    ),
    Mutant(
        "meter-stamp-read-once",
        CORE + "meter.h",
        "nl_load32(&slot->ring[nl_meta_head(s, meta)]) != m->seen)",
        "!m && nl_meta_head(s, meta))",
        "meta may come back to the same value with another state",
        weak("meters"),
    ),
    Mutant(
        "meter-stamp-written-first",
        CORE + "meter.h",
        "    nl_store32(&slot->ring[head + 1], m->word);\n"
        "    nl_store32(&slot->ring[head + 2], m->before);\n",
        "    nl_store32_release(&slot->ring[head], (uint32_t)m->stamp);\n"
        "    nl_store32(&slot->ring[head + 2], m->before);\n"
        "    nl_store32_release(&slot->ring[head + 1], m->word);\n",
        "a new stamp must come with new words",
        weak("meters"),
    ),
    # --- several logs ---------------------------------------------------------------------------
    Mutant(
        "owned-in-any-order",
        CORE + "claim.h",
        "            nl_claims_sort(order, tracked);\n",
        "",
        "two calls may wait for each other in a circle",
        "tests/c/test_core.py::test_races[2-claims]",
    ),
    Mutant(
        "one-slot-for-two-claims",
        CORE + "claim.h",
        "if (NL_UNLIKELY(i && order[i - 1]->slot == c->slot)) {",
        "if (0) {",
        "a slot that went from one of the claims to another is waited for by who owns it",
        "tests/c/test_core.py::test_races[2-claims]",
    ),
    Mutant(
        "one-denial-is-not-enough",
        CORE + "claim.h",
        "        outcome = NL_DENIED;\n        if (!views) break;\n",
        "        if (!views) break;\n",
        "a denial seen only by the owner of the slots counts in none, too",
        "tests/c/test_core.py::test_races[5-claims]",
    ),
    Mutant(
        "no-room-made",
        CORE + "log.h",
        "    if (NL_LIKELY(log->used + cost <= log->ring.capacity)) return NL_ALLOWED;\n",
        "    return NL_ALLOWED;\n",
        "after the first has counted, nothing may fail",
        RANDOM,
    ),
    Mutant(
        "refund-of-others-units",
        CORE + "refund.h",
        "            else n = nl_log_find(&log, tick, &first);",
        "            else n = units < log.used ? units : log.used, first = log.used - n;",
        "what is given back is what was stamped then",
        RANDOM,
    ),
    Mutant(
        "shortest-wait-binds",
        "src/nanolimit/_bundle.pxi",
        "            if best < 0 or wait > longest:",
        "            if best < 0 or wait < longest:",
        "after retry_after the request must fit into all quotas",
        "tests/unit/test_several.py::test_the_decision_is_the_binding_quotas",
    ),
    # --- when calls meet ------------------------------------------------------------------------
    Mutant(
        "no-second-look",
        CORE + "log.h",
        "    if (log.used + cost > limit) {\n        if (view)",
        "    if (0) {\n        if (view)",
        "between the look without the slot and owning it, others have counted",
        MEETING,
    ),
    Mutant(
        "let-go-before-all-are-owned",
        CORE + "claim.h",
        "        if (owned && NL_LIKELY(nl_slot_is(c->slot, c->fp))) continue;\n",
        "        if (owned && i) nl_slot_commit(c->slot, c->meta);\n"
        "        if (owned && NL_LIKELY(nl_slot_is(c->slot, c->fp))) continue;\n",
        "what is decided must still be so when it is counted",
        MEETING,
    ),
    Mutant(
        "what-was-seen-is-told",
        CORE + "claim.h",
        "    for (uint32_t i = 0; i < n; i++) claims[i].outcome = NL_ALLOWED; /* what",
        "    /* what",
        "a denial that changed under the eyes is decided anew, else its numbers are nobody's",
        MEETING,
    ),
    Mutant(
        "forgets-who-was-blocked-before",
        CORE + "record.h",
        "    for (double factor = p->factor; level && seconds < p->maximum_s; level >>= 1, "
        "factor *= factor)\n"
        "        if (level & 1) seconds *= factor;\n",
        "    (void)level;\n",
        "each block is longer than the one before",
        "tests/unit/test_backoff.py::test_each_block_is_longer_than_the_one_before",
    ),
    Mutant(
        "an-exempt-key-has-no-block",
        CORE + "record.h",
        "        if (outcome == NL_BLOCKED) return NL_BLOCKED;\n        if (s->exempt)",
        "        if (outcome == NL_BLOCKED && !s->exempt) return NL_BLOCKED;\n"
        "        if (s->exempt)",
        "a block holds for an exempt key, too",
        "tests/unit/test_backoff.py::test_reset_and_clear_lift_blocks",
    ),
    Mutant(
        "a-moved-key-is-not-looked-for",
        CORE + "table.h",
        "    if (NL_UNLIKELY(nl_table_before(t)) && !nl_find(t, fp) && "
        "t->take_key(t, fp, patience) == NL_WOULD_WAIT) return NL_WOULD_WAIT;\n",
        "",
        "a key that has not moved yet has its log in the table before",
        "tests/c/test_core.py::test_races[2-heirs]",
    ),
    Mutant(
        "new-keys-in-an-old-table",
        CORE + "table.h",
        "    } else if (NL_UNLIKELY(nl_table_after(t))) {\n        *next = NL_NEXT_MOVED;",
        "    } else if (0) {\n        *next = NL_NEXT_MOVED;",
        "a table that has a successor takes no new keys",
        "tests/c/test_core.py::test_races[2-heirs]",
    ),
    Mutant(
        "others-are-not-told-of-policies",
        CORE + "shared.h",
        "        while (!nl_cas32(flags, seen, seen | NL_FLAG_POLICY)) seen = nl_load32(flags);\n",
        "        (void)seen, (void)flags;\n",
        "who has the table open learns of the first word on a key",
        "tests/unit/test_shared_policies.py::test_a_block_holds_for_those_who_knew_of_none",
    ),
    # --- the most denied ------------------------------------------------------------------------
    Mutant(
        "counts-for-the-next-key",
        CORE + "top.h",
        "!nl_cas64(&entry->word, word, word + 1)) continue;",
        "(nl_add64(&entry->word, 1), false)) continue;",
        "an entry that was given away meanwhile is another key's",
        "tests/c/test_core.py::test_races[5-top]",
    ),
    Mutant(
        "newcomers-begin-at-one",
        CORE + "top.h",
        "had == UINT32_MAX ? had : had + 1;",
        "1;",
        "a key without an entry may have been denied as often as the least of those with one",
        "tests/unit/test_top.py::test_more_keys_than_there_is_room_for",
    ),
    Mutant(
        "errors-forgotten",
        CORE + "top.h",
        "nl_store32(&entry->error, had);",
        "nl_store32(&entry->error, 0);",
        "so many of them may have been others'",
        "tests/unit/test_top.py::test_more_keys_than_there_is_room_for",
    ),
    Mutant(
        "anybody-is-ousted",
        CORE + "top.h",
        "if ((uint32_t)word != counts[0]) {",
        "if (0) {",
        "the heap learns late of counts that grew",
        "tests/unit/test_top.py::test_more_keys_than_there_is_room_for",
    ),
    Mutant(
        "panes-never-emptied",
        CORE + "top.h",
        "    nl_store32(&pane->used, 0);\n",
        "",
        "what is ten minutes old must go",
        "tests/unit/test_top.py::test_it_forgets_by_panes",
    ),
    Mutant(
        "without-an-entry-means-never",
        "src/nanolimit/top.py",
        "everybody += missed + least",
        "everybody += missed",
        "a key may have been among the least of a pane that has no entry for it",
        "tests/property/test_top_errors.py",
    ),
    Mutant(
        "several-quotas-deny-nobody",
        "src/nanolimit/_bundle.pxi",
        "        note_denial(t, claims[0].fp, r.now_ns, <PyObject *>key)\n",
        "        pass\n",
        "each verb that denies tells it",
        "tests/unit/test_top.py::test_every_verb_that_denies",
    ),
]
