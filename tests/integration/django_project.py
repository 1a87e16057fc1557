# ruff: noqa: E402 - settings come before what reads them
"""The Django project of the tests: settings, a login without a database, and views.

Django's settings are one for a process: everything of Django that these tests need stands here.
Its servers are `django_project:application` and `django_project:asgi_application`.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import django
from django.conf import settings

AUTHENTICATION = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
LIMITING = "nanolimit.integrations.django.RateLimitMiddleware"

if not settings.configured:
    settings.configure(
        SECRET_KEY="of the tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.sessions",
            "rest_framework",
        ],
        MIDDLEWARE=AUTHENTICATION,
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        AUTHENTICATION_BACKENDS=[f"{__name__}.Backend"],
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
        USE_TZ=True,
        REST_FRAMEWORK={
            "DEFAULT_AUTHENTICATION_CLASSES": [],
            "DEFAULT_THROTTLE_RATES": {
                "anon": os.environ.get("LIMIT", "3/min"),
                "user": "5/min",
                "few": "2/min",
            },
        },
        NANOLIMIT={"SHARED": os.environ["TABLE"]} if os.environ.get("TABLE") else {},
    )
    django.setup()

from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils.asyncio import async_unsafe
from rest_framework.exceptions import Throttled
from rest_framework.response import Response
from rest_framework.views import APIView

from nanolimit.integrations.drf import AnonRateThrottle


class Person:
    """A user that no database knows."""

    is_authenticated = True
    is_active = True

    def __init__(self, pk: int) -> None:
        self.pk = pk


class Backend:
    """Knows everybody."""

    threads: list[int] = []  # noqa: RUF012

    @async_unsafe  # as a database is
    def get_user(self, user_id: int) -> Person:
        self.threads.append(threading.get_ident())
        return Person(user_id)

    async def aget_user(self, user_id: int) -> Person:
        self.threads.append(threading.get_ident())
        return Person(user_id)


def login_cookie(pk: int) -> dict[str, str]:
    """Return the cookie of somebody who is logged in."""
    session = SessionStore()
    session[SESSION_KEY] = str(pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session.save()
    assert session.session_key is not None
    return {settings.SESSION_COOKIE_NAME: session.session_key}


def python_of_document(number: int) -> dict[str, Any]:
    """Run a block of docs/django.md; its names."""
    from tools import at_hand  # here, because servers import this too

    document = at_hand(Path(__file__).parents[2] / "docs" / "django.md")
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text("utf-8"), re.M | re.S)
    names: dict[str, Any] = {"__name__": "document"}
    exec(compile(blocks[number], str(document), "exec"), names)
    return names


def run_without(missing: str, module: str) -> str:
    """Import a module where another one is not installed; what that says."""
    code = f"import sys; sys.modules[{missing!r}] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def hello(request: Any, **_: Any) -> HttpResponse:
    decision = getattr(request, "ratelimit", None)
    return JsonResponse({"remaining": decision and decision.remaining})


async def ahello(request: Any, **_: Any) -> HttpResponse:
    decision = getattr(request, "ratelimit", None)
    thread = threading.get_ident()
    return JsonResponse({"remaining": decision and decision.remaining, "thread": thread})


def parts(request: Any) -> StreamingHttpResponse:
    def said() -> Iterator[bytes]:
        yield b"one "
        yield b"two"

    return StreamingHttpResponse(said())


async def aparts(request: Any) -> StreamingHttpResponse:
    async def said() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    return StreamingHttpResponse(said())


def file(request: Any) -> FileResponse:
    return FileResponse(io.BytesIO(b"contents"), filename="some.txt")


class StampingThrottle(AnonRateThrottle):
    """The path says who asks; the clock is read on either side of the decision."""

    def get_cache_key(self, request: Any, view: Any) -> str:
        return self.cache_format % {"scope": self.scope, "ident": request.path_info}

    def allow_request(self, request: Any, view: Any) -> bool:
        view.before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        allowed = super().allow_request(request, view)
        view.after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return allowed


class Stamped(APIView):
    throttle_classes = (StampingThrottle,)
    before_ns = after_ns = 0

    def _said(self, request: Any, allowed: bool) -> Response:
        return Response(
            {
                "user": request.path_info.strip("/"),
                "allowed": allowed,
                "pid": os.getpid(),
                "before_ns": self.before_ns,
                "after_ns": self.after_ns,
            },
            status=200 if allowed else 429,
        )

    def get(self, request: Any, user: str) -> Response:
        return self._said(request, True)

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, Throttled):
            assert exc.wait is not None
            assert exc.wait >= 1
            return self._said(self.request, False)
        return super().handle_exception(exc)  # type: ignore[no-any-return]


urlpatterns = [
    path("hello", hello),
    path("login", hello),
    path("async/hello", ahello),
    path("parts", parts),
    path("async/parts", aparts),
    path("file", file),
    path("<str:user>", Stamped.as_view()),
]

application = get_wsgi_application()
asgi_application = get_asgi_application()
