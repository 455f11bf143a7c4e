"""Databases that are migrated once on a machine and copied after that."""

import importlib.metadata
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tasks.store.database_template import DatabaseTemplate
from tasks.tracking.connection import connected
from tasks.tracking.database import database, embedded_uri

TEMPLATE = DatabaseTemplate(
    library="pytest", migrations=".", made_with=("pluggy",), filled=frozenset({"version"}), emptied=("places",)
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rlhf-rounds" / "databases"


@pytest.fixture
def migrated(tmp_path):
    """What a first user's migration made: a version, and the home's own place."""
    path = tmp_path / "migrated.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript("CREATE TABLE version (number); CREATE TABLE places (path); CREATE TABLE runs (id);")
        connection.execute("INSERT INTO version VALUES (7)")
        connection.execute("INSERT INTO places VALUES ('/home/somebody')")
    return path


def dump(path):
    """All that is in a database, whatever the order in which it lies there."""
    with closing(sqlite3.connect(path)) as connection:
        return sorted(connection.iterdump())


def templates(cache):
    return sorted(cache.glob("*.db"))


def test_a_new_home_gets_what_was_migrated_without_what_was_of_the_first_home(cache, migrated, tmp_path):
    new = tmp_path / "new.db"
    assert not TEMPLATE.place(new)
    assert not new.exists()
    TEMPLATE.keep(migrated)
    assert TEMPLATE.place(new)
    assert dump(new) == [line for line in dump(migrated) if "somebody" not in line]
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == []
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: content[:5000] + b"x" + content[5001:], lambda content: b""],
)
def test_a_damaged_template_is_not_used_and_another_is_made(cache, migrated, tmp_path, damage):
    TEMPLATE.keep(migrated)
    (path,) = templates(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert not TEMPLATE.place(tmp_path / "new.db")
    TEMPLATE.keep(migrated)
    assert TEMPLATE.place(tmp_path / "new.db")


def test_what_an_interrupted_writer_left_is_neither_used_nor_kept(cache, migrated, tmp_path):
    TEMPLATE.keep(migrated)
    (path,) = templates(cache)
    half = path.with_name(f".{path.name.split('.')[0]}.{path.name.split('.')[1]}.{path.name.split('.')[2]}")
    path.rename(half)
    half.write_bytes(half.read_bytes()[:100])
    assert not TEMPLATE.place(tmp_path / "new.db")
    TEMPLATE.keep(migrated)
    assert [path.name for path in cache.iterdir() if path.name != "lock"] == [path.name for path in templates(cache)]
    assert TEMPLATE.place(tmp_path / "new.db")


def test_a_database_that_was_used_already_is_no_template(cache, migrated):
    with closing(sqlite3.connect(migrated)) as connection, connection:
        connection.execute("INSERT INTO runs VALUES (1)")
    TEMPLATE.keep(migrated)
    assert templates(cache) == []


def test_another_version_has_another_template(migrated, tmp_path, monkeypatch):
    TEMPLATE.keep(migrated)
    version = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99" if name == "pluggy" else version(name))
    assert not TEMPLATE.place(tmp_path / "new.db")


@pytest.mark.parametrize("end", ["", "-wal", "-journal"])
def test_nothing_is_placed_over_a_database_or_beside_what_one_left(migrated, tmp_path, end):
    TEMPLATE.keep(migrated)
    (tmp_path / f"new.db{end}").write_text("of before")
    assert not TEMPLATE.place(tmp_path / "new.db")
    assert (tmp_path / f"new.db{end}").read_text() == "of before"


def test_where_nothing_can_be_kept_each_home_migrates_its_own(cache, migrated, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    TEMPLATE.keep(migrated)
    assert not TEMPLATE.place(tmp_path / "new.db")


def test_a_cache_that_others_may_write_to_is_not_believed(cache, migrated, tmp_path):
    TEMPLATE.keep(migrated)
    cache.chmod(0o777)
    assert not TEMPLATE.place(tmp_path / "new.db")


def test_first_users_at_once_leave_one_template(cache, migrated):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(TEMPLATE.keep, [migrated] * 4))
    assert len(templates(cache)) == 1


def without_times(lines):
    """Of MLflow's database, without the milliseconds at which its default experiment was made."""
    return [line.partition("'active',")[0] if "'Default'" in line else line for line in lines]


def test_mlflows_database_from_the_template_is_the_one_that_it_migrates_itself(cache, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    homes = [tmp_path / "first", tmp_path / "second"]
    for home in homes:
        connected(embedded_uri(home), home)
        assert len(templates(cache)) == 1
    first, second = (without_times(dump(database(home))) for home in homes)
    assert first == second


MAKE = """
import os, sys
from pathlib import Path
from flows.server.process import DATABASE, make_database
from tasks import environment
environment.be_server("http://127.0.0.1:1/api", "a:b", DATABASE)
make_database(Path(DATABASE))
"""


@pytest.mark.slow
def test_prefects_database_from_the_template_is_the_one_that_it_migrates_itself(cache, tmp_path):
    dumps = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        root = Path(__file__).resolve().parents[2]
        env = {**os.environ, "PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "-c", MAKE], cwd=tmp_path / name, env=env, check=True)
        dumps.append(dump(tmp_path / name / "prefect.db"))
        assert len(templates(cache)) == 1
    assert dumps[0] == dumps[1]
