"""Settings of the host's kernel that hold for all containers of a host: a virtual machine's kernel gets them as it
wakes, since programs check them and who runs the host sets them there (a search engine's vm.max_map_count, say)."""

from __future__ import annotations

# With the values that Linux 6.1 has unless it is told otherwise; '' where they depend on the memory at boot, and a
# virtual machine boots with little
_DEFAULTS = {
    "fs/aio-max-nr": "65536",
    "fs/file-max": "",
    "fs/inotify/max_user_instances": "128",
    "fs/inotify/max_user_watches": "",
    "fs/nr_open": "1048576",
    "kernel/pid_max": "32768",
    "kernel/threads-max": "",
    "vm/max_map_count": "65530",
}


def sysctls() -> dict[str, str]:
    """What differs from a guest's: the path below /proc/sys → the value."""
    found = {}
    for name, default in _DEFAULTS.items():
        try:
            with open(f"/proc/sys/{name}") as file:
                value = file.read().strip()
        except OSError:
            continue  # a kernel without it
        if value != default:
            found[name] = value
    return found
