"""The device that a network runs on, and what is measured of a network."""
