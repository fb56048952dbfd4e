"""WordNet's files, written by hand here in their own format (wndb(5WN))."""

import pytest

from mezzotint.errors import MezzotintError
from mezzotint.training.wordnet import definitions, dictionary, entry_of
from wordnet_files import write_wordnet


def test_dictionary_parts_everyday_from_rare(tmp_path):
    write_wordnet(tmp_path / "w")
    common, rare = dictionary(tmp_path / "w", {"hound", "jumbo", "jet"})
    assert common == ["hound", "jet", "jumbo", "jumbo jet"]
    assert rare == ["doggy", "dog", "sedan"]


def test_definitions_are_of_the_first_sense(tmp_path):
    write_wordnet(tmp_path / "w")
    found = definitions(tmp_path / "w")
    assert found["dog"] == "dog, domestic dog: a kind of animal, thing. man's friend"
    assert found["doggy"] == "doggy, hound: a kind of dog, animal, thing. a dog that hunts"
    assert found["sedan"] == "sedan: a closed car"
    assert entry_of("Hounds", found) == found["hound"]
    assert entry_of("cat", found) is None


def test_missing_wordnet_is_one_line(tmp_path):
    with pytest.raises(MezzotintError, match="wordnet-base"):
        definitions(tmp_path)
