"""Roll a policy out: as a function, and as `python -m roboimi.vla.eval_vla checkpoint=trainings/KEY store=PATH`.

A finished evaluation is recognised by its key (policy, task, seeds, Ta, NFE) and returned at once, without a
deep-learning library. One that was killed goes on with the seeds that are not done. `rollouts/records.py` draws the
folder that results. Lists, as in `eval.num_action_steps=[4,8,12,15] eval.num_inference_steps=[1,2]`, sweep one trained
policy over all combinations and end in a table.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roboimi.progress import Progress
from roboimi.storage.launch_record import code_revision
from roboimi.storage.store import Store, open_store
from roboimi.vla.config import TaskConfig
from roboimi.vla.hydra_command import run_hydra_command
from roboimi.vla.rollouts.eval_run import RESULT, SCHEMA, EnvironmentBroken, EvalResult, EvalRun

if TYPE_CHECKING:
    from roboimi.vla.agent import VLAAgent
    from roboimi.vla.rollouts.outcomes import EpisodeOutcome
    from roboimi.vla.rollouts.rollout import ChunkPolicy
    from roboimi.vla.rollouts.task_env import EnvFactory

VALIDATION_SEED = 50_000
"""First seed of the rollouts during training: not those of demonstrations, nor those that arms are compared on."""


def evaluate(
    run: EvalRun, *, store: Store, progress: Progress | None = None, parts: Sequence[EvalRun] = ()
) -> EvalResult:
    """Roll a policy out on its seeds, or go on, or return what is already known.

    Args:
        run: what to roll out, and where.
        store: where checkpoints and rollouts live.
        progress: shows the episodes; None: one of its own.
        parts: evaluations of the same policy over parts of the seeds; the episodes of those that are finished are
            taken. An episode is the same whichever process runs it, but for its timing.

    Raises:
        CheckpointError: the checkpoint is damaged or of another policy.
        ConfigError: policy, task and environment do not fit together.
        PolicyOutputError: the policy returns actions that are not finite.
        RenderError: there is no GL to render with, or rendering hangs however few workers there are.
        HeldByAnotherError: another process runs the same rollouts.
    """
    if finished := store.committed(run.prefix, RESULT):
        return EvalResult.from_document(run.prefix, finished, adopted=True)
    from roboimi.vla.rollouts.records import EpisodeLog

    started = time.monotonic()
    folder = store.folder(run.prefix)
    with EpisodeLog(folder, run.settings.seeds) as episodes:
        if finished := store.committed(run.prefix, RESULT):
            return EvalResult.from_document(run.prefix, finished, adopted=True)
        for part in parts:
            if store.committed(part.prefix, RESULT):
                episodes.adopt(store.fetch(part.prefix))
        own = Progress.start(f"rollouts {run.task.name}", total=run.settings.episodes) if progress is None else None
        with own or contextlib.nullcontext(progress) as shown:
            facts = _run_missing(run, store, episodes, shown)
        episodes.finish()
        document = _document(run, episodes.lines, folder) | facts
        document |= {"seconds": round(time.monotonic() - started, 3), "git_revision": code_revision()}
        document = store.publish(run.prefix, RESULT, document)
    return EvalResult.from_document(run.prefix, document, adopted=False)


def rollout_validation(
    agent: VLAAgent,
    task: TaskConfig,
    *,
    episodes: int = 5,
    first_seed: int = VALIDATION_SEED,
    num_inference_steps: int | None = None,
) -> dict[str, Any]:
    """Roll an agent in training out, without leaving a trace in it.

    Args:
        agent: in any mode; each of its modules has its own again afterwards.
        task: where it is rolled out.
        episodes: how many, advanced together.
        first_seed: of the episodes.
        num_inference_steps: NFE of one chunk; None: as trained.

    Returns:
        `success_rate` (None when no outcome is known), `successes`, `episodes`, `unknown`, `mean_stage`, `seconds`:
        JSON values for the training's metrics.

    Raises:
        ConfigError, PolicyOutputError, RenderError: as in `evaluate`.
    """
    from roboimi.vla.rollouts.agent_policy import AgentPolicy, check_dims, evaluating
    from roboimi.vla.rollouts.records import episode_fields, summarise
    from roboimi.vla.rollouts.rollout import run_episodes
    from roboimi.vla.rollouts.task_env import env_factory

    started = time.monotonic()
    check_dims(agent, task)
    policy = AgentPolicy(agent, task.cameras, num_inference_steps=num_inference_steps)
    make_env = env_factory(task)
    seeds = range(first_seed, first_seed + episodes)
    with evaluating(agent):
        _check(make_env, task, policy)
        outcomes = list(run_episodes(policy, make_env, seeds, parallel_envs=episodes))
    summary = summarise(map(episode_fields, outcomes))
    known = summary["episodes"]
    return {
        "success_rate": summary["successes"] / known if known else None,
        "successes": summary["successes"],
        "episodes": known,
        "unknown": summary["unknown"],
        "mean_stage": sum(int(stage) * count for stage, count in summary["stages"].items()) / known if known else None,
        "seconds": round(time.monotonic() - started, 3),
    }


def _run_missing(run: EvalRun, store: Store, episodes: Any, progress: Progress) -> dict[str, Any]:
    """Roll out the seeds that have no known outcome yet; gives what is worth knowing of how that went."""
    from roboimi.vla.rollouts.agent_policy import AgentPolicy, check_dims, evaluating
    from roboimi.vla.training.reader import load_policy

    missing = [seed for seed in run.settings.seeds if seed not in episodes.lines]
    if not missing:
        return {}
    agent = load_policy(store, run.checkpoint, device=run.device)
    check_dims(agent, run.task)
    policy = AgentPolicy(
        agent,
        run.task.cameras,
        num_action_steps=run.settings.num_action_steps,
        num_inference_steps=run.settings.num_inference_steps,
    )
    fields = {"policy_digest": run.policy_digest, "resized_to": list(policy.view.image_shape)}

    def show(running: int) -> None:
        known = episodes.lines.values()
        progress.update(
            len(known), f"{sum(line['outcome'] == 'success' for line in known)} succeeded, {running} running"
        )

    facts: dict[str, Any] = {"device": str(agent.device)}
    with evaluating(agent), contextlib.closing(_outcomes(run, policy, missing, show, facts)) as outcomes:
        for outcome in outcomes:
            episodes.write(outcome, **fields)
    progress.update(len(episodes.lines))
    return facts


def _outcomes(
    run: EvalRun, policy: ChunkPolicy, seeds: list[int], on_round: Any, facts: dict[str, Any]
) -> Iterator[EpisodeOutcome]:
    """The episodes, from workers or from this process; `facts` gets how that went."""
    from roboimi.vla.rollouts.rollout import run_episodes
    from roboimi.vla.rollouts.task_env import env_factory
    from roboimi.vla.rollouts.worker_pool import Deadlines, WorkerPool, default_workers

    settings = run.settings
    asked = default_workers() if settings.workers is None else settings.workers
    if not asked:
        make_env = env_factory(run.task)
        _check(make_env, run.task, policy, renders=run.filmstrips)
        yield from run_episodes(policy, make_env, seeds, parallel_envs=settings.parallel_envs, on_round=on_round)
        return
    deadlines = Deadlines(settings.step_timeout_s, settings.episode_timeout_s)
    pool = WorkerPool(policy, run.task, workers=asked, deadlines=deadlines, on_round=on_round)
    with contextlib.closing(pool.run(seeds)) as outcomes:
        yield from outcomes
    facts["renderer"] = pool.renderer
    facts["workers"] = {"asked": asked, "left": pool.workers, "hung": pool.hangs, "died": pool.deaths}


def _check(make_env: EnvFactory, task: TaskConfig, policy: ChunkPolicy, *, renders: bool = False) -> None:
    """Find what cannot work before the first episode, not after the last."""
    from roboimi.vla.rollouts.task_env import check_environment

    env = make_env()
    try:
        check_environment(env, task, policy.view, renders=renders)
    finally:
        env.close()


def _document(run: EvalRun, lines: Mapping[int, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """The content of RESULT.json, as far as the episodes decide it.

    Raises:
        RoboimiError: the environment broke in every single episode, so there is no result.
    """
    from roboimi.vla.rollouts.pictures import draw_pictures
    from roboimi.vla.rollouts.records import summarise

    in_order = [lines[seed] for seed in run.settings.seeds]
    summary = summarise(in_order)
    if not summary["episodes"]:
        raise EnvironmentBroken(
            f"{run.task.env_id} broke in all {len(in_order)} episodes, the first (seed {in_order[0]['seed']}) with "
            f"{in_order[0]['reason']!r}: run that seed alone to find out why."
        )
    return {
        "schema": SCHEMA,
        **run.fingerprint(),
        "checkpoint": run.checkpoint,
        "policy_digest": run.policy_digest,
        "task_name": run.task.name,
        **summary,
        **asdict(draw_pictures(folder, in_order, run.task, filmstrips=run.filmstrips, videos=run.videos)),
    }


def main() -> None:
    """The command: roll out what the command line describes, print the count and where the episodes lie."""
    run_hydra_command("eval_vla", _command)


def _command(config: dict[str, Any]) -> None:
    from roboimi.vla.rollouts.sweep import combinations, sweep_table

    store = open_store(config["store"])
    options = {name: config[name] for name in ("device", "filmstrips", "videos", "task")}
    # All of them first: what cannot work must not come to light after an hour of rollouts.
    runs = [
        EvalRun.from_store(store, config["checkpoint"], settings, **options)
        for settings in combinations(config["eval"])
    ]
    results = []
    for run in runs:
        result = evaluate(run, store=store)
        unknown = f", {result.unknown} unknown" if result.unknown else ""
        print(f"{result.successes} of {result.episodes} succeeded{unknown}: {store.uri}/{result.rollouts}", flush=True)
        results.append(result)
    if len(runs) > 1:
        print(sweep_table(runs, results))


if __name__ == "__main__":
    main()
