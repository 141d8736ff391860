"""The guest image: built from the distribution's packages, found for a start."""
