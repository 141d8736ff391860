"""The life of a supervisor's VM: started, its guest initialized, started once more without its template if that proves
broken, ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from runvm.errors import NOT_RUNNING, RunvmError, words
from runvm.hypervisor import template
from runvm.linux import process
from runvm.log import log
from runvm.protocol.messages import Done, Failed, Initialize
from runvm.protocol.names import SHARE_TAG
from runvm.records import NamedTuple
from runvm.sandbox import diagnosis, sysctls
from runvm.sandbox.guest_clock import GuestClock
from runvm.sandbox.running import RunningVm

if TYPE_CHECKING:
    from runvm.linux.loop import Loop
    from runvm.protocol.frames import Frame
    from runvm.sandbox.plan import Started, VmPlan

    Start = Callable[[VmPlan], Started]

INITIALIZE_SECONDS = 30.0
"""How long a guest that a template was made of may take to become this VM, before the template is taken for broken."""
BUSY_SECONDS = 40.0
"""How much longer than a boot that may be where others have come up from the template: twenty that start at once on a
busy host are slow, and would all be slower still if they booted."""


class VmCreation(NamedTuple):
    """A container that is being created while it isn't known yet whether the VM's template is any good: done *again* in
    the VM that takes the place of this one, or *failed*."""

    again: Callable[[], None]
    failed: Callable[[str], None]


class VmLife:
    """Starts *plan*'s VM by *start*. *on_event* and *on_frame* get what the guest says. *on_restart* is called before
    the VM is started without its template: the containers have to take their files out of the share."""

    def __init__(
        self,
        loop: Loop,
        plan: VmPlan,
        start: Start,
        *,
        on_event: Callable[[Any], None],
        on_frame: Callable[[Frame], None],
        on_restart: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.initialized = False
        self.creations: dict[str, VmCreation] = {}
        """By container, until the guest is known to be well."""
        self.served = False
        """A container has been started."""
        self.left_cause = False
        """What diagnosis.explained() reads has been left in the sandbox's directory, which therefore stays."""
        self.notes: list[str] = []
        """What the user should know of how the VM came up."""
        self._loop = loop
        self._start = start
        self._on_event = on_event
        self._on_frame = on_frame
        self._on_restart = on_restart
        self._ending = False
        self._restarting = False
        # a checkpoint's guest knows its container's by its number
        self._channel = 0 if plan.restore is None else plan.restore.channel - 1
        self._clock: GuestClock | None = None
        self._adopt(start(plan))

    def next_channel(self) -> int:
        """The number of a new channel."""
        self._channel += 1
        return self._channel

    def fail(self, reason: str) -> bool:
        """The VM has failed: the end, unless it was only the template's fault. True where it is started again."""
        if self._restarting:
            return True
        if self._ending:
            return False
        ended = self.vm.how_ended()
        if self.initialized or not self.plan.template or process.KILLED in ended:  # not a template's fault
            self._fail_for_good(ended or reason, self.vm.diagnosis())
            return False
        self._restarting = True
        self._loop.call_later(0, lambda: self._restart(reason))
        return True

    def _fail_for_good(self, reason: str, details: str) -> None:
        """The end, with its cause for those who wait, and where no container has been started yet for those who will
        ask."""
        message = f"the virtual machine {'has failed' if self.initialized else 'failed while it started'}: {reason}"
        log.error(message, details)
        if not self.served:
            with suppress(OSError):  # a full disk: the log tells as well
                diagnosis.leave(self.plan.sandbox.directory, f"{message}\n{details}")
            self.left_cause = True
        self.end(reason, failed="\n".join([f"{NOT_RUNNING}: {message}", details]).strip())

    def end(self, reason: str, *, failed: str = NOT_RUNNING) -> None:
        """Stop; what is still asked for fails with the text *failed*."""
        if not self._ending:
            self._ending = True
            log.debug(f"sandbox {self.plan.sandbox.name} ends: {reason}")
            self.vm.agent.fail(failed)
            self._loop.stop()

    @property
    def ending(self) -> bool:
        """Whether end() has been called."""
        return self._ending

    def close(self) -> None:
        """End the VM and what belongs to it."""
        if self._clock is not None:
            self._clock.close()
        self.vm.close()

    def follow_clock(self) -> None:
        """The guest has been told the time: keep it right from now on."""
        self._clock = GuestClock(self._loop, self.vm.agent)

    def check_clock(self) -> None:
        """The guest has stood still, and its clock with it."""
        if self._clock is not None:
            self._clock.check()

    def _adopt(self, started: Started) -> None:
        """Take a VM over, and have its guest become this VM's."""
        if started.note:
            self.notes.append(started.note)
        self.vm = RunningVm(
            self._loop,
            self.plan,
            started,
            on_event=self._on_event,
            on_frame=self._on_frame,
            on_failure=self.fail,
            next_channel=self.next_channel,
        )
        if self.plan.restore is not None:  # this guest is initialized: its container's restore tells it the rest
            self.initialized = True
            return
        patience = INITIALIZE_SECONDS
        if self.plan.template and template.has_served(self.plan.template):
            patience = self.plan.config.boot_timeout_s + BUSY_SECONDS
        request = Initialize(time.time_ns(), os.urandom(64).hex(), SHARE_TAG, sysctls.sysctls())
        self.vm.agent.ask(request, self._initialized, timeout=patience)

    def _initialized(self, answer: Done | Failed) -> None:
        if isinstance(answer, Failed):
            self.fail(f"the guest can't be set up: {answer.error}")
            return
        self.initialized = True
        self.follow_clock()
        self.creations.clear()
        if self.plan.template:
            template.note_served(self.plan.template)

    def _restart(self, reason: str) -> None:
        """The VM anew, without the template that failed for *reason*; the containers that were to be created in it are,
        now."""
        if self._ending:
            return
        self.vm.close()
        broken = self.plan.template
        self._on_restart()
        self.plan = self.plan._replace(template="")
        creations = list(self.creations.values())
        try:
            self._adopt(self._start(self.plan))
        except (RunvmError, OSError) as error:
            details = getattr(error, "details", "") or diagnosis.last_lines(self.plan.sandbox.directory)
            for creation in creations:
                creation.failed("\n".join([words(error), details]).strip())
            self._fail_for_good(words(error), details)
            return
        self._restarting = False
        self.notes.append(template.drop(broken, reason))
        for creation in creations:
            creation.again()
