"""The OCI runtime spec on the host's side: config.json, processes, resources, hooks, features."""

# The version of the spec that runvm implements: in `state`, in what hooks read, and the highest of `features`
OCI_VERSION = "1.1.0"
