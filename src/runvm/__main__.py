"""The command `runvm`: finds the command asked for, imports that one module, turns errors into messages and exit codes.

Exit codes, found by running runc 1.1.5 and crun 1.8.1 side by side; where they differ, runc's holds:

    what                                            runc  crun  runvm
    done                                            0     0     0
    run, exec: what the process ended with          code  code  code (128+n: killed by signal n)
    a verb failed                                   1     1     1
    exec: the process couldn't be run               255   255   255
    exec: no such container, or not running         255   1     255
    wrong flag, argument missing or too many        1     64/1  1
    unknown command                                 3     1     3
    no command: help is shown                       0     1     0
    delete --force of an unknown container          0     0     0
    interrupted by ctrl-C                           130   130   130

Neither gives 126 or 127: Docker and podman make those of the message. For a wrong command line runc prints the usage
to stdout; here stdout stays clean and the message names the help to ask for.
"""

from __future__ import annotations

import gc
import os
import sys

from runvm.cli.commands import command_module
from runvm.cli.globals import GLOBAL, configure_log, context
from runvm.cli.grammar import HELP, parse
from runvm.errors import Interrupted, RunvmError, words
from runvm.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from runvm.cli.grammar import Args

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Carry out the command line *argv* (sys.argv's by default) and return its exit code; errors are reported here."""
    try:
        _open_standard_streams()
        code = _carry_out(sys.argv[1:] if argv is None else argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except RunvmError as error:
        log.error(str(error), error.details)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Interrupted as error:
        return _end_by(error.number)
    except BrokenPipeError as error:
        if _stdout_is_gone():
            return _BROKEN_PIPE
        log.error(words(error))
    except OSError as error:
        if log.debug_on:
            log.debug(_traceback())
        log.error(words(error))
    except Exception as error:  # the process's edge: whatever it is, the caller gets a message and a code
        log.error(f"internal error: {type(error).__name__}: {error}", _traceback())
    return 1


def entry() -> int:
    """The console script of a pip installation and the installed command: they exit with what this returns."""
    # What is imported stays, so to look for garbage meanwhile is in vain: 2 of the 28 ms that `runvm state` takes. What
    # waits for long turns it on again
    gc.disable()
    return main()


def resolve(argv: list[str]) -> tuple[Args, ModuleType, Args]:
    """The global flags, the module of the command, and its arguments; asking for help or the version is a command, too.

    Raises: UsageError.
    """
    given = parse(GLOBAL, argv)
    configure_log(given)
    name, rest = (given.words[0], given.words[1:]) if given.words else ("help", [])
    if given.on("version"):
        name, rest = "version", []
    elif given.on(HELP.name):
        name, rest = "help", []
    elif name == "h":
        name = "help"
    module = command_module(name)
    args = parse(module.COMMAND, rest)
    if args.on(HELP.name):
        path = [name] if args.command is module.COMMAND else [name, args.command.name]
        module = command_module("help")
        args = parse(module.COMMAND, path)
    return given, module, args


def _carry_out(argv: list[str]) -> int:
    given, module, args = resolve(argv)
    log.debug("command: arguments read")
    ctx = context(given, read_config=module.COMMAND.config)
    log.debug("command: settings read")
    code: int = module.run(ctx, args)
    log.debug("command: done")
    return code


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed, as Go's runtime does: else the next file opened would be stdin.

    Files that a container's process must not get would otherwise become its standard streams.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # open() takes the lowest free number, which is fd
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _stdout_is_gone() -> bool:
    """Whether the broken pipe is stdout (`runvm list | head -1`); then nothing more is written to it."""
    import select

    poll = select.poll()
    poll.register(1, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)  # the interpreter flushes sys.stdout once more at its end
    return True


def _end_by(number: int) -> int:
    """As if signal *number* had ended it at once; ctrl-C gives an exit code, as with runc."""
    import signal

    if number == signal.SIGINT:
        return _INTERRUPTED
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


def _traceback() -> str:
    import traceback

    return traceback.format_exc().rstrip()


if __name__ == "__main__":
    sys.exit(main())
