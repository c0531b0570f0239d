"""Evaluations: recognised without torch, resumed seed by seed, refused in one sentence, and harmless to a training."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from roboimi.errors import CheckpointError, ConfigError, DataError, HeldByAnotherError, PolicyOutputError
from roboimi.progress import Progress
from roboimi.shards import Shard
from roboimi.vla.config import EvalConfig
from roboimi.vla.eval_vla import evaluate, main, rollout_validation
from roboimi.vla.rollouts.eval_run import EnvironmentBroken, EvalRun
from roboimi.vla.rollouts.records import EpisodeLog, read_actions, read_episodes

ROOT = Path(__file__).resolve().parents[2]
FOUR = EvalConfig(episodes=4, workers=0, parallel_envs=2)


class Killed(BaseException):
    """Ends an evaluation as a signal would."""


class KillingProgress(Progress):
    """Ends the process's work once `episodes` are done."""

    def __init__(self, episodes: int):
        self.total, self._episodes = 4, episodes

    def update(self, done: int, note: str = "") -> None:
        if done >= self._episodes:
            raise Killed

    def close(self) -> None:
        pass


def run_of(store, checkpoint, settings=FOUR, **options) -> EvalRun:
    return EvalRun.from_store(store, checkpoint, settings, **options)


def actions_of(store, run: EvalRun) -> dict[int, np.ndarray]:
    folder = store.fetch(run.prefix)
    return {line["seed"]: read_actions(folder, line) for line in read_episodes(folder)}


def test_an_evaluation_leaves_its_episodes_and_its_summary(trained):
    store, checkpoint = trained("privileged_state", time_limit_s=0.8)
    run = run_of(store, checkpoint)
    result = evaluate(run, store=store)
    assert (result.successes, result.episodes, result.unknown, result.adopted) == (0, 4, 0, False)
    folder = store.fetch(result.rollouts)
    lines = {line["seed"]: line for line in read_episodes(folder)}
    assert sorted(lines) == list(run.settings.seeds)
    line = lines[100_000]
    assert (line["outcome"], line["steps"], line["chunks"]) == ("failure", 20, 3)
    assert line["policy_digest"] == run.policy_digest
    assert line["timing"]["chunk_ms"] > 0
    assert line["noise_seed"] == 100_000
    assert all(read_actions(folder, line).shape == (20, 14) for line in lines.values())
    assert len({read_actions(folder, line).tobytes() for line in lines.values()}) == 4
    document = store.committed(result.rollouts, "RESULT.json")
    assert document["seeds"] == [100_000, 100_001, 100_002, 100_003]
    assert (document["num_action_steps"], document["num_inference_steps"]) == (8, 1)
    assert document["filmstrips"]["failure"]["seed"] == 100_000
    assert (folder / "filmstrip_failure.webp").stat().st_size > 1000


def test_images_are_resized_and_the_record_says_so(trained):
    store, checkpoint = trained("siglip2_diffusion", time_limit_s=0.4)
    result = evaluate(run_of(store, checkpoint, EvalConfig(episodes=1, workers=0)), store=store)
    (line,) = read_episodes(store.fetch(result.rollouts))
    assert line["resized_to"] == [256, 256]
    assert min(line["frame_size"]) > 256


def test_a_finished_evaluation_is_recognised_without_torch(trained):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = run_of(store, checkpoint, EvalConfig(episodes=2, workers=0), filmstrips=False)
    first = evaluate(run, store=store)
    code = (
        "import sys\n"
        "from roboimi.storage.store import open_store\n"
        "from roboimi.vla.config import EvalConfig\n"
        "from roboimi.vla.eval_vla import evaluate\n"
        "from roboimi.vla.rollouts.eval_run import EvalRun\n"
        f"store = open_store({store.uri!r})\n"
        f"run = EvalRun.from_store(store, {checkpoint!r}, EvalConfig(episodes=2, workers=0), filmstrips=False)\n"
        "result = evaluate(run, store=store)\n"
        "assert result.adopted\n"
        "heavy = {'torch', 'transformers', 'mujoco'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "print(result.rollouts)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    again = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == first.rollouts


def test_a_killed_evaluation_goes_on_with_the_missing_seeds(trained):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = run_of(store, checkpoint, filmstrips=False)
    with pytest.raises(Killed):
        evaluate(run, store=store, progress=KillingProgress(2))
    folder = store.fetch(run.prefix)
    lines = read_episodes(folder)
    assert len(lines) == 2
    assert store.committed(run.prefix, "RESULT.json") is None
    # A success that an untrained policy cannot have shows that a finished seed is not run again; the broken-off line
    # and the unknown one are what a kill and a broken environment leave.
    kept = {**lines[0], "outcome": "success", "stage": 4}
    unknown = {**lines[1], "outcome": "unknown", "reason": "RuntimeError: made up"}
    (folder / "running.jsonl").write_text(f'{json.dumps(kept)}\n{json.dumps(unknown)}\n{{"seed": 100003, "outc')
    result = evaluate(run, store=store)
    assert (result.successes, result.episodes, result.unknown) == (1, 4, 0)
    assert sorted(line["seed"] for line in read_episodes(folder)) == [100_000, 100_001, 100_002, 100_003]


def test_resumed_episodes_are_those_of_an_uninterrupted_run(trained):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = run_of(store, checkpoint, replace(FOUR, parallel_envs=1), filmstrips=False)
    with pytest.raises(Killed):
        evaluate(run, store=store, progress=KillingProgress(1))
    evaluate(run, store=store)
    resumed = actions_of(store, run)
    other = replace(run, policy_digest="another key, the same policy")
    evaluate(other, store=store)
    whole = actions_of(store, other)
    assert resumed.keys() == whole.keys()
    for seed, actions in resumed.items():
        np.testing.assert_array_equal(actions, whole[seed])


def test_shards_give_the_evaluation_that_one_process_gives(trained):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = run_of(store, checkpoint, filmstrips=False)
    parts = [run.of_shard(Shard(index, 3)) for index in range(3)]
    assert [part.settings.episodes for part in parts] == [1, 1, 2]
    assert len({part.prefix for part in (run, *parts)}) == 4
    for part in parts[:2]:
        evaluate(part, store=store)
    # A success that an untrained policy cannot have shows that the shard's episode is taken; the third one is missing.
    folder = store.fetch(parts[0].prefix)
    (line,) = read_episodes(folder)
    (folder / "episodes.jsonl").write_text(json.dumps({**line, "outcome": "success", "stage": 4}) + "\n")
    result = evaluate(run, store=store, parts=parts)
    assert (result.successes, result.episodes) == (1, 4)
    other = replace(run, policy_digest="another key, the same policy")
    evaluate(other, store=store)
    whole = actions_of(store, other)
    for seed, actions in actions_of(store, run).items():
        np.testing.assert_array_equal(actions, whole[seed])


def test_an_unknown_episode_of_a_shard_runs_again(trained):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = run_of(store, checkpoint, filmstrips=False)
    part = run.of_shard(Shard(0, 2))
    evaluate(part, store=store)
    folder = store.fetch(part.prefix)
    lines = [{**line, "outcome": "unknown", "reason": "made up"} for line in read_episodes(folder)]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (evaluate(run, store=store, parts=[part]).episodes, len(lines)) == (4, 2)


def test_more_shards_than_episodes_are_refused(trained):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    with pytest.raises(ConfigError, match="5 shards are too many for 4 episodes"):
        run_of(store, checkpoint).of_shard(Shard(0, 5))


def test_two_processes_do_not_write_one_evaluation(tmp_path):
    with EpisodeLog(tmp_path, [1]), pytest.raises(HeldByAnotherError, match="Another process"):
        EpisodeLog(tmp_path, [1])
    EpisodeLog(tmp_path, [1]).close()


def test_the_key_holds_what_decides_the_outcome_and_nothing_else(trained):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = run_of(store, checkpoint)
    same = [
        replace(run, device="cpu", filmstrips=False),
        replace(run, settings=replace(run.settings, parallel_envs=1)),
        replace(run, task=replace(run.task, name="another name")),
    ]
    other = [
        replace(run, policy_digest="0" * 64),
        replace(run, settings=replace(run.settings, first_seed=7)),
        replace(run, settings=replace(run.settings, episodes=5)),
        replace(run, settings=replace(run.settings, num_action_steps=4)),
        replace(run, settings=replace(run.settings, num_inference_steps=2)),
        replace(run, task=replace(run.task, env_kwargs={"time_limit_s": 2.0})),
    ]
    assert {item.prefix for item in same} == {run.prefix}
    assert len({item.prefix for item in [run, *other]}) == len(other) + 1


def test_a_training_stands_for_its_newest_checkpoint(trained):
    store, checkpoint = trained("blind")
    training = checkpoint.partition("/checkpoints/")[0]
    assert run_of(store, training) == run_of(store, checkpoint)


@pytest.mark.parametrize("missing", ["trainings/none", "trainings/none/checkpoints/00000007-00000000"])
def test_a_checkpoint_that_is_not_there_is_one_sentence(trained, missing):
    store, _ = trained("blind")
    with pytest.raises(CheckpointError, match="trainings/none"):
        run_of(store, missing)


def test_a_policy_of_other_dimensions_is_refused_before_the_first_episode(trained):
    store, checkpoint = trained("blind")
    run = run_of(store, checkpoint, task={"state_dim": 13})
    with pytest.raises(ConfigError, match="state_dim=14 and the task 'transfer_cube' has 13"):
        evaluate(run, store=store)
    assert read_episodes(store.folder(run.prefix)) == []


def test_an_environment_of_other_dimensions_is_refused(tiny_agent, task):
    narrower = replace(task, environment_state_dim=6)
    agent = tiny_agent("privileged_state", "task.environment_state_dim=6")
    with pytest.raises(ConfigError, match=r"'environment_state' of shape \(7,\)"):
        rollout_validation(agent, narrower, episodes=1)
    agent = tiny_agent("blind", "task.action_dim=13")
    with pytest.raises(ConfigError, match=r"actions of shape \(14,\)"):
        rollout_validation(agent, replace(task, action_dim=13), episodes=1)


@pytest.mark.parametrize(
    "cameras", [["front"], ["front", "left_side", "nowhere"], ["left_side", "front", "right_side"]]
)
def test_other_cameras_and_the_same_in_another_order_are_refused(trained, cameras):
    store, checkpoint = trained("siglip2_diffusion", time_limit_s=0.4)
    with pytest.raises(ConfigError, match=r"trained with the 3 cameras \['front', 'left_side', 'right_side'\]"):
        run_of(store, checkpoint, task={"cameras": cameras, "num_views": len(cameras)})


def test_cameras_are_no_matter_to_a_policy_that_does_not_see(trained):
    store, checkpoint = trained("blind")
    run_of(store, checkpoint, task={"cameras": ["top"], "num_views": 1})


def test_a_camera_that_the_environment_lacks_is_refused(short_task, tiny_agent):
    unknown = replace(short_task, cameras=("front", "left_side", "nowhere"))
    with pytest.raises(ConfigError, match="nowhere"):
        rollout_validation(tiny_agent("siglip2_diffusion"), unknown, episodes=1)


def test_a_normaliser_without_statistics_is_one_sentence(short_task, tiny_agent):
    agent = tiny_agent("blind")
    agent.normalizers["action"].center.fill_(float("nan"))
    with pytest.raises(PolicyOutputError, match="not finite"):
        rollout_validation(agent, short_task, episodes=1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"episodes": 0}, "must be positive"),
        ({"parallel_envs": 0}, "must be positive"),
        ({"workers": -1}, "must not be negative"),
        ({"first_seed": -1}, "must not be negative"),
        ({"step_timeout_s": 0}, "must be positive"),
        ({"num_inference_steps": 0}, "must be positive"),
        ({"episodes": 2.5}, "whole number"),
        ({"num_action_steps": [4, 8]}, "whole number"),
    ],
)
def test_settings_that_make_no_evaluation_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        EvalConfig(**settings)


def test_a_policy_that_gives_nan_stops_the_evaluation(trained):
    store, checkpoint = trained("blind", nan=True, time_limit_s=0.4)
    run = run_of(store, checkpoint, filmstrips=False)
    with pytest.raises(PolicyOutputError, match="not finite"):
        evaluate(run, store=store)
    assert store.committed(run.prefix, "RESULT.json") is None


def test_an_environment_that_always_breaks_is_an_error_and_no_result(trained, monkeypatch):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = run_of(store, checkpoint, filmstrips=False)

    def broken(self, action):
        raise RuntimeError("no physics today")

    monkeypatch.setattr("roboimi.envs.transfer_cube.TransferCubeEnv.step", broken)
    with pytest.raises(EnvironmentBroken, match=r"all 4 episodes.*no physics today"):
        evaluate(run, store=store)
    assert store.committed(run.prefix, "RESULT.json") is None


def test_rollout_validation_leaves_no_trace_in_the_agent(short_task, tiny_agent):
    agent = tiny_agent("siglip2_diffusion").train()
    agent.head.eval()  # a module that somebody froze on purpose
    modes = [module.training for module in agent.modules()]
    weights = {name: value.clone() for name, value in agent.state_dict().items()}
    state = torch.get_rng_state()
    result = rollout_validation(agent, short_task, episodes=2)
    assert [module.training for module in agent.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in agent.state_dict().items())
    assert (result["success_rate"], result["episodes"], result["unknown"]) == (0.0, 2, 0)
    json.dumps(result, allow_nan=False)


def test_the_mode_is_restored_after_a_failure_too(short_task, tiny_agent):
    agent = tiny_agent("blind").train()
    with torch.no_grad():
        next(agent.head.parameters()).fill_(float("nan"))
    with pytest.raises(PolicyOutputError):
        rollout_validation(agent, short_task, episodes=1)
    assert agent.training


def test_the_policy_is_in_eval_mode_while_it_is_rolled_out(short_task, tiny_agent):
    agent, seen = tiny_agent("blind").train(), []
    agent.head.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    rollout_validation(agent, short_task, episodes=1)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["eval.episodes=2", "filmstrips=false", "videos=0", "eval.workers=0"], 0, ""),
        (["eval.episodes=0"], 2, "eval.episodes=0"),
        (["eval.episodes=2", "+task.state_dim=13"], 2, "state_dim=14"),
        (["eval.episode=2"], 2, "episode"),
        (["eval.num_action_steps=16"], 2, "between 1 and pred_horizon - obs_horizon + 1 = 15"),
        (["eval.num_action_steps=[8,0]"], 2, "num_action_steps=0"),
        (["eval.num_action_steps=[]"], 2, "cannot be swept"),
        (["eval.episodes=[2,3]"], 2, "cannot be swept"),
    ],
)
def test_the_command_rolls_out_or_says_why_not(trained, monkeypatch, capsys, arguments, code, says):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    arguments = [f"checkpoint={checkpoint}", f"store={store.uri}", *arguments]
    ended, out, err = run_command(arguments, monkeypatch, capsys)
    assert ended == code
    assert says in err
    assert err.count("\n") == (code != 0), err
    if not code:
        assert out.startswith("0 of 2 succeeded: ")
        assert run_command(arguments, monkeypatch, capsys)[1] == out


def test_a_sweep_needs_no_training_and_ends_in_a_table(trained, monkeypatch, capsys):
    store, checkpoint = trained("blind", time_limit_s=0.8)
    arguments = [f"checkpoint={checkpoint}", f"store={store.uri}", "filmstrips=false", "videos=0"]
    arguments += ["eval.episodes=2", "eval.workers=0", "eval.num_action_steps=[4,15]", "eval.num_inference_steps=[1,2]"]
    code, out, err = run_command(arguments, monkeypatch, capsys)
    assert (code, err) == (0, "")
    table = [line.split() for line in out.splitlines()[4:]]
    assert table[0][:3] == ["Ta", "NFE", "success"]
    assert [row[:2] for row in table[1:]] == [["4", "1"], ["4", "2"], ["15", "1"], ["15", "2"]]
    folders = [Path(line.rpartition(": ")[2]) for line in out.splitlines()[:4]]
    chunks = [read_episodes(folder)[0]["chunks"] for folder in folders]
    assert chunks == [5, 5, 2, 2]  # 20 steps
    assert len({(folder / "actions.f32").read_bytes() for folder in folders}) == 4


@pytest.mark.filterwarnings("ignore::UserWarning")  # GLFW says that there is no display
def test_no_gl_is_one_sentence_before_the_first_episode(trained, monkeypatch, capsys):
    store, checkpoint = trained("siglip2_diffusion", time_limit_s=0.4)
    monkeypatch.setenv("MUJOCO_GL", "disable")
    arguments = [f"checkpoint={checkpoint}", f"store={store.uri}", "eval.episodes=2"]
    code, _, err = run_command(arguments, monkeypatch, capsys)
    assert code == 5
    assert err.count("\n") == 1, err
    assert "OpenGL" in err
    run = run_of(store, checkpoint, EvalConfig(episodes=2, workers=0))
    assert read_episodes(store.folder(run.prefix)) == []


def run_command(arguments, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `python -m roboimi.vla.eval_vla`."""
    monkeypatch.setattr(sys, "argv", ["eval_vla", *arguments])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("line", ["{", "[]", '{"seed": 100000}'])
def test_a_line_that_no_kill_can_leave_is_one_sentence(trained, line):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = run_of(store, checkpoint, filmstrips=False)
    (store.folder(run.prefix) / "episodes.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"episodes\.jsonl is damaged"):
        evaluate(run, store=store)


def test_actions_that_are_not_there_are_one_sentence(trained):
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = run_of(store, checkpoint, EvalConfig(episodes=1, workers=0), filmstrips=False)
    folder = store.fetch(evaluate(run, store=store).rollouts)
    (folder / "actions.f32").write_bytes(b"short")
    with pytest.raises(DataError, match="seed 100000"):
        read_actions(folder, read_episodes(folder)[0])
