"""The cost file of this machine, as `triptych simulate` reads it."""

from __future__ import annotations

import json

from triptych_demo import demo_build
from triptych_lab.bench.cost import cost_model, measure, write
from triptych_lab.simulator import CostModel


def test_a_cost_file_is_measured_written_and_read(tmp_path):
    document = measure(demo_build(), rows=(1, 2), repeats=1)
    write(tmp_path / "cost.json", document)
    assert json.loads((tmp_path / "cost.json").read_text()) == document
    read, made = CostModel.load(tmp_path / "cost.json"), cost_model(document)
    assert read.seconds("unet", 2, 256) == made.seconds("unet", 2, 256) > 0
    assert (read.encode_s, read.decode_s, read.shared) == (document["encode_s"], document["decode_s"], True)
