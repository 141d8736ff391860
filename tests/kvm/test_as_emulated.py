"""Tests of the other folders, here by KVM: a kernel that is stopped, killed, fed and grown while it really runs on a
processor."""

from __future__ import annotations

from faults.test_killed_processes import (  # noqa: F401
    test_a_created_container_whose_process_is_killed_is_stopped,
    test_a_guest_that_crashes_ends_its_container,
    test_a_running_container_whose_process_is_killed_is_stopped,
)
from faults.test_templates import test_a_template_with_bits_changed_is_dropped_and_the_guest_boots, whole  # noqa: F401
from integration.cli.test_lifecycle import (  # noqa: F401
    test_a_signal_from_outside_reaches_init_by_name_and_by_number,
    test_kill_all_reaches_every_process,
    test_run_exits_with_128_plus_the_signal_that_ended_the_container,
    test_run_passes_signals_on_to_the_container,
)
from integration.cli.test_resources import (  # noqa: F401
    running,
    test_limits_are_in_the_containers_cgroup,
    test_memory_beyond_the_limit_ends_the_process,
    test_pause_stops_all_processes_and_resume_goes_on,
    test_the_virtual_machine_grows_to_its_limits,
    test_update_changes_limits_while_it_runs,
)
from integration.cli.test_stdio import (  # noqa: F401
    test_bytes_pass_both_ways_unchanged,
    test_fifty_megabytes_pass_through,
)
from integration.cli.test_terminal import (  # noqa: F401
    sessions,
    test_console_socket_gives_a_terminal_with_echo_size_signals_and_job_control,
    test_exec_at_a_terminal,
    test_run_at_the_callers_terminal_is_raw_sized_and_restored,
)
