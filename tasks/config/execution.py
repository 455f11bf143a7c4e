"""Where and how stages run, and the limits that stop one."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ppo_core.config import can_share
from tasks.config.base import StageConfig
from tasks.config.engines import server_address


class ExecutionConfig(StageConfig):
    """Where and how stages run. The two dtypes change results, and so do ``shares`` where a model is trained, so only they
    are part of a fingerprint."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto takes CUDA, else Apple's MPS, else the CPU."""
    workers: int = Field(1, gt=0, le=256)
    """Processes that sample and score the shards of ``rollouts.shards`` side by side, each with its models and, on CUDA, a
    device of its own. The bytes of all outputs are the same for any number."""
    ray: str | None = None
    """Address of a Ray cluster, as host:6379, whose nodes the workers are spread over; null keeps them on this machine. This
    machine is one of the nodes, and all of them see the run's directory. The bytes of all outputs are the same."""
    train_processes: int = Field(1, gt=0, le=256)
    """Processes that train one model together (warm-up, reward model, critic, update), each with all of it and, on CUDA, a
    device of its own: they share the micro-batches and add up their gradients. Results change by rounding alone."""
    sharded: bool = False
    """Whether each of them holds a part of weights, gradients and moments, and not all (FSDP2): for a model whose training
    does not fit one device. Results change by rounding alone."""
    shares: int = Field(1, gt=0, le=256)
    """Parts of a minibatch whose gradients are added in one order, so that weights are the same to the last bit for every
    number of ``train_processes`` of which each takes 1, 2, 4, 8, ... of them."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward passes; weights that are trained stay float32. auto: bfloat16 on CUDA, float32 elsewhere."""
    head_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the layer that makes logits, where the rest of a forward pass is in bfloat16: bfloat16 is faster and
    rounds log-probabilities by 0.01 and more. The heads of critic and reward model are always in float32."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone for the backward pass, which computes the layer again: less memory, more time."""
    micro_batch_tokens: int = Field(16384, gt=0)
    """Padded tokens in one forward and backward pass: lower it when memory runs out. Results change by rounding alone; a
    checkpoint that was not kept is made again with the one that made it."""
    engine_servers: tuple[str, ...] = ()
    """Addresses of the servers that ``rollouts.engine: vllm`` samples by, as [http://host:8000]; none runs vLLM in this
    process. They must see the run's directory. Their key, if they want one, is ``ROUNDS_ENGINE_API_KEY``."""
    stage_timeout_s: float | None = Field(7200.0, gt=0)
    """A stage that reports no progress for so long is taken for hung, killed and retried; one that does may take any time.
    A reward function reports nothing before it returns. null: no limit."""
    retries: int = Field(3, ge=0, le=10)
    """Further attempts after a transient error."""

    @model_validator(mode="after")
    def _head_is_no_narrower_than_all(self) -> Self:
        if self.dtype == "float32" and self.head_dtype == "bfloat16":
            raise ValueError("head_dtype=bfloat16 says nothing with dtype=float32; leave it out, or set dtype too")
        return self

    @model_validator(mode="after")
    def _workers_do_not_meet(self) -> Self:
        if self.workers > 1 and self.device not in ("auto", "cpu", "cuda"):
            one = "there is one Metal device" if self.device == "mps" else "it names one device"
            raise ValueError(
                f"device={self.device} with workers={self.workers}: {one}, and each worker needs one of its own; set device "
                "to cpu or cuda, or workers to 1"
            )
        if self.workers > 1 and self.engine_servers:
            raise ValueError(
                f"workers={self.workers} with engine_servers: each would give the servers new weights while another "
                "one samples by them; set workers to 1"
            )
        return self

    @model_validator(mode="after")
    def _processes_can_train_together(self) -> Self:
        if self.train_processes > 1 and self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"device={self.device} with train_processes={self.train_processes}: each process needs a device of its own; "
                "set device to cpu or cuda, or train_processes to 1"
            )
        if self.sharded and self.train_processes == 1:
            raise ValueError(
                "sharded=true with train_processes=1: one process has the whole model; raise train_processes, or leave "
                "sharded out"
            )
        if not can_share(self.shares, self.train_processes):
            raise ValueError(
                f"shares={self.shares} with train_processes={self.train_processes}: each process takes 1, 2, 4, 8, ... "
                "shares, and all equally many; change one of the numbers"
            )
        return self

    @property
    def workers_here(self) -> int:
        """How many workers take a device of one machine, as far as one of them can tell: Ray gives each its own."""
        return self.workers if self.ray is None else 1

    @field_validator("ray")
    @classmethod
    def _is_host_and_port(cls, address: str | None) -> str | None:
        if address is not None and not re.fullmatch(r"([^/@?#:\s]+|\[[0-9a-fA-F:]+\]):\d{1,5}", address):
            raise ValueError(f"{address!r} is no address like host:6379, which ray start --head tells; correct it")
        return address

    @field_validator("engine_servers")
    @classmethod
    def _are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            # A run's configuration is written down and shown, so no password belongs there.
            if not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", address):
                raise ValueError(
                    f"{address!r} is no address like http://host:8000, without user, password and query; correct it"
                )
        plain = [server_address(address) for address in addresses]
        if twice := next((address for address in plain if plain.count(address) > 1), None):
            raise ValueError(f"{twice} is named twice; name it once")
        return addresses


class HealthConfig(StageConfig):
    """Limits that a healthy run stays far away from: beyond one, a stage stops before it commits anything.

    They change no result, so they are part of no fingerprint. A loss or gradient that is not finite always stops.
    """

    action: Literal["stop", "warn"] = "stop"
    """warn says it and goes on."""
    max_ratio_deviation: float | None = Field(None, gt=0)
    """Of ``|ratio - 1|`` in an update's first minibatch, where sampling and training must agree; null is 0.01 for float32
    and 0.5 for bfloat16 forward passes."""
    max_engine_difference: float | None = Field(None, gt=0)
    """Nats a token between the log-probabilities of the engine that samples and the trainer's, tried on a few prompts before
    anything is sampled (the largest with float32 forward passes, the mean with others) and mean over a shard; more, and the
    engine samples from another model. null is what rounding allows: 1e-4 for float32, 0.03 for bfloat16 forward passes."""
    max_approx_kl: float = Field(10.0, gt=0)
    """Nats a token between the policy that sampled and the one in training, mean over a minibatch."""
    max_kl: float = Field(20.0, gt=0)
    """Nats a token between policy and reference, mean over an iteration."""
    min_entropy: float = Field(1e-4, ge=0)
    """Nats of the next-token distribution, mean over a minibatch."""
    min_reward_model_accuracy: float = Field(0.5, ge=0, lt=1)
    """Which a reward model's accuracy on held-out pairs exceeds by a standard error, or it is no better than chance; with
    fewer than 25 held-out preferences that is only said. 0: no limit."""
