"""Traces: every published layout gives the same requests, a broken row is one error with file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from loadgen.traces import TraceError, read_trace

TRACES = Path(__file__).parents[2].parent / "shared" / "data" / "traces"

LAYOUTS = {
    "normalised": "arrival_s,prompt_tokens,output_tokens\n0.0,374,44\n4.25,396,109\n",
    "normalised with prefixes": "arrival_s,prompt_tokens,output_tokens,prefix_block_ids\n0.0,374,44,0 1\n4.25,396,109,\n",
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.7500000,374,44\r\n2023-11-16 18:15:51.0000000,396,109\r\n",
    "azure 2024": "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,374,44\n2024-05-10 00:00:04.250000+00:00,396,109\n",
    "mooncake": '{"timestamp": 1000, "input_length": 374, "output_length": 44, "hash_ids": [0]}\n'
    '{"timestamp": 5250, "input_length": 396, "output_length": 109, "hash_ids": []}\n',
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,374,44,418,Conversation log\n9.25,GPT-4,396,109,505,API log\n",
    "burstgpt with sessions": "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,s,1.0,ChatGPT,374,44,418,Conversation log\n9.25,s,2.0,GPT-4,396,109,505,API log\n",
    "out of order": "arrival_s,prompt_tokens,output_tokens\n9.25,396,109\n5.0,374,44\n",
}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_gives_the_same_requests(tmp_path, layout, suffix):
    path = tmp_path / f"trace{suffix}"
    text = LAYOUTS[layout].encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 4.25]
    assert trace.prompt_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109]
    assert trace.span_s == 4.25


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n0.0,3,4\n1.0,3\n", r"trace.csv:3: 2 columns where the header has 3"),
        ("arrival_s,prompt_tokens,output_tokens\nsoon,3,4\n", r"trace.csv:2: arrival_s: 'soon' is no time"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,3,4\n", r"trace.csv:2: arrival_s: 'nan' is no time"),
        ("arrival_s,prompt_tokens,output_tokens\n0,-3,4\n", r"trace.csv:2: prompt_tokens: '-3' is no count"),
        ("arrival_s,prompt_tokens,output_tokens\n0,3,many\n", r"trace.csv:2: output_tokens: 'many' is no count"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,3,4\n18:15,3,4\n", r"trace.csv:3: TIMESTAMP: '18:15' is no time"),
        ('{"timestamp": 0, "input_length": 3, "output_length": 4}\n{"timestamp": 0}\n', r"trace.csv:2: input_length: missing"),
        ('{"timestamp": 0, "input_length": 3, "output_length": 4}\n{"times\n', r"trace.csv:2: not a JSON object"),
        ("a,b\n1,2\n", r"trace.csv:1: unknown columns a, b"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no request in it"),
        ("", "no request in it"),
    ],
)
def test_a_broken_trace_is_one_clear_error(tmp_path, text, complaint):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=complaint) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


def test_a_trace_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "nothing.csv")


@pytest.mark.skipif(not TRACES.is_dir(), reason="the real traces are not beside this checkout")
@pytest.mark.parametrize(("file", "num_requests", "span_s"), [
    ("azure_llm_2023_code.csv.gz", 8_819, 3_436),
    ("azure_llm_2023_conv.csv.gz", 19_366, 3_502),
    ("mooncake_conversation.csv.gz", 12_031, 3_537),
    ("mooncake_synthetic.csv.gz", 3_993, 1_022),
])  # fmt: skip
def test_the_real_traces_are_read_whole(file, num_requests, span_s):
    trace = read_trace(TRACES / file)
    assert len(trace) == num_requests
    assert trace.span_s == pytest.approx(span_s, abs=1)


@pytest.mark.skipif(not TRACES.is_dir(), reason="the real traces are not beside this checkout")
def test_two_minutes_at_double_speed_are_four_minutes_of_the_trace():
    trace = read_trace(TRACES / "azure_llm_2023_conv.csv.gz")
    assert int(np.sum(trace.arrival_s / 2 < 120)) == 1_138
