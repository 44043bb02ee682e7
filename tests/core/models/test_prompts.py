from __future__ import annotations

import pytest

from diffmining_core.errors import InputError
from diffmining_core.models.prompts import PromptTemplate


def test_the_label_stands_where_the_template_says_underscores_as_spaces() -> None:
    assert PromptTemplate().of("New_Zealand") == "An image of New Zealand."
    assert PromptTemplate("{label}, or: {label}").of("Perú") == "Perú, or: Perú"


@pytest.mark.parametrize("label", ["{x}", "100 %s", "{label}", "a\\1"])
def test_labels_are_taken_literally(label: str) -> None:
    assert PromptTemplate("A {label}.").of(label) == f"A {label}."


def test_a_template_without_the_label_is_refused() -> None:
    with pytest.raises(InputError, match=r"must hold \{label\}.*'A car\.'"):
        PromptTemplate("A car.")
