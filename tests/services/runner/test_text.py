"""Text: whole characters only, cut at the first stop string, nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from services.runner.text import Text

LETTERS = st.text(alphabet="abé€😀\ufffd", max_size=40)
PIECES = st.lists(st.one_of(st.binary(max_size=4), LETTERS.map(str.encode)), max_size=30)
STOPS = st.lists(st.text(alphabet="abé€", max_size=4), max_size=4)


def cut_at_stop(text: str, stops: list[str]) -> str:
    """The definition: the stop that ends first counts, of two that end together the one that begins first."""
    ends = [(end, end - len(stop)) for stop in stops if stop for end in range(len(text) + 1)
            if text[:end].endswith(stop)]
    return text[:min(ends)[1]] if ends else text


@given(PIECES, STOPS)
def test_the_pieces_are_the_text_up_to_the_first_stop(pieces: list[bytes], stops: list[str]) -> None:
    text = Text(stops)
    said = [text.push(piece) for piece in pieces]
    said.append(text.finish())
    assert "".join(said) == cut_at_stop(b"".join(pieces).decode("utf-8", "replace"), stops)


@given(LETTERS, STOPS, st.integers(1, 3))
def test_valid_text_is_never_sent_as_halves(original: str, stops: list[str], size: int) -> None:
    data = original.encode()
    text = Text(stops)
    sent = ""
    for start in range(0, len(data), size):
        sent += text.push(data[start:start + size])
        assert original.startswith(sent)
    assert original.startswith(sent + text.finish())


@given(PIECES, STOPS)
def test_what_is_sent_early_never_has_to_be_taken_back(pieces: list[bytes], stops: list[str]) -> None:
    text = Text(stops)
    sent = ""
    for piece in pieces:
        sent += text.push(piece)
    assert not any(stop and stop in sent for stop in stops)


def test_a_beginning_of_a_stop_string_is_held_back_then_sent() -> None:
    text = Text(["Human:"])
    assert text.push(b"yes\nHum") == "yes\n"
    assert text.push(b"an beings") == "Human beings"
    assert text.push(b" Human") == " "
    assert text.push(b": no") == "" and text.stopped and text.stopped_by == "Human:"
    assert text.finish() == ""


def test_half_a_character_at_the_end_is_one_replacement_character() -> None:
    text = Text()
    assert text.push("a€".encode()[:-1]) == "a"
    assert text.finish() == "\ufffd"
