"""A denial in the words of google.rpc, for clients of gRPC that look for them.

It needs googleapis-common-protos, which the extra ``nanolimit[grpc]`` brings. A server without it
denies all the same, with the other metadata of a denial.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from google.protobuf.any_pb2 import Any  # type: ignore[import-untyped]
    from google.protobuf.duration_pb2 import Duration  # type: ignore[import-untyped]
    from google.rpc.code_pb2 import RESOURCE_EXHAUSTED  # type: ignore[import-untyped]
    from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped]
        QuotaFailure,
        RetryInfo,
    )
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
except ImportError as _error:
    raise ImportError(
        "details of gRPC denials need googleapis-common-protos: pip install 'nanolimit[grpc]'"
    ) from _error

if TYPE_CHECKING:
    from nanolimit.integrations.trailer import Denial, Metadata

__all__ = ["details"]

_NS_PER_MS = 1_000_000


def details(denial: Denial, subject: str) -> Metadata:
    """Return ``grpc-status-details-bin``: google.rpc.Status with RetryInfo and QuotaFailure.

    Args:
        denial: What the call is told.
        subject: Whose quota it is, as UTF-8 can write it.
    """
    seconds, ms = divmod(denial.retry_ms, 1_000)
    retry, quota = Any(), Any()
    retry.Pack(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=ms * _NS_PER_MS)))
    violation = QuotaFailure.Violation(subject=subject, description=str(denial.quota))
    quota.Pack(QuotaFailure(violations=[violation]))
    status = Status(code=RESOURCE_EXHAUSTED, message=denial.message, details=[retry, quota])
    return (("grpc-status-details-bin", status.SerializeToString()),)
