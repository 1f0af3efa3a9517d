"""Triton's end of the loop: requests in, verbs in, answers out. The loop itself is `triptych_serving.engine`."""

import functools
import json
import time
import uuid

import numpy as np

from triptych_serving import triton
from triptych_serving.denoiser import Conditioning
from triptych_serving.engine import Engine
from triptych_serving.errors import InvalidRequest
from triptych_serving.job import Job
from triptych_serving.metrics import Metrics
from triptych_serving.ort import OrtDenoiser
from triptych_serving.policy import Policy
from triptych_serving.settings import Settings, tenant
from triptych_serving.tables import load_tables

ACTIONS = ("cancel", "stats", "watch")
WARM_UP_STEPS = 3


class TritonPythonModel:
    def initialize(self, args):
        self.arguments = triton.ModelArguments(args)
        self.model = self.arguments.manifest.model
        self.tables = functools.cache(self._load_tables)
        denoiser = OrtDenoiser(self.arguments.stage_path("unet"))
        self.engine = Engine(
            denoiser,
            Policy(int(self.arguments.parameters["max_batch_rows"]), self._warm_up(denoiser)),
            Metrics(triton.PrometheusMetrics({"model": self.model.name})),
            max_queue_seconds=float(self.arguments.parameters["max_queue_seconds"]),
        )
        self.engine.start()

    def execute(self, requests):
        for request in requests:
            reply = triton.TritonReply(request)
            try:
                self._take(request, reply)
            except Exception as error:
                reply.fail(error)

    def finalize(self):
        self.engine.stop()

    def _take(self, request, reply):
        verb = triton.scalars(request, ("action", "id", "tenant", "since"))
        if "action" not in verb:
            self.engine.submit(self._job(request, reply))
            return
        action, of = (verb.get(name, b"").decode("utf-8", "replace") for name in ("action", "id"))
        whose = tenant(verb.get("tenant"))
        if action == "stats":
            self.engine.stats(reply)
        elif action not in ACTIONS:
            raise InvalidRequest("action", repr(action), ", ".join(ACTIONS))
        elif not _is_uuid(of):
            raise InvalidRequest("id", repr(of), "the UUID that a request was sent with")
        elif action == "cancel":
            self.engine.cancel(of, whose, reply)
        else:
            self.engine.watch(of, whose, int(verb.get("since", -1)), reply)

    def _job(self, request, reply):
        passed_on = triton.scalars(request, ("settings",)).get("settings")
        if passed_on is None:
            raise InvalidRequest("action", "nothing", f"{', '.join(ACTIONS)}; images are made by the ensemble")
        document = self._document(passed_on)
        settings = Settings.from_json(document["settings"], self.model)
        return Job.create(
            request.request_id() if _is_uuid(request.request_id()) else str(uuid.uuid4()),
            settings,
            self.tables(settings.sampler, settings.schedule).steps(settings.num_inference_steps),
            self._conditioning(request, settings),
            reply,
            shape=self._latent_shape(settings.height, settings.width),
            arrived=document["arrived"],
        )

    def _document(self, passed_on):
        try:
            document = json.loads(passed_on)
            return {"settings": document["settings"], "arrived": float(document["arrived"])}
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                "settings", f"{type(error).__name__}: {error}", "what the ensemble passes on"
            ) from None

    def _load_tables(self, sampler, schedule):
        return load_tables(self.arguments.manifest.verified(self.model.samplers[sampler][schedule]))

    def _conditioning(self, request, settings):
        arrays = [triton.array(request, name) for name in ("hidden_states", "hidden_states_2", "text_embeds")]
        if any(array is None for array in arrays):
            raise InvalidRequest("settings", "settings without embeddings", "all that the ensemble passes on")
        embeddings, text_embeds = np.concatenate(arrays[:2], axis=-1), arrays[2].copy()
        if settings.guided and settings.negative_prompt is None and self.model.force_zeros_for_empty_prompt:
            embeddings[0] = text_embeds[0] = 0
        size = (settings.height, settings.width)
        time_ids = np.tile(np.array([*size, 0, 0, *size], np.float32), (len(text_embeds), 1))
        return self._checked(Conditioning(embeddings, text_embeds, time_ids), 1 + settings.guided)

    def _checked(self, conditioning, rows):
        """Rows of another shape would fail the whole batch they join, so they are refused here."""
        for name, spec in self.arguments.manifest.stages["unet"]["inputs"].items():
            if name in ("sample", "timestep"):
                continue
            shape, legal = getattr(conditioning, name).shape, (rows, *spec["shape"][1:])
            if shape != legal:
                raise InvalidRequest(name, f"shape {shape}", f"{legal}")
        return conditioning

    def _latent_shape(self, height, width):
        scale = self.model.vae_scale_factor
        return (self.model.latent_channels, height // scale, width // scale)

    def _warm_up(self, denoiser):
        """Run the model at its own size, so that the first request finds it warm; returns seconds per unit of cost."""
        stage, sizes = self.arguments.manifest.stages["unet"]["inputs"], self.model.default_sizes | {"batch": 2}
        shapes = {name: [sizes.get(dim, dim) for dim in spec["shape"]] for name, spec in stage.items()}
        zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        sample, timestep = zeros.pop("sample"), zeros.pop("timestep")
        conditioning = [Conditioning(**zeros)]
        seconds = []
        for _ in range(WARM_UP_STEPS):
            began = time.monotonic()
            denoiser.predict(sample, timestep, conditioning)
            seconds.append(time.monotonic() - began)
        return min(seconds) / (len(sample) * sample.shape[2] * sample.shape[3])  # the others still load beside it


def _is_uuid(text):
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
