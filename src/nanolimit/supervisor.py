"""The one owner of background threads: nothing else in the package starts any.

A task is a function ``run(stopping)`` that is called in a daemon thread of its own and works until
the event `stopping` is set, which it may be from the start::

    def run(stopping: threading.Event) -> None:
        while not stopping.wait(period_s):
            work()

    task = supervisor.start("flusher", run)
    ...
    task.stop()

What raises is logged with its traceback to the logger ``nanolimit``, and `run` is called anew: at
most `RESTARTS` times within `RESTARTS_WITHIN_S` seconds, then the supervisor gives up, and says so.
What returns has ended. When the interpreter ends, all tasks are stopped while everything still
works. A forked child has none of its parent's threads; the tasks are started there anew.

Nothing here is on the way of a request, and while there is no task, there is no thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

__all__ = ["RESTARTS", "RESTARTS_WITHIN_S", "Task", "once", "start"]

#: A task that crashes is restarted so many times ...
RESTARTS = 3
#: ... in so many seconds; if that is not enough, it is given up.
RESTARTS_WITHIN_S = 5.0
#: How long the interpreter's end waits for all tasks together.
EXIT_PATIENCE_S = 2.0

_logger = logging.getLogger("nanolimit")

# The tasks that a forked child has to start anew and the interpreter's end has to stop. There is no
# lock that a fork, a signal handler or a finalizer could meet held: to come, to go and to copy all
# are single steps of a dict, which are whole with the GIL and without.
_tasks: dict[Task, None] = {}
# The interpreter is ending: what is started now would not get far.
_ending = False


class Task:
    """A function that runs in a thread of its own, until it is stopped. `start` makes it.

    Its methods may be called from any thread.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[threading.Event], object],
        in_child: Callable[[], object] | None,
    ) -> None:
        self.name = name
        self._run = run
        self._in_child = in_child
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Task {self.name!r}, {'alive' if self.alive else 'ended'}>"

    @property
    def alive(self) -> bool:
        """Whether it runs: not yet stopped, returned or given up."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Tell it to end, wait for that, and return whether it has ended.

        Args:
            timeout_s: Seconds to wait at most, for a task that is in the middle of something. None
                waits as long as it takes, 0 not at all.

        A task that stops itself is not waited for. Stopping twice is fine.
        """
        _tasks.pop(self, None)  # first: a fork from now on does not start it anew
        if not self._stopping.is_set():
            self._stopping.set()
        thread = self._thread
        if thread is None or not thread.is_alive():
            return True  # or it is just beginning, and finds that it is stopped
        if thread is threading.current_thread():
            return False
        thread.join(timeout_s)
        return not thread.is_alive()

    def _start(self) -> bool:
        """Start a thread for it. False: the interpreter is ending, and lets none begin."""
        self._thread = thread = threading.Thread(
            target=self._supervise,
            args=(self._stopping,),
            name=f"nanolimit-{self.name}",
            daemon=True,  # one that is stuck must not keep the interpreter from ending
        )
        _tasks[self] = None
        try:
            thread.start()
        except BaseException as error:
            _tasks.pop(self, None)
            self._stopping.set()  # an interrupt may have come when the thread had begun
            self._thread = None
            # Before 3.13 the error has no class of its own.
            if isinstance(error, RuntimeError) and (_ending or "shutdown" in str(error)):
                return False
            raise
        return True

    def _supervise(self, stopping: threading.Event) -> None:
        """Run it, and again if it crashes. This is what the thread does."""
        try:
            self._run_on(stopping)
        finally:
            if self._stopping is stopping:
                _tasks.pop(self, None)
            else:
                # It forked, and this is the child, in which a thread took its place long ago. The
                # fork's thread is the child's main thread; it ends here, and the child with it.
                _stop_all()

    def _run_on(self, stopping: threading.Event) -> None:
        restarts: deque[float] = deque(maxlen=RESTARTS)  # when, in the monotonic clock's seconds
        # At least once, even if it is stopped before it begins: it may have something to finish.
        while True:
            error = self._crash(stopping)
            if error is None:
                return
            if stopping.is_set():
                _log(error, "background task %s crashed while it was stopped", self.name)
                return
            now_s = monotonic()
            if len(restarts) == RESTARTS and now_s - restarts[0] < RESTARTS_WITHIN_S:
                _log(
                    error,
                    "background task %s crashed again after %d restarts in %.1f s; it is given up",
                    self.name,
                    RESTARTS,
                    now_s - restarts[0],
                )
                return
            restarts.append(now_s)
            _log(error, "background task %s crashed and is restarted", self.name)
            # Its traceback holds what the crashed run held.
            del error

    def _crash(self, stopping: threading.Event) -> BaseException | None:
        """Run it once, and return what it raised."""
        try:
            self._run(stopping)
        except SystemExit:
            return None  # as in any thread: it wants to end
        except BaseException as error:
            # All others, also KeyboardInterrupt, which only a tool can raise in such a thread:
            # nobody above would hear of them.
            return error
        return None


def once(name: str, run: Callable[[], object]) -> None:
    """Call `run` in a daemon thread of its own, one time: for what may block and has no time-out.

    Nobody restarts it, waits for it, or starts it anew in a forked child.

    Raises:
        RuntimeError: The system has no more threads, or the interpreter is ending.
    """
    threading.Thread(target=run, name=name, daemon=True).start()


def start(
    name: str,
    run: Callable[[threading.Event], object],
    in_child: Callable[[], object] | None = None,
) -> Task:
    """Call ``run(stopping)`` in a daemon thread, and see to it that it goes on.

    Args:
        name: What the log and the thread call it.
        run: The work. It returns soon after the event `stopping` is set, for which it best sleeps
            in ``stopping.wait(seconds)``. If it raises it is called again, with the same event.
        in_child: Called in a forked child before `run` is called there: to renew locks, and to
            forget what is the parent's.

    Returns:
        The `Task`. While the interpreter ends it is one that is not alive.

    Raises:
        RuntimeError: The system has no room for a thread.

    Thread-safe.
    """
    task = Task(name, run, in_child)
    if not _ending:
        task._start()
    return task


def _stop_all() -> None:
    """Stop all tasks and wait for them, a while: at the interpreter's end."""
    tasks = list(_tasks)
    for task in tasks:
        task.stop(0)  # all are told first, so that they end side by side
    over_s = monotonic() + EXIT_PATIENCE_S
    for task in tasks:
        task.stop(max(0.0, over_s - monotonic()))


def _end() -> None:
    global _ending
    _ending = True
    _stop_all()


# Handlers run last come, first served: this one before that of logging, which was imported earlier,
# so that tasks may still log. Threads that are no daemons have ended by then.
atexit.register(_end)


def _log(error: BaseException, message: str, *args: object) -> None:
    try:
        _logger.error(message, *args, exc_info=error)
    except Exception:  # a broken logging set-up must not end the task
        return


def _after_fork() -> None:
    """Start the tasks anew: a forked child has only the thread that forked."""
    for task in list(_tasks):
        thread = task._thread
        # One whose thread had not begun is being started by the thread that forked, in a signal
        # handler, and goes on there; or by one that is not here, for nobody.
        if thread is not None and thread.ident is not None:
            _start_in_child(task, thread)


def _start_in_child(task: Task, thread: threading.Thread) -> None:
    old = task._stopping
    _tasks.pop(task, None)
    task._thread = None
    # A new event: some thread of the parent's may have held the lock of the old one.
    task._stopping = threading.Event()
    if thread is threading.current_thread():
        # The task itself forked. If the child ever returns to where it was, that is to end: another
        # thread does its work now.
        threading.Event.__init__(old)
        old.set()
    if _ending:
        return
    try:
        if task._in_child is not None:
            task._in_child()
        task._start()
    except Exception as error:
        _log(error, "background task %s can't be started in a forked child", task.name)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
