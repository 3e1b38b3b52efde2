"""What only torch and the classes that a suite names can say; asked in a child process.

A torch that crashes, hangs or loads slowly costs its own lines of the report only (as in
`bench.registry.probe`): the child writes one answer after the other, and those that arrived in time
are used.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bench.base.child import answering, ask_child
from bench.base.errors import one_line
from bench.doctor.report import odd


def ask_classes(suites: Sequence[str], seconds: float) -> dict[str, Any]:
    """The child's answers that arrived within so many seconds: under "torch" the facts of torch,
    under a suite's name what its classes say.
    """
    lines, code = ask_child("bench.doctor.slow_facts", suites, max(seconds, 0.1))
    answers: dict[str, Any] = {}
    for line in lines:
        with suppress(ValueError, TypeError):
            answers |= json.loads(line)
    crashed = "torch" not in answers and code is not None
    if crashed:
        answers["torch"] = {"error": f"importing it ended Python (exit code {code})"}
    return answers


def _child(suites: Sequence[str]) -> None:
    with answering() as answers:
        for name, ask in [
            ("torch", _torch),
            *((suite, lambda suite=suite: _asked_classes(suite)) for suite in suites),
        ]:
            try:
                found = ask()
            except BaseException as error:
                found = {"error": f"{type(error).__name__}: {one_line(error, 300)}"}
            answers.write(json.dumps({name: found}) + "\n")
            answers.flush()


def _torch() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "gpus": [],
        "build": "CPU",
    }
    if torch.version.cuda:
        facts["build"] = f"CUDA {torch.version.cuda}"
    elif getattr(torch.version, "hip", None):
        facts["build"] = f"ROCm {torch.version.hip}"
    if facts["build"] != "CPU":
        # torch warns of a driver that is too old, and goes on without a GPU
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        facts["why"] = (
            one_line(caught[-1].message, 200)
            if caught and isinstance(caught[-1].message, Warning)
            else ""
        )
        facts["gpus"] = [_torch_gpu(torch, number) for number in range(count)]
    return facts


def _torch_gpu(torch: Any, number: int) -> dict[str, Any]:
    gpu: dict[str, Any] = {
        "name": f"GPU {number}",
        "total": 0,
        "free": 0,
        "capability": "?",
        "bf16": False,
        "fp16": False,
        "problem": "",
    }
    try:
        about = torch.cuda.get_device_properties(number)
        gpu |= {
            "name": about.name,
            "total": about.total_memory,
            "capability": f"{about.major}.{about.minor}",
        }
        amd = bool(getattr(torch.version, "hip", None))
        gpu |= {
            "bf16": amd or about.major >= 8,
            "fp16": amd or (about.major, about.minor) >= (5, 3),
        }
        free, _ = torch.cuda.mem_get_info(number)  # asked before anything is computed
        gpu["free"] = free
        if float((torch.ones(2, device=f"cuda:{number}") * 2).sum()) != 4.0:
            gpu["problem"] = "it computes wrongly"
    except Exception as error:
        gpu["problem"] = one_line(error, 200)
    return gpu


def _asked_classes(name: str) -> dict[str, Any]:
    """What only a suite's metrics and attacks can say: which settings are files, which images they
    need, what searches for known pictures evaluate; and where timings are kept.
    """
    from bench.base.parameters import configure
    from bench.contracts.method import Method
    from bench.diffusion.execution import Execution
    from bench.diffusion.model import pick_device
    from bench.registry import registry
    from bench.running.experiment import Experiment
    from bench.running.plan import searches_planned
    from bench.running.timing import timing_file
    from bench.suite.load import load_suite
    from bench.suite.needs import readable_part

    suite, _ = readable_part(load_suite(name))
    judges: dict[str, dict[str, Any]] = {"metric": {}, "attack": {}}
    files: list[tuple[str, str]] = []
    problems: list[str] = []
    exact = all(suite.prompts(role) for role in suite.settings.prompts)
    for kind, label, values in suite.settings.judges():
        try:
            if label.endswith(".py"):
                files.append((f"{kind} {label}", label))
            judge = configure(
                kind,
                label,
                registry.find(
                    kind, str(suite.file.parent / label) if label.endswith(".py") else label
                ).load(),
                values,
            )
            judges[kind][label] = judge
            named = [str(getattr(judge, key)) for key in judge.files if getattr(judge, key)]
            files += [(f"{kind} {label}", file) for file in named]
            if exact and all(suite.place(file).exists() for file in named):
                judge.fits(suite)
        except Exception as error:
            problems.append(odd(error))
    experiment = Experiment(suite, "none", Method(), judges["metric"], judges["attack"])
    keys = {key for role in experiment.roles for key in experiment.keys(role)}
    for attack in judges["attack"].values():
        try:
            keys |= {key for part in experiment.keys_of_attack(attack) for key in part}
        except Exception:
            exact = False
    return {
        "files": files,
        "problems": problems,
        "images": len(keys),
        "searched": sum(one["row_evaluations"] for one in searches_planned(experiment).values()),
        "exact": exact and not problems,
        "timing": timing_file(pick_device(None), Execution(), None),
    }


if __name__ == "__main__":
    _child(sys.argv[1:])
