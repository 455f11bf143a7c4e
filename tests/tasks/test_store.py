import dataclasses
import json
import os
import random

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DamagedError, RunError
from tasks.store.data_sets import read_dataset, write_dataset
from tasks.store.digests import canonical_json, digest_files
from tasks.store.files import read_json, write_json
from tasks.store.manifest import Manifest, Place, Recipe, Ref, input_digests, require_undamaged
from tasks.store.schemas import PER_TOKEN, TOKEN_IDS
from tasks.store.store import Store


def a_recipe(**changes):
    parts = {
        "stage": "score_rollouts",
        "version": "1",
        "place": Place(1, 2, 0),
        "seed": 0,
        "settings": {"kl_coef": 0.1},
        "inputs": {"rollouts": "abc"},
    }
    return Recipe(**{**parts, **changes})


def commit(store, recipe, content=b"hello", **changes):
    scratch = store.scratch(recipe)
    (scratch / "part").mkdir()
    (scratch / "part" / "file.bin").write_bytes(content)
    return store.commit(recipe, scratch, **{"inputs": {}, "rows": 1, "metrics": {}, "seconds": 0.0, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "other"},
        {"version": "2"},
        {"place": Place(2, 2, 0)},
        {"place": Place(1, 3, 0)},
        {"place": Place(1, 2, 1)},
        {"place": Place(1, 2, None)},
        {"seed": 1},
        {"settings": {"kl_coef": 0.2}},
        {"inputs": {"rollouts": "abd"}},
        {"generation": 1},
    ],
)
def test_every_part_of_a_recipe_decides_the_fingerprint(change):
    assert a_recipe(**change).fingerprint != a_recipe().fingerprint


def test_a_fingerprint_does_not_depend_on_the_order_of_settings():
    one, other = a_recipe(settings={"a": 1, "b": 2}), a_recipe(settings={"b": 2, "a": 1})
    assert one.fingerprint == other.fingerprint


def test_a_committed_output_is_found_by_its_recipe_and_by_no_other(tmp_path):
    store = Store(tmp_path)
    ref = commit(store, a_recipe())
    assert store.find(a_recipe()) == ref
    assert store.find(a_recipe(seed=1)) is None
    assert (ref.directory / "part" / "file.bin").read_bytes() == b"hello"


def test_the_digest_is_of_the_content_alone(tmp_path):
    store = Store(tmp_path)
    one = commit(store, a_recipe(seed=1), metrics={"a": 1.0}, seconds=5.0)
    other = commit(store, a_recipe(seed=2), metrics={"a": 2.0}, seconds=6.0)
    changed = commit(store, a_recipe(seed=3), content=b"hellp")
    assert one.digest == other.digest != changed.digest


def test_the_digest_tells_the_same_bytes_under_another_name():
    assert digest_files({"a": "1", "b": "2"}) != digest_files({"a": "2", "b": "1"})


def test_nothing_counts_before_the_rename(tmp_path, monkeypatch):
    store, recipe = Store(tmp_path), a_recipe()
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        commit(store, recipe)
    monkeypatch.undo()
    assert store.find(recipe) is None
    assert list(store.manifests()) == []
    # The half-written attempt is swept away by the next.
    assert list(store.scratch(recipe).iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest"])
def test_a_damaged_output_is_not_found_and_can_be_made_again(tmp_path, damage):
    store, recipe = Store(tmp_path), a_recipe()
    ref = commit(store, recipe)
    file = ref.directory / "part" / "file.bin"
    if damage == "truncated":
        os.truncate(file, 2)
    elif damage == "missing":
        file.unlink()
    else:
        (ref.directory / "manifest.json").unlink()
    assert store.find(recipe) is None
    again = commit(store, recipe)
    assert store.find(recipe) == again == ref
    # What was damaged is kept for whoever looks into it.
    assert len(list((tmp_path / "scratch").rglob("damaged-*"))) == 1


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path):
    store, recipe = Store(tmp_path), a_recipe()
    ref = commit(store, recipe, metrics={"score/mean": 1e-5})
    path = ref.directory / "manifest.json"
    content = path.read_bytes()
    assert json.loads(content)["fingerprint"] == recipe.fingerprint
    draw = random.Random(0)
    for place in {*draw.sample(range(len(content)), 150), *range(len(content) - 20, len(content))}:
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedError, match=r"manifest\.json cannot be read .*; rounds rerun makes the output anew"):
            Manifest.read(ref.directory)
        assert store.find(recipe) is None
        assert list(store.manifests()) == store.variants(recipe.directory) == []
        assert store.outputs() == [ref.directory]
    path.write_bytes(content)
    assert store.find(recipe) == ref


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\x00" * 100, b"\xff\xfe", b"null"])
def test_a_manifest_of_something_else_is_a_damaged_one(tmp_path, content):
    ref = commit(Store(tmp_path), a_recipe())
    (ref.directory / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedError, match="it is not as it was written"):
        Manifest.read(ref.directory)


def test_an_output_without_a_manifest_is_damaged_for_who_reads_it(tmp_path):
    ref = commit(Store(tmp_path), a_recipe())
    (ref.directory / "manifest.json").unlink()
    with pytest.raises(DamagedError, match=r"cannot be read \(No such file or directory\)"):
        require_undamaged(ref)
    # A model from elsewhere has none, and is as it is.
    (tmp_path / "model").mkdir()
    require_undamaged(Ref(str(tmp_path / "model"), "d"))


def everything_below(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "place", ["scratch/{}", "scratch/notes", "scratch/{}/output", "scratch/{}/left", "stages/round-001"]
)
def test_what_a_link_leads_to_is_never_removed(tmp_path, place):
    store, recipe = Store(tmp_path / "run"), a_recipe()
    outside = tmp_path / "outside"
    (outside / "output" / "deep").mkdir(parents=True)
    (outside / "precious.txt").write_text("mine")
    (outside / "output" / "deep" / "precious.txt").write_text("mine")
    before = everything_below(outside)
    link = store.root / place.format(recipe.fingerprint)
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    store.sweep()
    assert everything_below(outside) == before
    if not place.startswith("stages"):
        commit(store, recipe)
        store.sweep()
    assert everything_below(outside) == before


@pytest.mark.parametrize("name", ["stages", "scratch"])
def test_a_run_that_lies_elsewhere_in_parts_is_refused_before_anything_is_removed(tmp_path, name):
    (tmp_path / "outside" / ("a" * 32) / "output").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(RunError, match=f"{name} is a link to .*; put the whole run there, or remove the link"):
        Store(tmp_path / "run").sweep()
    assert (tmp_path / "outside" / ("a" * 32) / "output").is_dir()


def test_files_of_others_are_left_alone_and_disturb_nothing(tmp_path):
    store, recipe = Store(tmp_path), a_recipe()
    ref = commit(store, recipe)
    half = store.scratch(a_recipe(seed=9))
    (half / "half.bin").write_bytes(b"half")
    strangers = [tmp_path, tmp_path / "stages", tmp_path / "stages" / "round-001", tmp_path / "scratch", ref.directory]
    for directory in strangers:
        (directory / ".DS_Store").write_bytes(b"Bud1")
        (directory / "notes").mkdir()
        (directory / "notes" / "manifest.json").write_text("{}")
    (half.parent / ".DS_Store").write_bytes(b"Bud1")
    store.sweep()
    assert not half.exists()
    assert store.find(recipe) == ref
    assert [path for path, _ in store.manifests()] == [ref.directory] == store.outputs()
    for directory in strangers:
        assert (directory / ".DS_Store").exists()
        assert (directory / "notes" / "manifest.json").exists()


def test_a_manifest_says_where_everything_came_from(tmp_path):
    store = Store(tmp_path)
    upstream = commit(store, a_recipe(stage="generate_rollouts"))
    outside = Ref("/models/base", "d" * 32)
    inputs = {"rollouts": [upstream], "base": outside, "nothing": None, "external": {"judge": outside, "own": upstream}}
    recipe = dataclasses.replace(a_recipe(), inputs=input_digests(inputs))
    ref = commit(store, recipe, inputs=inputs, rows=7, metrics={"score/mean": 0.5}, seconds=1.25)
    manifest = Manifest.read(ref.directory)
    assert manifest.recipe["inputs"]["external"] == {"judge": outside.digest, "own": upstream.digest}
    assert store.inputs_of(manifest) == inputs
    assert manifest.recipe["settings"] == {"kl_coef": 0.1}
    assert manifest.rows == 7
    assert manifest.metrics == {"score/mean": 0.5}
    assert manifest.seconds == 1.25
    assert manifest.files["part/file.bin"]["size"] == 5
    assert manifest.input_paths["rollouts"] == [os.path.relpath(upstream.path, tmp_path)]
    assert manifest.input_paths["base"] == "/models/base"
    assert manifest.input_paths["nothing"] is None
    assert {"host", "committed_at"} <= set(manifest.origin)
    assert manifest.place == Place(1, 2, 0)


def test_a_model_in_a_directory_whose_name_is_no_text_is_named_all_the_same(tmp_path):
    store = Store(tmp_path)
    outside = Ref(os.fsdecode(b"/models/b\xff"), "d" * 32)
    recipe = dataclasses.replace(a_recipe(), inputs=input_digests({"base": outside}))
    ref = commit(store, recipe, inputs={"base": outside}, metrics={"score/mean": float("inf")})
    manifest = Manifest.read(ref.directory)
    assert store.inputs_of(manifest) == {"base": outside}
    assert manifest.metrics == {"score/mean": float("inf")}


def a_table():
    return pa.table(
        {
            "ids": pa.array([[1, 2], [], [3]], TOKEN_IDS),
            "logprobs": pa.array([[-0.5, -1.0], [], [0.0]], PER_TOKEN),
            "text": ["a", "b", "ü"],
        }
    )


def test_a_data_set_reads_back_as_it_was_written_and_as_datasets_reads_it(tmp_path):
    write_dataset(tmp_path / "d", a_table())
    assert read_dataset(tmp_path / "d").equals(a_table())
    assert datasets.load_from_disk(str(tmp_path / "d")).to_list() == a_table().to_pylist()


def test_equal_tables_give_equal_bytes(tmp_path):
    for name in ("one", "other"):
        write_dataset(tmp_path / name, a_table())
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "other").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_fingerprint_that_keys_the_cache_of_datasets_follows_the_content(tmp_path):
    write_dataset(tmp_path / "one", a_table())
    write_dataset(tmp_path / "other", a_table().slice(0, 2))
    fingerprints = {json.loads((tmp_path / n / "state.json").read_text())["_fingerprint"] for n in ("one", "other")}
    assert len(fingerprints) == 2


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"x": float("nan")})


values = st.recursive(st.integers() | st.text() | st.booleans(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))


@given(values)
def test_canonical_json_is_json_of_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


def test_a_small_file_is_written_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr("tasks.store.files.flush", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert read_json(tmp_path / "other", default={}) == {}


@pytest.mark.parametrize(("place", "label"), [(Place(1), "r1"), (Place(1, 2), "r1.i2"), (Place(1, 2, 0), "r1.i2.s0")])
def test_places_have_short_labels(place, label):
    assert place.label == label
