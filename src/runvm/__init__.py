"""runvm: an OCI container runtime that runs containers inside virtual machines."""

__version__ = "0.2.0"
