from __future__ import annotations

import json
from typing import Any

import pytest

from diffmining_core.errors import InputError
from diffmining_core.models.prompts import PROMPT_OPTIONS, PromptTemplate

DETAILED = PromptTemplate(
    "View of {label}.", "View.", "View of {detail}, {label}.", 0.1, {"UK": "the United Kingdom"}
)


def test_the_label_stands_where_the_template_says_underscores_as_spaces() -> None:
    assert PromptTemplate().of("New_Zealand") == "An image of New Zealand."
    assert PromptTemplate("{label}, or: {label}").of("Perú") == "Perú, or: Perú"


def test_several_labels_are_joined_and_words_take_the_place_of_names() -> None:
    template = PromptTemplate("With {label}.", words={"No_Finding": "nothing", "b": "B_b"})
    assert template.of("Mass", "Pleural_Effusion") == "With Mass, Pleural Effusion."
    assert template.of("No_Finding", "b") == "With nothing, B_b."


def test_a_detail_stands_in_the_detailed_prompt() -> None:
    assert DETAILED.of_detail(["UK"], "Kent") == "View of Kent, the United Kingdom."
    assert PromptTemplate().of_detail(["UK"], "Kent") == "An image of UK."


@pytest.mark.parametrize("label", ["{x}", "100 %s", "{label}", "{detail}", "a\\1"])
def test_labels_are_taken_literally(label: str) -> None:
    assert PromptTemplate("A {label}.").of(label) == f"A {label}."
    assert DETAILED.of_detail([label], "{label}") == f"View of {{label}}, {label}."


@pytest.mark.parametrize(
    "template", [PromptTemplate(), PromptTemplate("A {label}.", "A."), DETAILED]
)
def test_options_bring_the_template_back(template: PromptTemplate) -> None:
    options: dict[str, Any] = json.loads(json.dumps(template.as_options()))
    assert options.keys() <= PROMPT_OPTIONS
    assert PromptTemplate.from_options({**options, "size": 64}) == template
    hash(template)


def test_what_is_not_set_is_not_among_the_options() -> None:
    assert PromptTemplate().as_options() == {"prompt": "An image of {label}.", "null_prompt": ""}


def test_null_and_detailed_prompts_are_shares_of_the_same_images() -> None:
    DETAILED.check_shares(0.9)
    with pytest.raises(InputError, match=r"null prompt \(0.95\).*\(0.1\) must add up to 1 at most"):
        DETAILED.check_shares(0.95)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"conditioned": "A car."}, r"must hold \{label\}.*'A car\.'"),
        ({"detailed": "In {detail}."}, r"must hold \{label\} and \{detail\}, but is 'In"),
        ({"detailed_share": 0.1}, "there is none; give one"),
        ({"detailed": "{label} {detail}", "detailed_share": 1.5}, "between 0 and 1, but is 1.5"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PromptTemplate(**fields)
