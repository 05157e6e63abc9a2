"""Settings: bundled experiments work, a misfit is one line that names the key, and no other error is raised."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import config
from config import SettingsError, UsageError
from config.reader import EXPERIMENTS, MAX_FILE_BYTES
from launch import plan

BUNDLED = sorted(EXPERIMENTS.glob("*.yaml"))
SMALL = """\
name: small
data: {name: digits}
model: {name: mlp}
"""


@pytest.fixture
def write(tmp_path):
    def to_file(text: str | bytes) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return to_file


def refused(path, *overrides: str) -> str:
    """The message of the refusal of a file: one line."""
    with pytest.raises(UsageError) as caught:
        config.load(path, overrides)
    message = str(caught.value)
    assert message and message.isprintable(), message
    return message


# --- bundled experiments -----------------------------------------------------------------------


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_a_bundled_experiment_loads_and_round_trips(path, write):
    experiment = config.load(path)
    assert experiment.name == path.stem, "the file's name is the run's"
    assert config.load(path.stem) == experiment, "found by name"
    assert config.load(write(config.dump(experiment))) == experiment


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_a_bundled_experiment_takes_what_the_launcher_adds(path, tmp_path):
    has_slack = hasattr(config.load(path).mode, "slack")
    overrides = ["run.steps=7", "mode.slack=0" if has_slack else "mode.quorum=1", "run.snapshot_every=0"]
    overrides += ["run.evaluate_every=0"]
    made = plan.make(str(path), str(tmp_path / "run"), workers=5, overrides=overrides)
    resolved = made.settings_at([f"redis://127.0.0.1:{7000 + n}/0" for n in range(5)])
    assert (resolved.workers, resolved.run.steps) == (5, 7)
    assert resolved.mode.slack == 0 if has_slack else resolved.mode.quorum == 1
    assert config.load(path, ["mode.name=local"]).mode.__struct_config__.tag == "local"


def test_settings_of_0_1_are_read_under_their_names_of_today(write):
    old = "mode: {name: partial_exchange, carry: gradients, remote: lump, own: published, hostile: 2}\n"
    new = "mode: {name: partial_exchange, exchange: gradients, own: delayed, byzantine: 2}\n"
    bus = "bus: {strikes: 3, minority: pause, norm_gate: 5}\n", "bus: {offences: 3, norm_gate: 5}\n"
    assert config.load(write(SMALL + old + bus[0])) == config.load(write(SMALL + new + bus[1]))
    with pytest.raises(config.SettingsError, match="mode.carry: unknown key; it is mode.exchange now"):
        config.load(write(SMALL + new), ["mode.carry=parameters"])


def test_a_run_folder_is_an_experiment(tmp_path, write):
    experiment = config.load(write(SMALL))
    (tmp_path / "experiment.yaml").write_text(config.dump(experiment))
    assert config.load(tmp_path) == experiment


# --- misfits -----------------------------------------------------------------------------------

WRONG = {
    "slak: 2": "slak: unknown key; known: ",
    "losss: hinge": "losss: unknown key; did you mean 'loss'?",
    "run: {step: 3}": "run.step: unknown key; did you mean 'steps'?",
    "mode: {name: partial_exchange, slak: 2}": "mode.slak: unknown key; did you mean 'slack'?",
    "mode: {name: local, slack: 2}": "mode.slack: unknown key",
    "mode: {name: partial}": "mode.name: unknown mode 'partial'",
    "mode: {slack: 2}": "mode.name: missing; one of local, partial_exchange",
    "mode: {name: [local]}": "mode.name: unknown mode ['local']",
    "mode: {name: partial_exchange, codec: float61}": "mode.codec: unknown value 'float61'; did you mean 'float16'?",
    "mode: {name: partial_exchange, parts: 0}": "mode.parts: expected int >= 1",
    "mode: {name: partial_exchange, slack: -1}": "mode.slack: expected int >= 0",
    "mode: partial_exchange": "mode: expected object, got str",
    "loss: hinges": "loss: unknown value 'hinges'; did you mean 'hinge'?",
    "seed: one": "seed: expected int, got str",
    "seed: -1": "seed: expected int >= 0",
    "seed: 18446744073709551616": "seed: ",
    "seed: 1.5": "seed: expected int, got float",
    "seed: true": "seed: expected int, got bool",
    "run: {steps: 0}": "run.steps: expected int >= 1",
    "optimiser: {generator_lr: 0}": "optimiser.generator_lr: expected float > 0",
    "optimiser: {generator_lr: .nan}": "optimiser.generator_lr: expected float > 0",
    "optimiser: {generator_lr: .inf}": "optimiser.generator_lr: expected float <= ",
    "optimiser: {betas: [0.5]}": "optimiser.betas: expected array of length 2, got 1",
    "optimiser: {betas: [0.5, 1.0]}": "optimiser.betas[",
    "connect_timeout_s: .inf": "connect_timeout_s: expected float <= ",
    "bus: {lease_s: .inf}": "bus.lease_s: expected float <= ",
    "bus: {lease_s: 0.5}": "bus.lease_s: expected float >= 1",
    "device: gpu": "device: expected auto, cpu, cuda or cuda:N",
    'device: "cpu\\n"': "device: expected auto, cpu, cuda or cuda:N",
    "peers: 0": "peers: expected int >= 1",
    "peers: []": "peers: empty; ",
    "peers: [localhost:6379]": "peers[0]: 'localhost:6379' is no Redis URL; write redis://host:6379",
    "peers: [redis://a, 5]": "peers[1]: expected str, got int",
    "1: 2": "1: unknown key",
    "mode: {name: partial_exchange, remote: hold}": "mode.remote: there is no 'hold' any more",
    "bus: {minority: alone}": "bus.minority: there is no 'alone' any more",
    '"a\\nb\\e[31m": 2': "a b",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_setting_that_does_not_fit(write, line):
    assert refused(write(f"{SMALL}{line}\n")).startswith(WRONG[line])


REPLACED = {
    "name: a b": "name: expected 1 to 64 letters",
    "name: ..": "name: expected 1 to 64 letters",
    'name: "a\\n"': "name: expected 1 to 64 letters",
    "name: 5": "name: expected str, got int",
    "data: {}": "data.name: missing",
    "data: {name: mnits}": "data.name: unknown value 'mnits'; did you mean 'mnist'?",
    "data: {name: digits, batch_size: 0}": "data.batch_size: expected int >= 1",
    "data: {name: digits, split: {kind: classs}}": "data.split.kind: unknown split 'classs'; did you mean 'classes'?",
    "data: {name: digits, split: {kind: classes}}": "data.split.groups: missing",
    "data: {name: digits, split: {kind: classes, groups: []}}": "data.split.groups: every group",
    "data: {name: digits, split: {kind: classes, groups: [[1], []]}}": "data.split.groups: every group",
    "data: {name: digits, split: {kind: classes, groups: [[1], [2]]}}": "data.split.groups: 2 groups for 1 workers",
    "data: {name: digits, split: {kind: classes, groups: [[1], [x]]}}": "data.split.groups[",
    "data: digits": "data: expected object, got str",
    "model: {name: dcgna}": "model.name: unknown model 'dcgna'; did you mean 'dcgan'?",
    "model: {name: dcgan, image_size: 33}": "model.image_size: ",
    "model: {name: dcgan, width: 1000000000000}": "model.width: expected int <= ",
    "model: {name: mlp, width: 3}": "model.width: unknown key",
    "model:": "model: ",
}


@pytest.mark.parametrize("line", REPLACED)
def test_a_required_setting_that_does_not_fit(write, line):
    key = line.partition(":")[0]
    rest = [own for own in SMALL.splitlines() if not own.startswith(key)]
    assert refused(write("\n".join([*rest, line, ""]))).startswith(REPLACED[line])


@pytest.mark.parametrize("key", ["name", "data", "model"])
def test_a_required_setting_that_is_missing(write, key):
    rest = [own for own in SMALL.splitlines() if not own.startswith(key)]
    # A classifier may be in place of a model.
    more = "; give a GAN as model or a classifier as classifier" if key == "model" else ""
    assert refused(write("\n".join(rest))) == f"{key}: missing{more}"


def test_points_have_no_images(write):
    path = write(SMALL)
    assert "gaussian-ring" in refused(path, "data.name=gaussian-ring", "model.name=dcgan")
    assert config.load(path, ["data.name=gaussian-ring"]).data.name == "gaussian-ring"


# --- the file ----------------------------------------------------------------------------------

NO_EXPERIMENT = {
    "not YAML": ("a: [", "not valid YAML"),
    "a tab": ("a:\n\t- b", "not valid YAML"),
    "a list": ("- a", "expected a mapping of settings, found list"),
    "empty": ("", "expected a mapping of settings, found NoneType"),
    "a word": ("hello", "expected a mapping of settings, found str"),
    "an alias": ("a: &x [1]\nb: *x", "aliases"),
    "a merge": ("a: &x {b: 1}\nc: {<<: *x}", "aliases"),
    "an object": ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    "a tag without a value": ('a: !!int ""', "not valid YAML"),
    "a bad time": ("a: !!timestamp x", "not valid YAML"),
    "a number of many digits": (f"seed: {'9' * 5000}", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2", "not valid YAML"),
    "deep": ("[" * 5000, "not valid YAML"),
    "huge": ("#" * (MAX_FILE_BYTES + 1), "no experiment file"),
    "not UTF-8": (b"name: \xff", "cannot read"),
    "control characters": (b"name: \x00", "not valid YAML"),
}


@pytest.mark.parametrize("kind", NO_EXPERIMENT)
def test_a_file_that_is_no_experiment(write, kind):
    text, message = NO_EXPERIMENT[kind]
    assert message in refused(write(text))


@pytest.mark.parametrize("name", ["no-such-file.yaml", "nosuch", "a\0b", "", "x" * 5000])
def test_a_missing_file_lists_what_is_bundled(name):
    message = refused(name)
    assert "cannot read" in message or all(path.stem in message for path in BUNDLED)
    assert "demo" in refused("nosuch")


def test_exponents_are_numbers(write):
    path = write(SMALL)
    for text, value in (("2e-4", 2e-4), ("1E-3", 1e-3), (".5e-2", 5e-3), ("1.e-2", 1e-2), ("+3e-4", 3e-4)):
        assert config.load(path, [f"optimiser.generator_lr={text}"]).optimiser.generator_lr == value
    assert config.parse("[2e-4, '2e-4', e4, 2e, 0x10]") == [2e-4, "2e-4", "e4", "2e", 16]


# --- overrides ---------------------------------------------------------------------------------


def test_overrides(write):
    path = write(f"{SMALL}mode: {{name: partial_exchange, slack: 1, codec: raw}}\n")
    found = config.load(path, ["mode.slack=null", "optimiser.betas=[0, 0.9]", "run.steps=3", "name=other"])
    assert found.mode.slack is None and found.optimiser.betas == (0.0, 0.9)
    assert found.run.steps == 3 and found.name == "other"
    assert config.load(path, ["run.steps=3", "run.steps=4"]).run.steps == 4, "the last one counts"
    assert config.load(path, ["peers=[redis://a, 'unix:///tmp/x']"]).workers == 2
    assert config.load(path, ["data={name: mnist}"]).data.name == "mnist"


def test_another_kind_drops_the_keys_that_it_does_not_have(write):
    path = write(f"{SMALL}mode: {{name: partial_exchange, slack: 1, updates: alternating}}\n")
    found = config.load(path, ["mode.name=local"])
    assert found.mode.__struct_config__.tag == "local" and found.mode.updates == "alternating"
    # The order makes no difference: the tag decides which other keys the block has.
    split = ["data.split.alpha=0.2", "data.split.kind=dirichlet", "model.width=8", "model.name=dcgan"]
    found = config.load(path, [*split, "model.image_size=64"])
    assert found.data.split.alpha == 0.2 and found.model.width == 8
    assert "model.hidden: unknown key" in refused(path, "model.name=dcgan", "model.hidden=8")
    # A key of the last kind stays, wherever it stands in the list.
    assert config.load(path, ["mode.slack=0", "mode.name=local", "mode.name=partial_exchange"]).mode.slack == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set steps: expected a.b=value"),
        ("=3", "--set =3: expected a.b=value"),
        ("run.stebs=3", "run.stebs: unknown key; did you mean 'steps'?"),
        ("name.x=3", "name.x: name is a plain value, not a block"),
        ("run.steps.x=3", "run.steps.x: "),
        ("run..steps=3", "run.: unknown key"),
        ("run.steps=[", "--set run.steps: not valid YAML"),
        ("run.steps=", "run.steps: expected int, got null"),
        ("run=", "run: expected object, got null"),
        ("run.steps=\udcff", "--set run.steps: "),
        ("mode.name=nosuch", "mode.name: unknown mode 'nosuch'"),
    ],
)
def test_an_override_that_does_not_fit(write, override, message):
    assert refused(write(f"{SMALL}run: {{steps: 5}}\n"), override).startswith(message)


# --- arbitrary input ---------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["name", "seed", "peers", "data", "model", "mode", "run", "bus", "optimiser", "split", "kind", "groups", "slack"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["mlp", "digits", "local", "iid", "classes", "partial_exchange", "2e-4", "redis://h", "nan"]),
    st.dates(),
    st.binary(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5) | st.integers(), inner),
    max_leaves=12,
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def loads_or_refuses(text: bytes | str, folder: Path) -> None:
    path = folder / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    try:
        experiment = config.load(path)
    except UsageError as error:
        assert str(error).isprintable()
    else:
        path.write_text(config.dump(experiment))
        assert config.load(path) == experiment


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_an_experiment_or_a_line(tmp_path_factory, text):
    loads_or_refuses(text, tmp_path_factory.getbasetemp())


@quick
@given(st.text(alphabet=string.printable + "é\x85\u2028\ufeff", max_size=120))
def test_any_text_is_an_experiment_or_a_line(tmp_path_factory, text):
    loads_or_refuses(text, tmp_path_factory.getbasetemp())


@quick
@given(st.dictionaries(KEYS, VALUES))
def test_any_values_are_an_experiment_or_a_line(tmp_path_factory, values):
    data = {"name": "any", "data": {"name": "digits"}, "model": {"name": "mlp"}, **values}
    loads_or_refuses(yaml.safe_dump(data), tmp_path_factory.getbasetemp())


@quick
@given(st.lists(st.tuples(KEYS, st.text(max_size=6), st.text(max_size=10)), max_size=3))
def test_any_overrides_are_taken_or_refused(overrides):
    try:
        config.load("smoke", [f"{block}.{key}={value}" for block, key, value in overrides])
    except UsageError as error:
        assert str(error).isprintable()


@quick
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True))
def test_any_name_survives_being_written_down(name):
    experiment = config.build({"name": name, "data": {"name": "digits"}, "model": {"name": "mlp"}})
    assert config.build(config.parse(config.dump(experiment))) == experiment


def test_parameters_without_a_bound_have_a_fixed_number_of_parts(write):
    path = write(SMALL + "mode: {name: partial_exchange, exchange: parameters, parts: auto, slack: null}\n")
    assert refused(path).startswith("mode.parts: auto changes the number of parts")
    assert config.load(path, ["mode.exchange=gradients"]).mode.parts == "auto"


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["mode.sampling=balanced", "mode.share_histograms=false"], "mode.sampling: balanced needs to know"),
        (["mode.weighting=kl", "mode.share_histograms=false"], "mode.weighting: kl needs to know"),
        (["bus.min_peers=4"], "bus.min_peers: 4, but a worker of this experiment has only 3 peers"),
        (["mode.cohort=5"], "mode.cohort: 5 workers a round, but there are only 4 workers"),
        (["mode.cohort=4", "mode.leader_trains=false"], "mode.cohort: 4 workers a round, but there are only 4"),
        (["mode.fraction=1.5"], "mode.fraction: expected float <= 1.0"),
        (["mode.leaders=[0, 7]"], "mode.leaders: 7 is no worker; there are 0 to 3"),
        (["mode.leaders=5"], "mode.leaders: 5 leaders, but there are only 4 workers"),
        (["mode.leaders=[1, 1]"], "mode.leaders: name at least one worker, and each only once"),
        (["mode.leaders=[]"], "mode.leaders: name at least one worker"),
        (["mode.deadline.floor_s=500"], "mode.deadline: floor_s is above ceiling_s"),
        (["peers=1", "mode.leader_trains=false"], "mode.leader_trains: the only worker leads"),
        (["mode.codec=topk"], "mode.codec: unknown value 'topk'"),
        (["peers=1", "mode.name=multi_discriminator", "mode.swap_every=1"], "mode.swap_every: one worker has nobody"),
        (["mode.name=multi_discriminator", "mode.batches=9"], "mode.batches: 9 batches for 4 that judge"),
        (["mode.name=multi_discriminator", "mode.leaders=[9]"], "mode.leaders: 9 is no worker"),
    ],
)
def test_leader_settings_that_cannot_work_are_refused(write, overrides, message):
    path = write(SMALL + "peers: 4\nmode: {name: federated}\n")
    assert refused(path, *overrides).startswith(message)


@pytest.mark.parametrize(
    "mode, overrides, message",
    [
        ("partial_exchange", ["mode.slack=null"], "mode.reduce: median chooses among what all have published by the"),
        (
            "partial_exchange",
            ["mode.exchange=gradients"],
            "mode.reduce: median chooses among what all have published, and",
        ),
        (
            "partial_exchange",
            ["mode.reduce=trimmed_mean", "mode.byzantine=2"],
            "mode.byzantine: of 4 workers fewer than",
        ),
        ("partial_exchange", ["mode.reduce=krum"], "mode.reduce: unknown value 'krum'"),
        ("federated", ["mode.optimiser_state=average"], "mode.reduce: median is for models"),
        ("federated", ["mode.reduce=sum"], "mode.reduce: unknown value 'sum'"),
        ("multi_discriminator", ["mode.reduce=trimmed_mean", "mode.byzantine=2"], "mode.byzantine: of 4 workers"),
        ("multi_discriminator", ["bus.norm_gate=0.5"], "bus.norm_gate: below 1"),
    ],
)
def test_robust_rule_settings_that_cannot_work_are_refused(write, mode, overrides, message):
    path = write(SMALL + f"peers: 4\nmode: {{name: {mode}, reduce: median}}\n")
    assert config.load(path).mode.reduce == "median"
    assert refused(path, *overrides).startswith(message)


@pytest.mark.parametrize("own", ["immediate", "delayed"])
def test_alternating_updates_with_gradients_are_refused(write, own):
    path = write(SMALL + f"mode: {{name: partial_exchange, exchange: gradients, own: {own}, updates: alternating}}\n")
    line = refused(path)
    assert line.startswith("mode.updates: alternating trains the generator against the discriminator")
    assert line.endswith("set mode.exchange: parameters, or updates: simultaneous")
    assert config.load(path, ["mode.exchange=parameters"]).mode.updates == "alternating"
    assert config.load(path, ["mode.updates=simultaneous"]).mode.exchange == "gradients"


def test_settings_errors_are_usage_errors():
    assert issubclass(SettingsError, UsageError)
