"""What remote executors share: the job directory, staging, the supervisor, and transports.

Plugins may import this package beside :mod:`chelate.api`.
"""
