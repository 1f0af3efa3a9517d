"""Pictures by Optimum's pipelines; runs in Optimum's environment. `python draw.py FOLDER REQUESTS`.

REQUESTS is a JSON file with a list of calls, each with a `seed` and perhaps an `image` to begin with; picture k is written
beside it as k.png.
"""

import json
import sys
from pathlib import Path

import torch
from optimum.onnxruntime import ORTStableDiffusionXLImg2ImgPipeline, ORTStableDiffusionXLPipeline
from PIL import Image


def pipeline(kind):
    made = kind.from_pretrained(sys.argv[1], export=False)
    made.set_progress_bar_config(disable=True)
    return made


asked = Path(sys.argv[2])
text, picture = pipeline(ORTStableDiffusionXLPipeline), pipeline(ORTStableDiffusionXLImg2ImgPipeline)
for number, call in enumerate(json.loads(asked.read_text())):
    generator = torch.Generator("cpu").manual_seed(call.pop("seed"))
    if "image" in call:
        call["image"] = Image.open(call["image"])
    draw = picture if "image" in call else text
    draw(generator=generator, **call).images[0].save(asked.with_name(f"{number}.png"))
