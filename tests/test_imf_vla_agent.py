"""The agent: condition widths, the Hydra configs with the requested values, loss, chunks, what a checkpoint holds."""

import pytest
import torch
from hydra.utils import instantiate
from transformers import SiglipVisionConfig

from roboimi.errors import CheckpointError, ConfigError, DataError, PolicyOutputError
from roboimi.vla.build import build_agent
from roboimi.vla.config import compose_config
from roboimi.vla.models.encoder import random_vision_model
from roboimi.vla.models.projectors import LinearConditionProjector
from roboimi.vla.objectives import OBJECTIVES

S, A, E, TO, T, V, D = 14, 14, 7, 2, 16, 3, 24
SMALL = ["head=small", "head.n_emb=16", "head.n_layer=2", "head.n_head=2"]


@pytest.fixture(scope="module")
def tower():
    """A tiny real SigLIP tower for 256 x 256 images."""
    sizes = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return random_vision_model(SiglipVisionConfig(image_size=256, patch_size=128, **sizes), seed=0)


def _statistics(scale=2.0):
    def of(dim):
        return {"min": [-scale] * dim, "max": [scale] * dim, "mean": [0.0] * dim, "std": [1.0] * dim}

    return {"state": of(S), "action": of(A), "environment_state": of(E)}


def _batch(rows=4, **extra):
    generator = torch.Generator().manual_seed(0)
    return {
        "state": torch.rand(rows, TO, S, generator=generator) * 4 - 2,
        "environment_state": torch.rand(rows, TO, E, generator=generator) * 4 - 2,
        "action": torch.rand(rows, T, A, generator=generator) * 4 - 2,
        "action_is_pad": torch.zeros(rows, T, dtype=torch.bool),
        **extra,
    }


def _images(rows=4):
    return torch.randint(
        0, 256, (rows, TO, V, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def _agent(*overrides, **options):
    torch.manual_seed(0)
    config = compose_config(["encoder=standin", *SMALL, *overrides])
    return build_agent(config, statistics=_statistics(), **options)


class TestRequestedConfig:
    @pytest.mark.parametrize("width", [96, 192])
    def test_agent_config_instantiates_with_the_requested_dimensions(self, tower, width):
        """Hydra alone builds the whole agent; only the tower is given, so that nothing is fetched."""
        config = compose_config([f"backbone.per_view_output_dim={width}"])
        backbone = instantiate(config["backbone"], vision_model=tower)
        agent = instantiate({**config["agent"], "vision_backbone": None}, vision_backbone=backbone)
        assert agent.raw_per_step_cond_dim == 3 * width + S
        assert agent.per_step_cond_dim == 384
        assert agent.global_cond_dim == 384 * TO
        assert agent.head.cond_dim == 384
        assert (agent.pred_horizon, agent.num_action_steps, agent.obs_horizon) == (16, 8, 2)
        assert agent.head.positions.shape == (2 + 2 + 16, 384)
        assert len(agent.head.sublayers) == 2 * 12
        assert isinstance(agent.cond_projector, LinearConditionProjector)
        assert agent.cond_projector.in_features == 3 * width + S
        assert backbone.dataset_image_resize_shape is None
        assert backbone.eval_image_resize_shape == (256, 256)

    def test_state_width_of_sixteen(self, tower):
        """Any S: 3 * 96 + 16 and 3 * 192 + 16."""
        for width, raw in ((96, 304), (192, 592)):
            overrides = [*SMALL, "obs_dim=16", "action_dim=16", f"backbone.per_view_output_dim={width}"]
            assert build_agent(compose_config(overrides), vision_model=tower).raw_per_step_cond_dim == raw

    def test_defaults_are_the_requested_ones(self):
        config = compose_config([])
        head, backbone = config["agent"]["head"], config["agent"]["vision_backbone"]
        assert (head["n_emb"], head["n_layer"], head["cond_dim"], head["n_head"]) == (384, 12, 384, 6)
        assert (head["parameterization"], head["attn_res"]) == ("u", True)
        assert (config["pred_horizon"], config["num_action_steps"]) == (16, 8)
        assert backbone["encoder"].startswith("google/siglip2-base-patch16-256@")
        assert (backbone["dataset_image_resize_shape"], backbone["eval_image_resize_shape"]) == (None, [256, 256])
        assert backbone["per_view_output_dim"] == 96
        assert config["objective"]["name"] == "imf"

    @pytest.mark.parametrize("name", sorted(OBJECTIVES))
    def test_every_objective_has_a_config(self, name):
        assert _agent("backbone=blind", f"objective={name}").objective.name == name


class TestCondition:
    def test_images_and_state_are_concatenated_and_projected(self, tower):
        agent = _agent(vision_model=tower)
        batch = _batch(images=_images())
        seen = {}
        agent.cond_projector.register_forward_pre_hook(lambda _, args: seen.update(raw=args[0]))
        cond = agent._build_cond(batch)
        assert cond.shape == (4, TO, 384)
        assert seen["raw"].shape == (4, TO, 3 * 96 + S)
        torch.testing.assert_close(seen["raw"][..., : 3 * 96], agent.vision_backbone(batch))
        torch.testing.assert_close(seen["raw"][..., 3 * 96 :], batch["state"] / 2)  # normalised from [-2, 2]

    def test_without_a_projector_the_raw_condition_goes_to_the_head(self, tower):
        overrides = ["~agent.cond_projector", f"head.cond_dim={3 * 96 + S}"]
        agent = _agent(*overrides, vision_model=tower)
        assert agent.cond_projector is None
        assert agent.per_step_cond_dim == agent.raw_per_step_cond_dim == 3 * 96 + S
        assert agent._build_cond(_batch(images=_images())).shape == (4, TO, 3 * 96 + S)

    def test_the_privileged_state_is_normalised(self):
        agent = _agent("backbone=privileged_state")
        assert agent.raw_per_step_cond_dim == E + S
        seen = {}
        agent.cond_projector.register_forward_pre_hook(lambda _, args: seen.update(raw=args[0]))
        batch = _batch()
        agent._build_cond(batch)
        torch.testing.assert_close(seen["raw"], torch.cat((batch["environment_state"], batch["state"]), dim=-1) / 2)

    def test_a_blind_agent_depends_on_the_state_alone(self):
        agent = _agent("backbone=blind")
        assert agent.raw_per_step_cond_dim == S
        batch = _batch()
        before = agent._build_cond(batch)
        assert (agent._build_cond({**batch, "environment_state": batch["environment_state"] + 1}) == before).all()
        assert (agent._build_cond({**batch, "state": batch["state"] + 1}) != before).any()

    def test_absurd_observations_stay_finite(self):
        agent = _agent("backbone=blind")
        batch = _batch(state=torch.full((4, TO, S), 1e30))
        assert torch.isfinite(agent.predict_action_chunk(batch)).all()


class TestTraining:
    @pytest.mark.parametrize("objective", sorted(OBJECTIVES))
    def test_loss_falls_and_trains_everything_but_the_tower(self, tower, objective):
        agent = _agent(f"objective={objective}", vision_model=tower).train()
        with torch.no_grad():
            features = agent.vision_backbone.encode_images(_images())
        batch = _batch(features=features)
        optimizer = torch.optim.AdamW([p for p in agent.parameters() if p.requires_grad], lr=1e-2)
        frozen = {name: p.clone() for name, p in agent.vision_backbone.vision_model.named_parameters()}
        losses = []
        for _ in range(40):
            loss, metrics = agent.compute_loss(batch, torch.Generator().manual_seed(0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(metrics["mse"]))
        assert losses[-1] < 0.6 * losses[0]
        assert all(p.grad is not None for p in agent.parameters() if p.requires_grad)
        for name, p in agent.vision_backbone.vision_model.named_parameters():
            torch.testing.assert_close(p, frozen[name], rtol=0, atol=0)
        assert not agent.vision_backbone.vision_model.training

    def test_the_targets_are_normalised_actions(self):
        """A regression's loss at a head of zeros is the mean square of the normalised chunk."""
        agent = _agent("backbone=blind", "objective=regression", "head.parameterization=u")
        batch = _batch()
        loss, _ = agent.compute_loss(batch)
        torch.testing.assert_close(loss, (batch["action"] / 2).square().mean())


class TestChunks:
    def test_noise_that_is_passed_in_makes_a_chunk_reproducible(self):
        agent = _agent("backbone=blind")
        batch, noise = _batch(), torch.randn(4, T, A)
        first = agent.predict_action_chunk(batch, noise=noise)
        torch.testing.assert_close(agent.predict_action_chunk(batch, noise=noise), first, rtol=0, atol=0)
        drawn = [agent.predict_action_chunk(batch, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
        torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
        assert (drawn[0] - drawn[2]).abs().max() > 0

    def test_chunks_are_in_raw_units_and_only_the_final_sample_is_clamped(self):
        agent = _agent("backbone=blind", "head.parameterization=u")  # starts with u = 0, so the sample is the noise
        noise = torch.linspace(-3, 3, 4 * T * A).view(4, T, A)
        chunk = agent.predict_action_chunk(_batch(), noise=noise)
        torch.testing.assert_close(chunk, 2 * noise.clamp(-1, 1))
        assert not chunk.requires_grad

    @pytest.mark.parametrize("steps", [1, 2, 4])
    def test_inference_steps_are_the_agents_or_the_callers(self, steps):
        agent = _agent("backbone=blind", f"num_inference_steps={steps}")
        calls = []
        agent.head.register_forward_hook(lambda *_: calls.append(1))
        agent.predict_action_chunk(_batch())
        assert len(calls) == steps
        agent.predict_action_chunk(_batch(), num_inference_steps=3)
        assert len(calls) == steps + 3

    def test_actions_that_are_not_finite_are_an_error_of_their_own(self):
        agent = _agent("backbone=blind")
        with torch.no_grad():
            agent.head.output.bias.fill_(float("nan"))
        with pytest.raises(PolicyOutputError, match="not finite"):
            agent.predict_action_chunk(_batch())

    def test_without_statistics_there_is_no_chunk(self):
        agent = build_agent(compose_config([*SMALL, "backbone=blind"]))
        with pytest.raises(PolicyOutputError, match="statistics"):
            agent.predict_action_chunk(_batch())


class TestCheckpoint:
    def test_it_holds_all_that_trains_and_the_normalisers_but_not_the_tower(self, tower):
        agent = _agent(vision_model=tower)
        state = agent.trainable_state_dict()
        trainable = {name for name, p in agent.named_parameters() if p.requires_grad}
        assert trainable < set(state)
        assert {f"normalizers.{n}.{b}" for n in ("state", "action") for b in ("center", "scale")} < set(state)
        assert not any("vision_model" in name for name in state)

    def test_another_agent_continues_from_it(self, tower):
        source = _agent(vision_model=tower)
        torch.manual_seed(1)
        target = build_agent(compose_config(SMALL), feature_dim=D)
        target.load_trainable_state_dict(source.trainable_state_dict())
        features = source.vision_backbone.encode_images(_images())
        batch, noise = _batch(features=features), torch.randn(4, T, A)
        chunks = [agent.predict_action_chunk(batch, noise=noise) for agent in (source, target)]
        torch.testing.assert_close(chunks[0], chunks[1], rtol=0, atol=0)

    def test_that_of_another_policy_is_refused(self):
        state = _agent("backbone=blind").trainable_state_dict()
        with pytest.raises(CheckpointError, match=r"head\.|cond_projector"):
            _agent("backbone=privileged_state").load_trainable_state_dict(state)
        with pytest.raises(CheckpointError, match="another policy"):
            _agent("backbone=blind", "head.n_emb=32").load_trainable_state_dict(state)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["head.n_head=3"], "n_head=3"),
        (["head.n_head=16", "head.rope=true"], "even width"),
        (["num_action_steps=16"], "num_action_steps=16"),
        (["agent.cond_projector.output_dim=100"], "cond_dim=384 and the agent gives 100"),
        (["objective.name=ddpm"], "Unknown objective 'ddpm'"),
        (["head.parameterization=v"], "parameterization 'v'"),
        (["head.horizon=8"], "pred_horizon"),
        (["num_inference_steps=0"], "num_inference_steps=0"),
        (["+head.depth=3"], "depth"),
        (["+objective.beta=3"], "beta"),
        (["backbone=privileged_state", "environment_state_dim=0"], "environment state"),
    ],
)
def test_a_config_that_cannot_work_is_one_sentence_before_data_is_read(overrides, words):
    config = compose_config([*SMALL, "backbone=blind", *overrides])
    with pytest.raises(ConfigError, match=words) as error:
        build_agent(config)
    assert "\n" not in str(error.value)


def test_statistics_of_another_dataset_are_refused():
    config = compose_config([*SMALL, "backbone=privileged_state"])
    statistics = _statistics()
    with pytest.raises(DataError, match="environment_state"):
        build_agent(config, statistics={name: statistics[name] for name in ("state", "action")})
    with pytest.raises(DataError, match="7 dimensions do not fit a policy of 14"):
        build_agent(config, statistics={**statistics, "state": statistics["environment_state"]})
