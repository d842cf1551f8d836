"""Questions to a region's replicators and their answers as they travel. Pure.

JSON with the name of what it is, so either side may be newer: what is not known is declined, fields
that are not known are passed over.
"""

from __future__ import annotations

import json
from typing import Any, get_args

from meshkit.asking import Answer, Question
from meshkit.codec import canonical, from_plain, to_plain
from meshkit.errors import InvalidInput

KIND = "kind"

_QUESTIONS: tuple[type[Any], ...] = get_args(Question)
_MESSAGES: dict[str, type[Any]] = {cls.__name__: cls for cls in (*_QUESTIONS, *get_args(Answer))}


def message_bytes(message: Question | Answer) -> bytes:
    """Return a message as it is sent."""
    return canonical({**to_plain(message), KIND: type(message).__name__})


def question_of(raw: bytes) -> Question:
    """Return the question in `raw`.

    Raises:
        InvalidInput: it is none that is known here.
    """
    message = _message(raw)
    if not isinstance(message, _QUESTIONS):
        raise InvalidInput(f"{type(message).__name__} is no question")
    question: Question = message
    return question


def answer_of(raw: bytes) -> Answer:
    """Return the answer in `raw`.

    Raises:
        InvalidInput: it is none that is known here.
    """
    message = _message(raw)
    if isinstance(message, _QUESTIONS):
        raise InvalidInput(f"{type(message).__name__} is no answer")
    answer: Answer = message
    return answer


def _message(raw: bytes) -> Any:
    try:
        fields = json.loads(raw)
        cls = _MESSAGES[fields.pop(KIND)]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidInput(f"not a message that is known here: {raw[:80]!r}") from error
    try:
        return from_plain(cls, fields)
    except ValueError as error:
        raise InvalidInput(f"{cls.__name__} is damaged: {error}") from error
