"""Write a run's history as a fixture: what the diagnosis reads of it, and no more.

python tests/tasks/histories/record.py RUN_DIRECTORY NAME
"""

import json
import re
import sys
from pathlib import Path

from tasks.metrics.rules import PER_ITERATION, PER_ROUND

READ = ("score/", "rewards/", "kl/mean", "kl/coef", "update/learning_rate", "evaluation/", "reward_model/accuracy")
NAMES = "|".join(re.escape(rule.metric).replace("<reward>", r"\w+") for rule in (*PER_ITERATION, *PER_ROUND))


def is_read(name):
    bare = name.removesuffix("_stderr")
    return name in ("round", "iteration") or name.startswith((*READ, "audit/")) or re.fullmatch(NAMES, bare)


def reduced(row):
    return {
        name: value if isinstance(value, int) else float(f"{value:.4g}") for name, value in row.items() if is_read(name)
    }


def main():
    root, name = Path(sys.argv[1]), sys.argv[2]
    reports = sorted(root.glob("stages/round-*/report_round/*"))
    history = [reduced(row) for row in json.loads((reports[-1] / "metrics.json").read_text())]
    for row in history:
        # What the report counted is what is to be found again.
        row.pop("health/warnings", None)
    rounds = {}
    for report in reports:
        summary = json.loads((report / "summary.json").read_text())
        of_round = {key: x for key, x in summary.items() if key.startswith(("evaluation/", "reward_model/"))}
        rounds[summary["round"]] = reduced(of_round)
    lines = ",\n".join(json.dumps(row) for row in history)
    text = f'{{"rounds": {json.dumps(rounds)},\n"history": [\n{lines}\n]}}\n'
    (Path(__file__).parent / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main()
