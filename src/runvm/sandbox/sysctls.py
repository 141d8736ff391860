"""Settings of the host's kernel that hold for all containers of a host: a virtual machine's kernel gets them as it
wakes, since programs check them and who runs the host sets them there (a search engine's vm.max_map_count, say).

Found by comparing /proc/sys and /sys/kernel of a runc and a runvm container. Left out: what is about the host's own
hardware, memory or drivers (vm.min_free_kbytes, kernel.sysrq), what each network or IPC namespace has for itself, and
vm.overcommit_memory, which the agent sets: accounting is about all memory, and a machine that grows by need has little.
"""

from __future__ import annotations

from runvm.protocol.names import HUGE_PAGES

_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"
# With the values that the guest's kernel (Debian's 6.12) has unless it is told otherwise; '' where they depend on the
# memory at boot, and a virtual machine boots with little. What doesn't begin with '/' is below /proc/sys.
_DEFAULTS = {
    "fs/aio-max-nr": "65536",
    "fs/epoll/max_user_watches": "",
    "fs/fanotify/max_queued_events": "16384",
    "fs/fanotify/max_user_groups": "128",
    "fs/file-max": "",
    "fs/inotify/max_queued_events": "16384",
    "fs/inotify/max_user_instances": "128",
    "fs/inotify/max_user_watches": "",
    "fs/nr_open": "1048576",
    "fs/pipe-max-size": "1048576",
    "fs/pipe-user-pages-soft": "16384",
    "fs/protected_fifos": "0",
    "fs/protected_hardlinks": "1",
    "fs/protected_regular": "0",
    "fs/protected_symlinks": "1",
    "fs/suid_dumpable": "0",
    "kernel/core_uses_pid": "0",
    "kernel/io_uring_disabled": "0",
    "kernel/keys/maxbytes": "20000",
    "kernel/keys/maxkeys": "200",
    "kernel/kptr_restrict": "0",
    "kernel/perf_event_paranoid": "3",
    "kernel/pid_max": "32768",
    "kernel/randomize_va_space": "2",
    "kernel/threads-max": "",
    "kernel/unprivileged_bpf_disabled": "2",
    "kernel/unprivileged_userns_clone": "1",
    "kernel/yama/ptrace_scope": "0",
    "net/core/rmem_default": "212992",
    "net/core/rmem_max": "212992",
    "net/core/wmem_default": "212992",
    "net/core/wmem_max": "212992",
    "user/max_cgroup_namespaces": "",
    "user/max_ipc_namespaces": "",
    "user/max_mnt_namespaces": "",
    "user/max_net_namespaces": "",
    "user/max_pid_namespaces": "",
    "user/max_time_namespaces": "",
    "user/max_user_namespaces": "",
    "user/max_uts_namespaces": "",
    "vm/max_map_count": "65530",
    "vm/swappiness": "60",
    "vm/unprivileged_userfaultfd": "0",
    f"{_HUGE_PAGES}/defrag": "madvise",
    f"{_HUGE_PAGES}/enabled": "always",
    f"{_HUGE_PAGES}/shmem_enabled": "never",
}


def sysctls() -> dict[str, str]:
    """What differs from a guest's: the path → the value."""
    found = {}
    for name, default in _DEFAULTS.items():
        try:
            with open(name if name.startswith("/") else f"/proc/sys/{name}") as file:
                value = chosen(file.read())
        except OSError:
            continue  # a kernel without it
        if value != default:
            found[name] = value
    if found.get(f"{_HUGE_PAGES}/enabled") == "never":
        found[HUGE_PAGES] = "never"
    return found


def chosen(text: str) -> str:
    """The value that a file of the kernel's tells: of `always [madvise] never` the word in brackets."""
    _, bracket, rest = text.partition("[")
    return rest.partition("]")[0] if bracket else text.strip()
