"""The host's side of a container's network: what its namespace has, taps wired to that, DNS on the guest's behalf."""
