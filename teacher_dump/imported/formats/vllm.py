"""Log-probabilities as vLLM writes them: of the offline engine, of the OpenAI-compatible server, and of its batches.

They are normalised over the whole vocabulary, so the mass of all other tokens is known. Entry i of `prompt_logprobs` is
the distribution OF token i, given those before it; entry 0 is null. The token itself is always among the entries.

An entry of a file is one of:

* an offline `RequestOutput` as JSON: `prompt_token_ids`, `prompt_logprobs`, `outputs` (`token_ids`, `logprobs`);
* a response of `/v1/completions` or `/v1/chat/completions`: `choices`, with `prompt_logprobs` and `prompt_token_ids` in
  the choice or beside it, `token_ids` and `logprobs` in the choice;
* a line of a batch's output: `custom_id` and such a response in `response.body`.

A distribution is an object id -> `{"logprob", "rank", "decoded_token"}` or id -> log-probability; in `logprobs` of the
server also `top_logprobs` with tokens written as `token_id:123`.
"""

from collections.abc import Mapping
from typing import Any

from alignkd.teacher_dump.imported.formats.tokens import names_id, token_id
from alignkd.teacher_dump.imported.row import ForeignRow, integers, number, row_of_lists, unusable_row
from alignkd.vlm.errors import SampleError

Distribution = tuple[list[int], list[float]]
KEYS = ("prompt_logprobs", "choices", "outputs", "response")
_NUMBERS = {int, float}
# ids that the server makes up for a request
_REQUEST_IDS = ("cmpl-", "chatcmpl-")


def is_vllm(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a JSON file is one of the forms above."""
    return any(key in entry for key in KEYS)


def vllm_row(entry: Mapping[str, Any], where: str) -> ForeignRow:
    """The row of one entry; one that cannot be read has a `problem`."""
    sample_id = _sample_id(entry)
    try:
        return _row(entry, where, sample_id)
    except SampleError as error:
        return unusable_row(where, sample_id, str(error))


def _row(entry: Mapping[str, Any], where: str, sample_id: str | None) -> ForeignRow:
    body = _body(entry)
    answers = body.get("choices", body.get("outputs")) or [{}]
    if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], Mapping):
        raise SampleError("has several answers, expected one (n = 1)")
    answer: Mapping[str, Any] = answers[0]
    prompt_ids = _ids(answer.get("prompt_token_ids", body.get("prompt_token_ids")), "prompt_token_ids")
    prompt = _prompt(answer.get("prompt_logprobs", body.get("prompt_logprobs")))
    answer_ids, generated = _generated(answer)
    if prompt_ids is not None and prompt is not None and len(prompt) != len(prompt_ids):
        raise SampleError(f"has {len(prompt_ids)} prompt_token_ids and {len(prompt)} prompt_logprobs")
    if not prompt and not generated:
        raise SampleError("has neither prompt_logprobs nor logprobs; request them")
    if prompt_ids is None:
        return _without_prompt_ids(where, sample_id, prompt, answer_ids, generated)
    P = len(prompt_ids)
    if answer_ids[:P] == prompt_ids and len(generated) == len(answer_ids) > P and not prompt:  # `echo`
        prompt, answer_ids, generated = generated[:P], answer_ids[P:], generated[P:]
    tokens = [*prompt_ids, *answer_ids]
    places = [*(range(P) if prompt else ()), *range(P, P + len(generated))]
    # what was generated after a scored prompt is not a part of the sample
    lengths = (len(tokens), P) if prompt and answer_ids else (len(tokens),)
    found = [*(prompt or ()), *generated]
    return row_of_lists(where, found, id=sample_id, predicts=places, tokens=tokens, lengths=lengths)


def _without_prompt_ids(
    where: str,
    sample_id: str | None,
    prompt: list[Distribution | None] | None,
    answer_ids: list[int],
    generated: list[Distribution | None],
) -> ForeignRow:
    """A row whose tokens are only known where distributions show them."""
    if prompt is not None:
        if len(generated) > 1:
            raise SampleError("has prompt_logprobs and a generated answer without prompt_token_ids; request the ids")
        places = list(range(-len(prompt), 0))
        return row_of_lists(where, prompt, id=sample_id, predicts=places, from_end=True, num_tokens=len(prompt))
    return row_of_lists(where, generated, id=sample_id, predicts=list(range(-len(generated), 0)), from_end=True)


def _sample_id(entry: Mapping[str, Any]) -> str | None:
    """The user's own id; None if there is none."""
    found = entry.get("custom_id", entry.get("id"))
    if found is None or ("custom_id" not in entry and str(found).startswith(_REQUEST_IDS)):
        return None
    return str(found)


def _body(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    if "response" not in entry:
        return entry
    response = entry["response"]
    if entry.get("error") is not None or not isinstance(response, Mapping):
        raise SampleError(f"the request failed: {str(entry.get('error') or response)[:200]}")
    if not isinstance(body := response.get("body"), Mapping) or "choices" not in body:
        raise SampleError(f"the request failed: {str(body or response)[:200]}")
    return body


def _ids(value: Any, name: str) -> list[int] | None:
    return None if value is None else integers(value, name)


def _prompt(value: Any) -> list[Distribution | None] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise SampleError(f"prompt_logprobs is {value!r:.60}, expected a list")
    return [_by_id(found) for found in value]


def _by_id(value: Any) -> Distribution | None:
    """Ids and log-probabilities of an object id -> log-probability."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise SampleError(f"a position of prompt_logprobs is {value!r:.60}, expected an object")
    if all(map(str.isdecimal, value)):  # the usual form; files have millions of these
        logprobs: list[Any] = [found.get("logprob") if type(found) is dict else found for found in value.values()]
        if {*map(type, logprobs)} <= _NUMBERS:
            return [*map(int, value)], logprobs
    ids = [token_id(key, digits=True) for key in value]
    return ids, [_logprob(found) for found in value.values()]


def _logprob(value: Any) -> float:
    found = value.get("logprob") if isinstance(value, Mapping) else value
    return number(found, "logprob")


def _generated(answer: Mapping[str, Any]) -> tuple[list[int], list[Distribution | None]]:
    """Ids of the generated tokens, empty if unknown, and their distributions, empty without any."""
    ids, logprobs = _ids(answer.get("token_ids"), "token_ids") or [], answer.get("logprobs")
    if logprobs is None:
        return ids, []
    if isinstance(logprobs, list):  # the offline engine
        found = [_by_id(value) for value in logprobs]
    elif isinstance(logprobs, Mapping) and "content" in logprobs:  # chat
        content = logprobs["content"] or []
        found = [_of_tokens([position, *(position.get("top_logprobs") or ())]) for position in content]
        ids = ids or [token_id(position.get("token"), digits=False) for position in content]
    elif isinstance(logprobs, Mapping) and isinstance(tokens := logprobs.get("tokens"), list):  # completions
        own = logprobs.get("token_logprobs") or []
        top = logprobs.get("top_logprobs") or [None] * len(tokens)
        if not len(tokens) == len(own) == len(top):
            raise SampleError(f"logprobs has {len(tokens)} tokens, {len(own)} token_logprobs, {len(top)} top_logprobs")
        found = [_completion(*parts) for parts in zip(tokens, own, top, strict=True)]
        ids = ids or [token_id(token, digits=False) for token in tokens]
    else:
        raise SampleError(f"logprobs is {logprobs!r:.60}, expected a form of vLLM (docs/import.md)")
    if ids and len(ids) != len(found):
        raise SampleError(f"has {len(ids)} generated tokens and {len(found)} distributions of them")
    return ids, found


def _of_tokens(entries: list[Any]) -> Distribution:
    """Distinct tokens and their log-probabilities, of objects `{"token", "logprob"}`."""
    found: dict[int, float] = {}
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise SampleError(f"an entry of logprobs is {entry!r:.60}, expected an object")
        found.setdefault(token_id(entry.get("token"), digits=False), number(entry.get("logprob"), "logprob"))
    return list(found), list(found.values())


def _completion(token: Any, logprob: Any, top: Any) -> Distribution | None:
    """The distribution of a token of /v1/completions; None for the first token of an echoed prompt."""
    if logprob is None:
        return None
    pairs = {**(top or {}), token: logprob}
    if not all(names_id(name) for name in pairs):
        token_id(next(name for name in pairs if not names_id(name)), digits=False)
    return [token_id(name, digits=False) for name in pairs], [_logprob(value) for value in pairs.values()]
