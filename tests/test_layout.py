"""Layouts: what is written parses back, the automaton accepts what is written, and what it lets through is well formed."""

import re
from dataclasses import dataclass, replace
from random import Random

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.errors import InputError
from mmgpt.layout import CodesLayout, TextLayout, VectorsLayout
from mmgpt.pack import pack
from mmgpt.script import Automaton, Span, parse
from mmgpt.types import VECTOR, Prepared

DIGITS = tuple(range(10, 21))  # "0" .. "9", "*"
CODES = Span(200, 216)
TABLE = tuple(int(i) for i in np.random.default_rng(0).permutation(np.arange(CODES.start, CODES.stop)))


@dataclass(frozen=True)
class SizedBySpecials(CodesLayout):
    """Lumina-mGPT's form: rows and columns are one special id each."""

    sizes_from: int = 150

    def header(self, grid):
        return [self.sizes_from + grid[1], self.sizes_from + grid[2]]


EMU3 = CodesLayout(begin=101, ids=CODES, end=102, row_end=103, end_codes=104, start=105, digits=DIGITS)
FORMS = {
    "emu3": EMU3,
    "emu3.5": replace(EMU3, end_codes=None, end_is_row_end=True),
    "janus": CodesLayout(begin=101, ids=CODES),
    "chameleon": CodesLayout(begin=101, ids=CODES, end=102, table=TABLE),
    "lumina": SizedBySpecials(begin=101, ids=CODES, end=102, row_end=103),
}
SIZED = ["emu3", "emu3.5", "lumina"]  # forms in which the model can choose the size, as it is written before the codes
TEXT = TextLayout(Span(0, 9), 8)

bounded = settings(max_examples=60, deadline=None, derandomize=True)
grids = st.tuples(st.just(1), st.integers(1, 12), st.integers(1, 12))


def codes_of(grid, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, len(CODES), grid)


def drawn(scripts, random: Random) -> list[int]:
    """Ids drawn from the automaton, any that may come next."""
    walk, ids = Automaton(scripts), []
    while (choice := walk.next()) is not None:
        span = random.choice(choice.spans)
        ids.append(random.randrange(span.start, span.stop))
        walk.push(ids[-1])
    return ids


# --- what is written parses back ------------------------------------------------------------------------------------------------------


@bounded
@given(st.sampled_from(sorted(FORMS)), grids, st.integers(0, 99))
def test_codes_parse_back(form, grid, seed):
    layout, codes = FORMS[form], codes_of(grid, seed)
    ids, script = parse(layout.write(codes).ids_N, [layout.script(grid)])
    assert script.grid == grid and (layout.codes(ids, script.grid) == codes).all()


@bounded
@given(st.sampled_from(SIZED), st.lists(grids, min_size=2, max_size=6, unique=True), st.integers(0, 99))
def test_codes_parse_back_where_the_size_is_read_from_the_ids(form, sizes, seed):
    layout, codes = FORMS[form], codes_of(sizes[seed % len(sizes)], seed)
    ids, script = parse(layout.write(codes).ids_N, [layout.script(grid) for grid in sizes])
    assert script.grid == codes.shape and (layout.codes(ids, script.grid) == codes).all()


@bounded
@given(st.lists(st.integers(0, 7), max_size=12), st.integers(0, 4))
def test_text_parses_back(codes, more):
    """Also where text could have been longer: `end` ends it."""
    ids = TEXT.write(np.array(codes, np.int64)).ids_N
    assert ids.tolist() == [*codes, 8]
    scripts = [TEXT.script((1, 1, n)) for n in (len(codes) + more, len(codes))]
    for tried in (scripts, scripts[::-1]):
        open_ids, script = parse(ids, tried)
        assert TEXT.codes(open_ids, script.grid).tolist() == codes


@bounded
@given(grids, st.booleans())
def test_vectors_parse_back(grid, whole):
    count = grid[1] * grid[2]
    layout = VectorsLayout(5, 6, whole)
    written = layout.write(Prepared(torch.zeros(count, 1), torch.zeros(count, 3, dtype=torch.long), (grid,)), "image")
    assert written.ids_N.tolist() == [5, *[VECTOR] * count, 6] and not written.choice_N.any()
    assert written.whole_N.tolist() == [False, *[whole] * count, False]
    assert parse(written.ids_N, [layout.script(grid)])[1].grid == grid


def test_text_without_an_end():
    layout = TextLayout(Span(0, 9), None)
    assert layout.write(np.array([3, 4])).ids_N.tolist() == [3, 4]
    assert len(layout.write(np.array([], np.int64))) == 0 and layout.script((1, 1, 0)).span == 0


def test_the_end_of_text_is_chosen_and_no_other_control_id():
    assert TEXT.write(np.array([3, 4]), learn=True).choice_N.tolist() == [True, True, True]
    assert EMU3.write(codes_of((1, 1, 2)), learn=True).choice_N.tolist() == [False] * 5 + [True, True] + [False] * 3


# --- the automaton --------------------------------------------------------------------------------------------------------------------


@bounded
@given(st.sampled_from(sorted(FORMS)), grids, st.randoms(use_true_random=False))
def test_what_is_drawn_parses_and_is_what_would_be_written(form, grid, random):
    layout = FORMS[form]
    ids = drawn([layout.script(grid)], random)
    codes = layout.codes(parse(ids, [layout.script(grid)])[0], grid)
    assert 0 <= codes.min() and codes.max() < len(CODES)
    assert layout.write(codes).ids_N.tolist() == ids


@bounded
@given(st.sampled_from(sorted(FORMS)), grids, st.data())
def test_any_other_id_is_refused(form, grid, data):
    """One id of a written picture is changed to one that the layout does not allow there; or the end is cut off; or one id is too many."""
    script = FORMS[form].script(grid)
    ids = FORMS[form].write(codes_of(grid)).ids_N.tolist()
    n = data.draw(st.integers(0, len(ids) - 1))
    wrong = data.draw(st.integers(0, 300).filter(lambda id: not script.first_N[n] <= id <= script.last_N[n]))
    for bad in ([*ids[:n], wrong, *ids[n + 1 :]], ids[:n], [*ids, ids[-1]]):
        with pytest.raises(InputError):
            parse(bad, [script])


def test_ten_thousand_generations_are_well_formed(monkeypatch):
    """Judged without the library: by a regular expression and by counting. The model chooses sizes and where text ends."""
    sizes = [(1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 3, 2), (1, 1, 10)]
    letter = {101: "(", 102: ")", 103: "|", 104: "$", 105: "!", 8: "."} | dict(zip(DIGITS, "0123456789*", strict=True))
    letter |= dict.fromkeys(range(*[CODES.start, CODES.stop]), "c") | dict.fromkeys(range(8), "t")
    patterns = {"emu3": r"\((\d+)\*(\d+)!((?:c+\|)+)\$\)", "emu3.5": r"\((\d+)\*(\d+)!((?:c+\|)*c+)\)", "text": r"t{0,5}\."}
    scripts = {form: [FORMS[form].script(grid) for grid in sizes] for form in ("emu3", "emu3.5")} | {"text": [TEXT.script((1, 1, 5))]}
    random, seen = Random(0), set()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # half a million checks of types would be nine tenths of the time
    for n in range(10_000):
        form = ("emu3", "emu3.5", "text")[n % 3]
        word = "".join(letter[id] for id in drawn(scripts[form], random))
        match = re.fullmatch(patterns[form], word)
        assert match, (form, word)
        seen.add((form, len(word)))
        if form != "text":
            rows, columns = int(match[1]), int(match[2])
            assert [len(row) for row in match[3].strip("|").split("|")] == [columns] * rows
            seen.add((form, (1, rows, columns)))
    assert all((form, size) in seen for form in ("emu3", "emu3.5") for size in sizes), "every size is reached"
    assert {length for form, length in seen if form == "text"} == set(range(1, 7)), "text of every length is reached"


def test_the_model_chooses_the_size():
    """At the first digit that differs the spans split; a size that was begun is kept to."""
    walk = Automaton([EMU3.script(grid) for grid in [(1, 2, 3), (1, 2, 4), (1, 12, 1)]])
    walk.push(101)
    assert walk.next().forced is None and walk.next().spans == (Span(11, 12), Span(12, 13))  # "1" or "2"
    walk.push(DIGITS[2])
    assert walk.next().forced == DIGITS[10]
    with pytest.raises(InputError, match="id 19 at slot 2"):
        walk.push(DIGITS[9])
    walk.push(DIGITS[10])
    walk.push(DIGITS[4])
    assert walk.script.grid == (1, 2, 4) and walk.next().forced == 105


# --- golden ---------------------------------------------------------------------------------------------------------------------------


def test_golden_ids():
    codes = np.array([[0, 1, 2], [3, 4, 15]])
    row, last = [200, 201, 202], [203, 204, 215]
    opened = [101, 12, 20, 13, 105]  # begin "2" "*" "3" start
    assert EMU3.write(codes).ids_N.tolist() == [*opened, *row, 103, *last, 103, 104, 102]
    assert FORMS["emu3.5"].write(codes).ids_N.tolist() == [*opened, *row, 103, *last, 102]
    assert FORMS["janus"].write(codes).ids_N.tolist() == [101, *row, *last]
    assert FORMS["chameleon"].write(codes).ids_N.tolist() == [101, *[TABLE[i] for i in (0, 1, 2, 3, 4, 15)], 102]
    assert FORMS["lumina"].write(codes).ids_N.tolist() == [101, 152, 153, *row, 103, *last, 103, 102]
    assert EMU3.header((1, 90, 12)) == [19, 10, 20, 11, 12]  # "90*12"


def test_golden_ids_of_the_released_emu3():
    """BOI 151852, IMG 151851, EOL 151846, EOF 151847, EOI 151853, codes from 151854; rows of W codes, each followed by EOL."""
    layout = CodesLayout(151852, Span(151854, 184622), 151853, 151846, 151847, 151851, tuple(range(15, 25)) + (9,))
    found = layout.write(np.array([[0, 32767], [7, 8]])).ids_N.tolist()
    assert found == [151852, 17, 9, 17, 151851, 151854, 184621, 151846, 151861, 151862, 151846, 151847, 151853]


def test_golden_positions():
    """A 2 x 2 picture between words: words move on all axes, a picture's slots stand on a grid, what follows starts behind its far corner."""
    words = TextLayout(Span(0, 9), None).write(np.array([1, 2]))
    plain = CodesLayout(begin=101, ids=CODES, end=102).write(np.zeros((2, 2), int))
    position = pack([[words, plain, words]], {}).position_BT3[0].tolist()
    grid = [[3, 3, 3], [3, 3, 4], [3, 4, 3], [3, 4, 4]]
    assert position == [[0] * 3, [1] * 3, [2] * 3, *grid, [5] * 3, [6] * 3, [7] * 3]
    ends = replace(FORMS["chameleon"], row_end=103, table=None).write(np.zeros((2, 1), int))
    assert pack([[ends, words]], {}).position_BT3[0].tolist() == [[0] * 3, [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [3] * 3, [4] * 3, [5] * 3]
    wide = CodesLayout(begin=101, ids=CODES, end=102).write(np.zeros((1, 3), int))
    assert pack([[wide, words]], {}).position_BT3[0].tolist() == [[0] * 3, [1, 1, 1], [1, 1, 2], [1, 1, 3], [4] * 3, [5] * 3, [6] * 3]
    film = CodesLayout(begin=101, ids=CODES).write(np.zeros((3, 1, 1), int))
    assert pack([[film, words]], {}).position_BT3[0].tolist() == [[0] * 3, [1, 1, 1], [2, 1, 1], [3, 1, 1], [4] * 3, [5] * 3]


# --- what cannot be written -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [-1, 16])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_codes_out_of_range_are_refused(form, code):
    with pytest.raises(InputError, match=str(code)):
        FORMS[form].write(np.array([[0, code]]))


def test_sizes_that_cannot_be_written():
    for grid in [(1, 0, 3), (1, 2, -1)]:
        with pytest.raises(InputError, match="at least 1x1"):
            EMU3.script(grid)
        with pytest.raises(InputError, match="at least one vector"):
            VectorsLayout(5, 6).script(grid)
    fixed = replace(EMU3, sizes=((1, 2, 4),))
    assert fixed.script((1, 2, 4)).grid == (1, 2, 4)
    with pytest.raises(InputError, match=r"4x2 codes cannot be written.*\(1, 2, 4\)"):
        fixed.script((1, 4, 2))
    with pytest.raises(InputError, match="-3"):
        TEXT.script((1, 1, -3))
    with pytest.raises(InputError, match="0 scripts"):
        Automaton([])
    with pytest.raises(InputError, match="3 codes for a layout of 2 open slots"):
        FORMS["janus"].script((1, 1, 2)).write([200, 201, 202])


def test_a_script_cannot_be_changed_through_what_it_wrote():
    """Scripts are shared by all segments of their size."""
    for written in (EMU3.write(np.zeros((2, 2), int)), TextLayout(Span(0, 10), 9).write(np.array([1, 2]))):
        for column in (written.place_N3, written.whole_N):
            with pytest.raises(ValueError, match="read-only"):
                column[:] = 1


def test_codes_are_whole_numbers():
    with pytest.raises(InputError, match="float64: pass whole numbers"):
        EMU3.write(np.array([[1.9, 2.2]]))
