"""Tests of kernel features that the host may lack: run.py starts a kernel with them. Elsewhere pytest does not collect them."""

from __future__ import annotations

import os

if os.environ.get("TEST_KERNEL") != "1":
    collect_ignore_glob = ["test_*.py"]
