"""The made-up log: exact in number, in order, and with the shapes that it promises."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from nanolimit import Quota
from nanolimit.cli import key, log, replay, sample, timestamp

if TYPE_CHECKING:
    from pathlib import Path

START = datetime(2026, 3, 2)
START_NS = timestamp.apache_ns("02/Mar/2026:00:00:00 +0000")


@pytest.mark.parametrize("number", [1, 2, 17, 1000, 20_000])
def test_every_line_is_a_request_in_order(tmp_path: Path, number: int) -> None:
    lines = list(sample.lines(number, 1, START))
    assert len(lines) == number
    assert all(line.isascii() for line in lines)
    file = tmp_path / "access.log"
    file.write_text("\n".join(lines) + "\n")
    requests = log.read([str(file)], key.parse("user-agent"))
    assert (len(requests), requests.bad_lines, requests.no_key) == (number, 0, 0)
    times = [timestamp.apache_ns(line.split("[")[1].split("]")[0]) for line in lines]
    assert times == sorted(times)
    assert times[0] >= START_NS
    assert times[-1] < START_NS + 86_400 * timestamp.NS


def test_shapes(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    file.write_text("\n".join(sample.lines(50_000, 1, START)))
    requests = log.read([str(file)], key.parse("ip"))
    counts = Counter(requests.names[user] for user in requests.users)
    assert len(counts) > 500
    assert counts[sample.SCRAPER_ADDRESS] == 3000
    assert counts[sample.MONITOR_ADDRESS] == 1000
    attackers = [f"198.51.100.{20 + number}" for number in range(sample.LOGIN_ADDRESSES)]
    assert sum(counts[attacker] for attacker in attackers) == 2000
    # A heavy tail among the people, and a daily rhythm.
    people = sorted((n for name, n in counts.items() if name.startswith(("198.1", "2001:"))))
    assert people[-1] > 8 * people[len(people) // 2]
    hours = Counter((time_ns - START_NS) // (3600 * timestamp.NS) for time_ns in requests.times_ns)
    assert hours[20] > 4 * hours[3]
    # A limit that people don't meet stops the scraper and the attack.
    outcome = replay.run(requests.times_ns, requests.users, requests.names, Quota(60, per=60))
    assert {requests.names[user] for user in outcome.denied_of_user} == {
        sample.SCRAPER_ADDRESS,
        *attackers,
    }
