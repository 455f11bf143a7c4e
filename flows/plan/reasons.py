"""Why a stage would execute, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.plan.planned import Planned
from tasks.stages import STAGES
from tasks.store import Recipe, Store


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
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += changed_fields(old, new, f"{prefix}{name}.")
        elif old != new:
            # Digests say nothing to people but that what they are of has changed.
            named = {"source_digests": "data changed", "code": f"code of {prefix.rstrip('.')} changed"}
            changes.append(named.get(name, f"{prefix}{name}: {old!s:.30} → {new!s:.30}"))
    return changes
