"""A limiter whose counters go out by OpenTelemetry; here to the screen, as JSON.

    pip install 'nanolimit[otel]' opentelemetry-sdk
    python examples/metrics_otel.py

In an application the exporter is another one, such as OTLPMetricExporter of the package
opentelemetry-exporter-otlp; the rest is the same.
"""

from __future__ import annotations

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

from nanolimit import RateLimiter
from nanolimit.metrics import otel

limiter = RateLimiter("5/minute", name="api", track_top=100)


def main():
    reader = PeriodicExportingMetricReader(ConsoleMetricExporter(), export_interval_millis=10_000)
    provider = MeterProvider([reader])
    metrics.set_meter_provider(provider)
    otel.register(limiter)

    for _ in range(8):
        limiter.allow("mallory")
    limiter.allow("alice")

    provider.shutdown()  # sends what there is


if __name__ == "__main__":
    main()
