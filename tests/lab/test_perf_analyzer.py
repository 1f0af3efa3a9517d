"""perf_analyzer's command lines, its input data, its files as recorded, and our report of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from triptych.errors import InvalidRequest
from triptych_lab.bench.errors import BenchError
from triptych_lab.bench.perf_analyzer import binary, data, results
from triptych_lab.bench.perf_analyzer.command import LoadLevel, Measurement, Mode
from triptych_lab.bench.perf_analyzer.report import write
from triptych_lab.bench.perf_analyzer.stages import record
from triptych_lab.bench.perf_analyzer.suite import Loads, Subject, Suite, perform, requests, run, sweep
from triptych_lab.workload import Arrival

RECORDED = Path(__file__).parent / "perf_analyzer"
FOUR = LoadLevel(Mode.CONCURRENCY, 2, 4)


def measurement(folder, level=FOUR, model="sdxl"):
    return Measurement("sdxl", model, folder / "data.json", level, folder)


def recorded(folder, name="concurrency", level=FOUR):
    """A measurement whose files are those of a real run."""
    of = measurement(folder, level)
    shutil.copy(RECORDED / f"{name}.csv", of.csv)
    shutil.copy(RECORDED / f"{name}.log", of.log)
    shutil.copy(RECORDED / "concurrency.profile.json", of.profile)
    return of


def program(path, words):
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)
    return path


# The binary.


def test_the_variable_wins_over_the_path(tmp_path):
    (tmp_path / "bin").mkdir()
    ours, theirs = program(tmp_path / "mine", "exit 0"), program(tmp_path / "bin/perf_analyzer", "exit 0")
    environment = {"PATH": str(theirs.parent)}
    assert binary.find(environment) == theirs
    assert binary.find({**environment, "PERF_ANALYZER": str(ours)}) == ours


@pytest.mark.parametrize(
    ("named", "words"),
    [({}, "none in PERF_ANALYZER or on PATH"), ({"PERF_ANALYZER": "/nowhere"}, "/nowhere, no program")],
)
def test_without_a_binary_it_is_said_where_to_get_one(named, words, tmp_path):
    with pytest.raises(BenchError, match=words) as caught:
        binary.find({"PATH": str(tmp_path), **named})
    assert "pip install perf-analyzer" in str(caught.value)
    assert "sdk" in str(caught.value)


def test_an_older_glibc_is_named(tmp_path):
    old = program(tmp_path / "perf_analyzer", f"cat {RECORDED / 'old-glibc.log'} >&2; exit 1")
    with pytest.raises(BenchError, match=r"needs GLIBC_2\.38, and here is \S+"):
        binary.find({"PATH": str(tmp_path), "PERF_ANALYZER": str(old)})


# The command line.


@pytest.mark.parametrize(
    ("level", "wanted", "unwanted"),
    [
        (FOUR, "--request-count 4 --concurrency-range 2", "--max-threads"),
        (
            LoadLevel(Mode.RATE, 0.75, 8),
            "--request-count 8 --request-rate-range 0.75:0.75 --request-distribution poisson --max-threads 8",
            "-range 2",
        ),
        (LoadLevel(Mode.SCHEDULE, 5, 5), "--fixed-schedule --max-threads 5", "--request-count"),
    ],
)
def test_a_load_is_spelled_as_perf_analyzer_takes_it(level, wanted, unwanted, tmp_path):
    words = measurement(tmp_path, level).command(Path("/pa"), "localhost:8001")
    assert words[:7] == ["/pa", "-m", "sdxl", "-i", "grpc", "-u", "localhost:8001"]
    assert wanted in " ".join(words)
    assert unwanted not in " ".join(words)


def test_no_two_loads_share_a_file(tmp_path):
    levels = [
        LoadLevel(Mode.CONCURRENCY, 1, 4),
        LoadLevel(Mode.CONCURRENCY, 2, 4),
        LoadLevel(Mode.RATE, 1, 4),
        LoadLevel(Mode.RATE, 1.5, 4),
    ]
    files = {getattr(measurement(tmp_path, level), name) for level in levels for name in ("csv", "profile", "log")}
    assert len(files) == 3 * len(levels)


# The input data.


def test_requests_have_no_seed_that_a_cache_could_know():
    made = list(requests(Suite.quick().mix, 6))
    assert len(made) == 6
    assert all("seed" not in request and request["num_inference_steps"] in (2, 4) for request in made)


def test_a_workload_keeps_its_times_in_milliseconds():
    arrivals = [Arrival(0.25, {"prompt": "a fox", "seed": 3}), Arrival(0.5, {"prompt": "é", "original_size": (64, 32)})]
    assert data.schedule("sdxl", arrivals) == [
        {"timestamp": [250], "prompt": ["a fox"], "seed": [3]},
        {"timestamp": [750], "prompt": ["é"], "original_size": [64, 32]},
    ]


def test_a_batching_stage_gets_rows_and_another_gets_all():
    arrays = {"input_ids": np.arange(6).reshape(2, 3), "names": np.array([[b"a"], [b"b"]], object)}
    rows = data.tensors(arrays, batched=True)
    assert rows[1] == {"input_ids": {"content": [3, 4, 5], "shape": [3]}, "names": {"content": ["b"], "shape": [1]}}
    assert len(rows) == 2
    (whole,) = data.tensors(arrays, batched=False)
    assert whole["input_ids"] == {"content": [0, 1, 2, 3, 4, 5], "shape": [2, 3]}


class TwoStages:
    """An ensemble that turns a prompt into a number and the number into twice that; nothing is said of a picture."""

    CONFIGS = {  # noqa: RUF012
        "sdxl": {
            "ensemble_scheduling": {
                "step": [
                    {
                        "model_name": "count",
                        "input_map": {"text": "prompt", "image": "init_image"},
                        "output_map": {"length": "n", "nothing": "empty"},
                    },
                    {"model_name": "double", "input_map": {"x": "n", "y": "empty"}, "output_map": {"twice": "image"}},
                ]
            }
        },
        "count": {},
        "double": {"max_batch_size": 4},
    }

    def config(self, model):
        return self.CONFIGS[model]

    def infer(self, model, inputs, outputs):
        if model == "count":
            assert outputs == ["length", "nothing"]
            return {"length": np.array([[len(inputs["text"][0])]], np.int64), "nothing": np.zeros((0, 4), np.float32)}
        return {"twice": inputs["x"] * 2}


def test_stages_are_recorded_with_what_they_read():
    count, double = record(TwoStages(), "sdxl", {"prompt": "a fox"})
    assert (count.model, count.batched, list(count.inputs)) == ("count", False, ["text"])
    assert count.inputs["text"].tolist() == ["a fox"]
    assert (double.model, double.batched) == ("double", True)
    assert {name: array.tolist() for name, array in double.inputs.items()} == {"x": [[5]]}


def test_a_request_that_cannot_be_sent_is_refused_before_any_call():
    with pytest.raises(InvalidRequest, match="guidance: an unknown parameter"):
        next(record(TwoStages(), "sdxl", {"prompt": "a fox", "guidance": 3}))


# The files.


def test_a_recorded_run_is_read(tmp_path):
    result = results.read(recorded(tmp_path))
    assert result.throughput_per_s == 0.663039
    assert len(result.latencies_s) == 4
    assert result.mean_s == pytest.approx(2.580067, abs=1e-3)  # perf_analyzer's own mean of the same requests
    assert max(result.latencies_s) == pytest.approx(3.887063, abs=1e-3)
    assert result.quantiles_s["p50"] <= result.quantiles_s["p95"] <= result.quantiles_s["p99"] <= 3.89
    assert list(result.parts) == [
        "denoise", "image_encoder", "text_encoder", "text_encoder_2", "tokenizer", "vae_decoder", "vae_encoder",
    ]  # fmt: skip
    assert result.parts["vae_decoder"] == results.Part(1.027861, 0.187116)
    assert result.delayed == 0


def test_the_profile_is_no_json_and_is_read_all_the_same():
    with pytest.raises(UnicodeDecodeError):
        json.loads((RECORDED / "concurrency.profile.json").read_bytes())
    assert len(results.read_profile(RECORDED / "concurrency.profile.json")) == 4


def test_requests_that_were_sent_late_are_told(tmp_path):
    result = results.read(recorded(tmp_path, "schedule", LoadLevel(Mode.SCHEDULE, 2, 2)))
    assert result.delayed == 0.5


@pytest.mark.parametrize(
    "text", ["", "Concurrency,Inferences/Second\n", "Concurrency,Inferences/Second\n1,2\n2,3\n", "a\nb\n"]
)
def test_a_report_that_is_none_is_an_error(tmp_path, text):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(BenchError, match="no report of one row in"):
        results.read_csv(tmp_path / "r.csv")


@pytest.mark.parametrize("cut", [0, 300])
def test_a_profile_that_breaks_off_is_an_error(tmp_path, cut):
    (tmp_path / "p.json").write_bytes((RECORDED / "concurrency.profile.json").read_bytes()[:cut][:190])
    with pytest.raises(BenchError, match="requests and 0 answers"):
        results.read_profile(tmp_path / "p.json")


# The sweep.


def answered(throughput):
    """Measurements that all find the same throughput times the users, and their levels."""
    seen = []

    def perf(of):
        seen.append(of.level)
        users = of.level.value if of.level.mode is Mode.CONCURRENCY else 1
        return results.Result(of, throughput * users, 0.5, {"p50": 0.5, "p95": 0.5, "p99": 0.5}, [0.5], {})

    return perf, seen


def test_rates_are_shares_of_the_best_throughput(tmp_path):
    perf, seen = answered(2.0)
    found = list(sweep(perf, Subject("sdxl", "sdxl", tmp_path / "d", Loads((1, 4), (0.5, 0.9), 8)), tmp_path))
    assert len(found) == 4
    assert seen == [
        LoadLevel(Mode.CONCURRENCY, 1, 8),
        LoadLevel(Mode.CONCURRENCY, 4, 16),
        LoadLevel(Mode.RATE, 4.0, 8),
        LoadLevel(Mode.RATE, 7.2, 8),
    ]


def test_a_run_covers_the_ensemble_its_stages_and_the_workload(tmp_path):
    perf, _ = answered(1.0)
    arrivals = [Arrival(0.1, {"prompt": "a fox"})]
    found = list(run(perf, TwoStages(), "sdxl", tmp_path / "out", Suite.quick(), arrivals))
    assert [(result.measurement.model, result.measurement.level.name) for result in found] == [
        ("sdxl", "concurrency-1"),
        ("sdxl", "concurrency-2"),
        ("sdxl", "request_rate-1"),
        ("count", "concurrency-1"),
        ("double", "concurrency-1"),
        ("sdxl", "fixed_schedule"),
    ]
    for result in found:
        assert json.loads(result.measurement.data.read_text())["data"]


def test_a_failure_says_perf_analyzers_last_words_and_where_the_rest_is(tmp_path):
    broken = program(tmp_path / "pa", "echo 'error: no such model'; exit 99")
    with pytest.raises(
        BenchError, match=r"sdxl at concurrency-2: exit 99, error: no such model; see .*sdxl\.concurrency-2\.log"
    ):
        perform(broken, "localhost:1", 10)(measurement(tmp_path))


def test_a_library_that_is_too_old_is_known_from_a_failed_run(tmp_path):
    old = program(tmp_path / "pa", f"cat {RECORDED / 'old-glibc.log'} >&2; exit 1")
    with pytest.raises(BenchError, match=r"needs GLIBC_2\.38, which this machine lacks"):
        perform(old, "localhost:1", 10)(measurement(tmp_path))


# The report.


def test_the_report_is_for_people_and_for_programs(tmp_path):
    level = LoadLevel(Mode.SCHEDULE, 4, 4)
    found = [results.read(recorded(tmp_path)), results.read(recorded(tmp_path, "schedule", level))]
    markdown, as_json = write(tmp_path, found, {"processor": "2 × some"})
    text, document = markdown.read_text(), json.loads(as_json.read_text())
    assert "| 2 at once | 4 | 0.663 | 2580.1 |" in text
    assert "50% sent late" in text
    assert "1027.9" in text  # the decoder's part
    assert document["facts"] == {"processor": "2 × some"}
    assert document["measurements"][0]["latency_s"]["mean"] == pytest.approx(2.580067, abs=1e-3)
    assert all((tmp_path.parent / name).is_file() for name in document["measurements"][0]["files"])
