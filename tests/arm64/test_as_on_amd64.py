"""Tests of the other folders, here on an arm64 host by KVM: the doctor, starts, exec, terminals, limits, Docker."""

from __future__ import annotations

from integration.cli.test_resources import (  # noqa: F401
    running,
    test_memory_beyond_the_limit_ends_the_process,
    test_pause_stops_all_processes_and_resume_goes_on,
)
from integration.cli.test_stdio import test_bytes_pass_both_ways_unchanged  # noqa: F401
from integration.cli.test_terminal import sessions, test_exec_at_a_terminal  # noqa: F401
from kvm.test_main_job import (  # noqa: F401
    test_a_container_runs_by_kvm_on_the_hosts_processor,
    test_a_guest_boots_where_no_template_is_wanted,
    test_dockers_network_reaches_a_container,
    test_the_doctor_finds_kvm_working,
)
