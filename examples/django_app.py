"""A Django project in one file, with one limit for all workers of the machine.

    pip install 'nanolimit[django]' gunicorn uvicorn
    gunicorn --workers 4 --chdir examples django_app:application
    uvicorn --workers 4 --app-dir examples --lifespan off django_app:asgi_application
    curl -i http://127.0.0.1:8000/alice

The path says who asks, so that this needs no login; leave KEY out to limit by address. The answer
tells the decision, which process made it, and when: as read from the clock before and after. Both
servers share one count: run both.
"""

from __future__ import annotations

import os
import time

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path


def user_in_path(request):
    request.before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return request.path_info.strip("/") or "anonymous"


def answer(request, decision, status=200):
    after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    said = {
        "user": request.path_info.strip("/") or "anonymous",
        "allowed": decision.allowed,
        "limit": decision.limit,
        "remaining": decision.remaining,
        "retry_after": decision.retry_after,
        "pid": os.getpid(),
        "before_ns": request.before_ns,
        "after_ns": after_ns,
    }
    return JsonResponse(said, status=status)


def denied(request, decision):
    return answer(request, decision, status=429)


def view(request, user=""):
    return answer(request, request.ratelimit)


async def async_view(request, user=""):
    return answer(request, request.ratelimit)


settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["nanolimit.integrations.django.RateLimitMiddleware"],
    NANOLIMIT={
        "LIMITER": os.environ.get("LIMIT", "100/minute"),
        # A name: every process of this user that says "web" counts with us. TABLE= (empty) takes
        # memory without a name, which the workers inherit: for gunicorn --preload.
        "SHARED": os.environ.get("TABLE", "web") or True,
        # A deployment with another limit changes it for the workers that still run, too.
        "ON_MISMATCH": "replace",
        "KEY": user_in_path,
        "ON_DENIED": denied,
    },
)

urlpatterns = [
    path("async/<str:user>", async_view),
    path("", view),
    path("<str:user>", view),
]

application = get_wsgi_application()
asgi_application = get_asgi_application()
