"""A loop goes on when one of its callbacks fails: others depend on it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from runvm.linux import loop as loops
from runvm.linux.loop import IN, Loop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(reader, writer), one byte in it."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.write(writer, b"x")
    yield reader, writer
    os.close(reader)
    os.close(writer)


def fail(events: int) -> None:
    """What a fault of ours may raise."""
    raise KeyError("a fault")


def test_without_on_error_a_callbacks_exception_is_run_s(pipe: tuple[int, int]) -> None:
    """A shim's loop has one thing to do: it ends with it."""
    loop = Loop()
    loop.watch(pipe[0], IN, fail)
    with pytest.raises(KeyError):
        loop.turn(1)


def test_a_descriptor_whose_callback_fails_is_left_alone_and_then_served_again(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ready at once again, which would be a busy loop; but it is not given up: it may be all that there is."""
    monkeypatch.setattr(loops, "_REST_SECONDS", 0.05)
    told: list[Exception] = []
    loop = Loop(on_error=told.append)
    calls = 0

    def callback(events: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("a fault")
        os.read(pipe[0], 1)
        loop.stop()

    loop.watch(pipe[0], IN, callback)
    loop.turn(1)
    assert (calls, [str(error) for error in told]) == (1, ["'a fault'"])
    loop.turn(0)
    assert calls == 1, "not at once"
    loop.run()
    assert calls == 2


def test_a_resting_descriptor_may_be_changed_forgotten_and_watched_anew(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be another file's by the time that its rest is over."""
    monkeypatch.setattr(loops, "_REST_SECONDS", 0.02)
    loop = Loop(on_error=lambda error: None)
    seen: list[int] = []
    loop.watch(pipe[0], IN, fail)
    loop.turn(1)
    loop.change(pipe[0], 0)
    loop.change(pipe[0], IN)
    loop.forget(pipe[0])
    loop.watch(pipe[0], IN, seen.append)
    loop.turn(1)
    assert seen == [IN]
    loop.forget(pipe[0])
    loop.turn(0.1)
    assert seen == [IN]


def test_a_timer_that_fails_is_told_and_the_next_one_comes() -> None:
    """Both are due in one turn."""
    told: list[Exception] = []
    loop = Loop(on_error=told.append)
    loop.call_later(0, lambda: fail(0))
    loop.call_later(0, loop.stop)
    loop.run()
    assert len(told) == 1


def test_a_narrow_loop_serves_one_descriptor_and_no_timers() -> None:
    loop = Loop()
    called: list[str] = []
    pipes = {name: os.pipe() for name in ("one", "other")}
    for name, (reader, writer) in pipes.items():

        def ready(events: int, name: str = name, reader: int = reader) -> None:
            os.read(reader, 10)
            called.append(name)

        loop.watch(reader, IN, ready)
        os.write(writer, b"x")
    loop.call_later(0, lambda: called.append("timer"))
    loop.narrow(pipes["one"][0])
    for _ in range(3):
        loop.turn(0)
    assert called == ["one"]
    loop.widen()
    loop.turn(0)
    assert sorted(called) == ["one", "other", "timer"]


def test_a_narrow_loop_whose_descriptor_has_gone_serves_all() -> None:
    """The host's line has closed: what follows has to be served, or nothing ever would be."""
    loop = Loop()
    called: list[str] = []
    reader, writer = os.pipe()
    loop.watch(reader, IN, lambda events: None)
    loop.narrow(reader)
    loop.forget(reader)
    loop.call_later(0, lambda: called.append("timer"))
    loop.turn(0)
    assert called == ["timer"]
    os.close(reader)
    os.close(writer)


def test_what_waits_looks_for_garbage(pipe: tuple[int, int]) -> None:
    """Commands don't; a shim and a supervisor come from one by fork and live for long."""
    gc.disable()
    try:
        loop = Loop()
        loop.watch(pipe[0], IN, lambda events: loop.stop())
        loop.run()
        assert gc.isenabled()
    finally:
        gc.enable()
