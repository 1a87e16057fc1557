"""A gRPC server with a limit for each client, shared by all servers of this machine.

    pip install 'nanolimit[grpc]'
    python examples/grpc_server.py            # serves on 127.0.0.1:50051; start it several times
    python examples/grpc_server.py --demo     # serves and asks, and ends

gRPC lets several processes listen on one port (SO_REUSEPORT), and the kernel deals the connections
out. They count together, because their limiters have one table. Messages are plain bytes here, so
that nothing has to be generated; what protoc makes is used in the same way.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from nanolimit import RateLimiter
from nanolimit.integrations.grpc import MethodRule, RateLimitInterceptor, metadata, peer

SERVICE = "example.Greeter"


def greet(request: bytes, context: grpc.ServicerContext) -> bytes:
    return b"Hello, " + request


def chat(requests, context):
    for request in requests:
        yield b"Hello, " + request


def make_server(limiter: RateLimiter, address: str) -> tuple[grpc.Server, int]:
    interceptor = RateLimitInterceptor(
        limiter,
        # Who has an API key is known by it, all others by their address. A real server lets an
        # interceptor before this one check that the key is one that it gave out.
        metadata("x-api-key", missing=peer()),
        rules=[MethodRule(f"/{SERVICE}/Chat", "10/minute")],
        exempt=["/grpc.health.v1.Health/*", "/grpc.reflection.*"],
        headers="draft",
    )
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[interceptor])
    methods = {
        "Greet": grpc.unary_unary_rpc_method_handler(greet),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    return server, server.add_insecure_port(address)


def serve() -> None:
    limiter = RateLimiter(
        os.environ.get("LIMIT", "100/minute"),
        # A name: every process of this user that says "grpc" counts with us.
        shared=os.environ.get("TABLE", "grpc"),
        # A deployment with another limit changes it for the servers that still run, too.
        on_mismatch="replace",
    )
    server, port = make_server(limiter, os.environ.get("ADDRESS", "127.0.0.1:50051"))
    server.start()
    print(f"{limiter.quota} on port {port}", flush=True)
    try:
        server.wait_for_termination()
    except KeyboardInterrupt:
        server.stop(grace=1.0).wait()


# A client that asks again when the server says that it may.
RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "1s",
    "maxBackoff": "10s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
}
SERVICE_CONFIG = {"methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": RETRY}]}


def demo() -> None:
    server, port = make_server(RateLimiter("3 per 1s"), "127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Greet")
        for _ in range(4):
            try:
                answer, call = ask.with_call(b"you", timeout=10.0)
                print(answer.decode(), dict(call.trailing_metadata())["ratelimit"])
            except grpc.RpcError as error:
                print(error.code().name, error.details())
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        print(channel.unary_unary(f"/{SERVICE}/Greet")(b"patient one", timeout=10.0).decode())
    server.stop(None).wait()


if __name__ == "__main__":
    demo() if "--demo" in sys.argv[1:] else serve()
