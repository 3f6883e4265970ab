"""The built-in simulator: pads and blocks on a table, whose colours only a zoom can tell."""
