"""What people read of a run: logs, tables, pictures and comparisons."""
