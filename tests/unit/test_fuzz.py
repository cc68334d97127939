"""A few damaged inputs for every reader; `make fuzz FUZZ=1000000` runs more. Inputs that once broke a reader are kept
as files."""

import hashlib
from pathlib import Path

import pytest
from fuzz.readers import READERS, Reader
from fuzz.run import FOUND, Outcome, attempt, fuzz

SHORT = 4  # inputs per share of a reader
KEPT = sorted(path for path in FOUND.rglob("*") if path.is_file())


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_real_inputs_are_read(reader: Reader) -> None:
    """Undamaged inputs give no error. Otherwise damaged ones would not get far."""
    for seed in reader.seeds()[:3]:
        reader.read(seed)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_inputs_give_our_errors_only(reader: Reader) -> None:
    assert not fuzz(reader, 0, max(SHORT * reader.share, 1)).foreign


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_inputs_that_once_broke_a_reader(path: Path) -> None:
    reader = next(reader for reader in READERS if reader.name == path.parent.name)
    assert attempt(reader, path.read_bytes(), Outcome()) is None


def test_kept_inputs_are_named_by_their_hash() -> None:
    assert all(path.name == hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in KEPT)
