"""What the trainings share: settings, data in order, checkpoints that survive a kill, a log, a limit on time."""

import argparse
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import get_wsd_schedule

from blended_diffusion.pictures.gallery import write_text
from training.optimizers import MatrixViews, Muon


MAX_GRADIENT_NORM = 1.0


def add_arguments(parser: argparse.ArgumentParser, **defaults) -> None:
    """The flags that all trainings have."""
    flag = parser.add_argument
    flag("--data", required=True, help="folder of prepare_data, or a folder of pictures with metadata.jsonl")
    flag("--output", type=Path, required=True, help="folder for checkpoints and log; a run there is resumed")
    flag("--start-from", type=Path, help="folder of a trained network of this kind to begin with, instead of chance")
    flag("--words", type=int, help="train on the first so many words of the data (default: all)")
    flag("--size", type=int, default=defaults.get("size", 64), help="pixels of a side")
    flag("--batch-size", type=int, default=defaults["batch_size"])
    flag("--steps", type=int, required=True, help="in total, those of earlier runs included")
    flag("--max-minutes", type=float, default=float("inf"), help="save and stop when this time is up")
    flag("--learning-rate", type=float, default=defaults["learning_rate"])
    flag("--lr-schedule", choices=["cosine", "constant_with_warmup", "constant_then_decay"], default="cosine")
    flag("--warmup-steps", type=int, default=200)
    flag("--decay-steps", type=int, default=0, help="the last so many, of constant_then_decay")
    flag("--weight-decay", type=float, default=defaults["weight_decay"])
    flag("--ema", type=float, default=0.9995, help="decay of the averaged weights")
    flag("--seed", type=int, default=0)
    flag("--workers", type=int, default=0, help="processes that make pictures")
    flag("--precision", choices=["no", "bf16"], default="no")
    flag("--compile", action="store_true", help="torch.compile")
    flag("--channels-last", action="store_true")
    flag("--cpu", action="store_true", help="even if there is a GPU")
    flag("--save-minutes", type=float, default=5.0, help="between checkpoints: what a kill loses at most")
    flag("--log-steps", type=int, default=50)


@dataclass
class Progress:
    """How far a run is; part of its checkpoint."""

    step: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, float]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


class Training:
    """One training: the network, its average, its optimizers, and where they are kept.

    A checkpoint is a folder that gets its name only when it is complete, and `latest.json` is replaced in one piece,
    so a run that is killed at any moment goes on from its last complete checkpoint.

    Args:
        network (`torch.nn.Module`): has diffusers' or transformers' `save_pretrained`; trained in place.
        options (`argparse.Namespace`): the flags of [`add_arguments`].
        updates (`int`): how often [`Training.learn`] is called for each batch.
    """

    def __init__(self, network: torch.nn.Module, options: argparse.Namespace, updates: int = 1) -> None:
        self.options = options
        self.accelerator = Accelerator(
            cpu=options.cpu,
            mixed_precision=options.precision,
            # one batch is one step, however many processes share it
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        if options.channels_last:
            network = network.to(memory_format=torch.channels_last)
        self.network = network
        self.model = self.accelerator.prepare(network)
        self.forward = torch.compile(self.model) if options.compile else self.model
        # on the weights where they are now: prepare may have moved them
        self.views = MatrixViews(network)
        shared = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
        optimizers = [
            torch.optim.AdamW(self.views.others, betas=(0.9, 0.99), **shared),
            Muon(self.views.matrices, **shared),
        ]
        self.schedules = [make_schedule(optimizer, options, updates) for optimizer in optimizers]
        self.optimizers = [self.accelerator.prepare(optimizer) for optimizer in optimizers]
        self.ema = EMAModel(network.parameters(), decay=options.ema, use_ema_warmup=True, power=3 / 4, foreach=True)
        self.ema.to(self.accelerator.device)
        self.progress = Progress()
        self.noted: dict[str, list[torch.Tensor]] = {}
        for part in (*self.schedules, self.ema, self.progress):
            self.accelerator.register_for_checkpointing(part)
        self.started = self.saved = time.monotonic()
        self.resume()
        self.first_step = self.progress.step

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def resume(self) -> None:
        """Goes on from the latest checkpoint in the output folder, if there is one."""
        folder = latest_checkpoint(self.options.output)
        if folder is not None:
            self.accelerator.load_state(str(folder))
            self.ema.to(self.device)

    def batches(self, data: Dataset) -> Iterator[tuple[dict[str, torch.Tensor], torch.Generator]]:
        """The batches that are left, each with the random numbers of its step.

        Stops and saves when time is up, and when the process is asked to end (SIGTERM, Ctrl-C).

        Raises:
            SystemExit: the process was asked to end.
        """
        size, progress, options = self.options.batch_size, self.progress, self.options
        loader = DataLoader(
            data,
            batch_size=size,
            sampler=range(progress.step * size, options.steps * size),
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
            prefetch_factor=4 if options.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        loader = self.accelerator.prepare(loader)
        before = time.monotonic()
        with noted_signals() as signals:
            for batch in loader:
                # every step has its own numbers: they do not depend on where an earlier run was stopped
                number = progress.step * self.accelerator.num_processes + self.accelerator.process_index
                yield batch, torch.Generator(self.device).manual_seed(options.seed * 2**32 + number)
                progress.step += 1
                now = time.monotonic()
                progress.seconds, before = progress.seconds + now - before, now
                if now - self.saved > 60 * options.save_minutes:
                    self.save()
                if signals or now - self.started > 60 * options.max_minutes:
                    break
            self.save()
        if signals:
            raise SystemExit(128 + signals[0])

    def learn(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`."""
        self.accelerator.backward(loss)
        gradient_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.noted.setdefault("gradient_norm", []).append(gradient_norm.detach())
        self.views.take_gradients()
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.network.zero_grad(set_to_none=True)
        self.ema.step(self.network.parameters())

    def log(self, **figures: torch.Tensor) -> None:
        """Takes note of this step; every so many steps the means go into `log.jsonl`, NaN left out."""
        for name, figure in figures.items():
            self.noted.setdefault(name, []).append(figure.detach())
        step = self.progress.step + 1
        if step % self.options.log_steps:
            return
        line = {
            "step": step,
            "minutes": round(self.progress.seconds / 60, 2),
            "learning_rate": self.schedules[0].get_last_lr()[0],
        }
        for name, noted in self.noted.items():
            mean = torch.stack(noted).float().nanmean().item()
            if not math.isnan(mean):
                line[name] = round(mean, 5)
        self.noted.clear()
        if self.accelerator.is_main_process:
            self.options.output.mkdir(parents=True, exist_ok=True)
            with open(self.options.output / "log.jsonl", "a", encoding="utf-8") as file:
                print(json.dumps(line), file=file)
            print(self.describe(line), flush=True)

    def describe(self, line: dict[str, float]) -> str:
        """One line for people: how far, how long still at this run's pace, and the figures of `line`."""
        step = self.progress.step + 1
        pace = (time.monotonic() - self.started) / (step - self.first_step)
        hours, minutes = divmod(round(pace * (self.options.steps - step) / 60), 60)
        figures = "  ".join(f"{name} {figure:.4g}" for name, figure in line.items() if name not in ("step", "minutes"))
        return f"step {step} of {self.options.steps}, {pace:.2f} s each, {hours} h {minutes:02} min left  {figures}"

    def save(self) -> None:
        """Writes a checkpoint and removes the one before."""
        output, step = self.options.output, self.progress.step
        folder = output / f"step-{step:07d}"
        if not folder.exists():
            partial = output / f"step-{step:07d}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            self.accelerator.save_state(str(partial))
            if self.accelerator.is_main_process:
                with self.averaged():
                    self.network.save_pretrained(partial / "averaged")
                partial.rename(folder)
                previous = latest_checkpoint(output)
                write_text(json.dumps({"checkpoint": folder.name, **vars(self.progress)}), output / "latest.json")
                if previous is not None and previous != folder:
                    shutil.rmtree(previous)
        self.saved = time.monotonic()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network has its averaged weights for a while."""
        parameters = list(self.network.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield
        finally:
            self.ema.restore(parameters)

    def samples_due(self, every: int) -> bool:
        """Whether this process is to write a sheet of samples after this step, one of each `every`; 0 for never."""
        return bool(every) and (self.progress.step + 1) % every == 0 and self.accelerator.is_main_process


def make_schedule(optimizer: torch.optim.Optimizer, options: argparse.Namespace, updates: int) -> LRScheduler:
    """The learning rate's way: `options.lr_schedule`, in updates of the weights."""
    warmup, steps = options.warmup_steps * updates, options.steps * updates
    if options.lr_schedule == "constant_then_decay":
        decay = options.decay_steps * updates
        return get_wsd_schedule(optimizer, warmup, decay, num_training_steps=steps, decay_type="1-sqrt")
    return get_scheduler(options.lr_schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C do not end the process for a while, but go into the list; a second one does end it."""
    noted: list[int] = []

    def note(number: int, _) -> None:
        noted.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def latest_checkpoint(output: Path) -> Path | None:
    """The folder of the last complete checkpoint of a run."""
    path = output / "latest.json"
    return output / json.loads(path.read_text(encoding="utf-8"))["checkpoint"] if path.exists() else None


def to_signal(pixels: torch.Tensor) -> torch.Tensor:
    """`uint8` pixels as numbers in [−1, 1]."""
    return pixels.float() / 127.5 - 1
