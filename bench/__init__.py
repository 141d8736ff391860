"""How fast runvm is, in ratios measured side by side: `make bench`. A module for each family of figures."""
