"""nanolimit in front of applications, and behind their clients.

What needs no framework stands here by name: the key functions and rules of the middlewares
`nanolimit.integrations.asgi` and `nanolimit.integrations.wsgi`. Each framework has a module of its
own name, which is imported only by who uses it.
"""

from __future__ import annotations

from nanolimit.integrations.address import InvalidRequestError
from nanolimit.integrations.key import client_ip, combine, header, user
from nanolimit.integrations.rule import Rule

__all__ = ["InvalidRequestError", "Rule", "client_ip", "combine", "header", "user"]
