"""The runtimes' main tests run twice: each call works alone, and the agent handles it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from support.agents import Agent
from support.namespaces import Host


@pytest.fixture(params=["alone", "agent"])
def agent(request: pytest.FixtureRequest, host: Host) -> Iterator[Agent | None]:
    """A test that names this fixture (the last one, so that the host still lives at its end) runs with both.

    With the agent it fails unless the agent answered every call that changed something.
    """
    if request.param == "alone":
        yield None
        return
    before = journaled(host)
    with Agent(host) as started:
        yield started
        answered, done = Counter(started.report()["calls"]), journaled(host) - before
        assert {what.split()[1] for what in answered} >= {"ADD", "DEL"}, answered
        assert done <= answered, f"not by the agent: {done - answered}"


def journaled(host: Host) -> Counter[str]:
    """Count the calls of each plugin, whichever program made them, by the heads in the journals: "flannel ADD"."""
    heads = [
        line.split() for text in host.files("/run/cni-py/journal").values() for line in text.splitlines() if line[:2] == "# "
    ]
    return Counter(f"{words[3].rstrip(',')} {words[2]}" for words in heads if len(words) > 4 and words[4] == "network")
