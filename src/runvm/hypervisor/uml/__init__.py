"""User Mode Linux as the hypervisor: the guest's kernel is a process of the host, with no need of KVM."""
