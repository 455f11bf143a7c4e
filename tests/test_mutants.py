"""What ``mutants.py`` changes is there to be changed: a table that has fallen behind the code tries nothing."""

from pathlib import Path

import mutants

ROOT = Path(mutants.ROOT)
TABLES = [value for name, value in vars(mutants).items() if name.isupper() and isinstance(value, list)]


def test_each_change_has_one_place_in_its_file_and_tests_that_are_there():
    entries = [entry for table in TABLES for entry in table if isinstance(entry, tuple)]
    assert entries
    for file, tests, changes in entries:
        text = (ROOT / file).read_text()
        assert [old for old, new in changes if text.count(old) != 1 or old == new] == [], file
        assert all((ROOT / test.partition("::")[0]).exists() for test in tests.split()), file
