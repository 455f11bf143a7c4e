"""What a reward is, in the configuration: a class for each kind, told apart by the key that a section has; and the names
that a reward cannot have."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from tasks.config.base import StageConfig
from tasks.config.model_access import ModelStageConfig
from tasks.metrics.declared import GLOSSARY, STDERR

TRAINED = "trained"
NO_KIND = "no_kind"
"""The type of pydantic's error for a section that is of none of the kinds, or of several."""


class RewardConfig(StageConfig):
    """One component of the score. A kind of reward is a subclass; ``tasks.scoring.kinds`` names what computes its scores.

    What the plan of a run needs to know of a kind, and what is looked at before anything runs, are the properties here.
    """

    weight: float = Field(1.0, allow_inf_nan=False)
    """Of its score in the sum."""
    code: str = Field("", repr=False, json_schema_extra={"readOnly": True})
    """Digest of the user's code that it calls, so that edited code scores again; filled in when the run starts."""

    key: ClassVar[str]
    """The required field that only sections of this kind have, or of this kind and one that ``means`` tells from it."""
    is_trained_in_run: ClassVar[bool] = False
    is_learned: ClassVar[bool] = False
    """Whether a model's parameters decide, and not a rule."""

    @classmethod
    def means(cls, section: Mapping[str, Any]) -> bool:
        """Whether a section of the configuration is a reward of this kind."""
        return cls.key in section

    @property
    def external_model(self) -> str | None:
        """The finished reward model of somebody else's that ``key`` names."""
        return None

    @property
    def user_function(self) -> str | None:
        """The import path of the user's function that ``key`` names."""
        return None


class TrainedReward(RewardConfig):
    """The reward model that this run trains."""

    key: ClassVar[str] = "model"
    is_trained_in_run: ClassVar[bool] = True
    is_learned: ClassVar[bool] = True

    model: Literal["trained"]
    """``trained``, the reward model that this run trains."""

    @classmethod
    def means(cls, section: Mapping[str, Any]) -> bool:
        return section.get(cls.key) == TRAINED


class ModelReward(RewardConfig):
    """A finished reward model of somebody else's."""

    key: ClassVar[str] = "model"
    is_learned: ClassVar[bool] = True

    # A form checks that a section is of one kind alone.
    model: str = Field(json_schema_extra={"not": {"const": TRAINED}})
    """Name or directory of a sequence classifier."""

    @property
    def external_model(self) -> str:
        return self.model


class FunctionReward(RewardConfig):
    """A Python function of the user's."""

    key: ClassVar[str] = "function"

    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """The import path ``module:function`` of ``(prompts, responses, rows) -> list[float]``."""

    @property
    def user_function(self) -> str:
        return self.function


# A tag is no name that a reward may have: messages leave it out of the path to a field. Of two kinds with one key, the first
# that a section means.
Kind = (
    Annotated[TrainedReward, Tag("trained reward")]
    | Annotated[ModelReward, Tag("model reward")]
    | Annotated[FunctionReward, Tag("function reward")]
)
REWARD_KINDS: Mapping[str, type[RewardConfig]] = {mark.tag: kind for kind, mark in map(get_args, get_args(Kind))}
"""By their tags."""
KEYS = tuple(dict.fromkeys(kind.key for kind in REWARD_KINDS.values()))


def tag_of(section: Any) -> str | None:
    """The kind that a section means; None where it has the keys of none or several."""
    if isinstance(section, RewardConfig):
        return next((tag for tag, kind in REWARD_KINDS.items() if type(section) is kind), None)
    first = next(iter(REWARD_KINDS))
    if not isinstance(section, Mapping):
        return first
    given = [key for key in KEYS if key in section]
    if len(given) == 1:
        return next((tag for tag, kind in REWARD_KINDS.items() if kind.means(section)), None)
    # Where a key is misspelt, any kind says so.
    return None if given or section.keys() <= RewardConfig.model_fields.keys() else first


def without_nulls(section: Any) -> Any:
    """A section whose keys of other kinds are not there: null leaves a setting out, also for --set."""
    if not isinstance(section, Mapping):
        return section
    return {name: value for name, value in section.items() if value is not None or name not in KEYS}


def by_name(rewards: Mapping[str, RewardConfig]) -> dict[str, RewardConfig]:
    return dict(sorted(rewards.items()))


Reward = Annotated[
    Kind,
    Discriminator(
        tag_of,
        custom_error_type=NO_KIND,
        custom_error_message=f"give a reward either a {' or a '.join(KEYS)}",
    ),
    BeforeValidator(without_nulls),
]
# A run stores its configuration with sorted keys. Read from there or from what the user wrote, in whatever order, the same
# rewards must give the same columns and the same sum.
Rewards = Annotated[Mapping[str, Reward], AfterValidator(by_name)]


class ScoreRolloutsConfig(ModelStageConfig):
    """The components of the score, and the temperature at which the rollouts were sampled."""

    rewards: Rewards
    temperature: float
    exact_kl: bool = False
    """Add the exact KL at each position, for a penalty that is made of it."""


REWARD = "<reward>"
OF_A_REWARD = [name for name in GLOSSARY if REWARD in name]
"""What is measured of a reward, trained on or held out: which of the two it is may change from run to run."""
OURS = [name for name, metric in GLOSSARY.items() if not metric.is_pattern]
"""What else is measured, under the same headings or others."""


def collision(names: Iterable[str]) -> str | None:
    """Why these rewards cannot stand together, as a sentence; None where they can."""
    owners = {f"{metric}{suffix}": "" for metric in OURS for suffix in ("", STDERR)}
    for name in names:
        if name.endswith(STDERR):
            return f"the name {name!r} ends in {STDERR}, which stands for a standard error; name it differently"
        own = {f"{template.replace(REWARD, name)}{suffix}" for template in OF_A_REWARD for suffix in ("", STDERR)}
        if taken := sorted(own & owners.keys(), key=lambda metric: (len(metric), metric)):
            other = f"the reward {owners[taken[0]]!r} makes" if owners[taken[0]] else "every run has"
            return f"the name {name!r} would make a metric {taken[0]}, which {other} too; name it differently"
        owners |= dict.fromkeys(own, name)
    return None
