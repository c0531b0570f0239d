"""Protects the command line: its help, and that whatever is wrong is one sentence and an exit code."""

import json

import pytest

from pipelines.arguments import TAKE_OVER, campaign_arguments, choose_arms, shared_overrides
from pipelines.cli import build_parser, main
from pipelines.local.campaign import LocalOptions
from pipelines.profiles import load_profile
from roboimi.errors import ConfigError


@pytest.fixture
def small_dataset(tiny_dataset_maker):
    return tiny_dataset_maker(image_size=(8, 8))


def options(*arguments):
    parsed = build_parser().parse_args(["run", *arguments])
    return LocalOptions(**{field: getattr(parsed, field) for field in LocalOptions.__dataclass_fields__})


DEFAULTS = load_profile("local").defaults


def test_the_help_names_every_option_in_its_group(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for heading in ("data:", "arms:", "policy, the same for every arm:", "evaluation:", "where:", "examples:"):
        assert heading in text
    for option in ("--dataset", "--record", "--arms", "--only", "--encoder", "--steps", "--set", "--eval-episodes"):
        assert option in text


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("submit", ["--dataset", "--supersede", "--watch", "--retries", "--allow-dirty", "--no-store-check", "--ca"]),
        ("status", ["--json", "--once", "--interval", "--experiment", "--no-kubernetes"]),
        ("retry", ["--force"]),
        ("stop", ["--limit"]),
    ],
)
def test_the_commands_of_a_cluster_say_how_it_is_reached_and_take_no_token(capsys, command, options):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for option in ("--host", "--namespace", "--token-file", "--token-env", *options):
        assert option in text
    assert "--token " not in text
    assert "arguments show in `ps`" in text


def test_the_default_campaign():
    assert [arm.name for arm in choose_arms(options(), DEFAULTS)] == [
        "privileged_state",
        "blind",
        "projection-96",
        "projection-192",
    ]
    assert shared_overrides(options(), DEFAULTS) == list(DEFAULTS.train_overrides)


def test_options_come_after_the_profile_and_set_after_them():
    chosen = options("--steps", "7", "--task", "transfer_cube", "--set", "a=1", "--set", "b=2")
    extra = ["task=transfer_cube", "train.steps=7", "a=1", "b=2"]
    assert shared_overrides(chosen, DEFAULTS) == [*DEFAULTS.train_overrides, *extra]


def test_a_superseding_campaign_takes_trainings_over():
    assert TAKE_OVER in shared_overrides(options("--supersede"), DEFAULTS)
    assert TAKE_OVER not in shared_overrides(options(), DEFAULTS)


def test_an_own_list_of_arms_gets_the_reference_arms(tmp_path):
    (tmp_path / "arms.yaml").write_text("- arm: wide\n  overrides: [backbone.per_view_output_dim=384]\n")
    chosen = options("--arms", str(tmp_path / "arms.yaml"))
    assert [arm.name for arm in choose_arms(chosen, DEFAULTS)] == ["privileged_state", "blind", "wide"]
    chosen = options("--arms", str(tmp_path / "arms.yaml"), "--only", "wide")
    assert [arm.name for arm in choose_arms(chosen, DEFAULTS)] == ["wide"]


def test_the_arguments_are_those_of_the_pipeline(small_dataset):
    chosen = options("--eval-episodes", "3", "--eval-seed", "0")
    arms = choose_arms(chosen, DEFAULTS)
    arguments = campaign_arguments(chosen, DEFAULTS, arms, small_dataset, "standin", "/store")
    assert arguments["eval_episodes"] == 3
    assert arguments["eval_seed"] == 0
    assert arguments["dataset"] == f"{small_dataset.root}@sha256:{arguments['dataset_digest']}"
    assert arguments["experiments"][0] == {"arm": "privileged_state", "overrides": ["backbone=privileged_state"]}
    # They go through a JSON file to the process that runs them.
    assert json.loads(json.dumps(arguments)) == arguments


def test_what_the_campaign_shares_is_no_override():
    with pytest.raises(ConfigError, match="use the option --encoder"):
        shared_overrides(options("--set", "encoder=standin"), DEFAULTS)


@pytest.mark.parametrize("value", ["0", "-3", "many", "1.5"])
def test_a_count_is_a_positive_whole_number(value, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", f"--steps={value}"])
    assert caught.value.code == 2
    assert f"{value} is not a positive whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--dataset", "{tmp}/nothing"], 3, "nothing"),
        (["--dataset", "{data}", "--record", "3"], 2, "exclude each other"),
        (["--dataset", "{data}", "--arms", "{tmp}/nothing.yaml"], 2, "cannot be read"),
        (["--dataset", "{data}", "--only", "siglip2-97"], 2, "No arm is called siglip2-97"),
        (["--dataset", "{data}", "--encoder", "google/siglip2-base-patch16-256"], 4, "not pinned"),
        (["--dataset", "{data}", "--store", "{tmp}/file"], 6, "cannot be made"),
        (["--dataset", "{data}", "--outputs", "{tmp}/file"], 2, "cannot be made"),
        (["--dataset", "{data}", "--set", "trian.steps=3"], 2, "trian"),
        (["--dataset", "{data}", "--task", "juggling"], 2, "juggling"),
    ],
)
def test_what_is_wrong_is_one_sentence(small_dataset, tmp_path, capsys, monkeypatch, arguments, code, part):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    filled = [text.format(tmp=tmp_path, data=small_dataset.root) for text in arguments]
    assert main(["run", *filled]) == code
    error = capsys.readouterr().err
    assert part in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("outputs/campaigns/*"))


def test_a_compiled_campaign_says_where_it_is_and_what_it_trains(tmp_path, capsys):
    assert main(["compile", "-o", str(tmp_path / "c.yaml"), "--gpu-image", "gpu@sha256:1"]) == 0
    names = ", ".join(f"projection-{width}.seed-{seed}" for width in (96, 192) for seed in range(3))
    assert capsys.readouterr().out == f"compiled {tmp_path / 'c.yaml'}: {names}\n"
    assert "gpu@sha256:1" in (tmp_path / "c.yaml").read_text()


def test_a_compiled_campaign_goes_into_a_yaml_file(tmp_path, capsys):
    assert main(["compile", "-o", str(tmp_path / "campaign.txt")]) == 2
    assert "must be called something.yaml" in capsys.readouterr().err


def test_a_profile_of_a_site_is_compiled(run_pipelines, tmp_path):
    site = tmp_path / "lab.yaml"
    site.write_text("base: cluster\nname: lab\ncluster: {queue: robots}\n")
    done = run_pipelines("compile", "--profile", str(site), "-o", str(tmp_path / "campaign.yaml"))
    assert done.returncode == 0, done.stderr
    assert "robots" in (tmp_path / "campaign.yaml").read_text()
    missing = run_pipelines("compile", "--profile", str(tmp_path / "no.yaml"), "-o", str(tmp_path / "c.yaml"))
    assert missing.returncode == 2
    assert "cannot be read" in missing.stderr
