"""What a guest's side of the agent's port may do: the supervisor stays bounded, no caller waits past its deadline."""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from framework.hostile import CONTAINER, Sandbox
from runvm.errors import DeadlineError, GuestError, NotRunningError, RunvmError
from runvm.linux import process as processes
from runvm.linux import syscalls
from runvm.protocol import dns, frames, messages
from runvm.sandbox import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from framework.runtime import Box, Runtime

MAX_GROWN_MIB = 160
"""Two queues of 64 MiB, toward the guest and toward a shim, and what Python keeps."""

pytestmark = pytest.mark.only("runvm", "there is a supervisor")


@pytest.fixture
def sandbox(runtime: Runtime) -> Iterator[Sandbox]:
    """A supervisor whose guest is this test."""
    made = Sandbox(runtime.state_dir)
    yield made
    made.close()


def header(length: int, kind: int, channel: int) -> bytes:
    return struct.pack(">IBI", length, kind, channel)


def message(text: bytes) -> bytes:
    return frames.encode(frames.MESSAGE, 0, text)


BROKEN: dict[str, bytes] = {
    "noise": random.Random(1).randbytes(100_000),
    "a frame of 4 GiB": header(0xFFFFFFFF, frames.MESSAGE, 0),
    "a message beyond a guest's bound": header(frames.MAX_GUEST_MESSAGE + 1, frames.MESSAGE, 0),
    "a chunk too long": header(frames.CHUNK + 1, frames.STDOUT, 1),
    "an unknown kind": header(1, 255, 0) + b"x",
    "no JSON": message(b"{"),
    "no object": message(b"[1]"),
    "deep": message(b"[" * 100_000),
    "a number beyond bounds": message(b'{"t":"Exited","n":0,"channel":1,"code":1,"signal":' + b"9" * 5000 + b"}"),
    "a wrong type": message(b'{"t":"Exited","n":0,"channel":"1","code":1,"signal":0}'),
    "a host's request": message(messages.encode(messages.DeleteContainer(CONTAINER))),
    "a shim's request": message(messages.encode(messages.Attach(CONTAINER, "init"))),
    "a field too many": message(b'{"t":"Hello","n":0,"version":"1","more":1}'),
    "bytes that are no text": message(b'{"t":"Hello","n":0,"version":"\xff\xfe"}'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_protocol_ends_the_vm(sandbox: Sandbox, name: str) -> None:
    """The caller that waits is told at once, the supervisor ends by itself, with no more memory than before."""
    sandbox.wake()
    shim = sandbox.attach()
    wait = sandbox.build()
    assert sandbox.receive(), "the request to create the container"
    sandbox.peer.sendall(BROKEN[name])
    with pytest.raises((NotRunningError, GuestError)):
        wait()
    sandbox.wait_end()
    assert shim.recv(1) == b"", "the shim hears of it"


def test_a_guest_that_never_answers_is_given_up(runtime: Runtime) -> None:
    """Nor one that sends half a frame and then nothing: the error names what was waited for."""
    sandbox = Sandbox(runtime.state_dir, wake_seconds=1.0)
    try:
        sandbox.attach()
        wait = sandbox.build()
        sandbox.peer.sendall(header(1000, frames.MESSAGE, 0) + b"{")
        with pytest.raises(GuestError, match="timed out waiting for the guest to answer Initialize"):
            wait()
        sandbox.wait_end()
    finally:
        sandbox.close()


def test_an_answer_never_given_ends_at_the_callers_deadline(sandbox: Sandbox) -> None:
    """A request that the guest takes and forgets: who asked hears so; the supervisor serves on, deleting too."""
    sandbox.wake()
    sandbox.attach()
    wait = sandbox.build(timeout=2)
    with pytest.raises(DeadlineError, match="CreateContainer"):
        wait()
    sandbox.wait_end()  # its only container was given up


FLOODS: dict[str, Callable[[], bytes]] = {
    "answers nobody waits for": lambda: b"".join(
        message(messages.encode(messages.Done({"x": "y" * 100}), number)) for number in range(1000, 2000)
    ),
    "events of channels that don't exist": lambda: message(messages.encode(messages.Exited(77, 0, 0))) * 1000,
    "out of memory": lambda: message(messages.encode(messages.OutOfMemory(CONTAINER))) * 1000,
    "hellos": lambda: message(messages.encode(messages.Hello("x" * 10_000))) * 50,
    "credit": lambda: frames.encode(frames.CREDIT_KIND, 1, frames.CREDIT.pack(frames.STDIN, 0xFFFFFFFF)) * 1000,
    "ends of file": lambda: frames.encode(frames.STDOUT, 1, b"") * 1000,
    "streams that don't exist": lambda: frames.encode(frames.STDOUT, 77, b"x") * 1000,
    "names to be looked up": lambda: frames.encode(frames.DNS, 1, dns.pack(dns.Packet(1, dns.UDP, bytes(60_000)))) * 4,
    "no DNS": lambda: frames.encode(frames.DNS, 9, b"x") * 1000,
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_neither_fills_memory_nor_keeps_others_waiting(sandbox: Sandbox, name: str) -> None:
    """As fast as the guest can, for two seconds: commands are answered meanwhile, and nothing piles up."""
    sandbox.wake()
    shim = sandbox.attach()
    wait = sandbox.build()
    sandbox.answer(messages.Done({}))
    assert wait() == {"notes": [], "hypervisor": "qemu", "accelerator": "tcg"}
    shim.setblocking(False)
    sandbox.drain()
    sandbox.forget_peak()
    data = FLOODS[name]()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        sandbox.flood(data, seconds=0.2)
        assert CONTAINER in str(sandbox.status(timeout=10))
        try:
            while shim.recv(1 << 20):
                pass
        except BlockingIOError:
            pass
    assert sandbox.grown_mib() < 96


@pytest.mark.parametrize("name", ["streams that don't exist", "no DNS", "credit"])
def test_a_guest_that_floods_and_never_reads_is_cut_off(sandbox: Sandbox, name: str) -> None:
    """What the supervisor would send back is bounded: at that point the VM ends, and the host has not paid for it."""
    sandbox.wake()
    sandbox.attach()
    wait = sandbox.build()
    sandbox.answer(messages.Done({}))
    wait()
    sandbox.forget_peak()
    sandbox.flood(FLOODS[name](), seconds=6)
    grown = sandbox.grown_mib() if sandbox.alive() else 0
    assert grown < MAX_GROWN_MIB


def test_output_beyond_its_credit_is_cut_off_at_the_shim(sandbox: Sandbox) -> None:
    """A shim that doesn't read, a guest that doesn't heed credit: that process is lost, at a bounded price."""
    sandbox.wake()
    shim = sandbox.attach()
    wait = sandbox.build()
    sandbox.answer(messages.Done({}))
    wait()
    sandbox.drain()
    sandbox.forget_peak()
    sandbox.flood(frames.encode(frames.STDOUT, 1, bytes(frames.CHUNK)), seconds=6)
    assert not sandbox.alive() or sandbox.grown_mib() < MAX_GROWN_MIB
    while shim.recv(1 << 20):
        pass


def test_an_answer_of_any_shape_is_passed_on_or_refused(sandbox: Sandbox) -> None:
    """Results nested to any depth, errors full of control characters: the caller gets an error or plain text."""
    sandbox.wake()
    sandbox.attach()
    wait = sandbox.build()
    sandbox.answer(messages.Done({}))
    wait()

    def stats(reply: Callable[[int], bytes]) -> object:
        with registry.connect(sandbox.sandbox) as connection:
            connection.sendall(message(messages.encode(messages.Stats(CONTAINER), 1)))
            (frame,) = sandbox.receive()
            number, _ = messages.decode(frame.payload)
            sandbox.peer.sendall(message(reply(number)))
            connection.settimeout(10)
            found = frames.Decoder(max_message=frames.MAX_MESSAGE)
            while data := connection.recv(1 << 16):
                for answer in found.feed(data):
                    return messages.decode(answer.payload)[1]
            return None

    failed = stats(lambda number: messages.encode(messages.Failed("\x1b]0;owned\x07 red \x1b[31m\nline"), number))
    assert failed == messages.Failed("?]0;owned? red ?[31m\nline")

    def nested(depth: int) -> object:
        result = b'{"a":' * depth + b"1" + b"}" * depth
        return stats(lambda number: b'{"t":"Done","n":%d,"result":%b}' % (number, result))

    assert nested(10) is not None
    refused = nested(900)
    assert isinstance(refused, messages.Failed)
    assert refused.error.startswith("container not running: the virtual machine has failed: the guest has ended")
    sandbox.wait_end()


def test_a_console_that_never_ends_is_kept_to_its_end(sandbox: Sandbox) -> None:
    """A guest that writes to its console all the time: 16 KiB of it are kept, and commands are answered."""
    sandbox.wake()
    sandbox.forget_peak()
    deadline = time.monotonic() + 2
    sandbox.console.settimeout(1)
    asked = 0.0
    while time.monotonic() < deadline:
        sandbox.console.sendall(b"\x1b[2J" + b"x" * 100_000 + b"\n")
        if time.monotonic() > asked + 0.3:
            asked = time.monotonic()
            console = str(sandbox.status()["console"])
            assert len(console) <= 16 << 10
            assert "\x1b" not in console
    assert sandbox.grown_mib() < 32


def test_a_file_server_that_complains_for_ever_is_logged_to_a_bound(sandbox: Sandbox) -> None:
    """What a guest makes virtiofsd say doesn't fill the file system of the state."""
    sandbox.wake()
    for _ in range(20):
        os.write(sandbox.daemon_says, b"x" * 65535 + b"\n")
    assert "containers" in sandbox.status()
    size = os.stat(f"{sandbox.sandbox.directory}/virtiofsd.log").st_size
    assert 64 << 10 <= size <= 256 << 10


def test_a_guest_that_asks_for_memory_for_ever_is_logged_to_a_bound(runtime: Runtime) -> None:
    """Nor does what it answers, and one that was told that there is no more isn't told again and again."""
    sandbox = Sandbox(runtime.state_dir, growth_mib=1024)
    try:
        sandbox.wake()
        sandbox.attach()
        wait = sandbox.build()
        sandbox.answer(messages.Done({}))
        wait()
        sandbox.peer.settimeout(1)
        deadline = time.monotonic() + 3
        told: list[bool] = []
        while time.monotonic() < deadline:
            sandbox.tell(messages.MemoryLow())
            with suppress(TimeoutError):
                for frame in sandbox.receive():
                    number, request = messages.decode(frame.payload)
                    sandbox.tell(messages.Failed("x" * 65_000), number)
                    if isinstance(request, messages.UseMemory):
                        told.append(request.final)
        assert told[-1]
        assert sum(told) == 1
        assert os.stat(f"{sandbox.sandbox.directory}/supervisor.log").st_size <= 256 << 10
    finally:
        sandbox.close()


def _make_namespace() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    signal.pause()


def test_names_are_asked_at_a_bounded_price(runtime: Runtime) -> None:
    """As many queries as a guest can make, each of 60 KB, in a network where nobody answers or all is refused."""
    namespace_of = processes.fork(_make_namespace)
    time.sleep(0.3)
    namespace = os.open(f"/proc/{namespace_of}/ns/net", os.O_RDONLY)
    sandbox = Sandbox(runtime.state_dir, namespace=namespace)
    try:
        sandbox.wake()
        sandbox.attach()
        wait = sandbox.build(network=True)
        sandbox.answer(messages.Done({}))
        wait()
        sandbox.drain()
        sandbox.forget_peak()
        deadline = time.monotonic() + 4
        number = 0
        while time.monotonic() < deadline:
            packets = b""
            for _ in range(16):
                number += 1
                packet = dns.Packet(number, dns.TCP if number % 2 else dns.UDP, bytes(60_000))
                packets += frames.encode(frames.DNS, 1, dns.pack(packet))
            sandbox.peer.sendall(packets)
        assert sandbox.status(timeout=10)
        assert sandbox.grown_mib() < 64
    finally:
        sandbox.close()
        os.close(namespace)
        processes.end_child(namespace_of, "the namespace's holder")


def test_random_frames_never_crash_the_supervisor_with_a_traceback(runtime: Runtime) -> None:
    """Good frames with bytes changed, cut and repeated, by a fixed seed: each VM ends in order or goes on."""
    seed = random.Random(20)
    good = [FLOODS[name]()[:4000] for name in FLOODS] + [BROKEN["a wrong type"], BROKEN["a host's request"]]
    for _ in range(40):
        sandbox = Sandbox(runtime.state_dir)
        try:
            sandbox.wake()
            sandbox.attach()
            wait = sandbox.build(timeout=10)
            data = bytearray(seed.choice(good))
            for _ in range(seed.randint(1, 8)):
                data[seed.randrange(len(data))] = seed.randrange(256)
            sandbox.peer.sendall(bytes(data))
            sandbox.peer.shutdown(1)
            with pytest.raises(RunvmError):
                wait()
            sandbox.wait_end()
        finally:
            sandbox.close()


def test_another_container_doesnt_notice(box: Box, runtime: Runtime) -> None:
    """While one guest floods its supervisor, exec in another container works."""
    other = box.sleeper()
    sandbox = Sandbox(runtime.state_dir)
    try:
        sandbox.wake()
        sandbox.attach()
        sandbox.build()
        sandbox.drain()
        for _ in range(3):
            sandbox.flood(FLOODS["streams that don't exist"](), seconds=0.5)
            assert other.sh("echo works") == "works"
    finally:
        sandbox.close()
