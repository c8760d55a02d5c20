"""What runs on the host: standard library only, and read by any Python from 3.6 on.

There the package is called ``_chelate_host``; ``tools.py`` puts it beside the worker.
"""
