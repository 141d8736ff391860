"""A guest's agent that is the enemy: a real supervisor whose agent's port leads to a test instead of to a VM.

The test has the other end of the port and does with it what a guest could that has its kernel in hand.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, cast

from framework import process
from runvm.config import Config
from runvm.hypervisor.boot import Guest
from runvm.hypervisor.driver import Machine
from runvm.hypervisor.qemu.driver import Qemu
from runvm.linux import process as processes
from runvm.linux import syscalls
from runvm.network.networks import HostNetworks
from runvm.protocol import frames, messages
from runvm.protocol.frames import Frame
from runvm.sandbox import launch, registry, vm_life
from runvm.sandbox.plan import Started, VmPlan
from runvm.sandbox.supervisor import Supervisor
from runvm.shares.tree import Tree
from runvm.shares.virtiofs import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.errors import RunvmError
    from runvm.hypervisor.driver import Vm

CONTAINER = "victim"


def _wait_for_end(parent: int) -> int:
    """A child that dies with its parent, as QEMU and virtiofsd do."""

    def wait() -> None:
        processes.die_with_parent(parent)
        signal.pause()

    return processes.fork(wait)


class _Process:
    """Stands where QEMU would: a process to be watched and killed, without a machine in it."""

    def __init__(self) -> None:
        self.pid = _wait_for_end(os.getpid())

    def attach(self, loop: object) -> None:
        """There is no monitor."""

    def grow(self, mib: int, answered: Callable[[RunvmError | None], None]) -> None:
        """Memory that nobody has."""
        answered(None)

    def kill(self) -> None:
        """End it."""
        processes.end_child(self.pid, "the process in QEMU's place")


class Sandbox:
    """A supervisor in a process of its own; *peer* is the guest's end of the agent's port, *console* of the console."""

    def __init__(self, state_dir: str, *, namespace: int = -1, wake_seconds: float = 30.0, growth_mib: int = 0) -> None:
        self._namespace = namespace
        self._config = Config(state_dir=state_dir, template=False, accelerator="tcg")
        self.sandbox = registry.new(state_dir)
        listener = registry.listen(self.sandbox)
        self.peer, agent = socket.socketpair()
        self.console, console = socket.socketpair()
        output, self.daemon_says = os.pipe()
        os.set_blocking(output, False)
        machine = Machine("tcg", 1, 1, 512, growth_mib, "", "", "", "")
        driver = Qemu(self._config)
        plan = VmPlan(self._config, driver, machine, 0, "", self.sandbox, "", namespace, -1)

        def serve() -> None:
            launch._settle(plan, (), (listener.fileno(), agent.fileno(), console.fileno(), output))
            vm_life.INITIALIZE_SECONDS = wake_seconds
            share = Tree(f"{self.sandbox.directory}/share")
            log = f"{self.sandbox.directory}/virtiofsd.log"
            daemon = Daemon(_wait_for_end(os.getpid()), socket.socketpair()[0], output, log)
            guest = Guest(cast("Vm", _Process()), agent, console)
            Supervisor(
                plan, listener, share, lambda plan: Started(guest, daemon, HostNetworks(plan.sandbox.directory))
            ).run()

        self.pid = processes.fork(serve)
        for sock in (listener, agent, console):
            sock.close()
        os.close(output)
        self._decoder = frames.Decoder(max_message=frames.MAX_MESSAGE)
        self._shims: list[socket.socket] = []
        self.start_kb = 0

    def close(self) -> None:
        """End all of it."""
        for sock in (self.peer, self.console, *self._shims):
            sock.close()
        os.close(self.daemon_says)
        if self.alive():
            processes.end_child(self.pid, "the supervisor")
        process.reap_orphans()
        import shutil

        shutil.rmtree(self.sandbox.directory, ignore_errors=True)

    # --- the guest's side

    def send(self, kind: int, channel: int, payload: bytes) -> None:
        """One frame to the supervisor."""
        self.peer.sendall(frames.encode(kind, channel, payload))

    def tell(self, message: object, number: int = 0) -> None:
        """One message to the supervisor."""
        self.send(frames.MESSAGE, 0, messages.encode(message, number))  # type: ignore[arg-type]

    def receive(self) -> list[Frame]:
        """Some frames from the supervisor, at least one; none at its end."""
        while data := self.peer.recv(1 << 16):
            if found := self._decoder.feed(data):
                return found
        return []

    def wake(self) -> None:
        """Answer the supervisor's first request as a good guest does."""
        (frame,) = self.receive()
        number, message = messages.decode(frame.payload)
        assert isinstance(message, messages.Initialize)
        self.tell(messages.Done({}), number)

    def answer(self, result: messages.Done | messages.Failed) -> object:
        """Answer the next request, and return it."""
        (frame,) = self.receive()
        number, message = messages.decode(frame.payload)
        self.tell(result, number)
        return message

    def drain(self) -> None:
        """Read and throw away what the supervisor sends, from now on."""

        def read() -> None:
            try:
                while self.peer.recv(1 << 20):
                    pass
            except OSError:
                pass

        threading.Thread(target=read, daemon=True).start()

    def flood(self, data: bytes, *, seconds: float) -> int:
        """Send *data* again and again for so long, or until the supervisor hangs up; how often it was sent."""
        deadline = time.monotonic() + seconds
        count = 0
        self.peer.settimeout(15)
        try:
            while time.monotonic() < deadline:
                try:
                    self.peer.sendall(data)
                except TimeoutError:
                    break  # half a frame is out: nothing sensible can follow
                count += 1
        except OSError:
            pass
        finally:
            self.peer.settimeout(None)
        return count

    # --- the host's side

    def attach(self, key: str = "init") -> socket.socket:
        """A shim's connection."""
        shim = registry.connect(self.sandbox)
        shim.sendall(frames.encode(frames.MESSAGE, 0, messages.encode(messages.Attach(CONTAINER, key))))
        self._shims.append(shim)
        return shim

    def _stay_in_namespace(self) -> None:
        syscalls.setns(self._namespace, syscalls.CLONE_NEWNET)
        signal.pause()

    def build(self, *, network: bool = False, timeout: float = 60) -> Callable[[], object]:
        """Begin to build the container; what is returned waits for the result, or raises what the caller would see."""
        shim = -1
        if network:
            # a process that is in the network namespace, as a shim is
            shim = processes.fork(self._stay_in_namespace)
            time.sleep(0.2)
        request = messages.CreateContainer(
            CONTAINER,
            {"linux": {"resources": {}}},
            CONTAINER,
            {},
            {},
            network,
            [],
            0,
            0,
            *(processes.identity(shim if network else os.getpid()) or (0, 0)),
            0,
            0,
            [],
            "",
            {},
        )
        outcome: list[object] = []

        def call() -> None:
            try:
                outcome.append(registry.call(self.sandbox, request, timeout=timeout))
            except Exception as error:
                outcome.append(error)
            finally:
                if network:
                    processes.end_child(shim, "the process in the shim's place")

        thread = threading.Thread(target=call, daemon=True)
        thread.start()

        def wait() -> object:
            thread.join(timeout + 5)
            assert outcome, "the caller hangs"
            if isinstance(outcome[0], Exception):
                raise outcome[0]
            return outcome[0]

        return wait

    def status(self, *, timeout: float = 5) -> dict[str, object]:
        """The supervisor's answer to `Status`."""
        return registry.call(self.sandbox, messages.Status(), timeout=timeout)

    def alive(self) -> bool:
        """Whether the supervisor runs."""
        return process.alive(self.pid)

    def wait_end(self, timeout: float = 15) -> None:
        """Until the supervisor has ended, which it must do by itself."""
        assert processes.wait_child(self.pid, deadline=time.monotonic() + timeout) is not None, process.describe(
            self.pid
        )

    def peak_kb(self) -> int:
        """The most memory that the supervisor has had; 0 where it has just ended."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)

    def forget_peak(self) -> None:
        """Begin anew with peak_kb() (proc(5), clear_refs)."""
        with open(f"/proc/{self.pid}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        self.start_kb = self.peak_kb()

    def grown_mib(self) -> float:
        """What the supervisor has grown by at most since forget_peak()."""
        return (self.peak_kb() - self.start_kb) / 1024
