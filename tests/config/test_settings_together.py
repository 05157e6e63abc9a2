"""Settings that do not fit together are refused by their key, and experiments one step away from that are accepted."""

from __future__ import annotations

from typing import Any

import pytest

import config
from config import SettingsError, UsageError
from config.reader import MAX_FILE_BYTES
from tests.leaves import SMALLEST

Words = dict[str, Any]


def build(mode: str = "partial_exchange", peers: Any = 4, **some: Any) -> config.Experiment:
    """An experiment; `mode__slack=2` is `mode.slack: 2`."""
    data = {**SMALLEST, "peers": peers, "mode": {"name": mode}}
    for path, value in some.items():
        block, _, key = path.partition("__")
        data[block] = {**data.get(block, {}), key: value}
    return config.build(data)


PARAMETERS = {"mode__exchange": "parameters"}
GRADIENTS = {"mode__exchange": "gradients"}
PUBLISHED = {**GRADIENTS, "mode__own": "delayed"}
NO_SLACK = {"mode__slack": None}
FED, MD = {"mode": "federated"}, {"mode": "multi_discriminator"}
# The refused settings, the beginning of the message, and the accepted settings next to them.
TOGETHER: list[tuple[Words, str, tuple[Words, ...]]] = [
    *(
        (
            {**PARAMETERS, **NO_SLACK, "mode__codec": codec},
            f"mode.codec: {codec} carries differences",
            (
                {**PARAMETERS, "mode__slack": 0, "mode__codec": codec},
                {**GRADIENTS, **NO_SLACK, "mode__codec": codec},
                *({**PARAMETERS, **NO_SLACK, "mode__codec": other} for other in ("raw", "float16", "bfloat16")),
            ),
        )
        for codec in ("int8", "topk", "sign")
    ),
    (
        {**PARAMETERS, **NO_SLACK, "mode__parts": "auto"},
        "mode.parts: auto changes",
        (
            {**PARAMETERS, "mode__slack": 0, "mode__parts": "auto"},
            {**GRADIENTS, **NO_SLACK, "mode__parts": "auto"},
            {**PARAMETERS, **NO_SLACK, "mode__parts": 1024},
        ),
    ),
    (
        {**PUBLISHED, **NO_SLACK},
        "mode.own: delayed applies what all have published by the bound",
        ({**PUBLISHED, "mode__slack": 0}, {**PARAMETERS, **NO_SLACK, "mode__own": "delayed"}),
    ),
    *(
        (
            {**some, "mode__updates": "alternating"},
            "mode.updates: alternating trains the generator against the discriminator that has just been updated",
            (
                {**some, "mode__updates": "simultaneous"},
                {**some, **PARAMETERS, "mode__updates": "alternating"},
                {**PARAMETERS, **NO_SLACK, "mode__updates": "alternating"},
                {"mode": "local", "mode__updates": "alternating"},
            ),
        )
        for some in (GRADIENTS, PUBLISHED, {**GRADIENTS, **NO_SLACK}, {**GRADIENTS, "peers": 1})
    ),
    (
        {"peers": 3, "bus__min_peers": 3},
        "bus.min_peers: 3, but a worker of this experiment has only 2 peers",
        ({"peers": 3, "bus__min_peers": 2},),
    ),
    (
        {"peers": 1, "bus__min_peers": 1},
        "bus.min_peers: 1, but a worker of this experiment has only 0",
        ({"peers": 1},),
    ),
    # --- robust rules
    *(
        (
            {**mode, "mode__reduce": "trimmed_mean", "mode__byzantine": 2},
            "mode.byzantine: of 4 workers fewer than half can be borne, not 2",
            (
                {**mode, "mode__reduce": "trimmed_mean", "mode__byzantine": 1},
                {**mode, "mode__reduce": "trimmed_mean", "mode__byzantine": 2, "peers": 5},
                {**mode, "mode__reduce": "median", "mode__byzantine": 2},
                {**mode, "mode__reduce": "mean", "mode__byzantine": 2},
            ),
        )
        for mode in (PARAMETERS, PUBLISHED, FED, MD)
    ),
    (
        {**FED, "mode__codec": "float16", "mode__optimiser_state": "average"},
        "mode.codec: float16 makes zeros of Adam's second moments",
        (
            {**FED, "mode__codec": "bfloat16", "mode__optimiser_state": "average"},
            {**FED, "mode__codec": "raw", "mode__optimiser_state": "average"},
            {**FED, "mode__codec": "float16", "mode__optimiser_state": "keep"},
            {**FED, "mode__codec": "float16", "mode__optimiser_state": "average", "optimiser__algorithm": "sgd"},
        ),
    ),
    *(
        refusal
        for rule in ("clipped_mean", "median", "trimmed_mean", "centered_clip")
        for refusal in (
            (
                {**FED, "mode__reduce": rule, "mode__optimiser_state": "average"},
                f"mode.reduce: {rule} is for models",
                (
                    {**FED, "mode__reduce": rule, "mode__optimiser_state": "keep"},
                    {**FED, "mode__reduce": rule, "mode__optimiser_state": "reset"},
                    {**FED, "mode__reduce": "mean", "mode__optimiser_state": "average"},
                ),
            ),
            (
                {**PARAMETERS, **NO_SLACK, "mode__reduce": rule},
                f"mode.reduce: {rule} chooses among what all have published by the bound",
                (
                    {**PARAMETERS, "mode__slack": 0, "mode__reduce": rule},
                    {**PARAMETERS, **NO_SLACK, "mode__reduce": "sum"},
                ),
            ),
            (
                {**GRADIENTS, "mode__reduce": rule},
                f"mode.reduce: {rule} chooses among what all have published, and with own: immediate",
                ({**PUBLISHED, "mode__reduce": rule}, {**GRADIENTS, "mode__reduce": "sum"}),
            ),
        )
    ),
    *(
        (
            {**mode, "bus__norm_gate": 0.5},
            "bus.norm_gate: below 1",
            ({**mode, "bus__norm_gate": 0}, {**mode, "bus__norm_gate": 1}),
        )
        for mode in (PARAMETERS, FED, MD, {"mode": "local"})
    ),
    # --- leaders
    *(
        refusal
        for mode in (FED, MD)
        for refusal in (
            (
                {**mode, "mode__leaders": 5},
                "mode.leaders: 5 leaders, but there are only 4 workers",
                ({**mode, "mode__leaders": 4},),
            ),
            (
                {**mode, "mode__leaders": [3, 4]},
                "mode.leaders: 4 is no worker; there are 0 to 3",
                ({**mode, "mode__leaders": [3, 0]},),
            ),
            (
                {**mode, "mode__leaders": [1, 1]},
                "mode.leaders: name at least one worker",
                ({**mode, "mode__leaders": [1, 0]},),
            ),
            (
                {**mode, "mode__leaders": []},
                "mode.leaders: name at least one worker",
                ({**mode, "mode__leaders": [0]},),
            ),
            (
                {**mode, "mode__leader_trains": False, "peers": 1},
                "mode.leader_trains: the only worker leads",
                ({**mode, "mode__leader_trains": False, "peers": 2}, {**mode, "mode__leader_trains": True, "peers": 1}),
            ),
            (
                {**mode, "mode__deadline": {"floor_s": 5.0, "ceiling_s": 4.9}},
                "mode.deadline: floor_s is above ceiling_s",
                ({**mode, "mode__deadline": {"floor_s": 5.0, "ceiling_s": 5.0}},),
            ),
        )
    ),
    (
        {**FED, "mode__cohort": 5},
        "mode.cohort: 5 workers a round, but there are only 4 workers",
        ({**FED, "mode__cohort": 4},),
    ),
    (
        {**FED, "mode__cohort": 4, "mode__leader_trains": False},
        "mode.cohort: 4 workers a round, but there are only 4 workers, and the leader does not train",
        ({**FED, "mode__cohort": 3, "mode__leader_trains": False},),
    ),
    *(
        (
            {**FED, **proposal, "mode__share_histograms": False},
            message,
            ({**FED, **proposal}, {**FED, "mode__weighting": "uniform", "mode__share_histograms": False}),
        )
        for proposal, message in (
            ({"mode__weighting": "kl"}, "mode.weighting: kl needs to know"),
            ({"mode__sampling": "balanced"}, "mode.sampling: balanced needs to know"),
            ({"mode__sampling": "balanced", "mode__weighting": "kl"}, "mode.sampling: balanced needs to know"),
        )
    ),
    (
        {**MD, "peers": 1, "mode__swap_every": 0.5},
        "mode.swap_every: one worker has nobody",
        tuple({**MD, "peers": peers, "mode__swap_every": every} for peers, every in ((1, 0), (1, None), (2, 0.5))),
    ),
    (
        {**MD, "mode__batches": 5},
        "mode.batches: 5 batches for 4 that judge",
        ({**MD, "mode__batches": 4}, {**MD, "mode__batches": 5, "peers": 5}),
    ),
    (
        {**MD, "mode__batches": 4, "mode__leader_trains": False},
        "mode.batches: 4 batches for 3 that judge",
        (
            {**MD, "mode__batches": 3, "mode__leader_trains": False},
            {**MD, "mode__batches": "log", "mode__leader_trains": False},
        ),
    ),
    # --- data
    (
        {"data__split": {"kind": "classes", "groups": [[0]] * 5}},
        "data.split.groups: 5 groups for 4 workers",
        ({"data__split": {"kind": "classes", "groups": [[0]] * 4}},),
    ),
    *(
        (
            {"data__name": "gaussian-ring", "model__name": model},
            "model.name: gaussian-ring has points, not images; use mlp",
            ({"data__name": "gaussian-ring", "model__name": "mlp"}, {"data__name": "mnist", "model__name": model}),
        )
        for model in ("lsgan", "dcgan", "degan")
    ),
    # --- addresses
    (
        {"peers": ["redis://a", "redis://b:1:2"]},
        "peers[1]: 'redis://b:1:2' is no Redis URL",
        ({"peers": ["redis://a", "redis://b:1"]},),
    ),
    ({"peers": ["redis://a:65536"]}, "peers[0]: 'redis://a:65536' is no Redis URL", ({"peers": ["redis://a:65535"]},)),
    (
        {"peers": ["redis:/a"]},
        "peers[0]: 'redis:/a' is no Redis URL; write redis://host:6379",
        ({"peers": ["unix:///a"]},),
    ),
]


@pytest.mark.parametrize(("refused", "message", "taken"), TOGETHER, ids=[row[1].partition(" ")[0] for row in TOGETHER])
def test_settings_that_do_not_fit_together(refused, message, taken):
    with pytest.raises(SettingsError) as caught:
        build(**refused)
    assert str(caught.value).startswith(message) and str(caught.value).isprintable()
    for words in taken:
        build(**words)


def test_a_password_in_an_address_that_is_none_is_not_shown():
    for url in ("redis://me:geheim@host:x", "redis://me:ge/heim@host", "redis://me:geheim@host:99999"):
        with pytest.raises(SettingsError) as caught:
            build(peers=[url])
        assert "heim" not in str(caught.value) and str(caught.value).startswith("peers[0]: 'redis://host")


# --- the file ----------------------------------------------------------------------------------


def test_the_places_of_an_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundled = config.load("smoke")
    for name in ("smoke.yaml", "config/experiments/smoke", "config/experiments/smoke.yaml"):
        assert config.load(name) == bundled
    for name in ("elsewhere/smoke", "elsewhere/smoke.yaml", "smoke.yml"):
        with pytest.raises(UsageError, match="no experiment file"):
            config.load(name)
    # A person's own file comes before the bundled one, and so does a run folder.
    text = config.dump(bundled).replace("name: smoke", "name: mine")
    (tmp_path / "smoke.yaml").write_text(text)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.yaml").write_text(text)
    assert {config.load(name).name for name in ("smoke.yaml", "run")} == {"mine"} and config.load(
        "smoke"
    ).name == "smoke"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no experiment file"):
        config.load("empty")


def test_a_file_of_the_largest_size_is_read(tmp_path):
    path, text = tmp_path / "large.yaml", config.dump(config.load("smoke"))
    path.write_text(text + "#" * (MAX_FILE_BYTES - len(text)))
    assert config.load(path).name == "smoke"
    path.write_text(text + "#" * (MAX_FILE_BYTES - len(text) + 1))
    with pytest.raises(SettingsError, match=f"larger than {MAX_FILE_BYTES} bytes"):
        config.load(path)


# --- a GAN or a classifier ----------------------------------------------------------------------


def classified(**more):
    return config.build(
        {"name": "small", "peers": 2, "data": {"name": "digits"}, "classifier": {"name": "mlp"}, **more}
    )


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"model": {"name": "mlp"}}, "classifier: an experiment trains a GAN or a classifier; take out model or"),
        ({"classifier": None}, "model: missing; give a GAN as model or a classifier as classifier"),
        ({"mode": {"name": "multi_discriminator"}}, "mode.name: multi_discriminator trains a GAN; give model"),
        (
            {"mode": {"name": "local", "updates": "alternating"}},
            "mode.updates: alternating is for a GAN's two networks",
        ),
        ({"mode": {"name": "partial_exchange", "updates": "alternating"}}, "mode.updates: alternating is for a GAN's"),
        (
            {"mode": {"name": "federated", "order": "discriminator_first"}},
            "mode.order: discriminator_first is for a GAN",
        ),
        ({"loss": "hinge"}, "loss: belongs to GANs; a classifier learns by cross entropy"),
        ({"regularisation": {"r1_gamma": 1.0}}, "regularisation: belongs to GANs; a classifier learns by cross"),
        (
            {"data": {"name": "gaussian-ring"}, "classifier": {"name": "resnet"}},
            "classifier.name: gaussian-ring has points, not images; use mlp",
        ),
    ],
)
def test_settings_that_a_classifier_cannot_be_trained_with(more, line):
    with pytest.raises(SettingsError) as caught:
        classified(**more)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["local", "partial_exchange", "federated"])
def test_a_classifier_is_trained_in_every_mode_that_exchanges_vectors(name):
    found = classified(mode={"name": name})
    assert found.model is None and found.image_size == 28
    text = config.dump(found)
    assert "model:" not in text and config.build(config.parse(text)) == found
    agreed = config.agreed(found)
    assert agreed["classifier.name"] == "mlp" and agreed["optimiser.lr"] == 1e-3
    assert not any(key.startswith(("model", "loss", "regularisation")) for key in agreed)
    assert not {"optimiser.generator_lr", "optimiser.discriminator_lr", "optimiser.ema_decay"} & agreed.keys()


def test_the_agreement_of_gans_is_that_from_before_classifiers():
    found = config.load("smoke")
    assert found.classifier is None and "classifier" not in config.dump(found)
    assert not {"classifier", "optimiser.lr"} & config.agreed(found).keys()
