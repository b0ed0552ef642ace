from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent.answer_quality import judge

GOOD = [
    "Paris.",
    "4",
    "The future of AI is bright, and it will change how we live, work and learn in ways hard to foresee today.",
    "人工智能的未来充满希望,它将改变我们的生活、工作和学习方式,并且带来新的挑战和机遇。",
    "The word 北京 means northern capital; 東京 means eastern capital. Both are large cities with a long history.",
    "| a | b |\n| --- | --- |\n| 1 | 2 |\n\nThe table shows two columns with one row each, as was asked for.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))",
    "What comes after this is cut in the middle of a character, as the number of tokens has it: 北\ufffd\ufffd",
    "A page with one wrong byte in it, na\ufffdve as it may be, taught the model that, and nothing else is wrong here.",
    "The letter omega (Ω) and the letter pi (π) are used in physics and geometry; one is a unit, one a number.",
]
BAD = {
    "empty": "  \n",
    "exclamation marks": "!" * 50,
    "one word": "the " * 30,
    "one character": "的" * 30,
    "a loop": "it is here now. " * 20,
    "control characters": "answer \x01\x02\x03\ufffd\ufffd\ufffd text \x04\x05",
    "tokens by chance": "sound else\ufffdHbroken is take app pager face speLES people rayzen headless\ufffdtest end",
    "mixed scripts": "привет мир hello world สวัสดี ชาวโลก شكرا جزيلا नमस्ते",
}


@pytest.mark.parametrize("text", GOOD)
def test_language_is_not_garbage(text):
    assert judge(text) == {"garbage": False, "reasons": []}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_noise_is_garbage_with_a_reason(text):
    verdict = judge(text)
    assert verdict["garbage"] is True
    assert verdict["reasons"]


@pytest.mark.parametrize(
    ("asked", "text", "garbage"),
    [
        ("The future of AI in our days is", GOOD[3], True),
        ("The future of AI in our days is", GOOD[2], False),
        ("人工智能的未来是什么样子的请你简单地说一说", GOOD[2], True),
        ("The future of AI in our days is", GOOD[4], False),
        ("AI is", GOOD[3], False),
        ("北京的天气怎么样 please tell me in English words", GOOD[2], False),
    ],
)
def test_an_answer_is_in_the_writing_of_its_question(asked, text, garbage):
    assert judge(text, asked)["garbage"] is garbage


@given(st.text(max_size=200))
def test_judge_takes_any_text(text):
    verdict = judge(text)
    assert verdict["garbage"] == bool(verdict["reasons"])
