"""What does a limiter add to a web request, and what does a storage of `limits` cost?

Middleware: one Starlette application, called in-process for a route that answers "ok", without a
limit, behind nanolimit's ASGI middleware, and behind slowapi's pure ASGI one, each with and
without header fields. What a limiter adds is the time with it less the time without it, in the
same process and round. No server, no sockets: these cost the same for all.

Storage: `MovingWindowRateLimiter(storage).hit(item, user)` of the package `limits` with users at
random, over a storage that does nothing, over memory:// and over nanolimit://, at 1,000 to
1,000,000 users who have come before. A storage that can't be filled within the budget has a row
that says so.

  python benchmarks/web.py
  python benchmarks/web.py --rounds 5 --budget 20
  python benchmarks/web.py --quick
"""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
from functools import partial
from typing import Any

from harness import (
    Progress,
    Results,
    Row,
    Sample,
    Verdict,
    emit,
    environment,
    make_parser,
    print_environment,
    print_table,
    print_verdicts,
    run_rounds,
    tables_shown,
    time_keys,
    time_keys_empty,
    version_of,
)

WIDE = "1000000/hour"
SIZES = (1_000, 100_000, 1_000_000)
NL, SLOWAPI, NOTHING = "nanolimit", "slowapi", "nothing"
PEERS = ("slowapi", "limits", "starlette")


# --- Middleware -----------------------------------------------------------------------------------
def application(**options: Any) -> Any:
    """An application with one route, and nothing between that and whoever calls it."""
    starlette = importlib.import_module("starlette.applications")
    responses = importlib.import_module("starlette.responses")
    routing = importlib.import_module("starlette.routing")

    async def answer(request: Any) -> Any:
        return responses.PlainTextResponse("ok")

    return starlette.Starlette(routes=[routing.Route("/", answer)], **options)


def asked(app: Any, calls: int, turn: int) -> Sample:
    """Ask the application, one request after the other, in one run of a loop."""
    clock = importlib.import_module("time").perf_counter_ns
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def ask() -> int:
        start = clock()
        for _ in range(calls):
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "GET",
                "scheme": "http",
                "path": "/",
                "raw_path": b"/",
                "query_string": b"",
                "root_path": "",
                "headers": [(b"host", b"localhost"), (b"accept", b"*/*")],
                "client": ("192.0.2.1", 50_000),
                "server": ("127.0.0.1", 80),
                "state": {},
            }
            await app(scope, receive, send)
        return clock() - start

    took_ns = asyncio.run(ask())
    if len(statuses) != calls or not set(statuses) <= {200, 429}:
        raise RuntimeError(f"answers {set(statuses)}, {len(statuses)} of {calls}")
    return Sample(took_ns, calls, admitted=statuses.count(200))


def rows_of(apps: dict[str, Any], calls: int) -> dict[str, Row]:
    for app in apps.values():
        asked(app, 20, 0)  # routes are built at the first request; a limit of 1 is used up
    return {name: partial(asked, app, calls) for name, app in apps.items()}


def setup_nanolimit(calls: int) -> dict[str, Row]:
    asgi = importlib.import_module("nanolimit.integrations.asgi")

    def behind(quota: str, headers: str | None) -> Any:
        return asgi.RateLimitMiddleware(application(), quota, asgi.client_ip(), headers=headers)

    return rows_of(
        {
            "bare": application(),
            "allowed": behind(WIDE, None),
            "allowed, headers": behind(WIDE, "x"),
            "allowed, draft headers": behind(WIDE, "draft"),
            "denied": behind("1/hour", None),
            "denied, headers": behind("1/hour", "x"),
        },
        calls,
    )


def setup_slowapi(calls: int) -> dict[str, Row]:
    slowapi = importlib.import_module("slowapi")
    middleware = importlib.import_module("slowapi.middleware")
    util = importlib.import_module("slowapi.util")

    def behind(quota: str, headers: bool) -> Any:
        limiter = slowapi.Limiter(
            key_func=util.get_remote_address,
            default_limits=[quota],
            headers_enabled=headers,
            strategy="moving-window",
        )
        app = application()
        app.state.limiter = limiter
        app.add_exception_handler(
            slowapi.errors.RateLimitExceeded, slowapi._rate_limit_exceeded_handler
        )
        app.add_middleware(middleware.SlowAPIASGIMiddleware)
        return app

    return rows_of(
        {
            "bare": application(),
            # (its lists of stamps are as long as the limit)
            "allowed": behind("100000 per hour", False),
            "allowed, headers": behind("100000 per hour", True),
            "denied": behind("1 per hour", False),
            "denied, headers": behind("1 per hour", True),
        },
        calls,
    )


# --- Storage --------------------------------------------------------------------------------------
def nothing_storage() -> Any:
    """A storage that allows everything and remembers nothing."""
    storage = importlib.import_module("limits.storage")

    class Nothing(storage.Storage, storage.MovingWindowSupport):  # type: ignore[misc, name-defined]
        STORAGE_SCHEME = None

        base_exceptions = ()

        def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
            return True

        def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
            return 0.0, 0

        def incr(self, key: str, expiry: float, amount: int = 1) -> int:
            return 0

        def get(self, key: str) -> int:
            return 0

        def get_expiry(self, key: str) -> float:
            return 0.0

        def check(self) -> bool:
            return True

        def reset(self) -> int | None:
            return None

        def clear(self, key: str) -> None:
            pass

    return Nothing()


def setup_storage(kind: str, users: int, calls: int) -> dict[str, Row]:
    limits = importlib.import_module("limits")
    if kind == NOTHING:
        storage = nothing_storage()
    else:
        if kind == NL:
            importlib.import_module("nanolimit.compat.limits")
        storage = limits.storage.storage_from_string(
            "memory://" if kind == "memory" else f"nanolimit://?max_keys={max(SIZES) * 2}"
        )
    hit = limits.strategies.MovingWindowRateLimiter(storage).hit
    item = limits.parse("1000 per day")
    names = [f"user:{number}" for number in range(users)]
    if kind != NOTHING:
        for name in names:
            hit(item, name)
    dice = random.Random(1)
    drawn = [dice.choice(names) for _ in range(calls)]

    def run(turn: int) -> Sample:
        allowed = partial(hit, item)
        return Sample(time_keys(allowed, drawn), calls)

    return {"loop": lambda _: Sample(time_keys_empty(drawn), calls), "hit": run}


# --- The report -----------------------------------------------------------------------------------
def adds(results: Results, worker: str, row: str) -> float:
    return results.net_ns(worker, row, "bare") / 1e3


def middleware_table(results: Results) -> list[list[object]]:
    table: list[list[object]] = []
    for worker in (NL, SLOWAPI):
        for row in results.row_names(worker):
            ratio = None
            if row.startswith("allowed") and worker != NL and results.has(NL, row):
                ratio = results.ratio((worker, row), (NL, row), "bare", "bare")
            table.append([
                worker, row, results.gross_ns(worker, row) / 1e3,
                None if row == "bare" else adds(results, worker, row), ratio,
            ])  # fmt: skip
    return table


def storage_name(kind: str, users: int) -> str:
    return f"{kind}, {users:,} users"


def storage_table(results: Results, subjects: list[tuple[str, int]]) -> list[list[object]]:
    table: list[list[object]] = []
    for kind, users in subjects:
        # With as many users: their names alone are a cache miss each.
        name, base = storage_name(kind, users), storage_name(NOTHING, users)
        if not results.has(name, "hit"):
            table.append([kind, users, None, None, results.troubles.get(name, "")])
            continue
        over = results.ratio((name, "hit"), (base, "hit"), "loop", "loop")
        table.append([kind, users, results.net_ns(name, "hit", "loop"), over, ""])
    return table


def verdicts_of(results: Results) -> list[Verdict]:
    lines = []
    for row in ("allowed", "allowed, headers"):
        if results.has(NL, row) and results.has(SLOWAPI, row):
            share = results.ratio((NL, row), (SLOWAPI, row), "bare", "bare")
            lines.append(Verdict(f"our middleware adds, over slowapi's: {row}", share, 0.1, 0.05))

    def storage(top: tuple[str, int], bottom: tuple[str, int]) -> float | None:
        names = storage_name(*top), storage_name(*bottom)
        if not all(results.has(name, "hit") for name in names):
            return None
        return results.ratio((names[0], "hit"), (names[1], "hit"), "loop", "loop")

    for what, top, bottom, must, goal in (
        ("our storage over one that does nothing", (NL, 1_000), (NOTHING, 1_000), 1.35, 1.25),
        ("our storage over memory://, 100,000 users", (NL, 100_000), ("memory", 100_000),
         1 / 3, 0.2),
        ("our storage, 1,000,000 users over 1,000", (NL, 1_000_000), (NL, 1_000), 1.5, 1.25),
    ):  # fmt: skip
        found = storage(top, bottom)
        if found is not None:
            lines.append(Verdict(what, found, must, goal))
    return lines


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=15, help="rounds per launch")
    parser.add_argument("--launches", type=int, default=1, help="fresh processes")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds to fill a storage")
    options = parser.parse_args()
    rounds, launches, requests, hits = options.rounds, options.launches, 1_000, 20_000
    sizes = SIZES
    if options.quick:
        rounds, launches, requests, hits, sizes = 3, 1, 100, 1_000, (1_000, 10_000)
    facts = environment()
    for peer in PEERS:
        facts[peer] = version_of(peer) or "not installed"
    subjects: dict[str, tuple[Any, ...]] = {NL: (setup_nanolimit, requests)}
    if version_of("slowapi"):
        subjects[SLOWAPI] = (setup_slowapi, requests)
    storages = [(kind, users) for kind in (NOTHING, "memory", NL) for users in sizes]
    if version_of("limits"):
        for kind, users in storages:
            subjects[storage_name(kind, users)] = (setup_storage, kind, users, hits)
    results = run_rounds(subjects, rounds=rounds, launches=launches, seed=options.seed,
                         ready_budget_s=options.budget,
                         progress=Progress(rounds * launches, "web"))  # fmt: skip
    if NL in results.troubles:
        print(f"nanolimit: {results.troubles[NL]}", file=sys.stderr)
        return 1
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        middleware = middleware_table(results)
        print_table(
            "A request through a middleware (us)",
            ("limiter", "request", "us", "adds", "x what ours adds"),
            middleware,
        )
        storage = storage_table(results, storages)
        print_table("A hit of limits' moving window (ns, empty loop taken off)",
                    ("storage", "users", "ns", "x nothing", "note"), storage)  # fmt: skip
        lines = verdicts_of(results)
        print_verdicts(lines)
    emit(
        options.json,
        facts,
        {"middleware": middleware, "storage": storage, "verdicts": lines, "quick": options.quick},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
