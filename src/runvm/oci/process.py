"""The process that `exec` runs, from the container's own and the command line's flags, as runc 1.1 puts it together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import UsageError
from runvm.oci import spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runvm.oci.shapes import JsonObject

_MAX_ID = 2**32 - 2  # schema.ID says why not one more


def exec_process(
    base: JsonObject,
    *,
    args: Sequence[str],
    cwd: str = "",
    env: Sequence[str] = (),
    user: str = "",
    additional_gids: Sequence[int] = (),
    caps: Sequence[str] = (),
    tty: bool = False,
    no_new_privs: bool | None = None,
    apparmor: str = "",
    process_label: str = "",
) -> JsonObject:
    """A complete OCI process object: *base*, the container's `process`, with *args* and what else is given.

    env, additional_gids and caps are added to what *base* has; caps to the bounding, effective, permitted and ambient
    sets; user is 'uid' or 'uid:gid', in numbers, and the gid stays *base*'s without one. *base* is left as it is.
    Raises: UsageError for a bad flag, SpecError for a process that isn't complete (a relative cwd, say).
    """
    if not args:
        raise UsageError("process args cannot be empty")
    process: JsonObject = {**base, "args": list(args), "terminal": tty}
    if cwd:
        process["cwd"] = cwd
    if apparmor:
        process["apparmorProfile"] = apparmor
    if process_label:
        process["selinuxLabel"] = process_label
    if no_new_privs is not None:
        process["noNewPrivileges"] = no_new_privs
    if env:
        process["env"] = [*base.get("env", ()), *env]
    if caps:
        sets = dict(base.get("capabilities", {}))
        for kind in ("bounding", "effective", "permitted", "ambient"):
            sets[kind] = [*sets.get(kind, ()), *caps]
        process["capabilities"] = sets
    process["user"] = _user(base.get("user", {}), user, additional_gids)
    spec.check_process(process, "process")
    return process


def _user(base: JsonObject, user: str, additional_gids: Sequence[int]) -> JsonObject:
    changed = {"uid": 0, "gid": 0, **base}
    if user:
        uid, colon, gid = user.partition(":")
        if colon:
            changed["gid"] = _id(gid, "gid")
        changed["uid"] = _id(uid, "uid")
    for number in additional_gids:
        if not 0 <= number <= _MAX_ID:
            raise UsageError(f"additional-gids must be a positive number {number}")
    if additional_gids:
        changed["additionalGids"] = [*base.get("additionalGids", ()), *additional_gids]
    return changed


def _id(word: str, what: str) -> int:
    # runc's message; the part after the colon is Go's strconv's
    if not (word.isascii() and word.isdigit()):
        raise UsageError(f'parsing {word} as int for {what} failed: strconv.Atoi: parsing "{word}": invalid syntax')
    if len(word) > 10 or int(word) > _MAX_ID:
        raise UsageError(f'parsing {word} as int for {what} failed: strconv.Atoi: parsing "{word}": value out of range')
    return int(word)
