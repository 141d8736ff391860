"""`runvm doctor`: would a container start on this host? Runs host.checks and tells how to fix what fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import RunvmError, words
from runvm.host import architectures, checks
from runvm.host.checks import Check

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.config import Config

_WIDTH = 18


def run(config: Config, *, json: bool) -> int:
    """Check this host, print each result (or all as *json*); 0 only where a container would start, else 1."""
    found: list[Check] = []

    def show(check: Check) -> None:
        found.append(check)
        if not json:
            print(format_check(check), flush=True)

    _examine(config, show)
    missing = [check for check in found if check.needed and not check.ok]
    if json:
        import json as encoder

        print(encoder.dumps({"ok": not missing, "checks": [check._asdict() for check in found]}, indent=2))
    elif missing:
        print(f"\na container would not start here: {', '.join(check.name for check in missing)}")
    else:
        print("\na container would start here")
    return 1 if missing else 0


def format_check(check: Check) -> str:
    """A line for a person, and a second one with the command that fixs it."""
    word = "ok" if check.ok else "missing" if check.needed else "note"
    line = f"{word:8} {check.name:{_WIDTH}} {check.found}"
    return line if not check.fix else f"{line}\n{'':8} {'':{_WIDTH}} to fix it: {check.fix}"


def _examine(config: Config, show: Callable[[Check], None]) -> None:
    """Run all checks; those that boot a guest come last, and only where nothing is missing that they would fail for."""
    results = [_carry_out(check, config, show) for check in checks.FIRST]
    for name in architectures.installed(config):
        show(architectures.check(config, name))
    missing = [check.name for check in results if check.needed and not check.ok]
    if missing:
        show(Check("a guest boots", False, f"not tried, see {missing[0]}", needed=False))
        return
    for check in checks.THEN:
        _carry_out(check, config, show)


def _carry_out(function: Callable[[Config], Check], config: Config, show: Callable[[Check], None]) -> Check:
    name = function.__name__.removeprefix("check_")
    try:
        check = function(config)
        check = check._replace(fix="") if check.ok else check
    except RunvmError as error:
        check = Check(name, False, error.message, error.do)
    except OSError as error:
        check = Check(name, False, words(error))
    show(check)
    return check
