"""The choice among implementations by measurement."""

from __future__ import annotations

import pytest
import torch

from irnext.fastest import Fastest


def make(times: dict[str, float | Exception]):
    """Candidates that add 1, a clock that says how long each takes, and the calls that were timed."""
    timed: list[str] = []
    current: list[str] = []

    def candidate(name):
        def add(x, *_):
            current[:] = [name]
            return x + 1

        return add

    def milliseconds(run):
        run()
        timed.append(current[0])
        if isinstance(times[current[0]], Exception):
            raise times[current[0]]
        return times[current[0]]

    return Fastest({name: candidate(name) for name in times}, milliseconds), timed, current


def test_the_fastest_is_called_and_measured_once_for_a_shape():
    fastest, timed, current = make({"library": 2.0, "kernel": 1.0, "other": 3.0})
    for _ in range(3):
        assert torch.equal(fastest(torch.zeros(2, 3)), torch.ones(2, 3))
        assert current == ["kernel"]
    assert timed == ["library", "kernel", "other"]
    fastest(torch.zeros(2, 4), None, torch.zeros(5))
    fastest(torch.zeros(2, 4), None, None)
    fastest(torch.zeros(2, 4, dtype=torch.float64), None, None)
    assert len(timed) == 12
    assert {name for name, _ in fastest.chosen.values()} == {"kernel"}
    key = (None, (2, 3), torch.float32)
    assert fastest.chosen[key] == ("kernel", {"library": 2.0, "kernel": 1.0, "other": 3.0})


def test_what_fails_is_left_out_with_a_warning():
    fastest, _, current = make({"library": 2.0, "kernel": RuntimeError("too little shared memory")})
    with pytest.warns(UserWarning, match="kernel cannot serve .*too little shared memory"):
        fastest(torch.zeros(2, 3))
    fastest(torch.zeros(2, 3))
    assert current == ["library"]
    fastest, *_ = make({"library": RuntimeError("no memory"), "kernel": RuntimeError("no kernel")})
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="no memory"):
        fastest(torch.zeros(2, 3))


def test_a_table_is_shared_by_those_of_one_label():
    chosen = {}
    parts = []
    for label, times in [("3x3", (2.0, 1.0)), ("3x3", (1.0, 2.0)), ("1x1", (1.0, 2.0))]:
        part, timed, current = make({"library": times[0], "kernel": times[1]})
        part.label, part.chosen = label, chosen
        part(torch.zeros(2, 3))
        parts.append((len(timed), current[0]))
    assert parts == [(2, "kernel"), (0, "kernel"), (2, "library")]


def test_one_candidate_is_not_measured():
    fastest, timed, current = make({"library": 2.0})
    fastest(torch.zeros(2, 3))
    assert current == ["library"] and not timed


def test_nothing_is_measured_while_a_graph_is_recorded(monkeypatch):
    fastest, timed, current = make({"library": 2.0, "kernel": 1.0})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = torch.zeros(2, 3)
    monkeypatch.setattr(type(x), "device", torch.device("cuda"), raising=False)
    fastest(x)
    assert current == ["library"] and not timed
