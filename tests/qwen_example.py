"""The example adapter, loaded from its source as its package would be."""

import importlib.util
import sys
from pathlib import Path

from taskyard.runner.adapters import Adapter

SOURCE = Path(__file__).parent.parent / "examples" / "qwen_adapter"


def _load() -> Adapter:
    spec = importlib.util.spec_from_file_location("taskyard_qwen", SOURCE / "taskyard_qwen.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Qwen()


QWEN = _load()
