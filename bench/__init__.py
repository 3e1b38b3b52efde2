"""The harness. Method, metric and attack authors import from here; names load on first use, so `bench --help` stays fast."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Method": "bench.method",
    "FitData": "bench.method",
    "State": "bench.method",
    "Metric": "bench.metric",
    "Attack": "bench.attack",
    "Target": "bench.attack",
    "Exhibit": "bench.attack",
    "Evaluation": "bench.metric",
    "Extractor": "bench.metric",
    "PerImage": "bench.metric",
    "PerSet": "bench.metric",
    "Unmeasurable": "bench.errors",
    "UserError": "bench.errors",
    "Denoiser": "bench.sampler",
    "Request": "bench.sampler",
    "Step": "bench.sampler",
    "Suite": "bench.suite",
    "load_suite": "bench.suite",
    "RunRecord": "bench.record",
    "Shown": "bench.record",
    "Run": "bench.runner",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
