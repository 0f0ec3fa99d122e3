"""Keep pytest from collecting these tests elsewhere: they need a kernel that has what they test, as run.py starts one."""

from __future__ import annotations

import os

if os.environ.get("TEST_KERNEL") != "1":
    collect_ignore_glob = ["test_*.py"]
