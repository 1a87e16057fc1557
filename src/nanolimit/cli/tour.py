"""A short tour of the limiter: allow, check, a denial with its retry_after, telemetry.

The code that is shown is the code that runs: each step is executed, and what it gives is printed
beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from nanolimit import Decision, ManualClock, RateLimiter, telemetry

if TYPE_CHECKING:
    from rich.console import Console

_CODE_COLUMNS = 52


def show(console: Console) -> None:
    """Run the tour. The clock is a ManualClock, so nothing waits and everything can be told
    exactly.
    """
    events: list[str] = []

    def on_event(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
        events.append(
            f"{event}: {metadata['key']} at {metadata['limiter']}, cost {measurements['count']:g}"
        )

    clock = ManualClock()
    scope: dict[str, object] = {
        "RateLimiter": RateLimiter,
        "clock": clock,
        "telemetry": telemetry,
        "on_event": on_event,
        "events": events,
    }

    def step(code: str) -> object:
        """Run an expression or an assignment, print it and what it gives."""
        line = Text("  ")
        line.append(code.ljust(_CODE_COLUMNS), style="cyan")
        target, equals, expression = code.partition(" = ")
        value: object
        if equals and target.isidentifier():
            value = scope[target] = eval(expression, scope)
        else:
            value = eval(code, scope)
        shown = value if isinstance(value, Decision) else repr(value)
        if isinstance(shown, Decision):
            shown = (
                f"allowed={shown.allowed} remaining={shown.remaining}"
                f" retry_after={shown.retry_after:g} s reset_after={shown.reset_after:g} s"
            )
        if value is not None:
            line.append(
                f"  {shown}",
                style="red" if shown == "False" or "allowed=False" in shown else "green",
            )
        console.print(line, soft_wrap=True)
        return value

    def title(text: str) -> None:
        console.print()
        console.print(Text(text, style="bold"))

    title("Five requests a minute for each user. The sixth is denied.")
    step('limiter = RateLimiter("5/minute", name="api", clock=clock)')
    for _ in range(6):
        step('limiter.allow("user:42")')
        clock.advance(2.0)
    title("Others are not concerned. A request may cost more than one.")
    step('limiter.check("user:7", cost=3)')
    title("A denial says when to come back; and then it works, not a moment earlier.")
    denial = step('decision = limiter.check("user:42")')
    assert isinstance(denial, Decision)
    step("clock.advance(decision.retry_after - 0.001)")
    step('limiter.allow("user:42")')
    step("clock.advance(0.001)")
    step('limiter.allow("user:42")')
    title("Telemetry: be told of what is denied. It costs nothing while nobody is attached.")
    step('telemetry.attach("tour", "denied", on_event)')
    try:
        step('limiter.allow("user:42", cost=5)')
        step("events")
    finally:
        step('telemetry.detach("tour")')
    title("And the figures so far:")
    step("limiter.stats()")
    step("limiter")
    step("limiter.close()")
    console.print()
