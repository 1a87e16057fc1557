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
    """
    PyObject *nl_inside  # this thread's innermost one, owned; or NULL

cdef extern from "Python.h":
    void Py_XDECREF(PyObject *)
    void Py_INCREF(object)

# Who is who among greenlets, which share a thread; None: nobody has imported them.
cdef object current_greenlet = None
# What is wanted: event -> the attachments, in order. Changed in place, entry by entry.
cdef dict event_routes = {}
cdef object event_failed = None


def set_routes(mask: int, names, routes: dict, failed) -> None:
    """Sends the events of `mask` (see EVENT_BITS) of all limiters, or of those whose name is among `names`, a frozenset.

    routes: for each event, also those that are sent from Python, its Attachments. `failed(failures, limiter_name, key)` is told
    of handlers that raised: (attachment, event, exception) each. telemetry.py is the one caller. A limiter whose flags word is 0
    never comes near any of it.
    """
    global event_mask, event_failed, event_names, current_greenlet
    cdef Limiter limiter
    with registry_lock:
        module = sys.modules.get("greenlet")
        current_greenlet = getattr(module, "getcurrent", None)
        event_failed = failed
        for event in [each for each in event_routes if each not in routes]:
            del event_routes[event]
        event_routes.update(routes)
        event_mask = mask
        event_names = names
        for limiter in list(live_limiters):
            nl_flags_set(<nl_table *>limiter.table, NL_FLAG_EVENTS, is_heard(limiter.name))


cdef bint is_heard(str name) except -1:
    """Does anybody want to hear of this limiter's events?"""
    return event_mask != 0 and (event_names is None or name in event_names)


cdef bint is_inside(Attachment attachment) except -1:
    """Is this thread, or greenlet, inside of that handler?"""
    if nl_inside == NULL:
        return False
    cdef Inside each = <Inside>nl_inside
    greenlet = current_greenlet() if current_greenlet is not None else None
    while each is not None:
        if each.attachment is attachment and each.greenlet is greenlet:
            return True
        each = each.outer
    return False


cdef inline void set_innermost(Inside innermost) noexcept:
    global nl_inside
    if innermost is None:
        nl_inside = NULL
    else:
        Py_INCREF(innermost)
        nl_inside = <PyObject *>innermost


cdef void leave(Inside left) noexcept:
    """Takes it out of the chain: with greenlets it need not be the innermost."""
    cdef Inside each
    cdef PyObject *innermost = nl_inside
    if innermost == <PyObject *>left:
        set_innermost(left.outer)
        Py_XDECREF(innermost)
        return
    each = <Inside>innermost if innermost != NULL else None
    while each is not None:
        if each.outer is left:
            each.outer = left.outer
            return
        each = each.outer


cdef object call(Attachment attachment, str event, object count, str limiter, object key, dict more):
    """Runs a handler. The exception that it raised, or None."""
    cdef Inside inside = Inside.__new__(Inside)
    cdef PyObject *outer = nl_inside
    inside.attachment = attachment
    if current_greenlet is not None:
        inside.greenlet = current_greenlet()
    if outer != NULL:
        inside.outer = <Inside>outer
    set_innermost(inside)
    Py_XDECREF(outer)
    try:
        metadata = {"limiter": limiter, "key": key}
        if more is not None:
            metadata.update(more)
        attachment.handler(event, {"count": count}, metadata)
    except Exception as error:
        return error
    finally:
        leave(inside)
    return None


cdef int run_handlers(str event, object count, str limiter, object key, dict more, PyObject **failures) except -1:
    """Calls those who want the event. *failures: NULL, or a list to which (attachment, event, exception) is added; made if need be.
    What is no Exception passes through."""
    cdef Attachment attachment
    attachments = event_routes.get(event)
    if attachments is None:
        return 0
    for attachment in <tuple>attachments:
        if attachment.limiters is not None and limiter not in attachment.limiters:
            continue
        if attachment.sample < 1 and event != "handler_detached" and attachment.chance() >= attachment.sample:
            continue
        if nl_inside != NULL and is_inside(attachment):
            continue
        error = call(attachment, event, count, limiter, key, more)
        if error is not None:
            if failures[0] == NULL:
                failed = []
                Py_INCREF(failed)
                failures[0] = <PyObject *>failed
            (<list>failures[0]).append((attachment, event, error))
    return 0


cdef int emit(str event, object count, str limiter, object key, dict more=None) except -1:
    """Sends an event to whom it concerns. It raises nothing of a handler's that is an Exception."""
    cdef PyObject *failures = NULL
    try:
        run_handlers(event, count, limiter, key, more, &failures)
    finally:
        # Also if a later handler lets KeyboardInterrupt through: who failed before is told of.
        if failures != NULL:
            failed = <object>failures
            Py_XDECREF(failures)
            if event_failed is not None:
                event_failed(failed, limiter, key)
    return 0


def send_event(str event not None, count, str limiter not None, key, dict more=None) -> None:
    """Sends an event from Python. more: what else its metadata has."""
    emit(event, count, limiter, key, more)


def send_detached(str limiter not None, key, dict more not None, list failures not None) -> None:
    """Sends handler_detached; adds the handlers that raised to `failures`."""
    cdef PyObject *into = <PyObject *>failures
    run_handlers("handler_detached", 1, limiter, key, more, &into)
