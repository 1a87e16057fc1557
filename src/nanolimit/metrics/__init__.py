"""The counters of limiters, for those who watch: Prometheus and OpenTelemetry.

`nanolimit.metrics.prometheus` needs the extra ``nanolimit[prometheus]``, `nanolimit.metrics.otel`
the extra ``nanolimit[otel]``. Both tell the same, which stands in `nanolimit.metrics.measure`, and
read it only when somebody asks: a check costs what it costs without them.
"""

from __future__ import annotations
