"""How much memory a VM gets by need, and gives back."""

from runvm.sandbox.demand import step_mib, surplus_mib


def test_a_step_is_a_gib_or_half_of_what_there_is() -> None:
    """In blocks, so that a large one doesn't take many steps."""
    assert step_mib(1024, 24576, 20000, 24576) == 1024
    assert step_mib(8192, 24576, 20000, 24576) == 4096
    assert step_mib(1000, 2000, 20000, 24576) == 896


def test_the_setting_and_the_host_bound_it() -> None:
    """The host keeps a twentieth, or half a GiB."""
    assert step_mib(1024, 1536, 20000, 24576) == 512
    assert step_mib(1024, 1024, 20000, 24576) == 0
    assert step_mib(1024, 24576, 1500, 24576) == 256
    assert step_mib(1024, 24576, 1000, 24576) == 0
    assert step_mib(1024, 4096, 700, 2048) == 128
    assert step_mib(1024, 4096, 0, 0) == 0


def test_half_of_what_is_free_goes_back() -> None:
    """Never more than what came by need, whatever the guest says."""
    assert surplus_mib(2048, 2000) == 896
    assert surplus_mib(512, 1 << 31) == 512
    assert surplus_mib(0, 4096) == 0
    assert surplus_mib(1024, 200) == 0
