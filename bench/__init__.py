"""The harness. Method, metric and attack authors import from here; names load on first use, so
`bench --help` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Method": "bench.contracts.method",
    "FitData": "bench.contracts.method",
    "State": "bench.contracts.method",
    "Metric": "bench.contracts.metric",
    "Attack": "bench.contracts.attack",
    "Target": "bench.contracts.attack",
    "Exhibit": "bench.contracts.attack",
    "Evaluation": "bench.contracts.metric",
    "Extractor": "bench.contracts.metric",
    "PerImage": "bench.contracts.metric",
    "PerSet": "bench.contracts.metric",
    "Unmeasurable": "bench.base.errors",
    "UserError": "bench.base.errors",
    "Denoiser": "bench.diffusion.denoiser",
    "Request": "bench.diffusion.denoiser",
    "Step": "bench.diffusion.denoiser",
    "Suite": "bench.suite.suite",
    "load_suite": "bench.suite.suite",
    "RunRecord": "bench.records.record",
    "Shown": "bench.records.record",
    "Run": "bench.running.run",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
