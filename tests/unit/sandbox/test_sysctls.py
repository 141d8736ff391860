"""What a virtual machine's kernel is told of the host's settings."""

from runvm.sandbox import sysctls


def test_a_choice_is_the_word_in_brackets() -> None:
    """As the files below /sys/kernel/mm/transparent_hugepage have it."""
    assert sysctls.chosen("always [madvise] never\n") == "madvise"
    assert sysctls.chosen("65530\n") == "65530"


def test_what_depends_on_the_memory_is_told_always() -> None:
    """A virtual machine boots with little."""
    found = sysctls.sysctls()
    with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as file:
        assert found["user/max_user_namespaces"] == file.read().strip()
    assert "vm/overcommit_memory" not in found
