"""What the OpenAPI page of the service says beyond what FastAPI finds out by itself."""

from __future__ import annotations

from typing import Any

DESCRIPTION = """One student answers several text tasks from one encoder pass.

An input has the tasks' text columns by name (`GET /tasks` lists them), or `text`, or `text_a` and
`text_b` for a pair. It is answered by the tasks whose columns it has, or by those named in
`tasks`. Requests that arrive together share a pass."""

_TEXT_ANSWER = {
    "tickets": {"label": "billing", "probs": {"billing": 0.92, "tech": 0.08}},
    "urgency": {"value": 3.4},
}
_EXAMPLES = {
    "one text, all tasks that read one text": {
        "value": {"inputs": [{"text": "My card was charged twice."}]}
    },
    "a text and a pair, with ids": {
        "value": {
            "inputs": [
                {"id": "a1", "text": "My card was charged twice."},
                {
                    "id": "a2",
                    "text_a": "I paid two times.",
                    "text_b": "The card was charged twice.",
                },
            ]
        }
    },
    "one task": {"value": {"inputs": [{"text": "The app crashes."}], "tasks": ["tickets"]}},
}
_INPUT = {
    "anyOf": [
        {"type": "object", "description": "Columns, and an `id` that is handed through."},
        {"type": "string", "description": "The same as an object with `text`."},
        {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
    ]
}
_QUERY = {
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "inputs": {"type": "array", "minItems": 1, "items": _INPUT},
        "tasks": {
            "type": ["array", "null"],
            "minItems": 1,
            "items": {"type": "string"},
            "description": "Default: all tasks whose columns an input has.",
        },
    },
}
_OUTPUT = {
    "type": "object",
    "description": "Task -> its answer, with the input's `id`, and `truncated` where a text was "
    "longer than the model reads.",
    "properties": {"id": {}, "truncated": {"const": True}},
    "additionalProperties": {
        "type": "object",
        "properties": {
            "label": {"type": "string"},
            "probs": {"type": "object", "additionalProperties": {"type": "number"}},
            "value": {"type": "number"},
        },
    },
}
_REFUSAL = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string"}, "hint": {"type": "string"}},
}


def _json(schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    content = {"schema": schema} | ({"example": example} if example else {})
    return {"application/json": content}


def _refusals(**meanings: str) -> dict[int | str, dict[str, Any]]:
    """Responses of `_STATUS="meaning"`."""
    return {
        int(status[1:]): {"description": meaning, "content": _json(_REFUSAL)}
        for status, meaning in meanings.items()
    }


PREDICT: dict[str, Any] = {
    "summary": "Answers for one or many inputs",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _QUERY, "examples": _EXAMPLES}},
        }
    },
    "responses": {
        200: {
            "description": "One output per input, in their order",
            "content": _json(
                {
                    "type": "object",
                    "required": ["outputs"],
                    "properties": {"outputs": {"type": "array", "items": _OUTPUT}},
                },
                {"outputs": [_TEXT_ANSWER]},
            ),
        },
        **_refusals(
            _400="Not JSON, or not UTF-8",
            _401="No API key, or another one",
            _408="The body did not arrive in time",
            _413="Too many bytes or inputs, or too long a text",
            _422="Another shape, an unknown task, a missing column, an empty text",
            _503="The model is being loaded or cannot be, the queue is full, or the service shuts "
            "down",
            _504="No answer in time",
        ),
    },
}
TASKS: dict[str, Any] = {
    "summary": "What the model was trained on",
    "responses": {
        200: {
            "description": "The tasks, how many tokens of a text the model reads, and whether "
            "probabilities are calibrated",
            "content": _json(
                {"type": "object"},
                {
                    "run": "student",
                    "max_length": 128,
                    "calibrated": False,
                    "tasks": [
                        {
                            "name": "tickets",
                            "kind": "classification",
                            "text": ["body"],
                            "labels": ["billing", "tech"],
                            "range": None,
                        }
                    ],
                },
            ),
        },
        **_refusals(
            _401="No API key, or another one", _503="The model is being loaded or cannot be"
        ),
    },
}
READY: dict[str, Any] = {
    "summary": "Whether requests are answered now",
    "responses": _refusals(
        _503="The model is being loaded or cannot be, or the service shuts down"
    ),
}
