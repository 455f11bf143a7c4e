"""Why a stage would execute, in words."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.plan.changed_data import KINDS
from flows.plan.planned import Planned
from tasks.config import Json
from tasks.stages import STAGES
from tasks.store import Recipe, Store, digest_text

MAX_LENGTH, SHOWN_LENGTH = 48, 24
SHORT_DIGEST = 8


def why(store: Store, recipe: Recipe, inputs: Sequence[Planned]) -> str:
    """Why a stage has no committed output: never ran, an input is not there, or what differs from its latest variant."""
    variants = [manifest for _, manifest in store.variants(recipe.directory)]
    if missing := [planned for planned in inputs if planned.ref is None]:
        return f"input {missing[0].stage} changes" if variants else "not run yet"
    if (store.root / "stages" / recipe.directory / recipe.fingerprint).is_dir():
        return "output is damaged"
    if not variants:
        return "not run yet"
    return what_differs(recipe.as_dict(), max(variants, key=lambda manifest: manifest.committed_at).recipe)


def what_differs(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What sets our recipe apart from theirs, in words; of several causes the one from which the others follow."""
    if ours["generation"] != theirs["generation"]:
        return "forced"
    if ours["version"] != theirs["version"]:
        return f"stage version {theirs['version']} → {ours['version']}"
    # Before the settings, since the digest of generated data follows from the seed.
    if ours["seed"] != theirs["seed"]:
        return f"seed: {theirs['seed']} → {ours['seed']}"
    if changed := changed_fields(STAGES.settings_of(theirs), STAGES.settings_of(ours)):
        return ", ".join(changed)
    names = [name for name in ours["inputs"] if ours["inputs"][name] != theirs["inputs"].get(name)]
    return f"input {', '.join(names)} changed"


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``a.b: old → new`` for each leaf that differs."""
    changes: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += changed_fields(old, new, f"{prefix}{name}.")
        elif name == "source_digests":
            changes += changed_sources(before, after)
        elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and holds_mappings([*old, *new]):
            changes += changed_items(old, new, f"{prefix}{name}")
        elif name == "code" and old and new:
            changes.append(f"code of {prefix.rstrip('.')}: {short(old)} → {short(new)}")
        else:
            changes.append(f"{prefix}{name}: {in_words(old)} → {in_words(new)}")
    return changes


def changed_sources(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The sources of both whose content differs. What one of them has not is told by its list."""
    was, now = ({name_of(source): digest for source, digest in digested(side)} for side in (before, after))
    return [
        f"content of {Path(name).name}: {short(was[name])} → {short(now[name])}"
        for name in now
        if name in was and was[name] != now[name]
    ]


def digested(settings: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """The sources in the settings of prepare_data, each with its digest."""
    sources = [source for kind in KINDS for source in settings["data"][kind]]
    return list(zip(sources, settings["source_digests"], strict=True))


def changed_items(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    """What differs in two lists of sources: field by field where they are as many, else which came and went."""
    if len(before) == len(after):
        return [
            change
            for number, (old, new) in enumerate(zip(before, after, strict=True))
            for change in changed_fields(old, new, f"{prefix}.{number}.")
        ]
    gone = [f"{prefix}: without {name_of(item)}" for item in before if item not in after]
    return [*gone, *(f"{prefix}: with {name_of(item)}" for item in after if item not in before)]


def holds_mappings(items: Sequence[Json]) -> bool:
    return all(isinstance(item, Mapping) for item in items)


def name_of(item: Mapping[str, Any]) -> str:
    """How a source of data is called."""
    return str(item.get("path") or item.get("dataset") or item.get("function") or in_words(item))


def in_words(value: Json) -> str:
    """A value as the configuration would have it; of a long one the beginning, and a digest that tells it from others."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_LENGTH else f"{text[:SHOWN_LENGTH]}… (digest {short(digest_text(text))})"


def short(digest: str) -> str:
    return digest[:SHORT_DIGEST]
