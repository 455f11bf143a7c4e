"""Which models a run starts from."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tasks.config import AdapterConfig, FromScratchConfig, ModelAccess, StageConfig

FROM_POLICY, FROM_REWARD_MODEL = "policy", "reward_model"


class ModelConfig(StageConfig):
    """The policy that training starts from; it stays the reference of all rounds."""

    policy: str | None = None
    """Name on a hub, or directory, as ``from_pretrained`` takes it."""
    from_scratch: FromScratchConfig | None = None
    """A new model instead, whose tokenizer is trained on ``data.texts``."""
    critic: str | None = None
    """What the critic starts from: ``policy``, ``reward_model``, or the name or directory of a model. By default the
    reward model, without one the policy."""
    lora: AdapterConfig | None = None
    """Train low-rank adapters over the policy, whose own weights stay as they are, instead of whole models."""
    shared_trunk: bool = False
    """The critic is a head on the policy's body: one pass for both, and one loss, with ``ppo.vf_coef``."""
    chat_template_kwargs: Mapping[str, Any] = Field({})
    """Options that the policy's chat template reads, such as ``enable_thinking: false``. ``strftime_now`` is the date that
    a template gets which asks for today's, so that a run is the same on every day."""
    revision: str | None = None
    """Branch, tag or commit of a policy on a hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Off: a model is data."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.policy is None) == (self.from_scratch is None):
            raise ValueError("give either policy or from_scratch")
        return self

    @model_validator(mode="after")
    def _critic_has_its_place(self) -> Self:
        if self.critic_is_on_policy and self.critic not in (None, FROM_POLICY):
            setting = "lora" if self.lora is not None else "shared_trunk"
            raise ValueError(
                f"critic={self.critic}: with model.{setting} the critic is made on the policy; leave critic out"
            )
        return self

    def access(self, *read: Literal["chat_template_kwargs", "lora", "shared_trunk"]) -> ModelAccess:
        """What a stage is told of how models are loaded: whether their code may run, and what it ``read``s besides."""
        return ModelAccess(**{name: getattr(self, name) for name in ("trust_remote_code", *read)})

    @property
    def names_critic(self) -> bool:
        """Whether the critic starts from a model of its own."""
        return self.critic not in (None, FROM_POLICY, FROM_REWARD_MODEL)

    @property
    def critic_is_on_policy(self) -> bool:
        """Whether the critic shares the policy's body, or the frozen base of both."""
        return self.lora is not None or self.shared_trunk
