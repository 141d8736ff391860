"""Every request, reply and event, typed, each field bounded: host ↔ guest on the agent's port, command and shim ↔
supervisor on its socket.

On the wire a message is one JSON object: `t` the type's name, `n` the number that a reply repeats (0 for events), and
the fields. decode() checks each against its annotation, since what comes from the guest is not trusted.
"""

from __future__ import annotations

import json
from typing import Any, get_type_hints

from runvm.protocol import fields
from runvm.protocol.fields import Json as Json
from runvm.protocol.fields import MessageError as MessageError
from runvm.protocol.saving import Checkpoint as Checkpoint
from runvm.protocol.saving import EndCheckpoint as EndCheckpoint
from runvm.protocol.saving import FindMemory as FindMemory
from runvm.protocol.saving import Quiesce as Quiesce
from runvm.protocol.saving import RestoreContainer as RestoreContainer
from runvm.protocol.saving import Restored as Restored
from runvm.protocol.saving import Unquiesce as Unquiesce
from runvm.protocol.sharing import AddSocket as AddSocket
from runvm.protocol.sharing import Changed as Changed
from runvm.protocol.sharing import ConnectServer as ConnectServer
from runvm.protocol.sharing import DropSocket as DropSocket
from runvm.protocol.sharing import FindServer as FindServer
from runvm.protocol.sharing import Watch as Watch
from runvm.records import NamedTuple

# --- replies


class Done(NamedTuple):
    """The request numbered alike has been carried out; *result* is what the request's docstring says."""

    result: Json


class Failed(NamedTuple):
    """The request numbered alike failed: the text for the user, and the kind that becomes the exit code."""

    error: str


# --- host → guest


class Initialize(NamedTuple):
    """First after a boot or a restore: what makes the guest this VM and no other. Clock in ns since the epoch, entropy
    in hex, the shares' tag, values of files of the kernel's, by path; one that is not absolute is below /proc/sys."""

    clock_ns: int
    entropy: str
    share: str
    sysctls: Json


class Create(NamedTuple):
    """Create a container: *spec* is the guest's config.json, *share* the directory in the share that its sources are
    relative to.

    *namespaces* maps a namespace type to the id of the container (in this VM) whose namespace it joins. *network* is
    the number of the guest's network namespace (0 = the VM's own), *interfaces* what it gets where it is new
    (protocol.interfaces.Network). *passed* has a frames.WAYS for each descriptor beyond stdio. With *notify* what the
    container says at agent.notify's socket is told by Notified. *sockets* has mode, user and group of each mounted
    socket of the host, by number (agent.host_sockets).
    Result: {"pid": guest pid}.
    """

    container: str
    channel: int
    spec: Json
    namespaces: Json
    network: int
    interfaces: Json
    rows: int
    columns: int
    passed: list[str]
    notify: bool
    sockets: Json


class Start(NamedTuple):
    """Start a created container. Result: {}."""

    container: str


class Exec(NamedTuple):
    """A further process (OCI process object) in a running container, or *outside*, beside the agent, where only args
    and terminal count. Result: {"pid": guest pid}."""

    container: str
    channel: int
    process: Json
    rows: int
    columns: int
    passed: list[str]
    cgroup: str
    outside: bool


class Signal(NamedTuple):
    """Signal *number* to the process of *channel*, or with *every* to each process of the container. Result: {}."""

    container: str
    channel: int
    number: int
    every: bool


class Freeze(NamedTuple):
    """Pause (*frozen*) or resume a container's cgroup. Result: {}."""

    container: str
    frozen: bool


class Update(NamedTuple):
    """Apply an OCI resources object. Result: {}."""

    container: str
    resources: Json


class UseCpus(NamedTuple):
    """Use that many virtual CPUs, the last of which are just being plugged in. Result: {}."""

    vcpus: int


class Clock(NamedTuple):
    """Move the guest's clock by so many ns. Result: {"clock_ns": what it shows then, in ns since the epoch}."""

    by_ns: int


class UseMemory(NamedTuple):
    """The VM has *mib* of memory, the last of which is just being plugged in: have the containers use it, and tell by
    MemoryLow when they need more, unless it is *final*. Result: {}."""

    mib: int
    final: bool


class Stats(NamedTuple):
    """Read the container's cgroup. Result: {file name: its text}."""

    container: str


class FindFile(NamedTuple):
    """Look for *path* as the container's own process would find it. Result: {"there"}: whether it is."""

    container: str
    path: str


class Remove(NamedTuple):
    """Forget a container that has ended. Result: {}."""

    container: str


class SetNetwork(NamedTuple):
    """What a network namespace has now. Result: {}."""

    network: int
    interfaces: Json


class RemoveNetwork(NamedTuple):
    """The last container of a network namespace has gone. Result: {}."""

    network: int


class Connect(NamedTuple):
    """Connect to *port* at an address of a network namespace, '' = its loopback; the channel's streams are STDIN and
    STDOUT. Result: {}."""

    channel: int
    network: int
    address: str
    port: int


class Dialled(NamedTuple):
    """The answer to Dial *number*: the connection is made, its streams are STDIN and STDOUT of *channel*, and the
    result is {}; or, with 0, an event: it is refused."""

    number: int
    channel: int


class Resize(NamedTuple):
    """An event: the size of a channel's terminal has changed."""

    channel: int
    rows: int
    columns: int


# --- guest → host


class Hello(NamedTuple):
    """An event: the agent is up and waits for Initialize; *version* is protocol.version.own()."""

    version: str


class Exited(NamedTuple):
    """An event: a process has ended and all that it has written is sent. *code* is 0–255, or 128 + *signal*. What
    others write that it has left its streams to comes later."""

    channel: int
    code: int
    signal: int


class OutOfMemory(NamedTuple):
    """An event: the guest's kernel killed a process of this container for its memory limit."""

    container: str


class MemoryLow(NamedTuple):
    """An event: the containers need more memory than there is; UseMemory answers it."""


class MemoryFree(NamedTuple):
    """An event: *mib* of the memory have been free for some time; UseMemory answers it."""

    mib: int


class Notified(NamedTuple):
    """An event: the container has said *text* to its $NOTIFY_SOCKET (sd_notify(3))."""

    container: str
    text: str


class Dial(NamedTuple):
    """An event: a process of these ids has connected to the host's *socket*, by its number in Create. Dialled, with
    the *number* here, answers it."""

    container: str
    socket: int
    number: int
    uid: int
    gid: int
    groups: list[int]


# --- command or shim → supervisor


class Attach(NamedTuple):
    """First on a shim's connection: it has the streams of the process called *key* ('init', or an exec's own name)."""

    container: str
    key: str


class CreateContainer(NamedTuple):
    """From `create`, after the hooks: make the container in the guest. Result: {"notes"}, what the user should know.

    *spec* is the guest's config.json; *place* is the container's directory in the share, *shares* maps a name there to
    {"source", "recursive", "read_only"};
    *namespaces* maps namespace types to containers of this VM; *network* is false where the VM's own network
    namespace is used; *cgroups* are the directories of its cgroup on the host, *limit_mib* its memory limit,
    *pod_mib* that of the pod whose sandbox it is (0 = none).
    The shim is the process *shim_pid*, and its start time (process.Identity) *shim_start*.
    *notify* is the path of its $NOTIFY_SOCKET on the host, '' without one; *sockets* are the paths of the host's
    sockets that are mounted, by number (protocol.names.host_socket()).
    If this connection closes before the answer, the container is dropped.
    """

    container: str
    spec: Json
    place: str
    shares: Json
    namespaces: Json
    network: bool
    cgroups: list[str]
    limit_mib: int
    pod_mib: int
    shim_pid: int
    shim_start: int
    rows: int
    columns: int
    passed: list[str]
    notify: str
    sockets: Json


class ExecProcess(NamedTuple):
    """From exec or `debug shell` (*outside*): a further process, whose shim is attached as *key*. Result: {}."""

    container: str
    key: str
    process: Json
    cgroup: str
    rows: int
    columns: int
    passed: list[str]
    outside: bool


class DeleteContainer(NamedTuple):
    """From delete: forget a container, which is killed if it still runs. Answered when nothing of it is left in this
    VM. Result: {"last"}: whether the VM ends with it."""

    container: str


class Status(NamedTuple):
    """What the supervisor knows, for `runvm debug`, warm starts and tests. Result: {"containers", "healthy": those in
    which a process of exec has ended with 0, "console", "template", "hypervisor", "accelerator"}."""


_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Done, Failed, Initialize, Create, Start, Exec, Signal, Freeze, Update, UseCpus, Clock, UseMemory, Stats, FindFile, Remove, SetNetwork, RemoveNetwork, Quiesce, Unquiesce, Restored, Connect, Dialled, AddSocket, DropSocket, FindServer, ConnectServer, Changed, Resize, Hello,  # noqa: E501
        Exited, OutOfMemory, MemoryLow, MemoryFree, Notified, Dial, Watch,
        Attach, CreateContainer, ExecProcess, FindMemory, Checkpoint, EndCheckpoint, RestoreContainer, DeleteContainer,
        Status,
    )
}  # fmt: skip

FROM_GUEST = frozenset(
    {"Done", "Failed", "Hello", "Exited", "OutOfMemory", "MemoryLow", "MemoryFree", "Notified", "Dial", "Watch"}
)
"""The only messages that the supervisor takes from a guest."""

_ENCODER = json.JSONEncoder(separators=(",", ":"))
_DECODER = json.JSONDecoder()
_hints: dict[str, dict[str, Any]] = {}


def prepare() -> None:
    """Read the annotations of all types now: it takes 30 ms at a first message in an emulated guest."""
    for name, kind in _TYPES.items():
        _hints[name] = get_type_hints(kind)


def encode(message: NamedTuple, number: int = 0) -> bytes:
    """The wire form of *message*, numbered *number*."""
    body = {"t": type(message).__name__, "n": number}
    body.update(message._asdict())
    return _ENCODER.encode(body).encode(errors="surrogatepass")


def decode(data: bytes, allowed: frozenset[str] | None = None) -> tuple[int, Any]:
    """(number, message) of the wire form; *allowed* names the types taken of one who isn't trusted. Raises
    MessageError."""
    try:
        # json.loads() takes white space off by a regular expression, whose first use takes long in an emulated guest
        body, end = _DECODER.raw_decode(text := data.decode())
        if end != len(text):
            raise ValueError(f"more than one value, the second at {end}")
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not JSON: {error}") from None
    if not isinstance(body, dict):
        raise MessageError("not an object")
    if allowed is not None and fields.is_deep(body):
        raise MessageError(f"more than {fields.MAX_DEPTH} objects within each other")
    name, number = body.pop("t", None), body.pop("n", None)
    if type(number) is not int or not 0 <= number < 1 << 32:
        raise MessageError("a bad number")
    try:
        return number, _typed(name, body, allowed)
    except MessageError as error:
        error.number = number
        raise


def _typed(name: object, body: dict[str, Any], allowed: frozenset[str] | None) -> Any:
    """The message called *name* with the fields of *body*, each checked."""
    kind = _TYPES.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or kind is None or allowed is not None and name not in allowed:
        raise MessageError(f"unexpected type {str(name)[:40]!r}")
    hints = _hints.get(name)
    if hints is None:
        hints = _hints[name] = get_type_hints(kind)
    if body.keys() != hints.keys():
        raise MessageError(f"{name} has other fields than it should")
    for field, hint in hints.items():
        fields.check(f"{name}.{field}", body[field], hint)
    return kind(**body)
