"""The guest image: built from Debian's packages, found for a start."""
