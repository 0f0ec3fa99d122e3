"""Shared parts of tests: a host of its own for each, nodes with a flanneld, runtimes, kills and faults."""
