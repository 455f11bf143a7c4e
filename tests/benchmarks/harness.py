"""What the benchmarks share: interleaved processes, medians and ratios, the machine in words, tables in the README."""

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = Path(__file__).with_name("README.md")


def machine():
    """What the numbers were measured on."""
    import torch
    import transformers

    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1].strip() if found else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def in_words(found):
    gpu = f", {found['gpu']}" if found["gpu"] else ""
    return (
        f"{found['cores']} cores of {found['processor']} ({found['cpu_capability']}), {found['memory_gib']} GiB{gpu}; "
        f"Python {found['python']}, torch {found['torch']}, transformers {found['transformers']}"
    )


def child(script, *arguments, env=None):
    """Run one system in a process of its own; what it prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **(env or {})},
    )
    if done.returncode != 0:
        raise SystemExit(
            f"{script} {' '.join(map(str, arguments))} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def interleaved(systems, repeat):
    """The results of each system, which is called by turns: A B A B …, so that a noisy minute hits all."""
    results = {name: [] for name in systems}
    for _ in range(repeat):
        for name, run in systems.items():
            results[name].append(run())
    return results


def median(results, key):
    return statistics.median(result[key] for result in results)


def ratios(these, those, key):
    """Of those to these, turn by turn: how many times faster or smaller these are."""
    return [b[key] / a[key] for a, b in zip(these, those, strict=True)]


def spread(values, digits=2):
    """``median (lowest–highest)``."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def memory():
    """Bytes of this process that lie in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def table(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_readme(name, text):
    """Put a benchmark's result between its marks in the README."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    content = README.read_text()
    if begin not in content:
        raise SystemExit(f"{README} has no place for {name}")
    before, rest = content.split(begin)
    README.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")
