"""A training run, from a configuration to its last checkpoint."""

import time
from pathlib import Path

from megatron_gptx.checkpoint.load import resume
from megatron_gptx.checkpoint.save import save
from megatron_gptx.config.schema import Config
from megatron_gptx.config.yaml_writer import dump
from megatron_gptx.data.blend import BlendedDataset, table
from megatron_gptx.data.build import build_datasets
from megatron_gptx.data.loader import StepLoader
from megatron_gptx.distributed.faults import fault_point
from megatron_gptx.distributed.process import Process
from megatron_gptx.distributed.status import StoppedError
from megatron_gptx.training.build import build_engine
from megatron_gptx.training.engine import Engine
from megatron_gptx.training.evaluate import evaluate
from megatron_gptx.training.monitor import Monitor
from megatron_gptx.training.schedule import learning_rate
from megatron_gptx.training.state import TrainingState
from megatron_gptx.training.stop import Stop
from megatron_gptx.training.writers import open_writers


def pretrain(config: Config, process: Process, stop: Stop) -> None:
    """Train from the newest checkpoint, or from initial weights, to the last step.

    Raises:
        StoppedError: the run was asked to end early; everything is saved.
    """
    leader = process.rank == 0
    steps = config.training.steps
    assert steps is not None, "the launcher turns epochs into steps"
    monitor = Monitor(process.console, total_steps=steps, visible=leader)
    engine = build_engine(config, process, say=monitor.say)
    state = TrainingState(**(resume(engine.deepspeed, config=config, say=monitor.say) or {}))
    stop.begin()
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
        batches = train.steps(state.samples)
        while True:
            waiting_since = time.perf_counter()
            batch = next(batches)
            data_seconds = time.perf_counter() - waiting_since
            monitor.wait(data_seconds)
            fault_point("step", step=state.step)
            lr = learning_rate(
                state.step,
                peak=config.optimizer.lr,
                steps=steps,
                schedule=config.schedule,
            )
            result = engine.train_step(batch, step=state.step, lr=lr)
            state = state.after(config.batch.global_size, config.model.seq_length)
            speed, step_seconds = monitor.step(state)
            monitor.show(state, result.loss, speed, step_seconds)
            if not result.applied:
                monitor.say(f"step {state.step}: not applied, its gradients were not finite")
            row = {
                "step": state.step,
                "loss": result.loss,
                "tokens": state.tokens,
                "lr": lr,
                "grad_norm": result.grad_norm,
                "tokens_per_second": round(speed, 1),
                "data_seconds": round(data_seconds, 6),
                **_achieved(data.train, state.samples),
            }
            last = state.step == steps
            reason = "" if last else stop.agreed(process.device)
            if valid and not reason and (last or due(state.step, config.evaluation.interval)):
                row["valid_loss"] = evaluate(engine, valid, config.evaluation.batches)
                monitor.say(f"step {state.step}: validation loss {row['valid_loss']:.4f}")
                monitor.start(state)
                reason = "" if last else stop.agreed(process.device)
            for writer in writers:
                writer.write(row)
            if last or reason or due(state.step, config.checkpoint.interval):
                path = save(
                    engine.deepspeed,
                    config=config,
                    state=state._asdict(),
                    writes_weights=engine.replica == 0,
                )
                monitor.say(f"step {state.step}: saved {path}")
                monitor.start(state)
            if last or reason:
                monitor.say(table(data.train.shares(state.samples), "data seen"))
                monitor.say(f"waited for data: {monitor.waiting:.3%} of the steps' time")
                break
    for writer in writers:
        writer.close()
    if reason:
        raise StoppedError(
            f"stopped by {reason} at step {state.step}; saved {path}; run the same command to go on"
        )


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
