"""The flags before the command, and the Context made of them and of the configuration."""

from __future__ import annotations

import os

from runvm.cli.grammar import Command, Flag
from runvm.errors import UnsupportedError, UsageError
from runvm.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.cli.grammar import Args
    from runvm.config import Config
    from runvm.container.context import Context

GLOBAL = Command(
    "",
    words="<command> [argument ...]",
    max_args=-1,
    hands_on=True,
    flags=(
        Flag("root", "where the state of containers is kept; should be a tmpfs; containers in the configuration's "
             "state_dir (/run/runvm), if not given", metavar="DIR"),
        Flag("log", "append messages to this file; errors still go to stderr as well", metavar="FILE"),
        Flag("log-format", "how a message looks; text, if not given", metavar="FORMAT", choices=("text", "json")),
        Flag("log-level", "error, warning or debug, which is --debug; warning, if not given", metavar="LEVEL",
             choices=("error", "warning", "debug")),
        Flag("debug", "say what is done and when, on stderr or in the log"),
        Flag("systemd-cgroup", "make cgroups by systemd; cgroupsPath is then slice:prefix:name"),
        Flag("cgroup-manager", "how cgroups are made on the host; cgroupfs, if not given", metavar="MANAGER",
             choices=("cgroupfs", "systemd", "disabled")),
        Flag("rootless", "whether failures to set up cgroups are ignored", metavar="VALUE", default="auto",
             choices=("true", "false", "auto")),
        Flag("criu", "accepted for runc's callers, without effect", metavar="FILE", hidden=True),
        Flag("version", "print the version", "v", "V"),
    ),
)  # fmt: skip


def configure_log(args: Args, config: Config | None = None) -> None:
    """Set the log up by the flags, and where they are silent by the configuration once it is read."""
    path = log_path(args.text("log"))
    style = args.text("log-format")
    level = args.text("log-level")
    debug = args.on("debug") or level == "debug"
    if config is not None:
        path = path or config.log_file
        style = style or config.log_format
        debug = debug or not level and config.log_level == "debug"
    log.configure(path=path, format=style or "text", debug=debug, errors_only=level == "error" and not debug)


def log_path(destination: str) -> str:
    """The file that --log names. crun's `file:PATH` is one, too; its other backends aren't there."""
    backend, colon, rest = destination.partition(":")
    if colon and backend == "file":
        destination = rest
    elif colon and backend in ("journald", "syslog"):
        raise UnsupportedError(f"--log={backend}: is not supported by runvm", do="give it a file")
    return absolute(destination) if destination else ""


def context(args: Args, *, read_config: bool) -> Context:
    """What the verbs get. Without *read_config* the settings are the defaults, whatever the configuration file has."""
    from runvm import config as settings
    from runvm.container.context import Context

    config = settings.load() if read_config else settings.Config()
    config = _without_root(config)
    # as the kernel names them: mounts are found by their paths, and Docker's --root leads through the link /var/run
    config = config._replace(state_dir=os.path.realpath(config.state_dir))
    configure_log(args, config)
    manager = args.text("cgroup-manager") or ("systemd" if args.on("systemd-cgroup") else "cgroupfs")
    root = os.path.realpath(absolute(args.text("root"))) if args.text("root") else f"{config.state_dir}/containers"
    return Context(root, config, manager, args.text("rootless"))


def _without_root(config: Config) -> Config:
    """As with runc and crun, an unprivileged user's state is below $XDG_RUNTIME_DIR, root's never (sudo keeps it)."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime_dir.startswith("/") or config.state_dir != type(config)().state_dir:
        return config
    from runvm.linux import userns

    return config._replace(state_dir=f"{runtime_dir}/runvm") if userns.limited() else config


def absolute(path: str) -> str:
    """*path* against the working directory, which may have been removed: an engine's often is."""
    if path.startswith("/"):
        return os.path.normpath(path)
    try:
        return os.path.normpath(f"{os.getcwd()}/{path}")
    except FileNotFoundError:
        raise UsageError(
            f'"{path}" is relative to the current directory, which no longer exists', do="give an absolute path"
        ) from None
