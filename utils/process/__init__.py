"""Errors, signals and files: how a script behaves as a process."""
