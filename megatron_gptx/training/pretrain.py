"""A training run, from a configuration to its last checkpoint."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_gptx.checkpoint.load import resume
from megatron_gptx.checkpoint.save import save
from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.data.blend import BlendedDataset, table
from megatron_gptx.data.build import build_datasets
from megatron_gptx.data.loader import StepLoader
from megatron_gptx.distributed.faults import fault_point
from megatron_gptx.distributed.process import Process, run_worker
from megatron_gptx.launcher.command import decode
from megatron_gptx.training.build import build_engine
from megatron_gptx.training.determinism import repeatable
from megatron_gptx.training.engine import Engine
from megatron_gptx.training.evaluate import evaluate
from megatron_gptx.training.faults import flip_a_bit, poison_gradients
from megatron_gptx.training.guard import Guard
from megatron_gptx.training.monitor import Monitor
from megatron_gptx.training.replicas import check_replicas
from megatron_gptx.training.schedule import learning_rate
from megatron_gptx.training.state import TrainingState
from megatron_gptx.training.stragglers import Stragglers
from megatron_gptx.training.writers import Writer, open_writers


def main() -> None:
    """Run one rank; the launcher passes the configuration."""
    parser = argparse.ArgumentParser(description="Started by deepy.py, once per rank.")
    parser.add_argument("--config", required=True, help="configuration packed by the launcher")
    run_rank(parser.parse_args().config)


def run_rank(packed: str) -> None:
    """Train one rank of a packed configuration, then leave with a status that says how it went."""
    config = decode(packed)
    run_worker(
        lambda process: pretrain(config, process),
        run_dir=Path(config.output.run_dir),
        launch=config.launch,
    )


def pretrain(config: Config, process: Process) -> None:
    """Train from the newest checkpoint, or from initial weights, to the last step."""
    with repeatable(config.training.deterministic):
        _pretrain(config, process)


def _pretrain(config: Config, process: Process) -> None:
    leader, watch = process.rank == 0, process.watch
    steps = config.training.steps
    assert steps is not None, "the launcher turns epochs into steps"
    guard = Guard(config)
    monitor = Monitor(process.console, total_steps=steps, visible=leader)
    engine = build_engine(config, process, say=monitor.say)
    poison_gradients(engine.deepspeed.module)
    alone = config.parallel.zero_stage < 3
    stragglers = Stragglers(engine.deepspeed.module, process.device, alone=alone)
    state = _load(config, process, engine, monitor) or TrainingState()
    if state.step >= steps:
        monitor.say(f"finished: step {state.step} of {steps} is saved")
        return
    if state.step:
        monitor.say(f"resumed at step {state.step}")
    if leader:
        (Path(config.output.run_dir) / "config.yml").write_text(dump(config))
    data = build_datasets(
        config.data, seq_length=config.model.seq_length, seed=config.training.seed
    )
    total_samples = steps * config.batch.global_size
    monitor.say(table(data.train.shares(total_samples), f"data of {steps:,} steps"))
    valid = _loader(config, data.valid, engine) if data.valid else None
    writers = open_writers(config, resumed_step=state.step) if leader else []

    with _loader(config, data.train, engine) as train:
        monitor.start(state)
        unsaved = False
        batches = train.steps(state.samples)
        while True:
            watch.begin("data", state.step)
            waiting_since = time.perf_counter()
            fault_point("data", step=state.step)
            batch = next(batches)
            data_seconds = time.perf_counter() - waiting_since
            monitor.wait(data_seconds)
            stragglers.wait(data_seconds)
            lr = learning_rate(
                state.step,
                peak=config.optimizer.lr,
                steps=steps,
                schedule=config.schedule,
            )
            watch.begin("step", state.step)
            fault_point("step", step=state.step)
            result = engine.train_step(batch, step=state.step, lr=lr)
            flip_a_bit(engine.deepspeed.module, step=state.step)
            state = state.after(config.batch.global_size, config.model.seq_length)
            speed, step_seconds = monitor.step(state)
            stragglers.compare(state.step, monitor.note)
            monitor.show(state, result.loss, speed, step_seconds)
            if reason := guard.judge(result):
                first = state.samples - config.batch.global_size
                samples = data.train.name_samples(first, config.batch.global_size)
                monitor.note(f"step {state.step}: {reason}; {samples}")
            row = {
                "step": state.step,
                "loss": result.loss,
                "tokens": state.tokens,
                "lr": lr,
                "grad_norm": result.grad_norm,
                "bad_steps": guard.bad_steps,
                "tokens_per_second": round(speed, 1),
                "data_seconds": round(data_seconds, 6),
                **_achieved(data.train, state.samples),
            }
            last = state.step == steps
            if valid and (last or due(state.step, config.evaluation.interval)):
                row["valid_loss"] = evaluate(
                    engine, valid, config.evaluation.batches, watch=watch, step=state.step
                )
                monitor.say(f"step {state.step}: validation loss {row['valid_loss']:.4f}")
                monitor.start(state)
            for writer in writers:
                writer.write(row)
            if guard.must_rewind:
                state = _go_back(config, process, engine, monitor, guard, state)
                train.close()
                batches = train.steps(state.samples)
                if leader:
                    _close(writers)
                    writers = open_writers(config, resumed_step=state.step)
                monitor.start(state)
                continue
            # Not amid bad steps, which a return to the newest checkpoint may have to undo.
            unsaved = unsaved or due(state.step, config.checkpoint.interval)
            saving = last or (unsaved and not guard.in_a_row)
            compared_every = config.training.check_replicas
            if compared_every and (saving or due(state.step, compared_every)):
                watch.begin("comparison", state.step)
                check_replicas(engine.deepspeed.module.local_layers(), engine.replica_group)
            if saving:
                unsaved = False
                watch.begin("save", state.step)
                fault_point("save", step=state.step)
                path = save(
                    engine.deepspeed,
                    config=config,
                    state=state._asdict(),
                    writes_weights=engine.replica == 0,
                )
                monitor.say(f"step {state.step}: saved {path}")
                monitor.start(state)
            if last:
                monitor.say(table(data.train.shares(state.samples), "data seen"))
                monitor.say(f"waited for data: {monitor.waiting:.3%} of the steps' time")
                break
    _close(writers)


def _load(
    config: Config, process: Process, engine: Engine, monitor: Monitor
) -> TrainingState | None:
    process.watch.begin("load", 0)
    fault_point("load")
    saved = resume(engine.deepspeed, config=config, say=monitor.say)
    return None if saved is None else TrainingState(**saved)


def _go_back(
    config: Config,
    process: Process,
    engine: Engine,
    monitor: Monitor,
    guard: Guard,
    state: TrainingState,
) -> TrainingState:
    """Load the newest checkpoint again; the samples since then are not taken again."""
    guard.rewind()
    # This run's own: that it exists is no mistake any more.
    own = config.checkpoint.model_copy(update={"start": "auto"})
    saved = _load(config.model_copy(update={"checkpoint": own}), process, engine, monitor)
    if saved is None:
        raise UserError(
            f"step {state.step} and the {guard.options.max_bad_steps - 1} before it were bad, and "
            "there is no checkpoint to go back to: look at the data named above, or lower "
            "optimizer.lr"
        )
    behind = saved._replace(samples=state.samples)
    monitor.note(
        f"step {state.step}: back to step {saved.step}, on behind sample {state.samples - 1} "
        f"(return {guard.rewinds} of at most {guard.options.max_rewinds})"
    )
    return behind


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


def _loader(config: Config, data: BlendedDataset, engine: Engine) -> StepLoader:
    return StepLoader(
        data,
        config.batch,
        replica=engine.replica,
        replicas=engine.replicas,
        vocab_size=config.model.vocab_size,
        prefetch=config.data.prefetch,
    )


def due(step: int, interval: int | None) -> bool:
    """Return whether something that happens every `interval` steps happens after this one."""
    return interval is not None and step % interval == 0
