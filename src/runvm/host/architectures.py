"""For `runvm doctor`: whether containers of another architecture than the host's would start, where there is an image
for them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runvm.errors import RunvmError
from runvm.guest import image
from runvm.host.checks import Check
from runvm.hypervisor import drivers
from runvm.linux import architecture

if TYPE_CHECKING:
    from runvm.config import Config


def installed(config: Config) -> list[str]:
    """The architectures besides the one that *config* means of which there is a guest image."""
    base = image.images_directory(config)
    others = [name for name in architecture.KNOWN if name != architecture.chosen(config.arch)]
    return [name for name in others if os.path.lexists(os.path.join(base, image.link(name)))]


def check(config: Config, name: str) -> Check:
    """Whether containers for *name* would start: its image, and a hypervisor for it. The host's own start without."""
    title = f"{name} containers"
    config = config._replace(arch=name)
    try:
        driver = drivers.load(config)
        findings = driver.check()
        bad = next((finding for finding in findings if not finding.ok), None)
        if bad is not None:
            return Check(title, False, bad.found, bad.fix, needed=False)
        found = image.resolve(config, driver.capabilities.kernel_format)
    except RunvmError as error:
        return Check(title, False, error.message, error.do, needed=False)
    programs = "; ".join(finding.found for finding in findings)
    return Check(title, True, f"{found.name}, kernel {found.kernel_version}, by {programs}", needed=False)
