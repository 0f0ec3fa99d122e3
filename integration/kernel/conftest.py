"""These tests need a kernel that has what they test: run.py starts one. Elsewhere pytest does not see them."""

from __future__ import annotations

import os

if os.environ.get("TEST_KERNEL") != "1":
    collect_ignore_glob = ["test_*.py"]
