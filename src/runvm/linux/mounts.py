"""Mounts of another process taken over: the supervisor shares what a container's process on the host sees."""

from __future__ import annotations

import os

from runvm.linux.syscalls import CLONE_NEWNS, clone_tree, setns


def clone_from(pid: int, sources: list[tuple[str, bool]]) -> list[int]:
    """A bind of each source (path, recursive) as process *pid* sees it, mounted nowhere yet: descriptors for
    syscalls.attach_tree().

    The mounts that an engine makes for one container may not be there in anybody's mount namespace that is older
    (Podman keeps its own private), and what hooks mount in the container's is there only. For a process with one
    thread; its working directory is / afterwards. Raises OSError, naming the path.
    """
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    theirs = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    found: list[int] = []
    try:
        setns(theirs, CLONE_NEWNS)
        try:
            for path, recursive in sources:
                found.append(clone_tree(path, recursive=recursive))
        finally:
            try:
                setns(home, CLONE_NEWNS)
            except OSError:
                # to go on would mean to see the mounts of one container while serving the next
                os.abort()
    except OSError:
        for fd in found:
            os.close(fd)
        raise
    finally:
        os.close(home)
        os.close(theirs)
    return found
