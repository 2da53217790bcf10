"""A training run, from a configuration to its last checkpoint."""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_gptx.checkpoint.changes import same_evaluation
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.load import go_back, initialize, resume
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError
from megatron_gptx.checkpoint.names import step_name
from megatron_gptx.checkpoint.run_tokenizer import keep_tokenizer
from megatron_gptx.checkpoint.save import Saver
from megatron_gptx.config.errors import UserError, why
from megatron_gptx.config.schema import Config
from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.data.blend import BlendedDataset, table
from megatron_gptx.data.build import Datasets, build_datasets
from megatron_gptx.data.fingerprint import fingerprints
from megatron_gptx.data.loader import MicroBatch, StepLoader
from megatron_gptx.data.validation import over_all
from megatron_gptx.distributed.exit_status import StoppedError
from megatron_gptx.distributed.fault_injection import fault_point
from megatron_gptx.distributed.process import Process
from megatron_gptx.distributed.run_files import fresh_marker
from megatron_gptx.files.write import write_synced
from megatron_gptx.training.bad_steps import Guard
from megatron_gptx.training.build import build_engine
from megatron_gptx.training.determinism import repeatable
from megatron_gptx.training.evaluate import (
    Readings,
    evaluate,
    metrics,
    report,
    validation_readings,
)
from megatron_gptx.training.layer_metrics import record_layers
from megatron_gptx.training.layer_parts import before_update
from megatron_gptx.training.metric_writers import Writer, open_writers
from megatron_gptx.training.progress_line import Monitor
from megatron_gptx.training.recorder import Recorder
from megatron_gptx.training.replica_check import check_replicas
from megatron_gptx.training.schedule import learning_rate, rate_change
from megatron_gptx.training.stop_signals import Stop
from megatron_gptx.training.stragglers import Stragglers
from megatron_gptx.training.tensor_faults import flip_a_bit, poison_gradients
from megatron_gptx.training.train_state import Best, TrainingState


def pretrain(config: Config, process: Process, stop: Stop) -> None:
    """Train from the newest checkpoint, or from initial weights, to the last step.

    Raises:
        StoppedError: the run was asked to end early; everything is saved.
    """
    with repeatable(config.training.deterministic):
        Pretraining(config, process, stop).run()


class Pretraining:
    """One rank's part of a run: what happens in a step and between two steps."""

    def __init__(self, config: Config, process: Process, stop: Stop) -> None:
        """Build the engine and load the newest checkpoint into it."""
        assert config.training.steps is not None, "the launcher turns epochs into steps"
        self.config, self.process, self.stop = config, process, stop
        self.steps = config.training.steps
        self.leader, self.watch = process.rank == 0, process.watch
        self.guard = Guard(config)
        self.monitor = Monitor(process.console, total_steps=self.steps, visible=self.leader)
        self.say = self.monitor.say
        self.engine = build_engine(config, process, say=self.say)
        self.recorder = Recorder(process.device)
        if every := config.logging.layer_interval:
            measure = partial(record_layers, self.recorder, self.engine, every=every)
            before_update(self.engine.deepspeed, measure)
        poison_gradients(self.engine.deepspeed.module)
        alone = config.parallel.zero_stage < 3
        self.stragglers = Stragglers(self.engine.deepspeed.module, process.device, alone=alone)
        data = fingerprints(config.data) if self.leader else None
        self.saver = Saver(
            self.engine.deepspeed, config, replica=self.engine.replica, say=self.say, data=data
        )
        self.state, self.save_is_due = TrainingState(), False
        self.best: Best | None = None
        self.watch.begin("load", 0)
        self._load(data)
        if self.leader and config.checkpoint.begins:
            job = os.environ.get("SLURM_JOB_ID", "")
            write_synced(fresh_marker(Path(config.output.run_dir)), job.encode())

    def _load(self, data: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint of this run, or begin with weights of another one if asked to."""
        config, engine = self.config, self.engine.deepspeed
        source = config.checkpoint.initialize_from
        if saved := resume(engine, config=config, say=self.say, data=data):
            self._restore(saved)
            self.guard.restore(saved.manifest["guard"])
            self.save_is_due = saved.manifest["guard"].get("save_is_due", False)
            if note := rate_change(saved.manifest["config"], config, step=saved.step):
                self.say(note)
        elif source is not None:
            found = initialize(engine, Path(source), config=config)
            self.say(f"initial weights: {found.path}")

    def _restore(self, saved: Checkpoint) -> None:
        """Take over counters, and the best checkpoint so far where losses can be compared."""
        self.state = TrainingState(**saved.manifest["state"])
        comparable = self.config.checkpoint.keep_best and same_evaluation(saved, self.config)
        self.saver.best = saved.manifest.get("best") if comparable else None
        self._settle_best()

    def run(self) -> None:
        """Take the steps that are left."""
        self.stop.begin()
        if self.state.step >= self.steps:
            past = ", which training.steps is below" if self.state.step > self.steps else ""
            self.say(f"finished: step {self.state.step} of {self.steps} is saved{past}")
            return
        if self.state.step:
            self.say(f"resumed at step {self.state.step}")
        if self.leader:
            self._write_config()
            if note := keep_tokenizer(self.config.data, self.config.output.run_dir):
                self.say(note)
        data = build_datasets(
            self.config.data,
            seq_length=self.config.model.seq_length,
            seed=self.config.training.seed,
        )
        total_samples = self.steps * self.config.batch.global_size
        self.say(table(data.train.shares(total_samples), f"data of {self.steps:,} steps"))
        with self._loader(data.train) as train:
            reason = self._take_steps(train, data)
        self.say(table(data.train.shares(self.state.samples), "data seen"))
        self.say(f"waited for data: {self.monitor.waiting:.3%} of the steps' time")
        if reason:
            saved = self.saver.folder / step_name(self.state.step)
            raise StoppedError(
                f"stopped by {reason} at step {self.state.step}; saved {saved}; run the same "
                "command to go on"
            )

    def _write_config(self) -> None:
        path = Path(self.config.output.run_dir) / "config.yml"
        try:
            write_synced(path, dump(self.config))
        except OSError as error:  # a full disk; every checkpoint holds the configuration too
            self.say(f"not written: {path}: {why(error)}")

    def _take_steps(self, train: StepLoader, data: Datasets) -> str:
        """Train to the last step, or until the run is asked to end; return why it ends early."""
        valid = validation_readings(self.config, data.valid, self._loader)
        writers = self._open_writers()
        batches = train.steps(self.state.samples)
        self.monitor.start(self.state)
        reason = ""
        while self.state.step < self.steps and not reason:
            self.recorder.begin(self.state.step + 1)
            batch, data_seconds = self._next(batches)
            row = self._train_step(batch, data.train)
            row["data_seconds"] = round(data_seconds, 6)
            reason = self._agree(row)
            if valid and not reason and self._due(self.config.evaluation.interval):
                row |= self._evaluate(valid)
                reason = self._agree(row)
            for writer in writers:
                writer.write(row)
            if self.guard.must_rewind:
                self._go_back()
                train.close()
                batches = train.steps(self.state.samples)
                _close(writers)
                writers = self._open_writers()
                if reason:  # else the samples behind which it goes on would be forgotten
                    self._save(must=True)
            else:
                self._save(must=bool(reason))
        self.watch.begin("metrics", self.state.step)  # others wait for a network
        _close(writers)
        return reason

    def _next(self, batches: Iterator[list[MicroBatch]]) -> tuple[list[MicroBatch], float]:
        """Return the next batch, and the seconds that it was waited for."""
        self.watch.begin("data", self.state.step)
        waiting_since = time.perf_counter()
        fault_point("data", step=self.state.step)
        batch = next(batches)
        seconds = time.perf_counter() - waiting_since
        self.monitor.wait(seconds)
        self.stragglers.wait(seconds)
        return batch, seconds

    def _train_step(self, batch: Sequence[MicroBatch], data: BlendedDataset) -> dict[str, float]:
        """Update the weights once; return a row of the metrics."""
        step, config = self.state.step, self.config
        lr = learning_rate(
            step, peak=config.optimizer.lr, steps=self.steps, schedule=config.schedule
        )
        self.watch.begin("step", step)
        fault_point("step", step=step)
        result = self.engine.train_step(batch, step=step, lr=lr)
        flip_a_bit(self.engine.deepspeed.module, step=step)
        first_sample = self.state.samples
        self.state = self.state.after(config.batch.global_size, config.model.seq_length)
        speed, step_seconds = self.monitor.step(self.state)
        self.stragglers.compare(self.state.step, self.monitor.note)
        self.monitor.show(self.state, result.loss, speed, step_seconds)
        if problem := self.guard.judge(result):
            samples = data.name_samples(first_sample, config.batch.global_size)
            self.monitor.note(f"step {self.state.step}: {problem}; {samples}")
        return {
            "step": self.state.step,
            "loss": result.loss,
            "tokens": self.state.tokens,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "bad_steps": self.guard.bad_steps,
            "tokens_per_second": round(speed, 1),
            **_achieved(data, self.state.samples),
        }

    def _evaluate(self, valid: Readings) -> dict[str, float]:
        losses = evaluate(self.engine, valid, watch=self.watch, step=self.state.step)
        self.say(report(losses, self.state.step))
        loss = over_all(losses)
        best = math.isfinite(loss) and (self.best is None or loss < self.best.valid_loss)
        if best and self.config.checkpoint.keep_best and not self.guard.in_a_row:
            self.best, self.save_is_due = Best(self.state.step, loss), True
        self.monitor.start(self.state)
        return metrics(losses)

    def _settle_best(self) -> None:
        """Take for the best checkpoint what is saved as such: a save may have failed."""
        best = self.saver.best
        self.best = None if best is None else Best(best["step"], best["valid_loss"])

    def _save(self, *, must: bool) -> None:
        """Compare the replicas and save, where one of the two is due."""
        step, last = self.state.step, self.state.step == self.steps
        options, compared_every = self.config.checkpoint, self.config.training.check_replicas
        self.save_is_due |= self._due(options.interval) or step in options.keep_steps
        # Not amid bad steps, which a return to the newest checkpoint may have to undo.
        saving = last or must or (self.save_is_due and not self.guard.in_a_row)
        if compared_every and (saving or step % compared_every == 0):
            self.watch.begin("comparison", step)
            layers = self.engine.deepspeed.module.local_layers()
            check_replicas(layers, self.engine.replica_group)
        self.watch.begin("save", step)
        self.saver.poll()
        if saving:
            self.saver.finish()  # the next checkpoint says which one is the best
        if not self.saver.pending and not (self.best and self.best.step == step):
            self._settle_best()
        if saving:
            guard = self.guard.state()
            if self.guard.in_a_row:
                guard |= {"save_is_due": self.save_is_due, "return_to": self._sound_step()}
            self.save_is_due = False
            best = self.best and self.best._asdict()
            self.saver.save(self.state._asdict(), last=last or must, guard=guard, best=best)
            self.monitor.start(self.state)

    def _sound_step(self) -> int | None:
        """Return the step that bad steps lead back to, as far as rank 0 has to know it."""
        self.saver.finish()
        try:
            found = newest(self.config.output.run_dir) if self.leader else None
        except CheckpointError as error:
            # Not what keeps a run that is asked to end from saving.
            self.say(f"nothing to go back to: {error}")
            return None
        return None if found is None else found.sound_step

    def _agree(self, row: dict[str, float]) -> str:
        """Add what ranks have recorded; return why the run is to end early, or an empty text."""
        reason, news = self.stop.agreed(self.process.device, news=self.recorder.news)
        recorded = self.recorder.collect(news)
        assert not row.keys() & recorded.keys(), f"recorded twice: {row.keys() & recorded.keys()}"
        row.update(recorded)
        is_last = self.state.step == self.steps  # which ends the run anyway
        return "" if is_last else reason

    def _go_back(self) -> None:
        """Load the newest sound checkpoint; the samples since then are not taken again."""
        self.guard.rewind()
        self.saver.finish()
        self.watch.begin("load", 0)
        saved = go_back(self.engine.deepspeed, config=self.config)
        left, options = self.state, self.guard.options
        if saved is None:
            raise UserError(
                f"step {left.step} and the {options.max_bad_steps - 1} before it were bad, and "
                "there is no checkpoint to go back to: look at the data named above, or lower "
                "optimizer.lr"
            )
        self._restore(saved)
        self.state = self.state._replace(samples=left.samples)
        self.save_is_due = False  # it is as if the step had just been saved
        self.monitor.note(
            f"step {left.step}: back to step {saved.step}, on behind sample {left.samples - 1} "
            f"(return {self.guard.rewinds} of at most {options.max_rewinds})"
        )
        self.monitor.start(self.state)

    def _due(self, interval: int | None) -> bool:
        """Return whether what happens every `interval` steps, and after the last one, does now."""
        step = self.state.step
        return step == self.steps or (interval is not None and step % interval == 0)

    def _loader(self, data: BlendedDataset) -> StepLoader:
        return StepLoader(
            data,
            self.config.batch,
            replica=self.engine.replica,
            replicas=self.engine.replicas,
            vocab_size=self.config.model.vocab_size,
            prefetch=self.config.data.prefetch,
        )

    def _open_writers(self) -> list[Writer]:
        if not self.leader:
            return []
        return open_writers(self.config, resumed_step=self.state.step, say=self.say)


def _close(writers: Sequence[Writer]) -> None:
    for writer in writers:
        writer.close()


def _achieved(data: BlendedDataset, samples: int) -> dict[str, float]:
    """Return how far each training dataset is, in tokens and epochs."""
    shares = data.shares(samples)
    if len(shares) == 1:
        return {"epochs": shares[0].epochs}
    return {
        f"{name}/{share.prefix}": value
        for share in shares
        for name, value in (("tokens", share.tokens), ("epochs", share.epochs))
    }
