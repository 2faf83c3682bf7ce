"""Backup sheets: what brings the secret back, and what is said of sheets that do not."""

import itertools
from dataclasses import replace

import pytest
from shamir_mnemonic import Share, combine_mnemonics, generate_mnemonics
from shamir_mnemonic.wordlist import WORDLIST

from twinlock.errors import SheetError
from twinlock.keyservice.sheets import SHEETS_MAX, join_sheets, make_sheets, read_sheets, set_of

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def sheets():
    return make_sheets(SECRET, 5, 3)


@pytest.fixture(scope="module")
def words(sheets):
    return [" ".join(sheet.words) for sheet in sheets]


class TestJoining:
    def test_any_three_of_five_bring_the_secret_back(self, words):
        for some in itertools.permutations(words, 3):
            assert join_sheets(some) == SECRET

    def test_more_than_needed_are_checked_too(self, words):
        assert join_sheets(words) == SECRET

    def test_other_tools_join_them_as_well(self, words):
        assert combine_mnemonics(words[1:4]) == SECRET

    def test_every_set_is_different(self, sheets):
        other = make_sheets(SECRET, 5, 3)

        assert {sheet.words for sheet in sheets}.isdisjoint(sheet.words for sheet in other)
        assert set_of(" ".join(sheets[0].words)) == sheets[0].set_id == sheets[4].set_id

    @pytest.mark.parametrize(("count", "needed"), [(1, 1), (5, 1), (3, 4), (SHEETS_MAX + 1, 3), (0, 0)])
    def test_numbers_of_sheets_that_cannot_be(self, count, needed):
        with pytest.raises(SheetError, match="cannot be"):
            make_sheets(SECRET, count, needed)

    def test_a_sheet_hides_its_words_from_logs(self, sheets):
        assert not any(word in repr(sheets[0]) for word in sheets[0].words if len(word) > 5)


class TestReading:
    def test_what_was_printed_is_read(self, sheets, words):
        assert read_sheets("".join(sheet.text for sheet in sheets)) == words
        assert read_sheets("\n\n".join(sheet.text for sheet in sheets)) == words

    def test_one_sheet_a_line_or_many_lines_with_gaps(self, words):
        assert read_sheets("\n".join(words)) == words
        torn = "\n\n\n".join(text.replace(" ", "\n") for text in words)
        assert read_sheets(torn + "\n") == words
        assert read_sheets("\n \n") == []

    def test_capitals_and_first_four_letters_are_enough(self, words):
        typed = [" ".join(word[:4].upper() for word in text.split()) for text in words]

        assert join_sheets(typed[:3]) == SECRET


class TestRefusals:
    def refused(self, sheets):
        with pytest.raises(SheetError) as refused:
            join_sheets(sheets)
        told = refused.value.detail
        # No word of a sheet is ever told: errors end up in logs.
        secret_words = {word for text in sheets for word in text.split() if len(word) > 6}
        assert not [word for word in secret_words if word in told]
        return told

    def test_too_few(self, words):
        assert "2 sheets were given, this set needs 3" in self.refused(words[:2])
        assert "no sheet" in self.refused([])

    def test_the_same_sheet_twice(self, words):
        assert "sheets 1 and 3 that were given are the same" in self.refused([words[0], words[1], words[0]])

    def test_sheets_of_two_sets(self, words):
        other = " ".join(make_sheets(SECRET, 5, 3)[0].words)

        assert "sheets 1 and 3 that were given are of different sets" in self.refused([*words[:2], other])

    def test_a_word_that_is_none(self, words):
        broken = words[1].split()
        broken[6] = "zzzz"

        assert "word 7 of sheet 2" in self.refused([words[0], " ".join(broken), words[2]])

    def test_a_wrong_word_and_two_swapped_words(self, words):
        whole = words[1].split()
        wrong = [*whole[:6], next(word for word in WORDLIST if word != whole[6]), *whole[7:]]
        place = next(place for place in range(5, 20) if whole[place] != whole[place + 1])
        swapped = [*whole[:place], whole[place + 1], whole[place], *whole[place + 2 :]]

        for broken in (wrong, swapped):
            assert "words of sheet 2" in self.refused([words[0], " ".join(broken), words[2]])

    def test_a_sheet_that_is_cut_short_or_too_long(self, words):
        short = " ".join(words[1].split()[:-1])

        assert "sheet 2 that was given has 32 words instead of 33" in self.refused([words[0], short, words[2]])
        assert "34 words" in self.refused([words[0] + " academic"])

    def test_a_forged_sheet_with_a_right_checksum(self, words):
        """Also where it is one more than needed."""
        share = Share.from_mnemonic(words[3])
        forged = replace(share, value=bytes(32)).mnemonic()

        assert "do not match" in self.refused([words[0], words[1], forged])
        assert "do not match" in self.refused([*words[:3], forged])

    def test_sheets_of_another_program(self):
        (foreign,) = generate_mnemonics(1, [(2, 2)], SECRET, iteration_exponent=1)

        assert "Twinlock did not make" in self.refused(foreign)
