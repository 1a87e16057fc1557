# Part of _core.pyx: events, sent to the handlers that telemetry.py attached. Here, because a handler costs what its call costs:
# looked up, filtered and called in C, an event is two dicts and one call; in Python it was ten times that.

@cython.final
cdef class Attachment:
    """One attached handler. Two are the same only if they are the same object."""

    cdef readonly str handler_id
    cdef readonly tuple events
    cdef readonly object handler
    cdef readonly double sample
    cdef readonly frozenset limiters  # names; None: all
    cdef public object chance         # () -> float, a die of its own, where sample < 1

    def __init__(self, str handler_id not None, tuple events not None, handler, double sample=1.0, frozenset limiters=None):
        self.handler_id = handler_id
        self.events = events
        self.handler = handler
        self.sample = sample
        self.limiters = limiters


@cython.final
@cython.freelist(8)
@cython.no_gc  # nothing in Python ever holds one
cdef class Inside:
    """A handler that is running: so that none is called from within itself."""
    cdef Attachment attachment
    cdef Inside outer
    cdef object greenlet


cdef extern from *:
    """
    #if defined(_MSC_VER)
    static __declspec(thread) PyObject *nl_inside;
    #else
    static __thread PyObject *nl_inside;
    #endif
    #ifdef Py_GIL_DISABLED
    enum { NL_HAS_GIL = 0 };
    #else
    enum { NL_HAS_GIL = 1 };
    #endif
    /* A new reference to what a dict has, or to None: where threads change the dict, a borrowed one may be gone. */
    static PyObject *nl_get(PyObject *dict, PyObject *key) {
        PyObject *value;
    #if PY_VERSION_HEX >= 0x030D0000
        if (PyDict_GetItemRef(dict, key, &value) < 0) return NULL;
        if (!value) value = Py_NewRef(Py_None);
    #else
        value = PyDict_GetItemWithError(dict, key);
        if (!value && PyErr_Occurred()) return NULL;
        if (!value) value = Py_None;
        Py_INCREF(value);
    #endif
        return value;
    }
    static NL_NOINLINE PyObject **nl_inside_here(void) { return &nl_inside; } /* asked once: it is a call, within a library */
    """
    int NL_HAS_GIL
    object nl_get(dict, object)
    PyObject **nl_inside_here() noexcept  # where this thread keeps its innermost one, owned; or NULL

cdef extern from "Python.h":
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    PyObject *PyObject_Vectorcall(object, PyObject **, size_t, PyObject *) noexcept
    dict PyDict_Copy(dict)
    void Py_XDECREF(PyObject *)
    void Py_INCREF(object)

# Who is who among greenlets, which share a thread; None: nobody has imported them.
cdef object current_greenlet = None
# What is wanted: event -> the attachments, in order. Changed in place, entry by entry.
cdef dict event_routes = {}
cdef object event_failed = None
# The same of those that are sent most, for who holds the GIL, so that no dict need be asked.
cdef object denied_route = None
cdef object allowed_route = None


def set_routes(mask: int, names, routes: dict, failed) -> None:
    """Sends the events of `mask` (see EVENT_BITS) of all limiters, or of those whose name is among `names`, a frozenset.

    routes: for each event, also those that are sent from Python, its Attachments. `failed(failures, limiter_name, key)` is told
    of handlers that raised: (attachment, event, exception) each. telemetry.py is the one caller. A limiter whose flags word is 0
    never comes near any of it.
    """
    global event_mask, event_failed, event_names, current_greenlet, denied_route, allowed_route
    cdef Limiter limiter
    with registry_lock:
        module = sys.modules.get("greenlet")
        current_greenlet = getattr(module, "getcurrent", None)
        event_failed = failed
        for event in [each for each in event_routes if each not in routes]:
            del event_routes[event]
        event_routes.update(routes)
        if NL_HAS_GIL:
            denied_route, allowed_route = routes.get("denied"), routes.get("allowed")
        event_mask = mask
        event_names = names
        for limiter in all_limiters():
            nl_flags_set(<nl_table *>limiter.table, NL_FLAG_EVENTS, is_heard(limiter.name))


cdef list all_limiters():
    while True:
        try:
            return list(live_limiters)
        except RuntimeError:  # without the GIL, one may go while the set is walked through
            pass


cdef bint is_heard(str name) except -1:
    """Does anybody want to hear of this limiter's events?"""
    return event_mask != 0 and (event_names is None or name in event_names)


cdef bint is_inside(Inside each, Attachment attachment) except -1:
    """Is this thread, or greenlet, inside of that handler?"""
    greenlet = current_greenlet() if current_greenlet is not None else None
    while each is not None:
        if each.attachment is attachment and each.greenlet is greenlet:
            return True
        each = each.outer
    return False


cdef inline void enter(PyObject **here, Inside entered) noexcept:
    if here[0] != NULL:
        entered.outer = <Inside>here[0]
        Py_XDECREF(here[0])
    Py_INCREF(entered)
    here[0] = <PyObject *>entered


cdef inline void leave(PyObject **here, Inside left) noexcept:
    """Takes it out of the chain: with greenlets it need not be the innermost."""
    cdef Inside each
    if here[0] == <PyObject *>left:
        here[0] = NULL
        if left.outer is not None:
            Py_INCREF(left.outer)
            here[0] = <PyObject *>left.outer
        Py_XDECREF(<PyObject *>left)
        return
    each = <Inside>here[0] if here[0] != NULL else None
    while each is not None:
        if each.outer is left:
            each.outer = left.outer
            return
        each = each.outer


cdef int pass_on() except -1:
    """Raises what a C call has set."""
    return -1


# An event's two dicts are copies, which is quicker than to build them; each handler gets its own.
cdef dict ONE = {"count": 1}


cdef dict about(str limiter):
    """What the metadata of a limiter's events are copied from."""
    return {"limiter": limiter, "key": None}


cdef inline object call(PyObject **here, Attachment attachment, str event, object count, dict who, object key, dict more):
    """Runs a handler. The exception that it raised, or None."""
    cdef Inside inside = Inside.__new__(Inside)
    cdef PyObject *arguments[4]
    cdef PyObject *result
    cdef dict measurements = PyDict_Copy(ONE), metadata = PyDict_Copy(who)
    if count is not <object>1:
        measurements["count"] = count
    metadata["key"] = key
    if more is not None:
        metadata.update(more)
    inside.attachment = attachment
    if current_greenlet is not None:
        inside.greenlet = current_greenlet()
    arguments[0] = NULL
    arguments[1], arguments[2], arguments[3] = <PyObject *>event, <PyObject *>measurements, <PyObject *>metadata
    enter(here, inside)
    result = PyObject_Vectorcall(attachment.handler, &arguments[1], 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
    leave(here, inside)
    if result != NULL:
        Py_XDECREF(result)
        return None
    try:  # only now: to be ready to catch costs something each time
        pass_on()
    except Exception as error:
        return error


cdef int run_handlers(tuple attachments, str event, object count, dict who, object key, dict more, PyObject **failures) except -1:
    """Calls those who want the event. *failures: NULL, or a list to which (attachment, event, exception) is added; made if need
    be. What is no Exception passes through."""
    cdef PyObject **here = nl_inside_here()
    cdef Attachment attachment
    for attachment in attachments:
        if attachment.limiters is not None and who["limiter"] not in attachment.limiters:
            continue
        if attachment.sample < 1 and event != "handler_detached" and attachment.chance() >= attachment.sample:
            continue
        if here[0] != NULL and is_inside(<Inside>here[0], attachment):
            continue
        error = call(here, attachment, event, count, who, key, more)
        if error is not None:
            if failures[0] == NULL:
                failed = []
                Py_INCREF(failed)
                failures[0] = <PyObject *>failed
            (<list>failures[0]).append((attachment, event, error))
    return 0


cdef int emit_to(object attachments, str event, object count, dict who, object key, dict more) except -1:
    """Sends an event to these. It raises nothing of a handler's that is an Exception."""
    cdef PyObject *failures = NULL
    if attachments is None:
        return 0
    try:
        run_handlers(<tuple>attachments, event, count, who, key, more, &failures)
    finally:
        # Also if a later handler lets KeyboardInterrupt through: who failed before is told of.
        if failures != NULL:
            failed = <object>failures
            Py_XDECREF(failures)
            if event_failed is not None:
                event_failed(failed, who["limiter"], key)
    return 0


cdef int emit(str event, object count, str limiter, object key, dict more=None) except -1:
    """Sends an event to whom it concerns."""
    return emit_to(nl_get(event_routes, event), event, count, about(limiter), key, more)


cdef inline int emit_denied(Limiter limiter, object count, object key, dict more=None) except -1:
    return emit_to(denied_route if NL_HAS_GIL else nl_get(event_routes, "denied"), "denied", count, limiter.about, key, more)


cdef inline int emit_allowed(Limiter limiter, object count, object key) except -1:
    return emit_to(allowed_route if NL_HAS_GIL else nl_get(event_routes, "allowed"), "allowed", count, limiter.about, key, None)


def send_event(str event not None, count, str limiter not None, key, dict more=None) -> None:
    """Sends an event from Python. more: what else its metadata has."""
    emit(event, count, limiter, key, more)


def send_detached(str limiter not None, key, dict more not None, list failures not None) -> None:
    """Sends handler_detached; adds the handlers that raised to `failures`."""
    cdef PyObject *into = <PyObject *>failures
    attachments = nl_get(event_routes, "handler_detached")
    if attachments is not None:
        run_handlers(<tuple>attachments, "handler_detached", 1, about(limiter), key, more, &into)
