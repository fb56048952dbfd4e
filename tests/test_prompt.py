"""The language of prompts: what each sign means, that nothing is wrong, that what is written is read again."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.errors import UsageError
from mezzotint.prompt import (
    Conjunct,
    Cycle,
    Run,
    Script,
    Switch,
    conjuncts,
    escape,
    plain,
    spell,
    tags,
    texts_of,
    weigh,
)

SOUP = st.text(alphabet="ab ,()[]:|\\.135<>BREAK", max_size=40)


# --- weights ---


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("a (red) apple", [("a ", 1), ("red", 1.1), (" apple", 1)]),
        ("((a))b", [("a", 1.21), ("b", 1)]),
        ("a [red] apple", [("a ", 1), ("red", 1 / 1.1), (" apple", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: 0.5 )", [("red", 0.5)]),
        ("(a (b:2):3)", [("a ", 3), ("b", 6)]),
        ("(a:0)", [("a", 0)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1)]),
        (r"(\(a\):1.5)", [("(a)", 1.5)]),
        ("a: b, 3:2", [("a: b, 3:2", 1)]),
        ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("", []),
        # what has no partner: an opening bracket reaches to the end, a closing one stands for itself
        ("a (b c", [("a ", 1), ("b c", 1.1)]),
        ("a [b c", [("a ", 1), ("b c", 1 / 1.1)]),
        ("a) b]", [("a) b]", 1)]),
        ("a:1.3)", [("a:1.3)", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ],
)
def test_brackets_are_weights(text, runs):
    (section,) = weigh(text)
    assert [run.text for run in section] == [words for words, _ in runs]
    assert [run.weight for run in section] == pytest.approx([weight for _, weight in runs], rel=1e-12)


def test_break_begins_a_section_within_brackets_too():
    assert weigh("a BREAK b") == ((Run("a", 1.0),), (Run("b", 1.0),))
    assert weigh("(a BREAK b:2) c") == ((Run("a", 2.0),), (Run("b", 2.0), Run(" c", 1.0)))
    assert weigh("BREAK") == ((), ())
    assert weigh("BREAKFAST") == ((Run("BREAKFAST", 1.0),),)


@given(SOUP)
def test_what_is_weighed_can_be_spelled(text):
    sections = weigh(text)
    assert weigh(spell(sections)) == tuple(tuple(run for run in section) for section in sections), spell(
        sections
    )


@given(st.text(max_size=40))
def test_escaped_text_says_itself_and_nothing_else(text):
    (section,) = weigh(escape(text))
    assert "".join(run.text for run in section) == text
    assert all(run.weight == 1 for run in section)
    script = Script.read(escape(text))
    assert script.constant
    assert str(script) == escape(text)
    assert tags(escape(text)) == (escape(text), ())
    assert conjuncts(escape(text)) == (Conjunct(escape(text), 1.0),)


# --- several at once ---


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("a cat :1.2", [("a cat :1.2", 1)]),  # a colon without an AND is a colon
        ("cat :1.2 AND dog :0.8", [("cat", 1.2), ("dog", 0.8)]),
        ("cat AND dog:-.5 AND bird", [("cat", 1), ("dog", -0.5), ("bird", 1)]),
        ("(cat:1.2) AND [dog:bird:0.5]", [("(cat:1.2)", 1), ("[dog:bird:0.5]", 1)]),
        ("a: b AND\nc: 2 ", [("a: b", 1), ("c", 2)]),
        ("SAND and HAND", [("SAND and HAND", 1)]),
        (r"this \AND that", [(r"this \AND that", 1)]),
        ("AND", [("", 1), ("", 1)]),
    ],
)
def test_and_parts_a_prompt(text, parts):
    assert [(part.text, part.weight) for part in conjuncts(text)] == parts


def test_what_several_say_at_all_steps():
    assert texts_of("[cat:dog:1] AND (bird:2) :0.5", 2) == {"cat", "dog", "(bird:2)"}


# --- switches and cycles ---


@pytest.mark.parametrize(
    ("text", "at_ten_steps"),
    [
        ("a cat", ["a cat"] * 10),
        ("a [cat:dog:3]", ["a cat"] * 3 + ["a dog"] * 7),
        ("a [cat:dog:0.5]", ["a cat"] * 5 + ["a dog"] * 5),
        ("[cat:dog:1e999]", ["cat"] * 10),
        ("a [dog:.25]", ["a "] * 2 + ["a dog"] * 8),
        ("a [cat::0.75]", ["a cat"] * 7 + ["a "] * 3),
        ("[a: b : 4 ]", ["a"] * 4 + [" b "] * 6),
        ("[a:b:1]", ["a"] + ["b"] * 9),
        ("[a:b:1.0]", ["a"] * 10),
        ("[a:b:0]", ["b"] * 10),
        ("[a:b:99]", ["a"] * 10),
        ("[a:[b:c:6]:2]", ["a"] * 2 + ["b"] * 4 + ["c"] * 4),
        ("[a|b]", ["a", "b"] * 5),
        ("[a|b|]c", ["ac", "bc", "c"] * 3 + ["ac"]),
        ("[[a|b]:c:4]", ["a", "b", "a", "b"] + ["c"] * 6),
        ("[(a:1.2):(b:0.8):5]", ["(a:1.2)"] * 5 + ["(b:0.8)"] * 5),
        ("([a:b:5]:1.2)", ["(a:1.2)"] * 5 + ["(b:1.2)"] * 5),
        ("[[a]:b:5]", ["[a]"] * 5 + ["b"] * 5),
        # neither a switch nor a cycle
        ("[a]", ["[a]"] * 10),
        ("[a:b]", ["[a:b]"] * 10),
        ("[a:b:c:3]", ["[a:b:c:3]"] * 10),
        ("[a|b:3]", ["[a|b:3]"] * 10),
        ("a [b:c:3", ["a [b:c:3"] * 10),
        (r"\[a:b:3\]", [r"\[a:b:3\]"] * 10),
        ("((a][:b:c [d:3]", ["((a][:b:c "] * 3 + ["((a][:b:c d"] * 7),
        ("[(a:b:3]", ["[(a:b:3]"] * 10),
    ],
)
def test_prompts_over_ten_steps(text, at_ten_steps):
    assert Script.read(text).texts(10) == at_ten_steps


def words(inner):
    return st.lists(st.one_of(st.text(alphabet="ab ", min_size=1, max_size=3), inner), max_size=3).map(
        lambda parts: Script(tuple(join(parts)))
    )


def join(parts):
    joined = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


WHEN = st.sampled_from(["0", "3", "0.25", ".5", "1.0", "2e0", "-1"])
SCRIPTS = st.recursive(
    st.text(alphabet="xy,", min_size=1, max_size=3).map(lambda text: Script((text,))),
    lambda inner: words(
        st.one_of(
            st.builds(Switch, inner, inner, WHEN),
            st.lists(inner, min_size=2, max_size=3).map(lambda options: Cycle(tuple(options))),
        )
    ),
    max_leaves=8,
)


@given(SCRIPTS)
def test_what_is_printed_is_read_again(script):
    assert Script.read(str(script)) == script


@given(SOUP)
def test_what_is_read_is_printed_and_read_again(text):
    script = Script.read(text)
    assert Script.read(str(script)) == script
    for at in script.texts(3):
        weigh(at)


@settings(deadline=2000, max_examples=20)
@given(st.integers(1, 2000), st.sampled_from(["(", "[", "[a:", "[a|", "([", "\\", "(a:1)"]))
def test_deep_and_long_rubbish_is_read_in_no_time(times, sign):
    script = Script.read(sign * times)
    assert math.isfinite(sum(run.weight for run in weigh(script.at(1, 1))[0] if run.weight < 1e300))


def test_what_is_said_in_words_alone():
    assert plain("a (red:1.3) [cat|dog] <lora:ink:1>", 2) == {"a red cat ", "a red dog "}
    assert plain(r"a \(b\) BREAK [c:d:0.5]e", 2) == {"a (b) ce", "a (b) de"}
    assert plain("n[u]d((e))<lora:x:1>s", 1) == {"nudes"}


# --- tags ---


def test_tags_are_taken_out():
    assert tags("a cat") == ("a cat", ())
    assert tags("a cat <lora:ink:0.8>") == ("a cat", (("ink", 0.8, 0.8),))
    assert tags("<lora:ink> cat, <lyco:b:1:0.5> <lora:c:te=0.2:unet=-1>")[1] == (
        ("ink", 1, 1),
        ("b", 0.5, 1),
        ("c", -1, 0.2),
    )
    assert tags("a <cat> and <x:y>") == ("a <cat> and <x:y>", ())


@pytest.mark.parametrize(
    "tag", ["<lora:a:much>", "<lora::1>", "<lora:a:1:2:3>", "<hypernet:a:1>", "<lora:a:dyn=3>"]
)
def test_wrong_tags(tag):
    with pytest.raises(UsageError, match=r"^<.*>: ") as caught:
        tags(f"a cat {tag}")
    assert "\n" not in str(caught.value)
