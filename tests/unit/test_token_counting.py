"""Texts as token counts: by a tokenizer.json where one is given, else by characters."""

import json
import sys

import pytest

import llmsim as ls
from llmsim.core.errors import InputError, ScenarioError, TraceError
from llmsim.scenario import Scenario
from llmsim.serving.build import fingerprint
from llmsim.workload.formats import counting

WORDS = ["[UNK]", "[BOS]", "the", "cat", "sat", "on", "a", "mat"]
TOKENIZER = {
    "version": "1.0",
    "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    "padding": {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]",
    },
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[BOS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"[BOS]": {"id": "[BOS]", "ids": [1], "tokens": ["[BOS]"]}},
    },
    "decoder": None,
    "model": {
        "type": "WordLevel", "unk_token": "[UNK]",
        "vocab": {word: number for number, word in enumerate(WORDS)},
    },
}  # fmt: skip
"""One token a word and one before them, with settings of training that would cut at three."""

PROMPT, ANSWER = "the cat sat on a mat", "the cat the cat"
PARTS = [{"type": "output_text", "text": ANSWER}]


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(TOKENIZER))
    return path


@pytest.fixture
def chats(tmp_path):
    turns = [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": ANSWER}]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([{"id": "a", "conversations": turns}]))
    return path


def lengths(path, kind, **options):
    (row,) = ls.trace.head(path, 5, kind, options).to_dict("records")
    return row["prompt_tokens"], row["output_tokens"]


def test_a_tokenizer_counts_whole_texts_and_what_it_puts_before_them(tokenizer, chats):
    pytest.importorskip("tokenizers")
    words = (len(PROMPT.split()) + 1, len(ANSWER.split()) + 1)
    assert lengths(chats, "sharegpt", tokenizer=str(tokenizer)) == words


def test_without_one_characters_are_counted(chats):
    assert lengths(chats, "sharegpt") == (5, 4)  # 20 and 15 characters
    assert lengths(chats, "sharegpt", chars_per_token=2.0) == (10, 8)


@pytest.fixture
def log(tmp_path):
    """A line as a proxy writes it that has streamed the answer: no usage."""
    line = {
        "timestamp": "2026-01-01T00:00:00Z",
        "request": {"messages": [{"role": "system", "content": "the cat "},
                                 {"role": "user", "content": [{"type": "text", "text": "sat"}]}]},
        "response": {"choices": [{"message": {"role": "assistant", "content": ANSWER}}]},
    }  # fmt: skip
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(line) + "\n")
    return path


def test_a_log_without_usage_is_counted_when_it_is_told_how(log, tokenizer):
    assert lengths(log, "openai-log", chars_per_token=4.0) == (3, 4)  # 11 and 15 characters
    with pytest.raises(TraceError, match=r"no usage in .*; a tokenizer or chars_per_token would"):
        lengths(log, "openai-log")
    pytest.importorskip("tokenizers")
    assert lengths(log, "openai-log", tokenizer=str(tokenizer)) == (4, 5)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"prompt": PROMPT, "choices": [{"text": ANSWER}]}, (5, 4)),
        ({"input": PROMPT, "output_text": ANSWER}, (5, 4)),
        ({"input": PROMPT, "output": [{"content": PARTS}]}, (5, 4)),
        (
            {"prompt": PROMPT, "usage": {"prompt_tokens": 9, "completion_tokens": 7}},
            (9, 7),  # what the server has counted comes first
        ),
    ],
)  # fmt: skip
def test_each_shape_of_the_api_has_its_texts_found(said, expected, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"ts": 5, **said}) + "\n")
    assert lengths(path, "openai-log", chars_per_token=4.0) == expected


def test_a_line_with_neither_usage_nor_texts_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"ts": 5, "prompt": "a"}\n')
    with pytest.raises(TraceError, match=r"log\.jsonl:1.*no choices or output"):
        lengths(path, "openai-log", chars_per_token=4.0)


def test_a_missing_package_says_what_to_install(tokenizer, chats, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'llmsim\[tokenizer\]'"):
        lengths(chats, "sharegpt", tokenizer=str(tokenizer))


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, chats, monkeypatch):
    with pytest.raises(InputError, match=r"no such file: .*nowhere"):
        lengths(chats, "sharegpt", tokenizer=str(tmp_path / "nowhere.json"))
    with pytest.raises(InputError, match="is a folder"):
        lengths(chats, "sharegpt", tokenizer=str(tmp_path))
    monkeypatch.setattr(counting, "MOST_BYTES", 10)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        lengths(chats, "sharegpt", tokenizer=str(chats))
    monkeypatch.undo()
    pytest.importorskip("tokenizers")
    with pytest.raises(InputError, match=r"is no tokenizer\.json: "):
        lengths(chats, "sharegpt", tokenizer=str(chats))


def test_in_a_scenario_its_path_starts_from_the_file_and_its_hash_is_kept(
    tokenizer, chats, tmp_path
):
    text = (
        "model: llama-3.1-8b\ntraffic:\n"
        f"  trace: {{kind: sharegpt, path: {chats.name}, tokenizer: {tokenizer.name}}}\n"
        "fleet:\n  pools:\n    main: {gpu: h100-sxm}\n"
    )
    (tmp_path / "mine.yaml").write_text("llmsim: 1\nname: mine\n" + text)
    scenario = Scenario.load(tmp_path / "mine.yaml")
    assert scenario.traffic.trace.params["tokenizer"] == str(tokenizer.resolve())
    before = fingerprint(scenario)["tokenizer"]
    tokenizer.write_text(json.dumps({**TOKENIZER, "added_tokens": []}, indent=1))
    assert fingerprint(scenario)["tokenizer"] != before
    tokenizer.unlink()
    with pytest.raises(ScenarioError, match=r"traffic\.trace\.tokenizer: no such file"):
        Scenario.load(tmp_path / "mine.yaml")
