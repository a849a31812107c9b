"""Sweep files, and the code that executes one."""
