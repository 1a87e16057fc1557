"""``nanolimit dashboard``: the live page of a shared table, from a server of its own."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanolimit import dashboard, shared
from nanolimit.dashboard.access import Access, is_loopback_name

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN_VARIABLE = "NANOLIMIT_DASHBOARD_TOKEN"
_MAX_TOKEN_FILE_BYTES = 4096


class _Table:
    """A table that is watched, and attached to for as long as a key is reset, no longer."""

    def __init__(self, watch: Any) -> None:
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watch, name)

    def reset(self, key: Any) -> bool:
        """Forget what the key has used; as `RateLimiter.reset`."""
        with shared.attach(self._watch.path) as limiter:
            return limiter.reset(key)


@click.command(
    "dashboard",
    epilog=f"""\b
Examples:
  nanolimit dashboard api                      then open http://127.0.0.1:8377/
  nanolimit dashboard api login --port 9000    several tables on one page
  nanolimit dashboard /run/api/limits --read-only
  {TOKEN_VARIABLE}=$(openssl rand -hex 24) nanolimit dashboard api --host 0.0.0.0
  nanolimit dashboard api --host :: --token-file /run/secrets/dashboard

\b
From another machine, without opening a port:
  ssh -L 8377:127.0.0.1:8377 web1 nanolimit dashboard api

\b
Exit codes: 0 ended by Ctrl-C, 1 the table or the port can't be used, 2 wrong usage,
3 an extra is not installed.""",
)
@click.argument("names", metavar="SHARED_FILE...", nargs=-1, required=True)
@click.option(
    "--port",
    "-p",
    default=8377,
    show_default=True,
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Where it listens; 0: any port that is free.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Whom it listens to. Anything but the loopback needs a token.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help=f"A file whose first line is the token; or set {TOKEN_VARIABLE}. There "
    "is no option for the token itself: every user of the machine could read it.",
)
@click.option("--read-only", is_flag=True, help="Offer no button that resets a key.")
def dashboard_command(
    names: Sequence[str], port: int, host: str, token_file: str | None, read_only: bool
) -> None:
    """Show what a shared table's limiters do, live in a browser.

    SHARED_FILE is the table's name, or a path if it has a slash. Looking changes nothing in the
    table, and this process does not become one of its users; only to reset a key it does, for that
    moment.
    """
    # Imported here: command.py imports this module for the command.
    from nanolimit.cli.command import ExtraNeededError, UnusableInputError

    try:
        import uvicorn
    except ImportError:
        raise ExtraNeededError(
            "the dashboard's server needs uvicorn, not installed here. "
            "Install with: pip install 'nanolimit[dashboard]'"
        ) from None
    token = _token(token_file)
    if token is None and not _is_loopback(host):
        raise click.UsageError(
            f"on {host} others can reach the dashboard, and they would see every key: give it a "
            f"token, by --token-file FILE or in {TOKEN_VARIABLE}"
        )
    if len(set(names)) < len(names):
        raise click.UsageError("a table is named twice")
    watches: list[Any] = []
    try:
        for name in names:
            try:
                watches.append(shared.watch(name))
            except ValueError as error:
                raise click.BadParameter(str(error), param_hint="'SHARED_FILE'") from None
        # Nobody here knows the time of a clock that its limiters bring along.
        shown: list[Any] = [
            watch if read_only or watch.own_clock else _Table(watch) for watch in watches
        ]
        try:
            app = dashboard.app(*shown, token=token)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        with _listener(host, port, UnusableInputError) as listener:
            _tell(listener, host, [watch.name for watch in watches], token)
            config = uvicorn.Config(
                app,
                # An access log would have every second of every page in it, and tokens.
                access_log=False,
                log_level="warning",
                lifespan="on",
                # Who wants a proxy's word on addresses mounts the application in a server.
                proxy_headers=False,
                server_header=False,
                # Streams end by themselves when the server is told to (dashboard/shutdown.py).
                timeout_graceful_shutdown=5,
            )
            try:
                uvicorn.Server(config).run(sockets=[listener])
            except KeyboardInterrupt:
                click.echo("nanolimit: the dashboard has ended", err=True)
    finally:
        for watch in watches:
            watch.close()


def _token(token_file: str | None) -> str | None:
    """Read the token, from a file or the environment, and check it as the application will.

    Raises:
        click.UsageError: It is no token, or there are two.
        OSError: The file can't be read.
    """
    given = os.environ.get(TOKEN_VARIABLE)
    where = TOKEN_VARIABLE
    if token_file is not None:
        if given is not None:
            raise click.UsageError(f"there are two tokens: --token-file and {TOKEN_VARIABLE}")
        where = f"--token-file {token_file!r}"
        with Path(token_file).open("rb") as file:
            line = file.read(_MAX_TOKEN_FILE_BYTES).split(b"\n", 1)[0].strip()
        given = line.decode("utf-8", "replace")
    if given is None:
        return None
    try:
        Access(given, None)
    except ValueError as error:
        raise click.UsageError(f"{where}: {error}") from None
    return given


def _is_loopback(host: str) -> bool:
    """Say whether only this machine can reach what listens there."""
    if is_loopback_name(host):
        return True
    try:
        found = socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)
    except OSError:
        return False  # `_listener` says what is wrong with it
    return all(is_loopback_name(str(entry[4][0])) for entry in found)


def _listener(host: str, port: int, error_class: type[click.ClickException]) -> socket.socket:
    """Listen, before anything is said about where.

    Raises:
        click.ClickException: It can't be listened there.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # One family, as it was said: "::" must not take the IPv4 port of somebody else.
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        why = error.strerror or str(error)
        mend = "" if isinstance(error, socket.gaierror) else "; --port 0 takes any that is free"
        raise error_class(f"can't listen on {host} port {port}: {why}{mend}") from None


def _tell(listener: socket.socket, host: str, names: Sequence[str], token: str | None) -> None:
    """Say where the page is. On stderr: nothing here is a result that a script would read."""
    port = listener.getsockname()[1]
    at = f"[{host}]" if ":" in host else host
    what = ", ".join(names)
    how = "with the token" if token is not None else "from this machine only"
    click.echo(f"Dashboard of {what}: http://{at}:{port}/ ({how}; Ctrl-C ends it)", err=True)
