"""A run's settings, their flags, and the names of the run and its files."""
