"""The simulator: the same engine, on a virtual clock, against providers that follow a script."""
