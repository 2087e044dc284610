"""Taskyard's benchmark: `make bench`, or `python -m bench --quick`.

Every figure stands beside the floor that the same machine reached in the same minutes.
"""
