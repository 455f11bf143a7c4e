"""What a run logs, against the declarations of its metrics."""

from tasks.metrics.declared.glossary import GLOSSARY, LOGGED_BY, declaration
from tasks.metrics.declared.metric import STDERR

# This run samples with the trainer itself.
OF_OTHER_RUNS = {
    "rollouts/engine_logprob_difference",
    "rollouts/engine_logprob_max_difference",
    "update/importance_mean",
    "update/importance_capped",
    "update/sampling_approx_kl",
}
# Told to MLflow alone, from the manifests' own seconds.
OF_PUBLISHING = {"seconds/<stage>"}


def test_every_metric_that_a_stage_logs_is_declared_by_it(home, tiny):
    found = [
        (manifest["recipe"]["stage"], name) for manifest in home.stages(tiny).values() for name in manifest["metrics"]
    ]
    assert len({name for _, name in found}) > 50
    assert [(stage, name) for stage, name in found if declaration(name) not in LOGGED_BY[stage]] == []


def test_every_metric_that_is_declared_is_logged(home, tiny):
    names = {name for manifest in home.stages(tiny).values() for name in manifest["metrics"]}
    found = {declaration(name).name for name in names}
    assert set(GLOSSARY) - found == OF_OTHER_RUNS | OF_PUBLISHING


def test_the_standard_errors_that_are_declared_are_logged(home, tiny):
    names = {name for manifest in home.stages(tiny).values() for name in manifest["metrics"]}
    found = {declaration(name).name for name in names if name.endswith(STDERR)}
    assert found == {name for name, metric in GLOSSARY.items() if metric.has_stderr}


def test_a_number_is_logged_by_one_stage_alone(home, tiny):
    # All outputs of an iteration, or of a round, are combined: a number that two stages log would count twice.
    stages = {}
    for manifest in home.stages(tiny).values():
        for name in manifest["metrics"]:
            stages.setdefault(name, set()).add(manifest["recipe"]["stage"])
    assert [name for name, own in stages.items() if len(own) > 1] == ["health/warnings"]
