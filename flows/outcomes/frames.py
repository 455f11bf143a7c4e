"""Rollouts as rows to look at: which data set of which iteration, sorted and filtered, and one rollout token by token."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.outcomes.outputs import Found, find_outputs
from flows.plan import find_attempt
from flows.runs import Run
from tasks.errors import ConfigError, RunError
from tasks.stages import STAGES
from tasks.store import Manifest, Ref, Table, components_of, concatenate, read_dataset, require_undamaged

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Tokenizer

ROLLOUT_ID = re.compile(r"r(\d{1,9})\.i(\d{1,9})(?:\.s\d+)?\..+")
TOKEN_COLUMNS = {
    "logprobs": "logprob",
    "ref_logprobs": "ref_logprob",
    "kl": "kl",
    "rewards": "reward",
    "values": "value",
    "advantages": "advantage",
    "returns": "return",
}
"""Per-token columns of the data sets, and what one entry of each is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """The rollouts of one iteration, from the most complete data set that it has."""

    round: int
    iteration: int
    stage: str
    table: Table
    audit: Table | None
    """What is known of the same rollouts beside their training."""
    is_current: bool
    """False where no output of the run's present configuration is there yet, and that of an earlier one is shown."""
    tokenizer: Path | None
    """Where the tokenizer of the policy lies that made them; None if it is gone."""

    @property
    def components(self) -> list[str]:
        return components_of(self.table)

    def frame(self) -> "pd.DataFrame":
        """One row per rollout without the columns of lists; ``length`` and ``kl_sum`` are of the response."""
        import pandas as pd

        names = [f.name for f in self.table.schema if not str(f.type).startswith("list")]
        columns: dict[str, Any] = {name: self.table.column(name).to_pylist() for name in names}
        columns["length"] = [len(ids) for ids in self.table.column("response_token_ids").to_pylist()]
        if self.audit is not None:
            columns |= {name: self._of_audit(name) for name in self.audit.column_names if name != "rollout_id"}
        if "ref_logprobs" in self.table.column_names:
            logprobs, ref_logprobs = (self.table.column(name).to_pylist() for name in ("logprobs", "ref_logprobs"))
            columns["kl_sum"] = [sum(own) - sum(ref) for own, ref in zip(logprobs, ref_logprobs, strict=True)]
        return pd.DataFrame(columns)

    def _of_audit(self, name: str) -> list[Any]:
        """A column of the audit for the rows of the table, which may be those of some shards only."""
        assert self.audit is not None
        known = dict(zip(self.audit.column("rollout_id").to_pylist(), self.audit.column(name).to_pylist(), strict=True))
        return [known.get(rollout_id) for rollout_id in self.table.column("rollout_id").to_pylist()]


def rollouts_of(run: Run, round: int | None, iteration: int | None, attempt: str | None = None) -> Rollouts:
    """The rollouts of that iteration, by default of the latest that has some; or those of one attempt."""
    if attempt is not None:
        return rollouts_of_attempt(run, attempt, round, iteration)
    outputs = find_outputs(run)
    everything = [found for found in outputs if found.stage in STAGES.with_rollouts]
    wanted = [f for f in everything if round in (None, f.place.round) and iteration in (None, f.place.iteration)]
    # What an earlier configuration made further on is not the latest of this one.
    wanted = [found for found in wanted if found.is_current] or wanted
    if not wanted:
        raise RunError(nothing_there(run, everything, round, iteration))
    latest = max((found.place.round, found.place.iteration) for found in wanted)
    there = [found for found in wanted if (found.place.round, found.place.iteration) == latest]
    stage = next(stage for stage in STAGES.with_rollouts if any(found.stage == stage for found in there))
    chosen = sorted((found for found in there if found.stage == stage), key=lambda found: found.place)
    is_current = all(found.is_current for found in chosen)
    audits = [
        checked_dataset(found.ref, "audit")
        for found in outputs
        if found.stage == "audit_rollouts"
        and (found.place.round, found.place.iteration, found.is_current) == (*latest, is_current)
    ]
    return Rollouts(
        round=latest[0],
        iteration=latest[1],
        stage=stage,
        table=joined([found.ref for found in chosen]),
        audit=audits[0] if audits else None,
        is_current=is_current,
        tokenizer=tokenizer_of(run, chosen[0].ref),
    )


def rollouts_of_attempt(run: Run, attempt: str, round: int | None, iteration: int | None) -> Rollouts:
    """The rollouts of the output whose fingerprint begins so, and what an audit found of them."""
    ref, manifest = find_attempt(run, attempt, STAGES.with_rollouts)
    place = manifest.place
    if round not in (None, place.round) or iteration not in (None, place.iteration):
        raise ConfigError(f"--attempt {attempt}: is of round {place.round}, iteration {place.iteration}; ask for those")
    table = checked_dataset(ref, "rollouts")
    scored = manifest.recipe["inputs"]["scored"] if manifest.stage == "compute_advantages" else [manifest.digest]
    audits = [
        checked_dataset(Ref(str(directory), own.digest), "audit")
        for directory, own in run.store.manifests()
        if own.stage == "audit_rollouts" and set(scored) <= set(own.recipe["inputs"]["scored"])
    ]
    return Rollouts(
        round=place.round,
        iteration=place.iteration,
        stage=manifest.stage,
        table=table,
        audit=audits[0] if audits else None,
        is_current=True,
        tokenizer=tokenizer_of(run, ref),
    )


def nothing_there(run: Run, everything: list[Found], round: int | None, iteration: int | None) -> str:
    """What to say where there are no rollouts."""
    if not everything:
        return f"run {run.name} has no rollouts yet; rounds status {run.name} shows how far it is"
    asked = [f"round {round}"] if round is not None else []
    asked += [f"iteration {iteration}"] if iteration is not None else []
    has = sorted({(found.place.round, found.place.iteration) for found in everything})
    (first_round, first), (last_round, last) = has[0], has[-1]
    return (
        f"run {run.name} has no rollouts of {', '.join(asked)}; it has those from round {first_round}, iteration {first} "
        f"to round {last_round}, iteration {last}"
    )


def joined(refs: list[Ref]) -> Table:
    """The rows of all shards."""
    return concatenate([checked_dataset(ref, "rollouts") for ref in refs])


def checked_dataset(ref: Ref, name: str) -> Table:
    """A data set of a committed output, if it is what was committed."""
    require_undamaged(ref, name)
    return read_dataset(ref.directory / name)


def selected(frame: "pd.DataFrame", *, where: str | None, sort: str | None, top: int | None) -> "pd.DataFrame":
    """The rows that an expression chooses, sorted and cut. The index still says which row of the data set each is.

    ``sort`` is a column, its largest value first; ``-column`` puts its smallest first.
    """
    if where is not None:
        frame = filtered(frame, where)
    if sort is not None:
        column = sort.removeprefix("-")
        if column not in frame.columns:
            raise ConfigError(f"--sort {sort}: no such column; columns are {', '.join(frame.columns)}")
        frame = frame.sort_values(column, ascending=sort.startswith("-"), kind="stable")
    return frame if top is None else frame.head(top)


def filtered(frame: "pd.DataFrame", where: str) -> "pd.DataFrame":
    columns = f"columns are {', '.join(frame.columns)}"
    try:
        chosen: Any = frame.eval(where, engine="python")
    except Exception as error:  # the expression is the user's, and pandas raises whatever its evaluation raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"--where {where}: {reason}; {columns}") from error
    if str(getattr(chosen, "dtype", "")) != "bool":
        raise ConfigError(f"--where {where}: not a condition like score > 1; {columns}")
    return frame[chosen]


def full_rows(rollouts: Rollouts, frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """All columns of the chosen rows, as plain values, with the columns that ``frame`` derived."""
    if frame.empty:
        return []
    rows: list[dict[str, Any]] = rollouts.table.take(list(frame.index)).to_pylist()
    derived = [name for name in frame.columns if name not in rollouts.table.column_names]
    for row, values in zip(rows, frame[derived].to_dict("records"), strict=True):
        # pandas says NaN for a number that is missing, which is no JSON.
        row.update({str(name): None if value != value else value for name, value in values.items()})
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRollout:
    """One rollout and its tokens."""

    row: dict[str, Any]
    """Its columns that are not per token."""
    tokens: list[dict[str, Any]]


def one_rollout(run: Run, rollout_id: str, attempt: str | None = None) -> OneRollout:
    """The rollout of that id, whose first parts say where it is; as it is now, or in one attempt."""
    match = ROLLOUT_ID.fullmatch(rollout_id)
    if match is None:
        raise RunError(
            f"{rollout_id}: not a rollout id like r1.i3.s0.PROMPT.SAMPLE; rounds rollouts {run.name} lists them"
        )
    round, iteration = int(match[1]), int(match[2])
    rollouts = rollouts_of(run, round, iteration, attempt)
    ids: list[str] = rollouts.table.column("rollout_id").to_pylist()
    if rollout_id not in ids:
        raise RunError(
            f"{rollout_id}: run {run.name} has no such rollout; "
            f"rounds rollouts {run.name} --round {round} --iteration {iteration} lists those of that iteration"
        )
    frame = rollouts.frame()
    index = ids.index(rollout_id)
    row: dict[str, Any] = full_rows(rollouts, frame.loc[[index]])[0]
    texts = token_texts(rollouts.tokenizer, row["response_token_ids"])
    names = {name: label for name, label in TOKEN_COLUMNS.items() if name in row}
    tokens = [
        {"token": text, "token_id": token_id, **{label: row[name][t] for name, label in names.items()}}
        for t, (text, token_id) in enumerate(zip(texts, row["response_token_ids"], strict=True))
    ]
    plain = {name: value for name, value in row.items() if not isinstance(value, list)}
    return OneRollout(row=plain, tokens=tokens)


def tokenizer_of(run: Run, ref: Ref) -> Path | None:
    """Where the tokenizer of the policy lies that a data set of rollouts was made with; None if it is gone."""
    made_from = Manifest.read(ref.directory).input_paths
    policy = run.root / (made_from["checkpoint"] if "checkpoint" in made_from else made_from["policy"])
    for directory in (policy / "policy", policy):
        if (directory / "tokenizer_config.json").exists() or (directory / "tokenizer.json").exists():
            return directory
    return None


def token_texts(directory: Path | None, token_ids: list[int]) -> list[str]:
    """The text of each token; its id in angle brackets where the tokenizer is gone."""
    if directory is None:
        return [f"<{token_id}>" for token_id in token_ids]
    if not (directory / "tokenizer.json").exists():
        from tasks.text import load_tokenizer

        return [str(text) for text in load_tokenizer(str(directory)).convert_ids_to_tokens(token_ids)]
    # Not through transformers, whose import takes longer than all the rest.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [token_text(tokenizer, token_id) for token_id in token_ids]


def token_text(tokenizer: "Tokenizer", token_id: int) -> str:
    """A token as it reads in the text; as the vocabulary spells it where it is only a part of a character."""
    piece = tokenizer.id_to_token(token_id)
    if piece is None:
        return f"<{token_id}>"
    if "▁" in piece:
        return str(piece).replace("▁", " ")
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    return str(text) if text and "�" not in text else str(piece)
