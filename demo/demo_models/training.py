"""The loop that every training here shares: a wall-clock budget with a cosine schedule over it, an average of the weights,
and checkpoints to go on from.

Steps are counted in minutes, not in numbers, because the machines that run this differ; the learning rate falls to zero when
the budget ends, whatever number of steps that was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo_models.report import say

Step = Callable[[], Tensor]
CHECKPOINT_SECONDS = 240
SAY_SECONDS = 60


@dataclass(frozen=True)
class Options:
    """What the command line sets for a training; `work` holds its data and its checkpoint."""

    work: Path
    minutes: float
    batch: int
    lr: float
    device: str
    threads: int
    seed: int


def parser(doc: str | None, *, minutes: float, batch: int, lr: float) -> argparse.ArgumentParser:
    """The options that every training script takes, with that script's defaults."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--work", type=Path, required=True, help="the folder that `data` and `augment` wrote")
    made.add_argument("--minutes", type=float, default=minutes, help="wall-clock budget; the schedule spans it")
    made.add_argument("--batch", type=int, default=batch)
    made.add_argument("--lr", type=float, default=lr, help="highest learning rate")
    made.add_argument("--device", default="cpu", help="cpu, cuda, …")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--seed", type=int, default=0)
    return made


def options(args: argparse.Namespace) -> Options:
    """The shared options out of the parsed command line; seeds torch and sets its threads."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    return Options(args.work, args.minutes, args.batch, args.lr, args.device, args.threads, args.seed)


@contextmanager
def fast(device: str) -> Iterator[None]:
    """bfloat16 arithmetic; on a CPU also plain attention, whose backward pass is thrice as fast there as the fused one."""
    backends = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with torch.autocast(torch.device(device).type, torch.bfloat16), sdpa_kernel(backends):
        yield


class Average:
    """An exponential moving average of some modules' weights, quick at first so that early samples mean something."""

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.modules = {name: deepcopy(module).eval().requires_grad_(False) for name, module in modules.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, modules: dict[str, nn.Module], step: int) -> None:
        """Move every averaged weight towards the trained one; buffers (batch-norm statistics) are copied."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, module in modules.items():
            mine = self.modules[name]
            torch._foreach_lerp_(list(mine.parameters()), list(module.parameters()), weight)
            for kept, buffer in zip(mine.buffers(), module.buffers(), strict=True):
                kept.copy_(buffer)


def _moments(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """AdamW's state as named tensors, so that a checkpoint needs no pickle."""
    parameters = optimizer.param_groups[0]["params"]
    return {
        f"optimizer.{kind}.{name}": optimizer.state[parameter][kind]
        for name, parameter in zip(names, parameters, strict=True)
        if parameter in optimizer.state
        for kind in ("exp_avg", "exp_avg_sq", "step")
    }


class Checkpoint:
    """`NAME.safetensors` (weights, average, optimizer) and `NAME.json` (steps, seconds), each replaced in one rename."""

    def __init__(self, work: Path, name: str, modules: dict[str, nn.Module], average: Average) -> None:
        self._tensors, self._state = work / f"{name}.safetensors", work / f"{name}.json"
        self._modules, self._average = modules, average
        self._names = [f"{key}.{name}" for key, module in modules.items() for name, _ in module.named_parameters()]

    def save(self, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
        """Write both files."""
        tensors = _moments(optimizer, self._names)
        for kind, modules in (("model", self._modules), ("average", self._average.modules)):
            for key, module in modules.items():
                tensors |= {f"{kind}.{key}.{name}": value for name, value in module.state_dict().items()}
        part = self._tensors.with_suffix(".part")
        save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, part)
        os.replace(part, self._tensors)
        self._state.write_text(json.dumps({"step": step, "seconds": seconds}), encoding="utf-8")

    def load(self, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Steps and seconds done so far; (0, 0) where there is no checkpoint."""
        if not (self._tensors.exists() and self._state.exists()):
            return 0, 0.0
        tensors = load_file(self._tensors)
        for kind, modules in (("model", self._modules), ("average", self._average.modules)):
            for key, module in modules.items():
                prefix = f"{kind}.{key}."
                module.load_state_dict({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
        for name, parameter in zip(self._names, optimizer.param_groups[0]["params"], strict=True):
            kinds = ("exp_avg", "exp_avg_sq", "step")
            if f"optimizer.step.{name}" in tensors:
                optimizer.state[parameter] = {kind: tensors[f"optimizer.{kind}.{name}"] for kind in kinds}
        state = json.loads(self._state.read_text(encoding="utf-8"))
        say(f"going on from step {state['step']}, {state['seconds'] / 60:.1f} minutes done")
        return state["step"], state["seconds"]


def _rate(step: int, share: float, warmup: int) -> float:
    """The learning rate's factor: a linear start, then a cosine that is zero at the end of the budget."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def train(
    name: str,
    modules: dict[str, nn.Module],
    step: Step,
    opts: Options,
    *,
    decay: float = 0.999,
    weight_decay: float = 1e-3,
    warmup: int = 100,
    sample: Callable[[dict[str, nn.Module]], None] | None = None,
) -> dict[str, nn.Module]:
    """Train the modules on `step`'s loss for `opts.minutes`; returns their averaged copies.

    A checkpoint NAME in the work folder is gone on from. `sample` is given the averaged modules at every checkpoint.
    """
    average = Average(modules, decay)
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=opts.lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    checkpoint = Checkpoint(opts.work, name, modules, average)
    count, before = checkpoint.load(optimizer)
    sizes = ", ".join(f"{key} {sum(p.numel() for p in module.parameters()):,}" for key, module in modules.items())
    say(f"{name}: {sizes} parameters")
    begun = saved = said = time.monotonic()
    losses: list[float] = []
    while (done := time.monotonic() - begun + before) < opts.minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = opts.lr * _rate(count, done / (opts.minutes * 60), warmup)
        loss = step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        count += 1
        average.update(modules, count)
        losses.append(loss.item())
        now = time.monotonic()
        if now - said > SAY_SECONDS or count == 10:
            say(f"{name}: step {count}, minute {done / 60:.1f}, loss {sum(losses) / len(losses):.4f}")
            losses, said = [], now
        if now - saved > CHECKPOINT_SECONDS:
            checkpoint.save(optimizer, count, now - begun + before)
            if sample:
                sample(average.modules)
            saved = time.monotonic()
    checkpoint.save(optimizer, count, time.monotonic() - begun + before)
    if sample:
        sample(average.modules)
    return average.modules
