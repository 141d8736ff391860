"""What runs on an arm64 host: an emulated one (framework.arm64_host), so that deadlines are scaled; its KVM works.
After each test the host must be as it was."""

from kvm.conftest import docker, nothing_left  # noqa: F401
