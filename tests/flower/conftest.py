"""The apps are Flower's to import: each is a folder of its own, and runs in Flower's processes."""

from __future__ import annotations

import importlib.util

collect_ignore = ["apps"]
if importlib.util.find_spec("flwr") is None:
    collect_ignore += ["test_federation.py", "test_deployed.py", "test_inprocess.py", "test_apps.py", "test_engines.py"]
    collect_ignore += ["test_kills.py", "test_kills_deployed.py", "test_one_truth.py", "test_slow_link.py"]
