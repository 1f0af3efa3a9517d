"""Triton's end of the loop: requests in, verbs in, answers out. The loop itself is `triptych_serving.engine`."""

import functools
import json
import time
import uuid
from dataclasses import asdict

import numpy as np

from triptych_serving import invariance, triton
from triptych_serving.conditioning import conditionings
from triptych_serving.engine import Engine
from triptych_serving.errors import InvalidRequest
from triptych_serving.job import Job
from triptych_serving.latents import Start
from triptych_serving.metrics import Metrics
from triptych_serving.ort import OrtDenoiser
from triptych_serving.policy import Policy
from triptych_serving.settings import Settings, tenant
from triptych_serving.tables import load_tables
from triptych_serving.walk import DENOISERS, Walk

ACTIONS = ("cancel", "describe", "stats", "verify", "watch")
WARM_UP_STEPS = 3


class TritonPythonModel:
    def initialize(self, args):
        self.arguments = triton.ModelArguments(args)
        self.manifest, self.model = self.arguments.manifest, self.arguments.manifest.model
        self.tables = functools.cache(self._load_tables)
        self.max_batch_rows = int(self.arguments.parameters["max_batch_rows"])
        names = [name for name in DENOISERS if name in self.manifest.stages]
        self.denoisers = {name: OrtDenoiser(self.arguments.stage_path(name)) for name in names}
        seconds_per_cost = max([self._warm_up(name) for name in names])
        self.engine = Engine(
            self.denoisers,
            Policy(self.max_batch_rows, seconds_per_cost),
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
            self._generate(request, reply)
            return
        action, of = (verb.get(name, b"").decode("utf-8", "replace") for name in ("action", "id"))
        whose = tenant(verb.get("tenant"))
        if action not in ACTIONS:
            raise InvalidRequest("action", repr(action), ", ".join(ACTIONS))
        if action == "stats":
            self.engine.stats(reply)
        elif action == "describe":
            reply.send(self._description())
        elif action == "verify":
            self.engine.between_steps(self._verdict, reply)
        elif not _is_uuid(of):
            raise InvalidRequest("id", repr(of), "the UUID that a request was sent with")
        elif action == "cancel":
            self.engine.cancel(of, whose, reply)
        else:
            self.engine.watch(of, whose, int(verb.get("since", -1)), reply)

    def _generate(self, request, reply):
        passed_on = triton.scalars(request, ("settings", "refusal"))
        if "settings" not in passed_on:
            raise InvalidRequest("action", "nothing", f"{', '.join(ACTIONS)}; images are made by the ensemble")
        if refusal := passed_on.get("refusal"):
            raise _refused(refusal)
        document = self._document(passed_on["settings"])
        if document["cached"]:
            self._pass_by(reply, document["arrived"])
        else:
            self.engine.submit(self._job(request, reply, document))

    def _pass_by(self, reply, arrived):
        """The file is there already: the smallest latents, for the decoder to be done with at once."""
        side = self.model.min_size // self.model.vae_scale_factor
        before = round((time.monotonic() - arrived) * 1e3, 3)
        reply.send(
            {"before_ms": before, "queue_ms": 0.0, "denoise_ms": 0.0},
            np.zeros((self.model.latent_channels, side, side), np.float32),
        )
        self.engine.count("cached_total")

    def _job(self, request, reply, document):
        settings = Settings.from_json(document["settings"], self.model)
        tables = self.tables(settings.sampler, settings.schedule)
        scale = self.model.vae_scale_factor
        return Job.create(
            request.request_id() if _is_uuid(request.request_id()) else str(uuid.uuid4()),
            settings,
            Walk.of(settings, tables, self.model),
            conditionings(settings, self.manifest, functools.partial(triton.array, request)),
            reply,
            shape=(self.model.latent_channels, settings.height // scale, settings.width // scale),
            arrived=document["arrived"],
            start=self._start(request, settings),
            scale=self.model.latent_scale,
        )

    def _document(self, passed_on):
        try:
            document = json.loads(passed_on)
            facts = {"arrived": float(document["arrived"]), "cached": bool(document["cached"])}
            return {"settings": document["settings"], **facts}
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                "settings", f"{type(error).__name__}: {error}", "what the ensemble passes on"
            ) from None

    def _load_tables(self, sampler, schedule):
        return load_tables(self.manifest.verified(self.model.samplers[sampler].schedules[schedule].path))

    def _start(self, request, settings):
        """What the VAE encoder made of the request's picture; None without one."""
        if settings.init_image is None:
            return None
        scale, channels = self.model.vae_scale_factor, self.model.latent_channels
        sides = (settings.height // scale, settings.width // scale)
        moments = self._picture(request, "latent_parameters", (1, 2 * channels, *sides))
        mask = None if settings.mask is None else self._picture(request, "latent_mask", (1, 1, *sides))
        return Start(moments, mask)

    def _picture(self, request, name, legal):
        array = triton.array(request, name)
        if array is None or array.shape != legal:
            raise InvalidRequest(name, f"shape {None if array is None else array.shape}", f"{legal}")
        return array[0].copy()

    def _description(self):
        manifest = self.manifest
        stages = {name: stage["sha256"] for name, stage in manifest.stages.items()}
        facts = {"family": manifest.family, "target": manifest.target, "build": manifest.build_hash, "stages": stages}
        return {"model": asdict(self.model), **facts}

    def _verdict(self):
        return {
            "denoisers": {
                name: invariance.verify(denoiser, self._inputs(name), self.model.default_sizes, self.max_batch_rows)
                for name, denoiser in self.denoisers.items()
            }
        }

    def _inputs(self, name):
        return self.manifest.stages[name]["inputs"]

    def _warm_up(self, name):
        """Run the model at its own size, so that the first request finds it warm; returns seconds per unit of cost."""
        sample, timestep, conditioning = invariance.example(self._inputs(name), self.model.default_sizes, 2)
        seconds = []
        for _ in range(WARM_UP_STEPS):
            began = time.monotonic()
            self.denoisers[name].predict(sample, timestep, conditioning)
            seconds.append(time.monotonic() - began)
        return min(seconds) / (len(sample) * sample.shape[2] * sample.shape[3])  # the others still load beside it


def _refused(passed_on):
    """What `vae_encoder` found wrong with a picture."""
    try:
        field, given, legal = json.loads(passed_on)
        return InvalidRequest(field, given, legal)
    except (ValueError, TypeError):
        return InvalidRequest("refusal", repr(passed_on), "what `vae_encoder` passes on")


def _is_uuid(text):
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
