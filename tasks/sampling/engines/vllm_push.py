"""A policy pushed to a vLLM server, and the label that says whose weights it has.

A server holds one policy at a time, so it serves one run at a time. Every stage pushes what it samples from. What is known
of the server afterwards is its label, which no two pushes share: it is set before the weights change and once more after
that, so that whoever else samples there meanwhile finds another label than his own.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tasks.errors import ServerError, TransientError, UserError
from tasks.sampling.engines.policy_files import PolicyFiles
from tasks.sampling.engines.vllm_rows import Row
from tasks.sampling.engines.vllm_server import DELAYS_S, FIELD, Server

_PREFIX = "rlhf-rounds-"
_UNLABELLED = "default"
"""The label of a server whose weights nobody has replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A server that holds a policy."""

    server: Server
    model: str
    """The name to ask for the policy by."""
    digest: str
    """Of the policy. A prompt is found in the prefix cache only under the digest that it was kept under, so never with keys
    and values of other weights."""
    label: str | None
    """None where the server has no labels."""

    def complete(self, prompt: list[int], parameters: dict[str, Any]) -> Row:
        """One response to a prompt, by this policy.

        Raises:
            ServerError: the server was given other weights since the push, or refuses what it is asked.
            TransientError: another attempt may succeed.
        """
        body = {"model": self.model, "prompt": prompt, "cache_salt": self.digest, **parameters}
        try:
            row = self.server.complete(body)
        except ServerError:
            # Whoever took the server may have unloaded what it is asked for.
            self._require_own_label()
            raise
        self._require_own_label()
        return row

    def _require_own_label(self) -> None:
        if self.label is None:
            return
        found = self.server.label()
        if found != self.label:
            raise ServerError(
                f"{self.server}: it was given other weights while it sampled for this run (its label is {found}, not "
                f"{self.label}); a server serves one run at a time, so stop the other one, or give each a server of its own"
            )


def push(server: Server, policy: PolicyFiles, directory: Path) -> Loaded:
    """Have the server sample from a policy from now on. ``directory`` has the policy's files with its tied weights.

    Raises:
        ServerError: it is no server for this policy; the message has the next move.
        TransientError: another attempt may succeed; ``UnreachableError`` where there is no answer.
    """
    if server.version() is None:
        return Loaded(server=server, model=str(policy.directory), digest=policy.digest, label=None)
    cards = server.cards()
    label = f"{_PREFIX}{policy.digest}-{uuid4().hex}"
    has_labels = server.set_label(label)
    is_adapter = policy.is_adapter
    model = _push_adapter(server, cards, policy) if is_adapter else _push_weights(server, cards, policy, directory)
    if has_labels:
        server.set_label(label)
    return Loaded(server=server, model=model, digest=policy.digest, label=label if has_labels else None)


def _push_weights(server: Server, cards: list[dict[str, Any]], policy: PolicyFiles, directory: Path) -> str:
    served = [card for card in cards if not card.get("parent")]
    if not served:
        raise ServerError(f"{server}: it serves no model; start it with the model that the run starts from")
    advice = f"it has to see {policy.directory}, whose model must be of the shape of the one that it serves"

    try:
        can_reload = server.reload(directory, advice=advice)
    except TransientError:
        # Some of its models read the embedding where they need a head, and refuse one.
        if not policy.tied:
            raise
        can_reload = server.reload(policy.directory, advice=advice)
    if not can_reload:
        # Nobody can have replaced the weights of such a server: it has those that it was started with.
        if served[0].get("root") and Path(served[0]["root"]).resolve() == policy.directory:
            return str(served[0]["id"])
        raise ServerError(
            f"{server}: it cannot load the weights in {policy.directory}; start it with VLLM_SERVER_DEV_MODE=1, or with "
            "that directory as its model if only adapters change"
        )
    _forget_prompts(server)
    return str(served[0]["id"])


def _forget_prompts(server: Server) -> None:
    """Have the server let go of keys and values of prompts under the weights before.

    It answers 200 and ``{"success": false}`` while it holds some for a request that it still answers.
    """
    for delay in (*DELAYS_S, None):
        answer = server.json("POST", "/reset_prefix_cache", advice="start it with VLLM_SERVER_DEV_MODE=1")
        if answer.get("success") is True:
            return
        if delay is not None:
            time.sleep(delay)
    raise TransientError(f"{server}: it keeps its prefix cache while it answers others; it serves one run at a time")


def _push_adapter(server: Server, cards: list[dict[str, Any]], policy: PolicyFiles) -> str:
    # An adapter's name says what it holds: one that is there is the right one, and no cache confuses two.
    name = f"{_PREFIX}{policy.digest}"
    loaded = {str(card["id"]) for card in cards}
    if name not in loaded:
        server.need(
            "POST",
            "/v1/load_lora_adapter",
            {"lora_name": name, "lora_path": str(policy.directory)},
            advice=(
                f"start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, where it can see {policy.directory}, "
                "over the model that the adapter belongs to"
            ),
        )
    for other in sorted(loaded - {name}):
        if other.startswith(_PREFIX):
            server.need("POST", "/v1/unload_lora_adapter", {"lora_name": other}, advice="restart it")
    return name


def server_mistakes(urls: Sequence[str]) -> list[str]:
    """A sentence for each server that no run could sample by, asked before anything is spent: one that does not answer or
    is another vLLM than those tested, and one that has two addresses.

    Two addresses with one label lead to one server. A label is set only where nobody has ever pushed weights, so that no
    run that is sampling there notices.
    """
    mistakes, address_of = [], dict[str, str]()
    for url in urls:
        with Server(url) as server:
            try:
                if server.version() is None or (label := server.label()) is None:
                    continue
                if label == _UNLABELLED:
                    server.set_label(label := f"{_PREFIX}{uuid4().hex}")
            except (UserError, TransientError) as error:
                mistakes.append(str(error))
                continue
            if (other := address_of.setdefault(label, server.url)) != server.url:
                mistakes.append(f"{FIELD}: {other} and {server.url} are one server; name it once")
    return mistakes
