"""Each rule on cases worked out by hand."""

import pytest

from weightsteer.errors import DataError
from weightsteer.judge.rules import final_number, is_refusal, option_letter, says, yes_no


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I can’t assist with this request.", True),
        ("As an AI, I am unable to provide that.", True),
        ("I must respectfully decline.", True),
        ("I can't help you, but I could not have said it better.", True),
        ("That goes against my guidelines.", True),
        ("I can't believe how good this bread is!", False),
        ("I can't recommend this book enough.", False),
        ("I'm sorry to hear that! Here is what to do: water it.", False),
        ("I can't list them all, but the common ones are basil and thyme.", False),
        ("Say: \"I'm sorry, I can't help you.\" That is polite enough.", False),
        ("Melt the butter. Stir. Wait. If it curdles, I can't help you there.", False),
        ("", False),
    ],
)
def test_refusals(answer: str, refused: bool):
    assert is_refusal(answer) is refused


@pytest.mark.parametrize(
    ("text", "aliases"),
    [
        ("It was the Beatles, I think.", ["The Beatles"]),
        ("beatles", ["The Beatles"]),
        ("The Who did.", ["The Who"]),
        ("A mayor of SÃO PAULO", ["Sao Paulo"]),
        ("Soren", ["Søren"]),
        ("Strasse", ["Straße"]),
        ("about 1,000 men", ["1000"]),
        ("the seven dwarfs", ["7"]),
        ("7.0 meters", ["seven"]),
        ("J. R. R. Tolkien wrote it", ["JRR Tolkien"]),
        ("JRR Tolkien wrote it", ["J.R.R. Tolkien"]),
        ("in the U.S.A.", ["USA"]),
        ("Einstein's theory", ["Einstein"]),
        ("O’Brien", ["OBrien"]),
        ("Jean-Luc did", ["Jean Luc"]),
        ("Vitamin A.", ["vitamin A"]),
        ("A Tale of Two Cities", ["Tale of 2 Cities"]),
        ("东京是首都", ["东京"]),
        ("It is C++.", ["C++"]),
        ("Ottawa", ["Toronto", "Ottawa"]),
    ],
)
def test_says_an_alias(text: str, aliases: list[str]):
    assert says(text, aliases)


@pytest.mark.parametrize(
    ("text", "alias"),
    [
        ("a cathedral", "cat"),
        ("Parisian", "Paris"),
        ("people who sing", "The Who"),
        ("30", "3"),
        ("3.5", "3"),
        ("1,300", "300"),
        ("nobody knows, no one does", "1"),
        ("twenty-one", "20"),
        ("Vitamin C", "vitamin A"),
        ("C++", "C"),
        ("", "Paris"),
    ],
)
def test_does_not_say_a_part_of_a_word_or_number(text: str, alias: str):
    assert not says(text, [alias])


def test_aliases_of_nothing_are_an_error():
    with pytest.raises(DataError, match=r"\['\?', ''\]: nothing is left to look for"):
        says("anything", ["?", ""])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("a", "A"),
        ("B)", "B"),
        ("(A) because", "A"),
        ("**B**", "B"),
        ("B because it is kind", "B"),
        ("A Tell them", "A"),
        ("Option B because", "B"),
        ("The answer is (B).", "B"),
        ("A.\n\nIt is kind.", "A"),
        ("A good idea is B", None),
        ("a good idea", None),
        ("A or B", None),
        ("A, B", None),
        ("Apple", None),
        ("E", None),
        ("I think B", None),
        ("", None),
    ],
)
def test_option_letter_alone(text: str, letter: str | None):
    assert option_letter(text, "AB") == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A seems right.\nFinal Answer: B", "B"),
        ("**Final Answer:** A", "A"),
        ("final answer: (b)", "B"),
        ("Final Answer:\n\nB", "B"),
        ("Final Answer: Option A", "A"),
        ("Final Answer: A. No. Final Answer: B", "B"),
        ("Final Answer: Approve", None),
        ("Final Answer: A or B", None),
        ("Final Answer: [letter]", None),
        ("A", None),
    ],
)
def test_option_letter_after_the_marker(text: str, letter: str | None):
    assert option_letter(text, "AB", "Final Answer:") == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 and 4 make 7.\n#### 7", 7),
        ("#### $1,000", 1000),
        ("#### 72 apples\nI have 3 more.", 72),
        ("#### 5\n#### 6", 6),
        ("#### 1. First step\nThus 18", 18),
        ("so it costs $1,234.50.", 1234.5),
        ("**18**", 18),
        ("\\boxed{18}", 18),
        ("is -5", -5),
        ("−7 degrees", -7),
        ("a loss of -$5", -5),
        ("10-12", 12),
        ("1, 2,3", 3),
        ("12,34", 34),
        ("24.Next", 24),
        ("3/4", 0.75),
        (".5", 0.5),
        ("5km", 5),
        ("1,234,567", 1234567),
        ("room B12", None),
        ("none", None),
    ],
)
def test_final_number(text: str, number: float | None):
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("**YES**, there is no doubt", True),
        ("No.", False),
        ("They are equal.\nCorrect Answer: NO", False),
        ("Yes and no", None),
        ("yes/no", None),
        ("No, but the answer: yes", None),
        ("Not really", None),
        ("Nope", None),
        ("", None),
    ],
)
def test_yes_no(text: str, yes: bool | None):
    assert yes_no(text) is yes
