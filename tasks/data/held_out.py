"""Which rows are held out of training: of all rows of a prompt those whose prompt hashes lowest, the same in all rounds."""

import json
from collections.abc import Collection, Mapping

from tasks.config import DataConfig
from tasks.errors import DataError
from tasks.store import Ref, Table, read_dataset


def with_held_out(
    tables: Mapping[str, Table], data: DataConfig, *, seed: int, previous: Ref | None = None
) -> dict[str, Table]:
    """The tables in training and held-out parts; held-out prompts may be sources of their own."""
    parts = dict(tables)
    if "held_out_prompts" not in parts:
        before = held_out_before(previous, "prompts")
        parts["prompts"], parts["held_out_prompts"] = set_aside(
            tables["prompts"],
            num=data.num_held_out_prompts,
            field="data.num_held_out_prompts",
            seed=seed,
            before=before,
        )
    if "preferences" in parts:
        num = max(1, round(data.held_out_preferences * tables["preferences"].num_rows))
        before = held_out_before(previous, "preferences")
        parts["preferences"], parts["held_out_preferences"] = set_aside(
            tables["preferences"], num=num, field="data.held_out_preferences", seed=seed, before=before
        )
    return parts


def held_out_before(previous: Ref | None, name: str) -> set[str]:
    """What an earlier round held out: the contents of rows, and the prompts of which it trained on none."""
    if previous is None or not (previous.directory / f"held_out_{name}").is_dir():
        return set()
    held_out, trained = (read_dataset(previous.directory / part) for part in (f"held_out_{name}", name))
    prompts = {*held_out.column("prompt").to_pylist()} - {*trained.column("prompt").to_pylist()}
    return prompts | set(contents(held_out))


def contents(table: Table) -> list[str]:
    """Each row as one text, but for its source: that has another position when one is added before it."""
    own = table.select([name for name in table.column_names if name != "source"])
    return [json.dumps(row, sort_keys=True) for row in own.to_pylist()]


def set_aside(table: Table, *, num: int, field: str, seed: int, before: Collection[str] = ()) -> tuple[Table, Table]:
    """The table without, and with, about ``num`` held-out rows: those held out ``before``, and of the others those of the
    prompts that hash lowest.

    All rows of a prompt fall on one side; where few prompts make that impossible, rows are told apart by their whole
    content.
    """
    # The readers of this room serve commands that start without torch.
    from ppo_core.randomness import derive_seed

    if num >= table.num_rows:
        raise DataError(
            f"{field}: {table.num_rows} rows are too few to hold {num} of them out; give more, or lower {field}"
        )
    by_prompt, by_content = table.column("prompt").to_pylist(), contents(table)
    for keys in (by_prompt, by_content):
        is_known = [key in before or content in before for key, content in zip(keys, by_content, strict=True)]
        ranks = [(not known, derive_seed(seed, "held_out", key)) for known, key in zip(is_known, keys, strict=True)]
        threshold = sorted(ranks)[num - 1]
        held_out = [known or rank <= threshold for known, rank in zip(is_known, ranks, strict=True)]
        if sum(held_out) <= 2 * num and sum(held_out) < table.num_rows:
            break
    return table.filter([not inside for inside in held_out]), table.filter(held_out)
