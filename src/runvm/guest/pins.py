"""What the guest is made of, the same on every host: one suite of Debian, one series of its kernel, one of crun.

What is tested once then holds everywhere, whatever the host's own release is. The suite's security updates come in
without a change here, as they stay within a series. The configuration's keys guest_suite, guest_kernel and guest_crun
override each of these.
"""

from __future__ import annotations

SUITE = "trixie"
"""Debian 13, the oldest stable release with crun 1.21: supported until 2028, with long-term support until 2030."""

KERNEL = "6.12"
"""A long-term series, the suite's own: modules, virtio drivers and the function in which agent.prepared sees crun wait
are known to be as the agent needs them."""

CRUN = "1.21"
"""The agent turns its error messages into runc's (agent.crun), and lets one wait half done in a template
(agent.prepared): another series may say and do these otherwise."""
