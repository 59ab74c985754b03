"""SFW's fused step on the CPU: loops that Numba compiles."""
