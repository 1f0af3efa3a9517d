"""Triton's end of the loop: requests in, verbs in, answers out. The loop itself is `triptych_serving.engine`."""

import functools
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np

from triptych_contract.errors import InvalidRequest, Problem, invalid
from triptych_contract.settings import tenant
from triptych_contract.verbs import ACTIONS, INPUTS
from triptych_serving import handover, invariance, runtimes, triton
from triptych_serving.adapters.graphs import AdaptedDenoiser
from triptych_serving.control import MOST_ROWS, ControlledDenoiser
from triptych_serving.engine import Engine
from triptych_serving.errors import Cancelled, Lost, StageFailed
from triptych_serving.job import Job
from triptych_serving.kept import Kept
from triptych_serving.metrics import Metrics
from triptych_serving.policy import Policy
from triptych_serving.proofs import LEGAL
from triptych_serving.warm_up import warm_up


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        self.pipelines, self.made_by = arguments.pipelines(), arguments.made_by
        self.aside = ThreadPoolExecutor(1, "aside")
        self.max_batch_rows = int(arguments.parameters["max_batch_rows"])
        # Where each model of the loop comes from.
        self.sources = {
            name: manifest
            for manifest in arguments.manifests.values()
            for name in manifest.model.denoisers
            if name in manifest.stages
        }
        rows = {"most_rows": self.max_batch_rows}
        if arguments.reproducible:
            rows["fixed_rows"] = int(arguments.parameters["reproducible_rows"])
        self.denoisers = self._load(rows)
        seconds_per_cost = {
            name: warm_up(model, self._inputs(name), self.sources[name].model) for name, model in self.denoisers.items()
        }
        self.engine = Engine(
            self.denoisers,
            Policy(self.max_batch_rows, seconds_per_cost),
            Metrics(triton.PrometheusMetrics({"model": "+".join(m.model.name for m in arguments.manifests.values())})),
            max_queue_seconds=float(arguments.parameters["max_queue_seconds"]),
            working=triton.record.work,
        )
        self.kept = Kept()
        self.inputs = [name for name in arguments.inputs if name not in INPUTS]
        self.pictures = handover.Fetching(handover.folder())
        triton.record.on_cut_off = self.engine.cut_off
        self.engine.start()

    def _load(self, rows):
        """All models, beside each other: reading a graph and optimising it takes one thread."""
        with ThreadPoolExecutor() as pool:
            loading = {
                name: pool.submit(runtimes.denoiser, manifest, name, **rows) for name, manifest in self.sources.items()
            }
        return {name: model.result() for name, model in loading.items()}

    @triton.noted
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
        verb = triton.scalars(request, INPUTS)
        if "action" not in verb:
            self._generate(request, reply)
            return
        action, of = (verb.get(name, b"").decode("utf-8", "replace") for name in ("action", "id"))
        whose = tenant(verb.get("tenant"))
        if action not in ACTIONS:
            raise invalid("action", repr(action), ", ".join(ACTIONS))
        if action == "stats":
            self.engine.stats(reply)
        elif action == "describe":
            self.aside.submit(self._describe, reply)
        elif action == "verify":
            self.engine.between_steps(self._verdict, reply)
        elif not _is_uuid(of):
            raise invalid("id", repr(of), "the UUID that a request was sent with")
        elif action == "cancel":
            self.engine.cancel(of, whose, reply)
        else:
            since, preview = int(verb.get("since", -1)), bool(verb.get("preview", False))
            self.engine.watch(of, whose, since, reply, preview=preview)

    def _generate(self, request, reply):
        given = triton.data(request, "settings")
        reply.owe(given)
        if not given:
            raise invalid("action", "nothing", f"{', '.join(ACTIONS)}; images are made by the ensemble")
        document = triton.passed_on(request, "settings")
        triton.check_id(request, document)
        pipeline = self.pipelines[document["family"]]
        reply.goes_on_to((pipeline.family.decoder, "image_encoder"), document["arrived"])
        if document["cached"]:
            self._pass_by(reply, document["arrived"], pipeline)
            return
        settings = pipeline.parse(document["settings"])
        id = request.request_id() if _is_uuid(request.request_id()) else str(uuid.uuid4())
        if finished := self.kept.get(id, settings):
            self.engine.count("resumed_total")
            reply.send(*finished)
            return
        reply.keep_with(functools.partial(self.kept.put, id, settings))
        read = functools.partial(self._read, request, self.made_by[document["family"]], document)

        def begin(read):
            self._check_deadline(settings.deadline_ms, document["arrived"])
            self.engine.submit(Job(id, settings, pipeline.phases(settings, read), reply, arrived=document["arrived"]))

        if triton.data(request, "picture"):
            self._await(request, read, begin, reply)
        else:
            begin(read)

    def _await(self, request, read, begin, reply):
        """Begin with a request once `vae_encoder` is done with its picture."""
        picture = triton.passed_on(request, "picture")
        if picture["of"] != triton.proofs.of(triton.data(request, "settings")):
            raise invalid("picture", "another request's", LEGAL)
        # Copies: `execute` will have returned.
        given = {name: np.array(array) for name in self.inputs if (array := read(name)) is not None}

        def then(made):
            try:
                begin({**given, **_judged(made)}.get)
            except Exception as error:
                reply.fail(error)

        try:
            self.pictures.fetch(picture["file"], then)
        except OSError:
            raise invalid("picture", "one that was fetched before", LEGAL) from None

    def _check_deadline(self, deadline_ms, arrived):
        """A picture may have been left undecoded for it."""
        if deadline_ms is not None and time.monotonic() >= arrived + deadline_ms / 1000:
            self.engine.count("expired_total")
            raise Cancelled(f"deadline_ms: {deadline_ms} ms passed at step 0", deadline_ms=deadline_ms)

    def _pass_by(self, reply, arrived, pipeline):
        """The file is there already: the smallest latents, for the decoder to be done with at once."""
        before = round((time.monotonic() - arrived) * 1e3, 3)
        reply.send({"before_ms": before, "queue_ms": 0.0, "queue_steps": 0, "denoise_ms": 0.0}, pipeline.nothing())
        self.engine.count("cached_total")

    def _read(self, request, made_by, document, name):
        """An input that is proven to be made for these settings, where its maker can prove it."""
        if name in document["passed"]:
            return triton.unchanged(request, name, document["passed"][name])
        read_by = document["read"]
        if name not in made_by:
            return triton.array(request, name)
        of_settings = [triton.proofs.of(triton.data(request, "settings"))]
        return triton.proven(request, name, made_by[name], read_by.get(made_by[name], of_settings))

    def _describe(self, reply):
        """Aside: a folder of adapters may have many new ones."""
        try:
            reply.send(self._description())
        except Exception as error:
            reply.fail(error)

    def _description(self):
        models = {name: {**self._facts(one.manifest), **one.described()} for name, one in self.pipelines.items()}
        return {"models": models, "draining": triton.record.draining()}

    def _facts(self, manifest):
        stages = {name: stage["sha256"] for name, stage in manifest.stages.items()}
        facts = {"family": manifest.family, "target": manifest.target, "build": manifest.build_hash, "stages": stages}
        return {"model": asdict(manifest.model), "one_timestep": sorted(manifest.one_timestep), **facts}

    def _verdict(self):
        return {
            "denoisers": {
                graph: self._verdict_on(graph, model, self.sources[name])
                for name, of in self.denoisers.items()
                for graph, model in self._graphs(name, of)
            }
        }

    def _graphs(self, name, model):
        """All graphs of one model of the loop, by stage."""
        yield name, model
        if isinstance(model, ControlledDenoiser):
            yield from model.graphs.items()
            model = model.plain
        if isinstance(model, AdaptedDenoiser):
            yield runtimes.second(self.sources[name], name), model.adapted

    def _verdict_on(self, name, model, manifest):
        most = min(self.max_batch_rows, MOST_ROWS) if name in manifest.model.more_stages else self.max_batch_rows
        return invariance.verify(model, manifest.stages[name]["inputs"], manifest.model.default_sizes, most)

    def _inputs(self, name):
        return self.sources[name].stages[name]["inputs"]


def _judged(made):
    """What `vae_encoder` made of a picture, unless that was nothing."""
    if made is None:
        raise Lost("vae_encoder")
    if "refusal" in made:
        raise InvalidRequest([Problem(*problem) for problem in json.loads(made["refusal"].item())])
    if "failure" in made:
        raise StageFailed(made["failure"].item())
    return made


def _is_uuid(text):
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
