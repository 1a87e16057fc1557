"""What does a rate limit add to a gRPC call?

A real server is called once, and times its limit within that call: the handler's function with the
limit around it, and the lookup of it, many times over on the call's own context, less the function
alone. So gRPC's round trip, which is a hundred times as long, adds no noise. It is printed too, to
compare.

  python benchmarks/interceptor.py
  python benchmarks/interceptor.py --rounds 3

What is denied is timed up to the abort, which is gRPC's own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns
from typing import Any

import grpc
import grpc.aio

from nanolimit import RateLimiter
from nanolimit.integrations.grpc import (
    AioRateLimitInterceptor,
    RateLimitInterceptor,
    combine,
    metadata,
    peer,
)

METHOD = "/bench.S/M"
SENT = [("x-api-key", "0123456789abcdef")]
CALLS = 5_000

# A limit that is never reached, and one that always is.
WIDE, SHUT = "16000000/day", "1/day"
ROWS: dict[str, dict[str, Any]] = {
    "peer()": {"limiter": WIDE},
    'metadata("x-api-key")': {"limiter": WIDE, "key": metadata("x-api-key")},
    "combine(peer(), metadata(...))": {
        "limiter": WIDE,
        "key": combine(peer(), metadata("x-api-key")),
    },
    "a constant": {"limiter": WIDE, "key": lambda call: "all"},
    'peer(), headers="draft"': {"limiter": WIDE, "headers": "draft"},
    "peer(), denied": {"limiter": SHUT},
}


class Stopped(Exception):
    """What the context of a denied call raises here, in the place of gRPC's abort."""


class Standing:
    """The context of a call that is asked for real, and is not ended by a denial."""

    def __init__(self, context: Any) -> None:
        self.peer = context.peer
        self.invocation_metadata = context.invocation_metadata
        self.set_trailing_metadata = context.set_trailing_metadata

    def abort(self, code: Any, details: str) -> None:
        raise Stopped


class StandingAio(Standing):
    async def abort(self, code: Any, details: str) -> None:  # type: ignore[override]
        raise Stopped


class Asked:
    """What an interceptor is told of a call."""

    method = METHOD
    invocation_metadata = tuple(SENT)


def sync_handler(request: bytes, context: Any) -> bytes:
    return request


async def aio_handler(request: bytes, context: Any) -> bytes:
    return request


def timed(loop: Callable[[Any], None], target: Any) -> float:
    """Nanoseconds for one of the calls that `loop` makes."""
    begin = perf_counter_ns()
    loop(target)
    return (perf_counter_ns() - begin) / CALLS


def time_sync(context: Any, rounds: int) -> dict[str, list[float]]:
    standing = Standing(context)
    own = grpc.unary_unary_rpc_method_handler(sync_handler)
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    made = {name: RateLimitInterceptor(**arguments) for name, arguments in ROWS.items()}

    def alone(target: Any) -> None:
        for _ in range(CALLS):
            own.unary_unary(b"", standing)

    def limited(interceptor: Any) -> None:
        for _ in range(CALLS):
            handler = interceptor.intercept_service(lambda asked: own, Asked)
            try:
                handler.unary_unary(b"", standing)
            except Stopped:
                pass

    for _ in range(rounds):
        empty = timed(alone, None)
        for name, interceptor in made.items():
            found[name].append(timed(limited, interceptor) - empty)
    return found


async def time_aio(context: Any, rounds: int) -> dict[str, list[float]]:
    standing = StandingAio(context)
    own = grpc.unary_unary_rpc_method_handler(aio_handler)
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    made = {name: AioRateLimitInterceptor(**arguments) for name, arguments in ROWS.items()}

    async def continuation(asked: Any) -> Any:
        return own

    for _ in range(rounds):
        begin = perf_counter_ns()
        for _ in range(CALLS):
            await (await continuation(Asked)).unary_unary(b"", standing)
        empty = (perf_counter_ns() - begin) / CALLS
        for name, interceptor in made.items():
            begin = perf_counter_ns()
            for _ in range(CALLS):
                handler = await interceptor.intercept_service(continuation, Asked)
                try:
                    await handler.unary_unary(b"", standing)
                except Stopped:
                    pass
            found[name].append((perf_counter_ns() - begin) / CALLS - empty)
    return found


def service(function: Any) -> Any:
    handler = grpc.unary_unary_rpc_method_handler(function)
    return grpc.method_handlers_generic_handler("bench.S", {"M": handler})


def ask(port: int, calls: int = 1) -> float:
    """Call the server; microseconds for each call, of the fastest tenth."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary(METHOD)
        times = []
        for _ in range(calls):
            begin = perf_counter_ns()
            method(b"", metadata=SENT, timeout=600)
            times.append((perf_counter_ns() - begin) / 1e3)
    return statistics.quantiles(times, n=10)[0] if calls > 1 else times[0]


def measure_sync(rounds: int) -> tuple[dict[str, list[float]], float]:
    found: dict[str, list[float]] = {}

    def handle(request: bytes, context: Any) -> bytes:
        if not found:
            found.update(time_sync(context, rounds))
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([service(handle)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ask(port)
    trip = ask(port, 1_000)
    server.stop(0).wait()
    return found, trip


async def measure_aio(rounds: int) -> tuple[dict[str, list[float]], float]:
    found: dict[str, list[float]] = {}

    async def handle(request: bytes, context: Any) -> bytes:
        if not found:
            found.update(await time_aio(context, rounds))
        return b""

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([service(handle)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, ask, port)
    trip = await loop.run_in_executor(None, ask, port, 1_000)
    await server.stop(0)
    return found, trip


def main() -> None:
    parser = argparse.ArgumentParser(description="What does a rate limit add to a gRPC call?")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    # The same in the same process: what the check alone takes.
    allow = RateLimiter(WIDE).allow
    begin = perf_counter_ns()
    for _ in range(CALLS):
        allow("127.0.0.1")
    check = (perf_counter_ns() - begin) / CALLS
    print(f"Python {sys.version.split()[0]}, grpcio {grpc.__version__}; medians of {rounds} rounds")
    print(f"limiter.allow(key) alone: {check / 1e3:.2f} us\n")
    for what, (found, trip) in (
        ("grpc.server", measure_sync(rounds)),
        ("grpc.aio.server", asyncio.run(measure_aio(rounds))),
    ):
        print(f"{what}: a call on loopback takes {trip:.0f} us; its limit adds")
        for name, times in found.items():
            print(f"  {name:32} {statistics.median(times) / 1e3:6.2f} us")
        print()


if __name__ == "__main__":
    main()
